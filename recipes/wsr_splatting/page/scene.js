// What a renderer that does not run program.json's passes reads from it: files and facts.

// Returns, by program, its scene's two files and how its splats are blended.
export function scenesOf({ buffers, programs, facts }) {
  const scenes = {};
  for (const [name, { passes }] of Object.entries(programs)) {
    const bound = passes.flatMap((one) => Object.values(one.bindings ?? {}));
    const files = bound.map((one) => buffers[one]?.file ?? "");
    const geometry = files.find((file) => file.endsWith("_geometry.bin"));
    const harmonics = files.find((file) => file.endsWith("_sh.bin"));
    if (!geometry || !harmonics) throw new Error(`program.json: ${name} draws no scene's files.`);
    scenes[name] = {
      geometry,
      harmonics,
      rule: name === "sorted" ? "sorted" : facts.rule,
      sigma: facts.sigma,
      beta: facts.beta,
      background: name === "sorted" ? cleared(passes) ?? facts.background : facts.background,
      backgroundWeight: facts.background_weight,
      weightScale: name === "sorted" ? 1 : facts.weight_scale ?? 1,
    };
  }
  return scenes;
}

// The colour on which a program lays its splats over each other.
function cleared(passes) {
  return passes.find((one) => one.blend === "over")?.clear?.slice(0, 3);
}
