// Projects each splat once. One entry keeps the visible ones in any order, for the weighted sum; the
// other leaves every record in its place beside a key of its depth, for the sort.

override KEY_SHIFT: u32 = 0u;           // low bits of a depth that its key leaves out
override KEY_LAST: u32 = 0xfffffffeu;   // the largest key, of the nearest splats
const CULLED = 0xffffffffu;
const NEAR_BITS = 0x3e4ccccdu;          // of NEAR: bits of positive floats have the floats' order
const THREADS = 256u;

@group(0) @binding(3) var<storage, read_write> records: array<Record>;
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> arguments: array<atomic<u32>, 4>;

var<workgroup> found: atomic<u32>;
var<workgroup> start: u32;

fn packed(seen: Projected, shade: vec4f) -> Record {
  let axes = half_axes(seen.covariance, seen.opacity);
  let halfs = vec2u(pack2x16float(shade.rg), pack2x16float(shade.ba));
  return Record(seen.mean, axes.xy, length(axes.zw), seen.opacity, halfs);
}

// The far ones first: the key falls with the depth.
fn key_of(depth: f32) -> u32 {
  return KEY_LAST - min(KEY_LAST, (bitcast<u32>(depth) - NEAR_BITS) >> KEY_SHIFT);
}

fn index_of(group: vec3u, groups: vec3u, thread: u32) -> u32 {
  return (group.y * groups.x + group.x) * THREADS + thread;
}

@compute @workgroup_size(256)
fn project_to_keys(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let index = index_of(group, groups, thread);
  if (index >= SPLATS) {
    return;
  }
  let seen = project(index);
  if (!seen.visible) {
    keys[index] = CULLED;
    return;
  }
  keys[index] = key_of(seen.depth);
  records[index] = packed(seen, vec4f(seen.colour, 1.0));
}

@compute @workgroup_size(256)
fn project_visible(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let index = index_of(group, groups, thread);
  if (thread == 0u) {
    atomicStore(&found, 0u);  // WGSL says that it is 0 already; lavapipe leaves what was there
  }
  workgroupBarrier();
  var seen: Projected;
  var place = 0u;
  if (index < SPLATS) {
    seen = project(index);
    if (seen.visible) {
      place = atomicAdd(&found, 1u);
    }
  }
  workgroupBarrier();
  if (thread == 0u) {
    start = atomicAdd(&arguments[1], atomicLoad(&found));
  }
  workgroupBarrier();
  if (seen.visible) {
    let weight = weight_of(seen.depth);
    records[start + place] = packed(seen, vec4f(seen.colour * weight, weight));
  }
}

// An indirect draw of no instances yet, of four corners each.
@compute @workgroup_size(1)
fn draw_nothing() {
  atomicStore(&arguments[0], 4u);
  atomicStore(&arguments[1], 0u);
  atomicStore(&arguments[2], 0u);
  atomicStore(&arguments[3], 0u);
}
