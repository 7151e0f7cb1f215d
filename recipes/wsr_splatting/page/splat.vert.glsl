#version 300 es
// One splat's quad: projection, colour, opacity and weight. Axes: x right, y down, z forward.
precision highp float;
precision highp int;
precision highp sampler2D;

uniform sampler2D geometry;   // 3 texels a splat: x y z opacity, xx xy xz yy, yz zz 0 0
uniform sampler2D harmonics;  // K texels a splat: red, green, blue, opacity's factor
uniform vec4 view[3];         // rows, world to camera
uniform vec4 intrinsics;      // fx, fy, cx, cy in pixels
uniform vec2 frame;           // width, height
uniform vec3 eye;             // the camera's place in the world
uniform ivec2 columns;        // splats in a row of each texture
uniform int degree;           // of the harmonics
uniform int rule;             // 0 sorted, 1 dir, 2 exp, 3 lc
uniform vec3 weighing;        // sigma, beta, and a factor that keeps sums in a half float's range

layout(location = 0) in uint index;

flat out vec4 colour;  // and opacity
flat out vec3 conic;
flat out float weight;
out vec2 offset;       // pixels from the middle of the splat

const float NEAR = 0.2;
const float LOW_PASS = 0.3;

vec4 coefficient(int k, ivec2 at) {
  return texelFetch(harmonics, ivec2(at.x * (degree + 1) * (degree + 1) + k, at.y), 0);
}

// The real spherical harmonics with the signs that splat scenes use; d is a unit vector.
vec4 harmonic_sum(vec3 d, ivec2 at) {
  vec4 sum = 0.28209479177387814 * coefficient(0, at);
  if (degree < 1) return sum;
  sum += 0.4886025119029199
    * (-d.y * coefficient(1, at) + d.z * coefficient(2, at) - d.x * coefficient(3, at));
  if (degree < 2) return sum;
  float xx = d.x * d.x, yy = d.y * d.y, zz = d.z * d.z;
  sum += 1.0925484305920792 * d.x * d.y * coefficient(4, at)
    - 1.0925484305920792 * d.y * d.z * coefficient(5, at)
    + 0.31539156525252005 * (2.0 * zz - xx - yy) * coefficient(6, at)
    - 1.0925484305920792 * d.x * d.z * coefficient(7, at)
    + 0.5462742152960396 * (xx - yy) * coefficient(8, at);
  if (degree < 3) return sum;
  return sum - 0.5900435899266435 * d.y * (3.0 * xx - yy) * coefficient(9, at)
    + 2.890611442640554 * d.x * d.y * d.z * coefficient(10, at)
    - 0.4570457994644658 * d.y * (4.0 * zz - xx - yy) * coefficient(11, at)
    + 0.3731763325901154 * d.z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * coefficient(12, at)
    - 0.4570457994644658 * d.x * (4.0 * zz - xx - yy) * coefficient(13, at)
    + 1.445305721320277 * d.z * (xx - yy) * coefficient(14, at)
    - 0.5900435899266435 * d.x * (xx - 3.0 * yy) * coefficient(15, at);
}

float weight_of(float depth) {
  if (rule == 2) return weighing.z * exp(-weighing.x * pow(depth, weighing.y));
  if (rule == 3) return weighing.z * max(0.0, 1.0 - depth / weighing.x);
  return weighing.z;
}

// Returns the variances xx, xy, yy of the splat on the screen, in square pixels.
vec3 projected(vec3 p, mat3 sigma) {
  vec2 low = -(intrinsics.zw / intrinsics.xy + 0.15 * frame / intrinsics.xy);
  vec2 high = (frame - intrinsics.zw) / intrinsics.xy + 0.15 * frame / intrinsics.xy;
  vec2 t = clamp(p.xy / p.z, low, high) * p.z;
  vec3 jx = vec3(intrinsics.x / p.z, 0.0, -intrinsics.x * t.x / (p.z * p.z));
  vec3 jy = vec3(0.0, intrinsics.y / p.z, -intrinsics.y * t.y / (p.z * p.z));
  vec3 ux = jx.x * view[0].xyz + jx.z * view[2].xyz;
  vec3 uy = jy.y * view[1].xyz + jy.z * view[2].xyz;
  return vec3(dot(ux, sigma * ux) + LOW_PASS, dot(ux, sigma * uy), dot(uy, sigma * uy) + LOW_PASS);
}

void main() {
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);  // outside, until it is known to be seen
  int splat = int(index);
  ivec2 at = ivec2(3 * (splat % columns.x), splat / columns.x);
  vec4 first = texelFetch(geometry, at, 0);
  vec4 second = texelFetch(geometry, at + ivec2(1, 0), 0);
  vec4 third = texelFetch(geometry, at + ivec2(2, 0), 0);
  vec4 place = vec4(first.xyz, 1.0);
  vec3 p = vec3(dot(view[0], place), dot(view[1], place), dot(view[2], place));
  if (p.z <= NEAR) return;

  weight = weight_of(p.z);
  if (weight <= 0.0) return;
  vec4 sum = harmonic_sum(normalize(first.xyz - eye), ivec2(splat % columns.y, splat / columns.y));
  float opacity = first.w * sum.a;
  if (opacity < 1.0 / 255.0) return;
  colour = vec4(max(sum.rgb + 0.5, 0.0), opacity);

  mat3 sigma = mat3(second.x, second.y, second.z,
                    second.y, second.w, third.x,
                    second.z, third.x, third.y);
  vec3 s = projected(p, sigma);
  float determinant = s.x * s.z - s.y * s.y;
  conic = vec3(s.z, -s.y, s.x) / determinant;

  // The quad along the ellipse's axes, as far out as alpha can reach 1/255.
  float middle = 0.5 * (s.x + s.z);
  float spread = sqrt(max(0.25 * (s.x - s.z) * (s.x - s.z) + s.y * s.y, 0.0));
  vec2 along = abs(s.y) > 1e-6 * middle
    ? normalize(vec2(s.y, middle + spread - s.x))
    : (s.x >= s.z ? vec2(1.0, 0.0) : vec2(0.0, 1.0));
  float radius = sqrt(2.0 * log(255.0 * opacity));
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  float longer = middle + spread;
  float shorter = max(middle - spread, determinant / longer);
  vec2 across = vec2(-along.y, along.x);
  offset = radius * (corner.x * sqrt(longer) * along + corner.y * sqrt(shorter) * across);
  vec2 mean = intrinsics.xy * p.xy / p.z + intrinsics.zw;
  vec2 unit = (mean + offset) / frame * 2.0 - 1.0;
  gl_Position = vec4(unit.x, -unit.y, 0.0, 1.0);
}
