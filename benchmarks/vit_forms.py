"""The networks whose latency suite `vit` measures, as files of each runtime; and what times them.

One pair of layers at 192 channels and 3 heads between patches and a head: the full network with
fused attention and with explicit logits, ToSA with TopK and one-hot, and PADRe of degree 3. The
functions named `..._here` run in a child process: converters and runtimes are vendor code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from edgeport_recipes.padre import model as padre
from edgeport_recipes.tosa import model as tosa
from torch import Tensor, nn

from benchmarks.attention_forms import fuse_attention
from edgeport.compare import sqnr_db
from edgeport.measure import interleave
from edgeport.runtimes.samples import Sample, load_samples, save_samples

if TYPE_CHECKING:
    from edgeport.passes import Target

RUNTIMES = ("torch", "onnx", "tflite", "executorch")
FILES = {"onnx": "model.onnx", "tflite": "model.tflite", "executorch": "model.pte"}
DIM, HEADS, DEPTH, PATCH, OUTPUTS, KERNEL = 192, 3, 2, 4, 10, 11
FUSED, EXPLICIT = "full, fused attention", "full, explicit logits"
SAME_DB = 60.0  # rounding leaves 100 dB and more; one token that is chosen otherwise some 40
INPUTS, REFERENCE = "inputs.npz", "reference.npz"


@dataclass(frozen=True)
class Arm:
    """One network: `kind` says of which recipe and in which form, `keep` what ToSA lets pass."""

    name: str
    kind: str
    keep: float = 1.0

    def runs_on(self, runtime: str) -> bool:
        """Returns whether the runtime has this form: two of them have no fused attention."""
        return self.kind != "fused" or runtime in ("torch", "onnx")


ARMS = (
    Arm(FUSED, "fused"),
    Arm(EXPLICIT, "explicit"),
    *(
        Arm(f"ToSA, {words}, keep {keep}", kind, keep)
        for keep in (0.5, 0.6)
        for kind, words in (("topk", "TopK"), ("onehot", "one-hot"))
    ),
    Arm("PADRe-3", "padre3"),
)


class ExplicitLogits(nn.Module):
    """The full network whose every layer makes its attention logits, as ToSA's first layers do."""

    def __init__(self, net: tosa.VisionTransformer) -> None:
        super().__init__()
        self.net, self.output_names = net, net.output_names

    def forward(self, image: Tensor) -> Tensor:
        x = self.net.embed(image)
        for layer in self.net.layers:
            x, _ = layer.with_logits(x)
        return self.net.read_out(x)


def network(arm: Arm, grid: int) -> nn.Module:
    """Returns the arm's network for `grid x grid` tokens, in eval mode; all have one seed."""
    if arm.kind.startswith("padre"):
        return _padre(arm.kind, grid)
    variant = arm.kind if arm.kind in ("topk", "onehot") else "full"
    sizes = {"grid": grid, "dim": DIM, "heads": HEADS, "depth": DEPTH, "patch": PATCH}
    net = tosa.build(variant, 0, keep=arm.keep, outputs=OUTPUTS, **sizes)
    return ExplicitLogits(net).eval() if arm.kind == "explicit" else net


