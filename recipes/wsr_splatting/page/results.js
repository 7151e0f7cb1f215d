// What the benchmark found: shown, copied, or posted to where the page came from.

import { median, quantile, ratioOf, shownMs } from "./benchmark.js";

const $ = (id) => document.getElementById(id);

// The form that `edgeport serve` takes: samples and what drew them; it computes the rest itself.
export function resultsOf({ samples, framesPerSample, warnings }, renderer, program, size) {
  const named = Object.keys(samples);
  const short = (text) => String(text).slice(0, 300);
  const adapter = Object.entries(renderer.adapter).map(([key, text]) => [key, short(text)]);
  return {
    format: "edgeport.results/1",
    renderer: renderer.name,
    adapter: Object.fromEntries(adapter),
    fallback: renderer.fallback,
    frame: size,
    splats: Object.fromEntries(named.map((name) => [name, program.facts.splats[name]])),
    frames_per_sample: framesPerSample,
    samples_ms: samples,
    warnings: [...warnings, ...(renderer.note ? [renderer.note] : [])].slice(0, 8).map(short),
  };
}

function cells(kind, words) {
  return words.map((text, i) => {
    const cell = document.createElement(i === 0 ? "th" : kind);
    if (i === 0) cell.scope = "row";
    cell.textContent = text;
    return cell;
  });
}

function sentence({ sorted, sort_free: sortFree }) {
  if (!sorted || !sortFree) return "Only one of the two renderers runs here.";
  const { value, low, high } = ratioOf(sorted, sortFree);
  const interval = `[${low.toFixed(2)}, ${high.toFixed(2)}]`;
  let word = "No clear difference";
  if (low > 1) word = "Sort-free is faster";
  if (high < 1) word = "Sort-free is slower";
  return `${word}: sorted takes ${value.toFixed(2)}× as long ${interval}.`;
}

export function show(results, titles, software) {
  const samples = results.samples_ms;
  $("found").hidden = false;
  $("state").textContent = "Done.";
  $("ratio").textContent = sentence(samples);
  $("rows").replaceChildren(...Object.entries(samples).map(([name, row]) => {
    const line = document.createElement("tr");
    const half = [quantile(row, 0.25), quantile(row, 0.75)].map(shownMs);
    line.append(...cells("td", [
      titles[name], shownMs(median(row)), half.join(" to "), String(row.length),
    ]));
    return line;
  }));
  const said = [...results.warnings];
  if (software) said.push("A processor drew this: it says nothing of a GPU.");
  $("warnings").replaceChildren(...said.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  $("copy").onclick = () => copy(JSON.stringify(results));
  $("post").onclick = () => post(results);
  $("json").hidden = true;
  // Another server takes none.
  $("post").hidden = !new URLSearchParams(location.search).has("token");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    $("state").textContent = "Copied.";
  } catch {  // no permission, or no secure context: then by hand
    $("json").value = text;
    $("json").hidden = false;
    $("json").select();
    $("state").textContent = "Copy it from the field below.";
  }
}

export async function post(results) {
  $("post").disabled = true;
  try {
    const body = JSON.stringify(results);
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch("results", { method: "POST", headers, body });
    const told = (await answer.text()).trim().slice(0, 300);
    $("state").textContent = answer.ok ? `Sent: ${told}.` : `Not taken: ${told || answer.status}`;
  } catch (error) {
    $("state").textContent = `Not sent: ${error.message}`;
  } finally {
    $("post").disabled = false;
  }
}
