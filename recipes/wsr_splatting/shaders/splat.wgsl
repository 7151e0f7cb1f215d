// A splat as a camera sees it: projection, spherical harmonics, opacity and weight.
// The frame's program puts this before every shader that projects splats.

override SPLATS: u32 = 0u;
override HARMONICS: u32 = 1u;      // coefficients of a splat: (degree + 1)^2
override RULE: u32 = 0u;           // 0 sorted, 1 DIR, 2 EXP, 3 LC
override SIGMA: f32 = 10.0;
override BETA: f32 = 1.0;
override WEIGHT_SCALE: f32 = 1.0;  // of all weights: keeps their sums in a half float's range
override MOST_FACTOR: f32 = 1.0;   // no direction gives a splat's opacity a larger factor

const NEAR = 0.2;
const LOW_PASS = 0.3;
const LEAST_ALPHA = 1.0 / 255.0;
const RECORD = 10u;  // floats of a splat in `geometry`: position, opacity, xx, xy, xz, yy, yz, zz

struct Camera {
  frame: vec4f,       // width, height
  view: mat4x4f,      // world -> camera; its rows are WGSL's columns, so it stands on the right
  intrinsics: vec4f,  // fx, fy, cx, cy in pixels
}

struct Projected {
  visible: bool,
  depth: f32,
  mean: vec2f,        // pixels
  covariance: vec3f,  // xx, xy, yy in square pixels
  opacity: f32,       // towards this camera; may be above 1
  colour: vec3f,
}

@group(0) @binding(0) var<uniform> camera: Camera;
@group(0) @binding(1) var<storage, read> geometry: array<f32>;
@group(0) @binding(2) var<storage, read> harmonics: array<vec2u>;  // r, g, b, u as four halfs

// The square of an ellipse's reach, in units of the ellipse: there alpha is 1/255.
fn squared_reach(opacity: f32) -> f32 {
  return 2.0 * log(max(opacity * 255.0, 1.0));
}

fn project(index: u32) -> Projected {
  var seen: Projected;
  let at = index * RECORD;
  let world = vec3f(geometry[at], geometry[at + 1u], geometry[at + 2u]);
  let p = (vec4f(world, 1.0) * camera.view).xyz;
  let base = geometry[at + 3u];
  seen.depth = p.z;
  if (p.z <= NEAR || (RULE == 3u && p.z >= SIGMA) || base * MOST_FACTOR < LEAST_ALPHA) {
    return seen;
  }
  seen.mean = camera.intrinsics.xy * p.xy / p.z + camera.intrinsics.zw;
  seen.covariance = projected_covariance(at, p);
  // An ellipse spans sqrt(xx), sqrt(yy) times its reach. Here its largest reach: the opacity
  // towards this camera is not known yet, and reading the harmonics is what costs.
  let half_size = sqrt(squared_reach(base * MOST_FACTOR) * seen.covariance.xz);
  if (any(seen.mean + half_size < vec2f(0.0)) || any(seen.mean - half_size > camera.frame.xy)) {
    return seen;
  }
  let light = shaded(index, normalize(world - camera_centre()));
  seen.colour = max(light.rgb + 0.5, vec3f(0.0));
  seen.opacity = base * light.a;
  seen.visible = seen.opacity >= LEAST_ALPHA;
  return seen;
}

// J W Sigma W^T J^T + 0.3 I: the first-order projection of a Gaussian (Zwicker et al., EWA volume
// splatting, 2001), its slope clamped a little outside the frame.
fn projected_covariance(at: u32, p: vec3f) -> vec3f {
  let f = camera.intrinsics.xy;
  let c = camera.intrinsics.zw;
  let size = camera.frame.xy;
  let least = -(c / f + 0.15 * size / f);
  let most = (size - c) / f + 0.15 * size / f;
  let t = clamp(p.xy / p.z, least, most);
  let forward = camera.view[2].xyz;
  let across = (f.x / p.z) * (camera.view[0].xyz - t.x * forward);
  let down = (f.y / p.z) * (camera.view[1].xyz - t.y * forward);
  let sigma = mat3x3f(
    geometry[at + 4u], geometry[at + 5u], geometry[at + 6u],
    geometry[at + 5u], geometry[at + 7u], geometry[at + 8u],
    geometry[at + 6u], geometry[at + 8u], geometry[at + 9u],
  );
  let sigma_across = sigma * across;
  let sigma_down = sigma * down;
  return vec3f(
    dot(across, sigma_across) + LOW_PASS, dot(across, sigma_down), dot(down, sigma_down) + LOW_PASS,
  );
}

fn camera_centre() -> vec3f {
  let v = camera.view;
  return -(v[0].xyz * v[0].w + v[1].xyz * v[1].w + v[2].xyz * v[2].w);
}

fn coefficient(index: u32, k: u32) -> vec4f {
  let packed = harmonics[index * HARMONICS + k];
  return vec4f(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

// Colour (rgb, without its offset) and the opacity's factor (a) towards a direction: real spherical
// harmonics up to degree 3, signs as 3D Gaussian splatting's files have them.
fn shaded(i: u32, d: vec3f) -> vec4f {
  var sum = 0.28209479177387814 * coefficient(i, 0u);
  if (HARMONICS > 1u) {
    sum += 0.4886025119029199 * (
      d.z * coefficient(i, 2u) - d.y * coefficient(i, 1u) - d.x * coefficient(i, 3u)
    );
  }
  if (HARMONICS > 4u) {
    let s = d * d;
    sum += 1.0925484305920792 * (
      d.x * d.y * coefficient(i, 4u) - d.y * d.z * coefficient(i, 5u) - d.x * d.z * coefficient(i, 7u)
    );
    sum += 0.31539156525252005 * (2.0 * s.z - s.x - s.y) * coefficient(i, 6u);
    sum += 0.5462742152960396 * (s.x - s.y) * coefficient(i, 8u);
  }
  if (HARMONICS > 9u) {
    let s = d * d;
    sum += 0.5900435899266435 * (
      d.x * (3.0 * s.y - s.x) * coefficient(i, 15u) - d.y * (3.0 * s.x - s.y) * coefficient(i, 9u)
    );
    sum += 2.890611442640554 * d.x * d.y * d.z * coefficient(i, 10u);
    sum -= 0.4570457994644658 * (4.0 * s.z - s.x - s.y) * (
      d.y * coefficient(i, 11u) + d.x * coefficient(i, 13u)
    );
    sum += 0.3731763325901154 * d.z * (2.0 * s.z - 3.0 * s.x - 3.0 * s.y) * coefficient(i, 12u);
    sum += 1.445305721320277 * d.z * (s.x - s.y) * coefficient(i, 14u);
  }
  return sum;
}

// The weight of a splat by its depth (arXiv 2410.18931, section 4.2).
fn weight_of(depth: f32) -> f32 {
  if (RULE == 2u) {
    return WEIGHT_SCALE * exp(-SIGMA * pow(depth, BETA));
  }
  if (RULE == 3u) {
    return WEIGHT_SCALE * max(0.0, 1.0 - depth / SIGMA);
  }
  return WEIGHT_SCALE;
}
