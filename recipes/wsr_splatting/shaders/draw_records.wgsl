// Draws projected splats, as they lie or in the order of the sort.

@group(0) @binding(3) var<storage, read> records: array<Record>;
@group(0) @binding(4) var<storage, read> order: array<u32>;

fn corner_of_record(index: u32, vertex: u32) -> Corner {
  let one = records[index];
  let minor = one.minor_length * inverseSqrt(dot(one.major, one.major)) * one.major.yx;
  let shade = vec4f(unpack2x16float(one.shade.x), unpack2x16float(one.shade.y));
  let quad = Quad(one.mean, one.major, vec2f(-minor.x, minor.y), one.opacity, shade);
  return corner_of(quad, vertex);
}

@vertex
fn next_corner(@builtin(vertex_index) vertex: u32, @builtin(instance_index) index: u32) -> Corner {
  return corner_of_record(index, vertex);
}

@vertex
fn sorted_corner(
  @builtin(vertex_index) vertex: u32, @builtin(instance_index) index: u32,
) -> Corner {
  return corner_of_record(order[index], vertex);
}
