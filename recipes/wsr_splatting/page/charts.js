// The graph of frame times: a bar a frame, in the colour of the program that drew it.

const KEPT = 120;

export class FrameGraph {
  constructor(canvas, text) {
    this.canvas = canvas;
    this.text = text;
    this.frames = [];  // { name, ms }
    const redraw = () => this.draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new ResizeObserver(redraw).observe(canvas);
  }

  add(name, ms) {
    this.frames.push({ name, ms });
    if (this.frames.length > KEPT) this.frames.shift();
    this.draw();
  }

  draw() {
    const { canvas, frames } = this;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const draw = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const top = topOf(frames);
    const left = 52, floor = height - 6;
    const y = (ms) => floor - (floor - 10) * (ms / top);
    draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw.clearRect(0, 0, width, height);
    draw.font = "12px system-ui, sans-serif";
    draw.textAlign = "right";
    draw.textBaseline = "middle";
    for (const ms of [0, top / 2, top]) {
      draw.fillStyle = colour("--line");
      draw.fillRect(left, Math.round(y(ms)), width - left, 1);
      draw.fillStyle = colour("--quiet");
      draw.fillText(words(ms, top), left - 6, y(ms));
    }
    const step = (width - left) / KEPT;
    frames.forEach(({ name, ms }, i) => {
      draw.fillStyle = colour(name === "sorted" ? "--sorted" : "--sort-free");
      draw.fillRect(left + i * step, y(ms), Math.max(1, step - 1), floor - y(ms));
    });
  }

  tell(words) {
    if (this.text.textContent !== words) this.text.textContent = words;
  }
}

function words(ms, top) {
  const [value, unit] = top >= 1000 ? [ms / 1000, "s"] : [ms, "ms"];
  return `${Number(value.toPrecision(2))} ${unit}`;
}

// The end of the axis: 1, 2 or 5 times a power of ten, above all frames but the odd one.
function topOf(frames) {
  if (!frames.length) return 20;
  const sorted = frames.map(({ ms }) => ms).sort((a, b) => a - b);
  const most = 1.1 * sorted[Math.floor(0.98 * (sorted.length - 1))];
  const decade = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((one) => one * decade).find((one) => one >= most);
}
