// Runs program.json ("edgeport.webgpu/1") with WebGPU: a frame is its passes, in their order.

import { fetchBytes, fetchText } from "./files.js";

const FLOATS = { frame: 4, view: 16, intrinsics: 4 };
const BYTES = { rgba8unorm: 4, rgba16float: 8, rgba32float: 16 };
const BLENDS = {
  add: { operation: "add", srcFactor: "one", dstFactor: "one" },
  over: { operation: "add", srcFactor: "one", dstFactor: "one-minus-src-alpha" },
};
const OPTIONAL = ["float32-blendable"];
const LIMITS = ["maxBufferSize", "maxStorageBufferBindingSize", "maxComputeWorkgroupsPerDimension"];

// Why there is no WebGPU here, as a sentence, or "" where there is.
export function whyMissing() {
  if (!window.isSecureContext) {
    return "WebGPU needs a secure context: open the page over https (edgeport serve --lan) or as"
      + " localhost (adb reverse).";
  }
  return navigator.gpu ? "" : "This browser has no WebGPU.";
}

export async function createWebGPU(canvas, program) {
  const missing = whyMissing();
  if (missing) throw new Error(missing);
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("This browser gives WebGPU no GPU here.");
  const device = await adapter.requestDevice({
    requiredFeatures: OPTIONAL.filter((name) => adapter.features.has(name)),
    requiredLimits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
  });
  const renderer = new WebGPURenderer(adapter, device, program);
  await renderer.checked("its buffers and shaders", () => renderer.load(canvas));
  await renderer.checked("to draw", () => renderer.tryOut());
  return renderer;
}

class WebGPURenderer {
  constructor(adapter, device, program) {
    const info = adapter.info ?? {};
    this.name = "webgpu";
    this.title = "WebGPU";
    this.adapter = {
      vendor: info.vendor ?? "",
      architecture: info.architecture ?? "",
      device: info.device ?? "",
      description: info.description ?? "",
      backend: info.backend ?? "",
    };
    this.fallback = Boolean(info.isFallbackAdapter ?? adapter.isFallbackAdapter);
    this.device = device;
    this.program = program;
    this.programs = Object.keys(program.programs);
    this.lost = device.lost.then(({ message }) => `The GPU was lost: ${message}`);
    this.failed = new Promise((tell) => {
      device.addEventListener("uncapturederror", ({ error }) => tell(`WebGPU: ${error.message}`));
    });
  }

  // Runs `work`; throws what WebGPU says against it, which else would come later and elsewhere.
  async checked(what, work) {
    for (const kind of ["validation", "out-of-memory"]) this.device.pushErrorScope(kind);
    let result, thrown;
    try {
      result = await work();
    } catch (error) {
      thrown = error;
    }
    for (let count = 0; count < 2; count += 1) {
      const error = await this.device.popErrorScope();
      if (error) thrown ??= error;
    }
    if (thrown) throw new Error(`WebGPU refuses ${what}: ${thrown.message}`);
    return result;
  }

