#version 300 es
// What one splat adds to a pixel.
precision highp float;
precision highp int;

uniform int rule;  // 0 sorted, else a weighted sum

flat in vec4 colour;
flat in vec3 conic;
flat in float weight;
in vec2 offset;

out vec4 added;

void main() {
  float squared = conic.x * offset.x * offset.x + 2.0 * conic.y * offset.x * offset.y
    + conic.z * offset.y * offset.y;
  float alpha = colour.a * exp(-0.5 * squared);
  if (alpha < 1.0 / 255.0) discard;
  alpha = rule == 0 ? min(alpha, 0.99) : alpha * weight;
  added = vec4(colour.rgb * alpha, alpha);
}
