// The page: picks a renderer, and connects it with the controls.

import { benchmark, shownMs } from "./benchmark.js";
import { Orbit, fitted } from "./camera.js";
import { FrameGraph } from "./charts.js";
import { fetchJSON } from "./files.js";
import { listen } from "./gestures.js";
import { resultsOf, show as showResults } from "./results.js";
import { Stage } from "./stage.js";
import { createWebGL2 } from "./webgl2.js";
import { createWebGPU, whyMissing } from "./webgpu.js";

const TITLES = { sort_free: "Sort-free", sorted: "Sorted" };
const MOST_CAMERAS = 8;  // of the benchmark
const SIZES = [[1280, 720], [512, 512]];  // of its frame
const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|software|\bwarp\b|microsoft basic render/i;

const $ = (id) => document.getElementById(id);

function trouble(words) {
  $("trouble").hidden = false;
  $("trouble").textContent = words;
}

// Returns a renderer; its `why` says why it is not WebGPU. `?renderer=webgl2` asks for that one.
async function pickRenderer(program) {
  const asked = new URLSearchParams(location.search).get("renderer");
  let why = asked === "webgl2" ? "The address asks for WebGL2." : "";
  if (!why) {
    try {
      return await createWebGPU($("view"), program);
    } catch (error) {
      why = error.message;
    }
  }
  if ($("view").getContext("webgl2") === null) {
    const plain = $("view").cloneNode(true);  // a canvas keeps the first kind of context it gave
    $("view").replaceWith(plain);
  }
  try {
    return Object.assign(await createWebGL2($("view"), program), { why });
  } catch (error) {
    throw new Error(`Nothing here can draw the scene. ${why} ${error.message}`);
  }
}

const adapterText = ({ adapter }) => [
  adapter.vendor, adapter.architecture, adapter.device, adapter.description,
].filter(Boolean).join(" ") || "an adapter without a name";

const isSoftware = (renderer) => renderer.fallback || SOFTWARE.test(adapterText(renderer));

function describe(program, renderer) {
  const { splats, rule } = program.facts;
  const counts = [...new Set(renderer.programs.map((name) => splats[name]))];
  $("about").textContent = `${counts.map((n) => n.toLocaleString("en")).join(" and ")} splats;`
    + ` the sort-free renderer weighs by the rule ${rule.toUpperCase()}.`
    + ` Drawn by ${renderer.title} on ${adapterText(renderer)}.`;
  const rows = {
    Renderer: renderer.title,
    Adapter: adapterText(renderer) + (isSoftware(renderer) ? " (software: a processor draws)" : ""),
    ...(renderer.note ? { Note: renderer.note } : {}),
  };
  $("why").hidden = !renderer.why;
  $("why").textContent = `${renderer.why} ${renderer.title} draws in its place.`;
  $("machine").replaceChildren(...Object.entries(rows).flatMap(([key, text]) => {
    const term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = key;
    told.textContent = text;
    return [term, told];
  }));
}

function connect(stage, renderer) {
  for (const input of document.querySelectorAll("input[name=program]")) {
    input.disabled = !renderer.programs.includes(input.value);
    input.addEventListener("change", () => stage.use(input.value));
  }
  $("popping").disabled = false;
  $("popping").addEventListener("change", (event) => {
    stage.showPopping(event.target.checked);
    $("popping-text").hidden = !event.target.checked;
  });
  $("reset").disabled = false;
  $("reset").addEventListener("click", () => {
    stage.orbit.reset();
    stage.moved();
  });
  listen($("view"), stage.orbit, () => stage.moved());
}

function tellFrames(stage, renderer) {
  const { frame, name, medianMs, change } = stage;
  $("badge").textContent = `${TITLES[name]}, ${renderer.title}, ${frame.size.join(" × ")}`;
  const title = TITLES[name].toLowerCase();
  stage.graph.tell(`Median of the latest frames: ${shownMs(medianMs)} (${title}).`);
  if (stage.popping) {
    const most = Object.entries(change).map(([one, value]) => `${TITLES[one]} ${value.toFixed(3)}`);
    $("popping-text").textContent = "Shown: what changed since the frame before, six times as"
      + " bright, while the camera turns by 0.2° a frame."
      + (most.length ? ` Largest change of a pixel so far (of 1): ${most.join(", ")}.` : "")
      + " Edges that move change too.";
  }
}