  async load(canvas) {
    const { buffers, programs } = this.program;
    this.buffers = new Map();
    for (const [name, one] of Object.entries(buffers)) {
      this.buffers.set(name, await this.#buffer(name, one));
    }
    const passes = Object.values(programs).flatMap((one) => one.passes);
    const files = [...new Set(passes.map((one) => one.compute ?? one.draw))];
    const modules = await Promise.all(files.map(async (file) => [
      file, this.device.createShaderModule({ label: file, code: await fetchText(file) }),
    ]));
    this.modules = new Map(modules);
    this.pipelines = new Map();
    for (const one of passes) this.pipelines.set(one, await this.#pipeline(one));
    this.canvasFormat = navigator.gpu.getPreferredCanvasFormat();
    this.context = canvas.getContext("webgpu");
    this.context.configure({ device: this.device, format: this.canvasFormat, alphaMode: "opaque" });
    const code = await fetchText("show.wgsl");
    const module = this.device.createShaderModule({ label: "show.wgsl", code });
    this.showing = await this.device.createRenderPipelineAsync({
      layout: "auto",
      vertex: { module, entryPoint: "corner" },
      fragment: { module, entryPoint: "show", targets: [{ format: this.canvasFormat }] },
    });
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    this.gain = this.device.createBuffer({ size: 16, usage });
  }

  // Draws and shows a small frame of each program: some systems fail only there.
  async tryOut() {
    const frame = this.frame([16, 16]);
    const [camera] = this.program.cameras;
    for (const name of this.programs) {
      frame.draw(name, camera);
      frame.show();
    }
    await frame.pixels();
    frame.destroy();
  }

  async #buffer(label, one) {
    const usages = (one.usage ?? ["storage"]).map((name) => GPUBufferUsage[name.toUpperCase()]);
    const copied = GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
    const usage = usages.reduce((all, bit) => all | bit, copied);
    let content = null;
    if (one.file) content = await fetchBytes(one.file);
    if (one.values) content = Float32Array.from(one.values);
    const floats = (one.uniform ?? []).reduce((sum, name) => sum + FLOATS[name], 0);
    const size = content?.byteLength ?? one.bytes ?? 4 * floats;
    const buffer = this.device.createBuffer({ label, size, usage });
    if (content) this.device.queue.writeBuffer(buffer, 0, content);
    return buffer;
  }

  #pipeline(one) {
    const module = this.modules.get(one.compute ?? one.draw);
    const constants = one.constants ?? {};
    const common = { label: one.label, layout: "auto" };
    if (one.compute) {
      const compute = { module, entryPoint: one.entry, constants };
      return this.device.createComputePipelineAsync({ ...common, compute });
    }
    const target = { format: this.program.textures[one.target].format };
    if (one.blend !== "none") target.blend = { color: BLENDS[one.blend], alpha: BLENDS[one.blend] };
    return this.device.createRenderPipelineAsync({
      ...common,
      vertex: { module, entryPoint: one.vertex, constants },
      fragment: { module, entryPoint: one.fragment, constants, targets: [target] },
      primitive: { topology: one.topology },
    });
  }

  frame(size) {
    return new WebGPUFrame(this, size);
  }

  finish() {
    return this.device.queue.onSubmittedWorkDone();
  }
}

// The textures of one size, and the passes bound to them.
class WebGPUFrame {
  constructor(renderer, size) {
    this.renderer = renderer;
    this.size = size;
    this.textures = new Map();
    for (const [name, { format }] of Object.entries(renderer.program.textures)) {
      this.textures.set(name, this.#texture(name, format));
    }
    this.views = new Map([...this.textures].map(([name, one]) => [name, one.createView()]));
    this.before = new Map();  // images that were compared with, by output
    this.shown = "";  // the output that is in `before`
    this.groups = new Map();
  }

  #texture(label, format) {
    const { RENDER_ATTACHMENT, TEXTURE_BINDING, COPY_SRC, COPY_DST } = GPUTextureUsage;
    const usage = RENDER_ATTACHMENT | TEXTURE_BINDING | COPY_SRC | COPY_DST;
    return this.renderer.device.createTexture({ label, format, usage, size: [...this.size, 1] });
  }

