// The fallback: the same image with WebGL2, which works over plain http too.
// The weighted sum is additive blending into a half-float texture; the sort is done on the CPU.

import { DepthOrder } from "./depths.js";
import { fetchBytes, fetchText } from "./files.js";
import { scenesOf } from "./scene.js";

const RULES = { sorted: 0, dir: 1, exp: 2, lc: 3 };
const FLOATS = 10;  // of a splat's geometry

export async function createWebGL2(canvas, program) {
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
  if (!gl) throw new Error("This browser has no WebGL2.");
  const half = ["EXT_color_buffer_float", "EXT_color_buffer_half_float"];
  if (!half.some((name) => gl.getExtension(name))) {
    throw new Error("This browser's WebGL2 cannot draw into half-float textures.");
  }
  const renderer = new WebGL2Renderer(canvas, gl, program);
  await renderer.load();
  return renderer;
}

class WebGL2Renderer {
  constructor(canvas, gl, program) {
    const named = gl.getExtension("WEBGL_debug_renderer_info");
    const read = (masked, open) => String(gl.getParameter(named ? named[open] : gl[masked]) ?? "");
    this.name = "webgl2";
    this.title = "WebGL2";
    this.adapter = {
      vendor: read("VENDOR", "UNMASKED_VENDOR_WEBGL"),
      architecture: "",
      device: "",
      description: read("RENDERER", "UNMASKED_RENDERER_WEBGL"),
      backend: "webgl2",
    };
    this.fallback = false;
    this.gl = gl;
    this.program = program;
    this.programs = Object.keys(program.programs);
    this.note = "Without WebGPU the sorted renderer sorts on the CPU; a frame's time includes it.";
    this.failed = new Promise(() => {});
    this.lost = new Promise((tell) => {
      canvas.addEventListener("webglcontextlost", () => tell("The GPU was lost: reload the page."));
    });
  }

  async load() {
    const { gl } = this;
    const names = ["splat.vert", "splat.frag", "screen.vert", "normalise.frag", "show.frag"];
    const texts = await Promise.all(names.map((name) => fetchText(`${name}.glsl`)));
    const [splatVertex, splat, screenVertex, normalise, show] = texts;
    this.splat = linked(gl, splatVertex, splat);
    this.normalise = linked(gl, screenVertex, normalise);
    this.show = linked(gl, screenVertex, show);
    this.nothing = gl.createVertexArray();
    const sets = new Map();
    this.scenes = {};
    for (const [name, one] of Object.entries(scenesOf(this.program))) {
      if (!sets.has(one.geometry)) sets.set(one.geometry, await this.#upload(one));
      this.scenes[name] = { ...sets.get(one.geometry), ...one };
    }
  }

  async #upload({ geometry, harmonics }) {
    const { gl } = this;
    const most = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    const floats = new Float32Array(await fetchBytes(geometry));
    const halves = new Uint16Array(await fetchBytes(harmonics));
    const count = floats.length / FLOATS;
    const k = halves.length / 4 / count;
    const positions = new Float32Array(3 * count);
    const padded = new Float32Array(12 * count);
    for (let i = 0; i < count; i += 1) {
      const one = floats.subarray(FLOATS * i, FLOATS * (i + 1));
      positions.set(one.subarray(0, 3), 3 * i);
      padded.set(one, 12 * i);
    }
    const columns = [Math.floor(Math.min(most, 3072) / 3), Math.floor(Math.min(most, 4096) / k)];
    if (Math.ceil(count / Math.min(...columns)) > most) {
      throw new Error(`${count} splats are too many for WebGL2 here.`);
    }
    return {
      count,
      degree: Math.sqrt(k) - 1,
      columns,
      positions,
      geometryTexture: filled(gl, gl.RGBA32F, gl.FLOAT, padded, 3 * columns[0]),
      harmonicsTexture: filled(gl, gl.RGBA16F, gl.HALF_FLOAT, halves, k * columns[1]),
      ordered: this.#ordered(count),
      inTurn: this.#ordered(count, Uint32Array.from({ length: count }, (_, i) => i)),
      depths: new DepthOrder(positions, count),
    };
  }

  #ordered(count, order = null) {
    const { gl } = this;
    const array = gl.createVertexArray();
    const buffer = gl.createBuffer();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, order ?? 4 * count, order ? gl.STATIC_DRAW : gl.STREAM_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(0, 1);
    gl.bindVertexArray(null);
    return { array, buffer };
  }

  frame(size) {
    return new WebGL2Frame(this, size);
  }
}

// The textures of one size, and what is drawn into them.
class WebGL2Frame {
  constructor(renderer, size) {
    this.renderer = renderer;
    this.size = size;
    this.sums = target(renderer.gl, size);
    this.image = target(renderer.gl, size);
    this.before = target(renderer.gl, size);
    this.shown = "";  // the program whose image is in `before`
  }

  draw(name, camera) {
    const scene = this.renderer.scenes[name];
    if (scene.rule === "sorted") this.#drawSorted(scene, camera);
    else this.#drawSum(scene, camera);
    this.name = name;
  }

