"""Trains splats on a posed scene: python -m edgeport_recipes.wsr_splatting.train --scene DIR.

Writes OUT/METHOD/splats.ply, cameras.json and metrics.json. A run that was killed goes on with
--resume, from its last checkpoint, to the same result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from edgeport_recipes._shared.files import write_json
from edgeport_recipes.wsr_splatting import checkpoint, evaluate, lpips, scenes
from edgeport_recipes.wsr_splatting.checkpoint import Run
from edgeport_recipes.wsr_splatting.densify import Sightings, densify
from edgeport_recipes.wsr_splatting.losses import training_loss
from edgeport_recipes.wsr_splatting.model import composite, project
from edgeport_recipes.wsr_splatting.ply import save_ply
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.settings import Settings, check
from edgeport_recipes.wsr_splatting.splats import RULES
from edgeport_recipes.wsr_splatting.trainable import start

from edgeport.errors import EdgeportError, InputError
from edgeport.measure import now_seconds

CHECKPOINT = "checkpoint.safetensors"
Progress = Callable[[Run, float], None]


def train(
    scene: Scene,
    settings: Settings,
    output_dir: Path,
    *,
    origin: dict[str, object] | None = None,
    resume: bool = False,
    checkpoint_every: int = 200,
    distance: evaluate.Distance | None = None,
    progress: Progress = lambda run, loss: None,
) -> dict[str, Any]:
    """Returns the scores of the trained scene, whose files are in `output_dir`/METHOD.

    `origin` tells runs of other scenes and sizes apart. Raises InputError for a folder that holds
    another run, or this one without `resume`.
    """
    check(settings)
    origin = origin or {"scene": scene.name}
    folder = output_dir / settings.method
    run = _begin(scene, settings, folder, origin, resume)
    while run.step < settings.iterations:
        started = now_seconds()
        loss = advance(run, scene)
        run.seconds += now_seconds() - started
        if run.step % checkpoint_every == 0 or run.step == settings.iterations:
            checkpoint.write(folder / CHECKPOINT, run, origin)
        progress(run, loss)
    return _finish(run, scene, folder, origin, distance)


def _begin(
    scene: Scene, settings: Settings, folder: Path, origin: dict[str, object], resume: bool
) -> Run:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; choose another --output-dir.") from error
    if (folder / CHECKPOINT).exists():
        if not resume:
            raise InputError(f"{folder}: holds a run; go on with --resume, or give another -o.")
        return checkpoint.read(folder / CHECKPOINT, settings, origin)
    if (folder / "splats.ply").exists():
        raise InputError(f"{folder}: holds splats.ply of no run of ours; give another -o.")
    return first_run(scene, settings)


def first_run(scene: Scene, settings: Settings) -> Run:
    """Returns a run before its first step; raises InputError where no view is left to train on."""
    if not scene.training:
        raise InputError(f"{scene.name}: every view is held out; give more views.")
    rng = torch.Generator().manual_seed(settings.seed)
    trainable = start(scene, settings, rng)
    count = trainable.count
    return Run(trainable, Sightings(count), rng, [], first_count=count)


def advance(run: Run, scene: Scene) -> float:
    """Takes one step on one view and returns its loss; raises InputError where it diverged."""
    settings = run.scene.settings
    if not run.order:
        drawn = torch.randperm(len(scene.training), generator=run.rng).tolist()
        run.order = [scene.training[one] for one in drawn]
    index = run.order.pop()
    camera, wanted = scene.cameras[index], scene.images[index].float() / 255
    blend = run.scene.blend()
    splats = run.scene.splats(settings.degree_at(run.step))
    seen = project(splats, blend, camera.view, camera.intrinsics, camera.size)
    if not seen.visible.any() and not any_visible(run, scene):
        raise InputError(f"{scene.name}: no camera sees any splat; check the poses and points.")
    seen.means.retain_grad()
    loss = training_loss(composite(seen, blend, camera.size), wanted)
    if not torch.isfinite(loss):
        raise InputError(f"{scene.name}: the loss of {camera.name} is not finite; lower the rates.")
    loss.backward()
    run.sightings.add(seen)
    run.scene.step(run.step, scene.extent)
    run.step += 1
    if settings.densifies_at(run.step):
        wanted_count = settings.count_at(run.step, run.first_count)
        densify(run.scene, run.sightings, wanted_count, scene.extent, run.rng)
        run.sightings = Sightings(run.scene.count)
    return float(loss.detach())


@torch.no_grad()
def any_visible(run: Run, scene: Scene) -> bool:
    """Says whether any training view sees a splat."""
    blend, splats = run.scene.blend(), run.scene.splats(0)
    cameras = [scene.cameras[one] for one in scene.training]
    return any(
        bool(project(splats, blend, one.view, one.intrinsics, one.size).visible.any())
        for one in cameras
    )


def _finish(
    run: Run,
    scene: Scene,
    folder: Path,
    origin: dict[str, object],
    distance: evaluate.Distance | None,
) -> dict[str, Any]:
    splats, blend = run.scene.final()
    save_ply(folder / "splats.ply", splats, blend)
    cameras = [
        {**camera.to_dict(), "held_out": index in scene.held_out}
        for index, camera in enumerate(scene.cameras)
    ]
    facts = {"cameras": cameras, "centre": scene.centre.tolist(), "extent": scene.extent}
    write_json(folder / "cameras.json", facts)
    metrics = {
        **evaluate.score(splats, blend, scene, distance),
        "splats": splats.count,
        "seconds_per_iteration": run.seconds / run.step,
        "threads": torch.get_num_threads(),
        "sigma": blend.sigma,
        "beta": blend.beta,
        "background_weight": blend.background_weight,
        "background": list(blend.background),
        "origin": origin,
        "settings": run.scene.settings.to_dict(),
    }
    write_json(folder / "metrics.json", metrics)
    return metrics


def report(run: Run, loss: float) -> None:
    """Writes a line to stderr: on a terminal it is replaced, elsewhere there are twenty in all."""
    total, live = run.scene.settings.iterations, sys.stderr.isatty()
    if not live and run.step % max(1, total // 20) and run.step != total:
        return
    each = run.seconds / run.step
    line = (
        f"{run.scene.settings.method}: {run.step}/{total}  loss {loss:.4f}  "
        f"{run.scene.count} splats  {each:.2f} s each  {each * (total - run.step):.0f} s left"
    )
    end = "\n" if not live or run.step == total else ""
    print(f"\r{line}\x1b[K" if live else line, end=end, file=sys.stderr, flush=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scene", required=True, help='Folder of posed photos, or "generated".')
@click.option("--method", type=click.Choice(RULES), default="lc", show_default=True)
@click.option("--output-dir", "-o", type=click.Path(path_type=Path), default=Path("out"))
@click.option("--iterations", default=2000, show_default=True)
@click.option(
    "--downscale",
    type=click.IntRange(min=1),
    help="Photos become this much smaller; by default so that no side is above 256 pixels.",
)
@click.option("--cameras", help="The camera file's name, where the folder has several.")
@click.option("--points", type=click.Path(path_type=Path), help="Seed points: .npz of xyz and rgb.")
@click.option(
    "--max-splats",
    type=int,
    help="By default one for each seed point and for every fourth pixel of a photo.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--no-view-opacity", is_flag=True, help="Opacity does not depend on the direction.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--checkpoint-every", default=200, show_default=True, help="Iterations.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores by default.")
@click.option(
    "--lpips-weights",
    nargs=2,
    type=click.Path(path_type=Path),
    help="Adds LPIPS: torchvision's AlexNet and LPIPS's alex.pth.",
)
def main(**options: Any) -> None:
    """Trains a splat scene and scores it on every 8th view, which is held out."""
    try:
        metrics = _train_as_asked(**options)
    except EdgeportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    method = options["method"]
    click.echo(
        f"{method}: PSNR {metrics['psnr_db']:.2f} dB, SSIM {metrics['ssim']:.4f} on "
        f"{len(metrics['held_out'])} held-out views, {metrics['splats']} splats, "
        f"{metrics['seconds_per_iteration']:.3f} s per iteration: {options['output_dir'] / method}"
    )


def _train_as_asked(
    *,
    scene: str,
    method: Any,
    output_dir: Path,
    iterations: int,
    downscale: int | None,
    cameras: str | None,
    points: Path | None,
    max_splats: int | None,
    seed: int,
    no_view_opacity: bool,
    threads: int | None,
    lpips_weights: tuple[Path, Path] | None,
    **others: Any,
) -> dict[str, Any]:
    if threads is not None:
        torch.set_num_threads(threads)
    distance = None if lpips_weights is None else lpips.load(*lpips_weights)
    loaded = scenes.load(scene, downscale, cameras=cameras, points=points, seed=seed)
    width, height = size = loaded.cameras[0].size
    limit = len(loaded.points) + width * height // 4 if max_splats is None else max_splats
    settings = Settings(method, iterations, seed, limit, view_opacity=not no_view_opacity)
    origin: dict[str, object] = {"scene": scene, "size": list(size), "views": len(loaded.cameras)}
    return train(
        loaded, settings, output_dir, origin=origin, distance=distance, progress=report, **others
    )


if __name__ == "__main__":
    main()