  #group(one) {
    if (!this.groups.has(one)) {
      const { buffers } = this.renderer;
      const resource = (name) => this.views.get(name) ?? { buffer: buffers.get(name) };
      const named = Object.entries(one.bindings ?? {});
      const entries = named.map(([binding, name]) => (
        { binding: Number(binding), resource: resource(name) }
      ));
      const layout = this.renderer.pipelines.get(one).getBindGroupLayout(0);
      this.groups.set(one, this.renderer.device.createBindGroup({ layout, entries }));
    }
    return this.groups.get(one);
  }

  draw(name, camera) {
    const { device, program } = this.renderer;
    this.#writeUniforms(camera);
    const encoder = device.createCommandEncoder();
    for (const one of program.programs[name].passes) {
      if (one.compute) this.#compute(encoder, one);
      else this.#draw(encoder, one);
    }
    device.queue.submit([encoder.finish()]);
    this.output = program.programs[name].output;
  }

  #writeUniforms(camera) {
    const given = {
      frame: [...this.size, 0, 0], view: [...camera.view], intrinsics: [...camera.intrinsics],
    };
    for (const [name, one] of Object.entries(this.renderer.program.buffers)) {
      if (!one.uniform) continue;
      const content = Float32Array.from(one.uniform.flatMap((input) => given[input]));
      this.renderer.device.queue.writeBuffer(this.renderer.buffers.get(name), 0, content);
    }
  }

  #compute(encoder, one) {
    const pass = encoder.beginComputePass({ label: one.label });
    pass.setPipeline(this.renderer.pipelines.get(one));
    pass.setBindGroup(0, this.#group(one));
    pass.dispatchWorkgroups(...one.workgroups);
    pass.end();
  }

  #draw(encoder, one) {
    const attachment = {
      view: this.views.get(one.target),
      loadOp: one.clear ? "clear" : "load",
      storeOp: "store",
      clearValue: one.clear ?? [0, 0, 0, 0],
    };
    const pass = encoder.beginRenderPass({ label: one.label, colorAttachments: [attachment] });
    pass.setPipeline(this.renderer.pipelines.get(one));
    pass.setBindGroup(0, this.#group(one));
    if (one.indirect) pass.drawIndirect(this.renderer.buffers.get(one.indirect), 0);
    else pass.draw(one.vertices, one.instances ?? 1);
    pass.end();
  }

  // Puts the last drawn image on the canvas; with a gain, what changed since the last such call.
  show(gain = 0) {
    const { device, context, showing, gain: uniform } = this.renderer;
    const current = this.textures.get(this.output);
    if (!this.before.has(this.output)) {
      this.before.set(this.output, this.#texture("before", current.format));
    }
    const before = this.before.get(this.output);
    const known = this.shown === this.output;
    const how = Float32Array.from([known ? gain : 0, gain > 0 ? 1 : 0, 0, 0]);
    device.queue.writeBuffer(uniform, 0, how);
    const entries = [current.createView(), before.createView(), { buffer: uniform }]
      .map((resource, binding) => ({ binding, resource }));
    const group = device.createBindGroup({ layout: showing.getBindGroupLayout(0), entries });
    const encoder = device.createCommandEncoder();
    const view = context.getCurrentTexture().createView();
    const pass = encoder.beginRenderPass({
      colorAttachments: [{ view, loadOp: "clear", storeOp: "store", clearValue: [0, 0, 0, 1] }],
    });
    pass.setPipeline(showing);
    pass.setBindGroup(0, group);
    pass.draw(3);
    pass.end();
    if (gain > 0) {
      encoder.copyTextureToTexture({ texture: current }, { texture: before }, [...this.size, 1]);
    }
    device.queue.submit([encoder.finish()]);
    this.shown = gain > 0 ? this.output : "";
  }

  finish() {
    return this.renderer.finish();
  }

  // The last image as floats, red, green and blue, row by row from the top.
  async pixels() {
    const { device } = this.renderer;
    const texture = this.textures.get(this.output);
    const [width, height] = this.size;
    const bytesPerRow = 256 * Math.ceil((width * BYTES[texture.format]) / 256);
    const usage = GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ;
    const buffer = device.createBuffer({ size: bytesPerRow * height, usage });
    const encoder = device.createCommandEncoder();
    encoder.copyTextureToBuffer({ texture }, { buffer, bytesPerRow }, [width, height, 1]);
    device.queue.submit([encoder.finish()]);
    await buffer.mapAsync(GPUMapMode.READ);
    const rows = unpack(buffer.getMappedRange(), texture.format, bytesPerRow, width, height);
    buffer.destroy();
    return rows;
  }

  destroy() {
    for (const one of [...this.textures.values(), ...this.before.values()]) one.destroy();
  }
}

function unpack(data, format, bytesPerRow, width, height) {
  const [Row, value] = {
    rgba8unorm: [Uint8Array, (one) => one / 255],
    rgba16float: [Uint16Array, halfToFloat],
    rgba32float: [Float32Array, (one) => one],
  }[format];
  const found = new Float32Array(width * height * 3);
  for (let y = 0; y < height; y += 1) {
    const row = new Row(data, y * bytesPerRow, width * 4);
    for (let x = 0; x < width; x += 1) {
      for (let c = 0; c < 3; c += 1) found[(y * width + x) * 3 + c] = value(row[4 * x + c]);
    }
  }
  return found;
}

function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, part = bits & 1023;
  if (exponent === 0) return sign * part * 2 ** -24;
  if (exponent === 31) return part ? NaN : sign * Infinity;
  return sign * (1 + part / 1024) * 2 ** (exponent - 15);
}
