// The quad around a splat's ellipse, and what a splat adds to a pixel by either rule.

override DISCARD: u32 = 0u;  // 1: a quad's corners are discarded; 0: they are blended as nothing

const MOST_ALPHA = 0.99;

struct Corner {
  @builtin(position) place: vec4f,
  @location(0) offset: vec2f,                             // in units of the ellipse
  @location(1) @interpolate(flat, either) shade: vec4f,   // colour and weight, multiplied or not
  @location(2) @interpolate(flat, either) opacity: f32,
}

// A splat that is ready to be drawn: the half axes of its quad in pixels.
struct Quad {
  mean: vec2f,
  major: vec2f,
  minor: vec2f,
  opacity: f32,
  shade: vec4f,
}

// The half axes of the ellipse on which alpha is 1/255, from the eigenvectors of its covariance.
fn half_axes(covariance: vec3f, opacity: f32) -> vec4f {
  let middle = 0.5 * (covariance.x + covariance.z);
  let half = 0.5 * (covariance.x - covariance.z);
  let radius = sqrt(half * half + covariance.y * covariance.y);
  var direction = vec2f(1.0, 0.0);
  if (radius > 1e-6 * middle) {
    if (half > 0.0) {
      direction = normalize(vec2f(half + radius, covariance.y));
    } else {
      direction = normalize(vec2f(covariance.y, radius - half));
    }
  }
  let lengths = sqrt(squared_reach(opacity) * vec2f(middle + radius, max(middle - radius, LOW_PASS)));
  return vec4f(lengths.x * direction, lengths.y * vec2f(-direction.y, direction.x));
}

fn corner_of(quad: Quad, vertex: u32) -> Corner {
  let side = vec2f(f32(vertex & 1u), f32(vertex >> 1u)) * 2.0 - 1.0;
  let pixel = quad.mean + side.x * quad.major + side.y * quad.minor;
  var corner: Corner;
  corner.place = vec4f(pixel / camera.frame.xy * vec2f(2.0, -2.0) + vec2f(-1.0, 1.0), 0.0, 1.0);
  corner.offset = side * sqrt(squared_reach(quad.opacity));
  corner.shade = quad.shade;
  corner.opacity = quad.opacity;
  return corner;
}

// All corners at one place: nothing is drawn.
fn no_corner() -> Corner {
  var corner: Corner;
  corner.place = vec4f(2.0, 2.0, 0.0, 1.0);
  return corner;
}

// The opacity of a pixel, 0 where it is below 1/255: in the corners of the quad.
fn alpha_at(offset: vec2f, opacity: f32) -> f32 {
  let alpha = opacity * exp(-0.5 * dot(offset, offset));
  return select(0.0, alpha, alpha >= LEAST_ALPHA);
}

@fragment
fn add_weighted(corner: Corner) -> @location(0) vec4f {
  let alpha = alpha_at(corner.offset, corner.opacity);
  if (DISCARD == 1u && alpha == 0.0) {
    discard;
  }
  return alpha * corner.shade;
}

@fragment
fn lay_over(corner: Corner) -> @location(0) vec4f {
  let alpha = alpha_at(corner.offset, corner.opacity);
  if (DISCARD == 1u && alpha == 0.0) {
    discard;
  }
  let kept = min(alpha, MOST_ALPHA);
  return vec4f(kept * corner.shade.rgb, kept);
}
