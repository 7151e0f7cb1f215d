// A projected splat as it lies in memory between two passes: 32 bytes.

struct Record {
  mean: vec2f,
  major: vec2f,
  minor_length: f32,
  opacity: f32,
  shade: vec2u,  // four halfs: colour and weight as the rule takes them
}
