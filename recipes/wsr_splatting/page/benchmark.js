// The A/B benchmark: off-screen frames of both programs, in rounds of one sample each and in random
// order, each sample a batch that is timed until the GPU has finished it.

const SAMPLE_MS = 20;
const MOST_FRAMES = 512;  // in a sample
const MIN_ROUNDS = 5;
const MOST_ROUNDS = 500;
const WARM_SHARE = 0.2;  // of the time, and until the batches are long enough
const RESAMPLES = 1000;
const WIDE_SPREAD = 0.2;

// xorshift32: the same draws each time.
export function randomness(seed) {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

export function quantile(values, share) {
  const sorted = Float64Array.from(values).sort();
  const at = share * (sorted.length - 1);
  const below = Math.floor(at);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (at - below);
}

// Milliseconds as they are shown.
export const shownMs = (ms) => `${ms >= 100 ? Math.round(ms) : ms.toPrecision(3)} ms`;

export const median = (values) => quantile(values, 0.5);

// The ratio of medians with a 95 % interval: rounds are resampled, both of a round together.
export function ratioOf(above, below) {
  const random = randomness(1);
  const draws = [];
  for (let i = 0; i < RESAMPLES; i += 1) {
    const rounds = above.map(() => Math.floor(random() * above.length));
    draws.push(median(rounds.map((one) => above[one])) / median(rounds.map((one) => below[one])));
  }
  const [low, high] = [0.025, 0.975].map((share) => quantile(draws, share));
  return { value: median(above) / median(below), low, high };
}

// Milliseconds per frame of `count` frames, each of the next camera, to completion.
async function sample(frame, name, cameras, count) {
  const start = performance.now();
  for (let i = 0; i < count; i += 1) frame.draw(name, cameras[i % cameras.length]);
  await frame.finish();
  return (performance.now() - start) / count;
}

async function warmUp(frame, names, cameras, seconds) {
  const counts = Object.fromEntries(names.map((name) => [name, 1]));
  const until = performance.now() + seconds * 1000;
  let short = true;
  while (short || performance.now() < until) {
    short = false;
    for (const name of names) {
      const ms = await sample(frame, name, cameras, counts[name]) * counts[name];
      if (ms >= SAMPLE_MS || counts[name] >= MOST_FRAMES) continue;
      const factor = Math.min(4, (1.2 * SAMPLE_MS) / Math.max(ms, 0.1));
      counts[name] = Math.min(MOST_FRAMES, Math.ceil(counts[name] * factor));
      short = true;
    }
    await pause();
  }
  return Math.max(...Object.values(counts));  // the same views in every sample
}

// Lets the page draw and answer; nothing is timed meanwhile.
const pause = () => new Promise((go) => { setTimeout(go, 0); });

function shuffled(names, random) {
  const order = [...names];
  for (let i = order.length - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

// Returns samples in milliseconds per frame by program, and what has to be said of them.
export async function benchmark(frame, names, cameras, { seconds, progress = () => {} }) {
  const samples = Object.fromEntries(names.map((name) => [name, []]));
  const warnings = [];
  let hidden = document.hidden;
  const watch = () => { hidden ||= document.hidden; };
  document.addEventListener("visibilitychange", watch);
  try {
    progress(0, "warming up");
    const count = await warmUp(frame, names, cameras, seconds * WARM_SHARE);
    const random = randomness(2026);
    const start = performance.now();
    for (let round = 0; round < MOST_ROUNDS; round += 1) {
      const spent = (performance.now() - start) / 1000;
      if (round >= MIN_ROUNDS && spent >= seconds) break;
      for (const name of shuffled(names, random)) {
        samples[name].push(await sample(frame, name, cameras, count));
      }
      progress(Math.min(1, spent / seconds), `round ${round + 1}`);
      await pause();
    }
    if (hidden) warnings.push("the page was in the background for a while");
    for (const name of names) warnings.push(...spread(name, samples[name]));
    return { samples, framesPerSample: count, warnings };
  } finally {
    document.removeEventListener("visibilitychange", watch);
  }
}

function spread(name, values) {
  const share = (quantile(values, 0.75) - quantile(values, 0.25)) / median(values);
  if (share <= WIDE_SPREAD) return [];
  const percent = Math.round(100 * share);
  return [`${name}: wide spread, the middle half spans ${percent} % of the median`];
}
