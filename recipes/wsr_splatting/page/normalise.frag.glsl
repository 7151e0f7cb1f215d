#version 300 es
// The weighted sum over the sum of weights, the background among them.
precision highp float;

uniform sampler2D sums;
uniform vec4 background;  // and its weight
uniform float least;      // denominator

out vec4 image;

void main() {
  vec4 sum = texelFetch(sums, ivec2(gl_FragCoord.xy), 0);
  vec3 above = background.rgb * background.a + sum.rgb;
  image = vec4(above / max(background.a + sum.a, least), 1.0);
}
