// Divides the weighted sum of colours by the sum of weights, the background among both.

override BACKGROUND_R: f32 = 0.0;
override BACKGROUND_G: f32 = 0.0;
override BACKGROUND_B: f32 = 0.0;
override BACKGROUND_WEIGHT: f32 = 0.0;  // times the weights' scale, as the least denominator is
override LEAST_DENOMINATOR: f32 = 1e-4;

@group(0) @binding(0) var sums: texture_2d<f32>;

// One triangle that covers the frame.
@vertex
fn cover(@builtin(vertex_index) vertex: u32) -> @builtin(position) vec4f {
  let side = vec2f(f32(vertex & 1u), f32(vertex >> 1u)) * 4.0 - 1.0;
  return vec4f(side, 0.0, 1.0);
}

@fragment
fn normalise(@builtin(position) place: vec4f) -> @location(0) vec4f {
  let sum = textureLoad(sums, vec2u(place.xy), 0);
  let background = vec3f(BACKGROUND_R, BACKGROUND_G, BACKGROUND_B);
  let colour = sum.rgb + BACKGROUND_WEIGHT * background;
  return vec4f(colour / max(sum.a + BACKGROUND_WEIGHT, LEAST_DENOMINATOR), 1.0);
}