def _padre(mixer: str, grid: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks: list[nn.Module] = [
            padre.Block(DIM, padre.make_mixer(mixer, DIM, HEADS, KERNEL)) for _ in range(DEPTH)
        ]
        net = padre.VisionTransformer(blocks, DIM, grid, OUTPUTS, PATCH)
        padre.initialise(net)
    return net.eval()


def image_of(grid: int) -> Sample:
    """Returns one input for `grid x grid` tokens, in 0..1."""
    shape = (1, 3, PATCH * grid, PATCH * grid)
    return {"image": np.random.default_rng(0).random(shape, dtype=np.float32)}


# Files


def write_reference(arm: Arm, grid: int, folder: Path) -> None:
    """Writes the input, and what torch answers."""
    feed = image_of(grid)
    with torch.no_grad():
        answer = network(arm, grid)(torch.from_numpy(feed["image"])).numpy()
    folder.mkdir(parents=True)
    save_samples(folder / INPUTS, [feed])
    save_samples(folder / REFERENCE, [{"output_0": answer}])


def write_graph(arm: Arm, grid: int, runtime: str, folder: Path) -> int:
    """Writes model.onnx as `edgeport export` makes it for the runtime; returns its MACs.

    For onnxruntime attention is fused where nothing else reads its logits, but for the arm that is
    not to have it so.
    """
    import onnx
    import onnx_ir as ir

    from edgeport.capture import save_model

    proto = onnx.load_from_string(_graph(arm, grid, "any" if runtime == "onnx" else "gpu"))
    model = ir.from_proto(proto)
    if runtime == "onnx" and arm.kind in ("fused", "topk", "onehot"):
        assert fuse_attention(model, HEADS) == (1 if arm.keep < 1 else DEPTH)
    save_model(model, folder / "model.onnx")
    return count_macs(proto)


@lru_cache(maxsize=2 * len(ARMS))  # those of one grid, which two runtimes share
def _graph(arm: Arm, grid: int, target: Target) -> bytes:
    """Returns the ONNX model after the passes, each proven on the input."""
    import onnx_ir as ir

    from edgeport.capture import capture_module
    from edgeport.passes import passes_for
    from edgeport.passes.apply import apply_passes

    feed = image_of(grid)
    captured = capture_module(network(arm, grid), feed)
    model = apply_passes(captured, passes_for(target), [feed], minimum_db=SAME_DB).model
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def count_macs(model: Any) -> int:
    """Returns the multiply-accumulates of an ONNX graph of static shapes."""
    import onnx

    from edgeport.macs import node_macs

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = [*graph.input, *graph.output, *graph.value_info]
    shapes = {
        one.name: tuple(size.dim_value for size in one.type.tensor_type.shape.dim) for one in known
    } | {one.name: tuple(one.dims) for one in graph.initializer}
    return sum(node_macs(node, shapes) for node in graph.node)


def compile_here(runtime: str, folders: Mapping[str, str]) -> dict[str, str]:
    """Compiles model.onnx in each arm's folder; returns by arm, in words, what could not be."""
    from edgeport.runtimes import RUNTIMES as KNOWN
    from edgeport.runtimes import CompileRequest

    module = importlib.import_module(KNOWN[runtime].module)
    problems = {}
    for arm, folder in folders.items():
        try:
            request = CompileRequest(f"{folder}/model.onnx", folder, "float", {}, None)
            module.compile_model(request)
        except Exception as error:  # a converter may raise anything; the other arms go on
            first, *_ = str(error).strip().splitlines() or [type(error).__name__]
            problems[arm] = f"does not convert: {first[:120]}"
    return problems


# Timing


def time_here(
    runtime: str, grid: int, folders: Mapping[str, str], threads: int, seconds: float
) -> dict[str, Any]:
    """Returns by arm how near its answer is to torch's and, where it is the same, its timing."""
    torch.set_num_threads(threads)
    calls = {arm: _call(runtime, arm, grid, Path(at), threads) for arm, at in folders.items()}
    found: dict[str, Any] = {}
    for arm, call in calls.items():
        (reference,) = load_samples(Path(folders[arm], REFERENCE))
        expected = reference["output_0"]
        found[arm] = {"sqnr_db": sqnr_db(expected, np.asarray(call()).reshape(expected.shape))}
    right = {arm: call for arm, call in calls.items() if found[arm]["sqnr_db"] >= SAME_DB}
    if right:
        timings = interleave(right, rounds=200, seconds=seconds, warmup_seconds=seconds / 4)
        for arm, timing in timings.items():
            found[arm]["timing"] = asdict(timing)
    for one in found.values():
        one["sqnr_db"] = min(one["sqnr_db"], 999.0)  # JSON has no infinity
    return found


def _call(runtime: str, arm: str, grid: int, folder: Path, threads: int) -> Callable[[], Any]:
    (feed,) = load_samples(folder / INPUTS)
    if runtime == "torch":
        (wanted,) = (one for one in ARMS if one.name == arm)
        return _torch_call(network(wanted, grid), torch.from_numpy(feed["image"]))
    from benchmarks.executors import LOADERS

    if runtime == "executorch":
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

        _unsafe_reset_threadpool(threads)
    run = LOADERS[runtime](folder / FILES[runtime], threads)(feed)
    return lambda: run()[0]


def _torch_call(net: nn.Module, image: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return net(image).numpy()

    return call
