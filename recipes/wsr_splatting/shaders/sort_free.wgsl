// Draws every splat in the order of memory: all of the projection is in the vertex stage.

@vertex
fn project_corner(
  @builtin(vertex_index) vertex: u32, @builtin(instance_index) index: u32,
) -> Corner {
  let seen = project(index);
  if (!seen.visible) {
    return no_corner();
  }
  let axes = half_axes(seen.covariance, seen.opacity);
  let weight = weight_of(seen.depth);
  let shade = vec4f(seen.colour * weight, weight);
  return corner_of(Quad(seen.mean, axes.xy, axes.zw, seen.opacity, shade), vertex);
}
