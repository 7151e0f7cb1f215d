// Puts an image on the canvas, or by how much it differs from the one before.

@group(0) @binding(0) var image: texture_2d<f32>;
@group(0) @binding(1) var before: texture_2d<f32>;
@group(0) @binding(2) var<uniform> how: vec4f;  // gain, and 1 where the difference is shown

@vertex
fn corner(@builtin(vertex_index) index: u32) -> @builtin(position) vec4f {
    return vec4f(f32(index & 1u) * 4.0 - 1.0, f32(index >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}

@fragment
fn show(@builtin(position) at: vec4f) -> @location(0) vec4f {
    let here = vec2i(at.xy);
    let now = clamp(textureLoad(image, here, 0).rgb, vec3f(0.0), vec3f(1.0));
    let then = clamp(textureLoad(before, here, 0).rgb, vec3f(0.0), vec3f(1.0));
    return vec4f(select(now, abs(now - then) * how.x, how.y > 0.0), 1.0);
}
