#version 300 es
// Puts an image on the canvas, or by how much it differs from the one before.
precision highp float;

uniform sampler2D image;
uniform sampler2D before;
uniform vec2 how;  // gain, and 1 where the difference is shown

out vec4 shown;

void main() {
  ivec2 here = ivec2(gl_FragCoord.xy);
  vec3 now = clamp(texelFetch(image, here, 0).rgb, 0.0, 1.0);
  vec3 then = clamp(texelFetch(before, here, 0).rgb, 0.0, 1.0);
  shown = vec4(how.y > 0.0 ? abs(now - then) * how.x : now, 1.0);
}