function benchmarkCameras(cameras, size) {
  const step = Math.max(1, Math.ceil(cameras.length / MOST_CAMERAS));
  return cameras.filter((_, i) => i % step === 0).map((one) => ({
    view: Float32Array.from(one.view), intrinsics: fitted(one, size), size,
  }));
}

// Offers the sizes of a benchmark's frame; a processor that draws gets the exported one.
function offerSizes(program, renderer) {
  const sizes = [...SIZES];
  if (!sizes.some((one) => one.join() === program.frame.join())) sizes.unshift(program.frame);
  const chosen = isSoftware(renderer) ? program.frame : SIZES[0];
  $("size").replaceChildren(...sizes.map((one) => {
    const isChosen = one.join() === chosen.join();
    return new Option(one.join(" × "), one.join(), isChosen, isChosen);
  }));
}

const chosenSize = () => $("size").value.split(",").map(Number);

// Returns a function that runs the benchmark, shows what it found and returns it.
function measuring(program, renderer, stage) {
  return async ({ seconds = 15, size = chosenSize() } = {}) => {
    $("run").disabled = true;
    $("progress").hidden = false;
    stage.paused = true;
    const off = renderer.frame(size);
    try {
      const views = benchmarkCameras(program.cameras, size);
      const found = await benchmark(off, renderer.programs, views, {
        seconds,
        progress: (share, words) => {
          $("progress").value = share;
          $("state").textContent = `Measuring: ${words}.`;
        },
      });
      const results = resultsOf(found, renderer, program, size);
      showResults(results, TITLES, isSoftware(renderer));
      return results;
    } catch (error) {
      $("state").textContent = `The benchmark ended early: ${error.message}`;
      throw error;
    } finally {
      off.destroy();
      stage.paused = false;
      $("run").disabled = false;
      $("progress").hidden = true;
    }
  };
}

async function start() {
  const program = await fetchJSON("program.json");
  if (program.format !== "edgeport.webgpu/1") {
    throw new Error(`program.json has the format ${program.format}: export the scene again.`);
  }
  if (!program.cameras?.length) {
    throw new Error("program.json has no camera: export the scene again.");
  }
  const renderer = await pickRenderer(program);
  for (const ending of [renderer.lost, renderer.failed]) ending.then(trouble);
  describe(program, renderer);
  offerSizes(program, renderer);
  const orbit = new Orbit(program.cameras);
  const graph = new FrameGraph($("graph"), $("graph-text"));
  const told = () => tellFrames(stage, renderer);
  const stage = new Stage({ canvas: $("view"), renderer, orbit, graph, told });
  connect(stage, renderer);
  const measure = measuring(program, renderer, stage);
  $("run").disabled = false;
  $("run").addEventListener("click", () => {
    measure({ seconds: Number($("seconds").value) }).catch((error) => console.warn(error));
  });
  stage.run().catch((error) => trouble(`Drawing failed: ${error.message}`));
  // One image off-screen, as floats: for tests, and for whoever wants to compare.
  const render = async (name, { view, intrinsics, size }) => {
    const frame = renderer.frame(size);
    try {
      frame.draw(name, { view: Float32Array.from(view), intrinsics, size });
      return await frame.pixels();
    } finally {
      frame.destroy();
    }
  };
  const { name, adapter, why = "" } = renderer;
  return { program, renderer: name, adapter, why, render, benchmark: measure, stage };
}

window.edgeport = { missing: whyMissing() };
window.edgeport.ready = start().then((found) => Object.assign(window.edgeport, found));
window.edgeport.ready.catch((error) => {
  $("about").textContent = "Nothing is drawn.";
  trouble(error.message);
});