  #drawSorted(scene, camera) {
    const { gl } = this.renderer;
    gl.bindBuffer(gl.ARRAY_BUFFER, scene.ordered.buffer);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, scene.depths.sorted(camera.view));
    const clear = [...scene.background, 1];
    this.#splats(scene, camera, this.image, clear, gl.ONE_MINUS_SRC_ALPHA, scene.ordered);
  }

  #drawSum(scene, camera) {
    const { gl, normalise, nothing } = this.renderer;
    this.#splats(scene, camera, this.sums, [0, 0, 0, 0], gl.ONE, scene.inTurn);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.image.framebuffer);
    gl.useProgram(normalise.program);
    texture(gl, normalise, "sums", 0, this.sums.texture);
    const weight = scene.backgroundWeight * scene.weightScale;
    gl.uniform4f(normalise.at("background"), ...scene.background, weight);
    gl.uniform1f(normalise.at("least"), 1e-4 * scene.weightScale);
    gl.bindVertexArray(nothing);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  #splats(scene, camera, into, clear, factor, order) {
    const { gl, splat } = this.renderer;
    const [width, height] = this.size;
    const { view, intrinsics } = camera;
    gl.bindFramebuffer(gl.FRAMEBUFFER, into.framebuffer);
    gl.viewport(0, 0, width, height);
    gl.clearColor(...clear);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.useProgram(splat.program);
    texture(gl, splat, "geometry", 0, scene.geometryTexture);
    texture(gl, splat, "harmonics", 1, scene.harmonicsTexture);
    gl.uniform4fv(splat.at("view"), view.slice(0, 12));
    gl.uniform4f(splat.at("intrinsics"), ...intrinsics);
    gl.uniform2f(splat.at("frame"), width, height);
    gl.uniform3f(splat.at("eye"), ...eye(view));
    gl.uniform2i(splat.at("columns"), ...scene.columns);
    gl.uniform1i(splat.at("degree"), scene.degree);
    gl.uniform1i(splat.at("rule"), RULES[scene.rule]);
    gl.uniform3f(splat.at("weighing"), scene.sigma, scene.beta, scene.weightScale);
    gl.enable(gl.BLEND);
    gl.blendEquation(gl.FUNC_ADD);
    gl.blendFunc(gl.ONE, factor);
    gl.bindVertexArray(order.array);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, scene.count);
    gl.disable(gl.BLEND);
  }

  // Puts the last drawn image on the canvas; with a gain, what changed since the last such call.
  show(gain = 0) {
    const { gl, show, nothing } = this.renderer;
    const [width, height] = this.size;
    const known = this.shown === this.name;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, width, height);
    gl.useProgram(show.program);
    texture(gl, show, "image", 0, this.image.texture);
    texture(gl, show, "before", 1, this.before.texture);
    gl.uniform2f(show.at("how"), known ? gain : 0, gain > 0 ? 1 : 0);
    gl.bindVertexArray(nothing);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    this.shown = "";
    if (gain === 0) return;
    gl.bindFramebuffer(gl.READ_FRAMEBUFFER, this.image.framebuffer);
    gl.bindFramebuffer(gl.DRAW_FRAMEBUFFER, this.before.framebuffer);
    gl.blitFramebuffer(0, 0, width, height, 0, 0, width, height, gl.COLOR_BUFFER_BIT, gl.NEAREST);
    this.shown = this.name;
  }

  // Waits until the GPU has drawn: reading a pixel back takes all that was asked for before it.
  async finish() {
    const { gl } = this.renderer;
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.image.framebuffer);
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.FLOAT, new Float32Array(4));
  }

  // The last image as floats, red, green and blue, row by row from the top.
  async pixels() {
    const { gl } = this.renderer;
    const [width, height] = this.size;
    const read = new Float32Array(4 * width * height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.image.framebuffer);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.FLOAT, read);
    const found = new Float32Array(3 * width * height);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const from = 4 * ((height - 1 - y) * width + x);  // WebGL's first row is the lowest
        found.set(read.subarray(from, from + 3), 3 * (y * width + x));
      }
    }
    return found;
  }

  destroy() {
    const { gl } = this.renderer;
    for (const one of [this.sums, this.image, this.before]) {
      gl.deleteFramebuffer(one.framebuffer);
      gl.deleteTexture(one.texture);
    }
  }
}

// Where the camera stands: -R^T t.
function eye(view) {
  const t = [view[3], view[7], view[11]];
  return [0, 1, 2].map((c) => -(view[c] * t[0] + view[4 + c] * t[1] + view[8 + c] * t[2]));
}

function texture(gl, shader, name, unit, one) {
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_2D, one);
  gl.uniform1i(shader.at(name), unit);
}

function plainTexture(gl) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
    gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  }
  return made;
}

// A texture `width` texels wide with all of `data` in it, row by row; the last row is padded.
function filled(gl, format, type, data, width) {
  const rows = Math.max(1, Math.ceil(data.length / (4 * width)));
  const padded = new data.constructor(4 * width * rows);
  padded.set(data);
  const made = plainTexture(gl);
  gl.texImage2D(gl.TEXTURE_2D, 0, format, width, rows, 0, gl.RGBA, type, padded);
  return made;
}

function target(gl, [width, height]) {
  const made = plainTexture(gl);
  gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA16F, width, height);
  const framebuffer = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, made, 0);
  if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) {
    throw new Error("This browser's WebGL2 cannot draw into half-float textures.");
  }
  return { texture: made, framebuffer };
}

function linked(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) {
      throw new Error(`WebGL2 refuses a shader: ${gl.getShaderInfoLog(shader)}`);
    }
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
    throw new Error(`WebGL2 refuses a program: ${gl.getProgramInfoLog(program)}`);
  }
  const places = new Map();
  const at = (name) => {
    if (!places.has(name)) places.set(name, gl.getUniformLocation(program, name));
    return places.get(name);
  };
  return { program, at };
}
