// A stable radix sort by one 8-bit digit: count the digits of each block, scan the counts, move.
// The first digit's pass also leaves out what was culled, and takes the splats from the last to the
// first, so that of two at one depth the one with the smaller index is drawn later, on top.
// Barriers and a bit mask per digit rank the keys: no subgroups, 9 KiB of workgroup memory.

override SPLATS: u32 = 0u;
override BLOCKS: u32 = 1u;
override ROUNDS: u32 = 16u;  // keys of a thread; a block is 256 times as many
override SHIFT: u32 = 0u;    // of the digit
override FIRST: u32 = 0u;    // 1 in the first digit's pass
override LAST: u32 = 0u;     // 1 in the last one's, after which no one reads the keys

const CULLED = 0xffffffffu;
const THREADS = 256u;
const WORDS = 8u;  // of a mask with a bit a thread

@group(0) @binding(0) var<storage, read> keys: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read_write> moved_keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> moved_values: array<u32>;
@group(0) @binding(4) var<storage, read_write> counts: array<u32>;           // [256 digits, BLOCKS]
@group(0) @binding(5) var<storage, read_write> arguments: array<u32, 4>;     // of the indirect draw

var<workgroup> tally: array<atomic<u32>, 256>;
var<workgroup> masks: array<atomic<u32>, 2048>;  // 256 digits, 8 words each
var<workgroup> next: array<u32, 256>;            // where the digit's next key goes
var<workgroup> sums: array<u32, 256>;

fn key_at(position: u32) -> u32 {
  if (FIRST == 1u) {
    if (position >= SPLATS) {
      return CULLED;
    }
    return keys[SPLATS - 1u - position];
  }
  if (position >= arguments[1]) {
    return CULLED;
  }
  return keys[position];
}

fn digit_of(key: u32) -> u32 {
  return (key >> SHIFT) & 255u;
}

@compute @workgroup_size(256)
fn count_digits(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = group.y * groups.x + group.x;
  atomicStore(&tally[thread], 0u);
  workgroupBarrier();
  for (var round = 0u; round < ROUNDS; round++) {
    let key = key_at((block * ROUNDS + round) * THREADS + thread);
    if (key != CULLED) {
      atomicAdd(&tally[digit_of(key)], 1u);
    }
  }
  workgroupBarrier();
  if (block < BLOCKS) {
    counts[thread * BLOCKS + block] = atomicLoad(&tally[thread]);
  }
}

// One workgroup: each thread has a digit.
@compute @workgroup_size(256)
fn scan_counts(@builtin(local_invocation_index) digit: u32) {
  var total = 0u;
  for (var block = 0u; block < BLOCKS; block++) {
    total += counts[digit * BLOCKS + block];
  }
  sums[digit] = total;
  workgroupBarrier();
  for (var step = 1u; step < THREADS; step *= 2u) {
    var before = 0u;
    if (digit >= step) {
      before = sums[digit - step];
    }
    workgroupBarrier();
    sums[digit] += before;
    workgroupBarrier();
  }
  if (FIRST == 1u && digit == THREADS - 1u) {
    arguments[0] = 4u;
    arguments[1] = sums[digit];
    arguments[2] = 0u;
    arguments[3] = 0u;
  }
  var running = sums[digit] - total;
  for (var block = 0u; block < BLOCKS; block++) {
    let count = counts[digit * BLOCKS + block];
    counts[digit * BLOCKS + block] = running;
    running += count;
  }
}

@compute @workgroup_size(256)
fn move_keys(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = group.y * groups.x + group.x;
  if (block < BLOCKS) {
    next[thread] = counts[thread * BLOCKS + block];
  }
  for (var round = 0u; round < ROUNDS; round++) {
    for (var word = 0u; word < WORDS; word++) {
      atomicStore(&masks[thread * WORDS + word], 0u);
    }
    let position = (block * ROUNDS + round) * THREADS + thread;
    let key = key_at(position);
    let row = digit_of(key) * WORDS;
    let mine = thread / 32u;
    let bit = 1u << (thread % 32u);
    workgroupBarrier();
    if (key != CULLED) {
      atomicOr(&masks[row + mine], bit);
    }
    workgroupBarrier();
    if (key != CULLED) {
      var rank = countOneBits(atomicLoad(&masks[row + mine]) & (bit - 1u));
      for (var word = 0u; word < mine; word++) {
        rank += countOneBits(atomicLoad(&masks[row + word]));
      }
      put(next[digit_of(key)] + rank, key, position);
    }
    workgroupBarrier();
    var moved = 0u;
    for (var word = 0u; word < WORDS; word++) {
      moved += countOneBits(atomicLoad(&masks[thread * WORDS + word]));
    }
    next[thread] += moved;
  }
}

fn put(place: u32, key: u32, position: u32) {
  if (LAST == 0u) {
    moved_keys[place] = key;
  }
  if (FIRST == 1u) {
    moved_values[place] = SPLATS - 1u - position;
  } else {
    moved_values[place] = values[position];
  }
}
