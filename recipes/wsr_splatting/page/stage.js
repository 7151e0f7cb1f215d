// The canvas: draws when something moved, and turns by itself while popping is shown.

import { median } from "./benchmark.js";

const TURN = (0.2 * Math.PI) / 180;  // radians a frame, while popping is shown
const GAIN = 6;  // of the shown difference
const SLOW_MS = 120;  // from here the canvas gets fewer pixels
const LEAST_SCALE = 0.25;
const MOST_PIXELS = 2_000_000;

export class Stage {
  constructor({ canvas, renderer, orbit, graph, told }) {
    Object.assign(this, { canvas, renderer, orbit, graph, told });
    this.name = "sort_free";
    this.scale = 1;
    this.popping = false;
    this.paused = false;
    this.dirty = true;
    this.change = {};  // by program, the largest change of a pixel between two frames
    this.recent = [];
    new ResizeObserver(() => this.touch()).observe(canvas);
  }

  touch() {
    this.dirty = true;
  }

  // The user moved the camera: what changes then is no popping.
  moved() {
    this.last = null;
    this.touch();
  }

  use(name) {
    this.name = name;
    this.recent = [];
    this.last = null;
    this.touch();
  }

  showPopping(on) {
    this.popping = on;
    this.last = null;
    this.change = {};
    this.touch();
  }

  // Never returns. The wait for the screen's next frame paces drawing; it times nothing.
  async run() {
    for (;;) {
      await new Promise((go) => { requestAnimationFrame(go); });
      if (this.paused || !(this.dirty || this.popping)) continue;
      this.dirty = false;
      await this.#draw();
    }
  }

  #size() {
    const { canvas } = this;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const wanted = canvas.clientWidth * canvas.clientHeight * ratio * ratio;
    const scale = ratio * this.scale * Math.min(1, Math.sqrt(MOST_PIXELS / wanted));
    const sides = [canvas.clientWidth, canvas.clientHeight];
    return sides.map((side) => Math.max(16, Math.round(side * scale)));
  }

  #fit() {
    const size = this.#size();
    if (this.frame?.size.join() === size.join()) return;
    this.frame?.destroy();
    this.frame = this.renderer.frame(size);
    [this.canvas.width, this.canvas.height] = size;
    this.last = null;
  }

  async #draw() {
    this.#fit();
    const { frame, name } = this;
    if (this.popping) this.orbit.turn(TURN, 0);
    const start = performance.now();
    frame.draw(name, this.orbit.camera(frame.size));
    frame.show(this.popping ? GAIN : 0);
    await frame.finish();
    const ms = performance.now() - start;
    this.graph.add(name, ms);
    this.recent.push(ms);
    if (this.popping) await this.#compare(frame, name);
    this.#settle();
    this.told();
  }

  async #compare(frame, name) {
    const now = await frame.pixels();
    const before = this.last?.name === name ? this.last.pixels : [];
    if (before.length === now.length) {
      let most = 0;
      for (let i = 0; i < now.length; i += 1) {
        const change = Math.abs(clamped(now[i]) - clamped(before[i]));
        if (change > most) most = change;
      }
      this.change[name] = Math.max(most, this.change[name] ?? 0);
    }
    this.last = { name, pixels: now };
  }

  // Gives a slow GPU fewer pixels, so that the view can be turned.
  #settle() {
    this.medianMs = median(this.recent);
    if (this.recent.length > 2 && this.medianMs > SLOW_MS && this.scale > LEAST_SCALE) {
      this.scale = Math.max(LEAST_SCALE, this.scale / 1.5);
      this.recent = [];
      this.touch();
    }
    this.recent = this.recent.slice(-15);
  }
}

const clamped = (value) => Math.min(1, Math.max(0, value));
