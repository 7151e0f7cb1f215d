"""Simplifies the graph with onnxsim, in a child process: it may abort or never end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeport.capture import weight_bytes
from edgeport.errors import RuntimeCrashed
from edgeport.passes.fold import count_nodes
from edgeport.private import scratch_directory
from edgeport.runtimes.worker import Limits, run_in_child
from edgeport.types import PassResult

NAME = "simplify (onnxsim)"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[3, 2] y) <int64[2] order = {1, 0}> {
  root = Abs(x)
  shape = Shape(root)
  turned = Gather(shape, order)
  y = Reshape(root, turned)
}
"""
LIMITS = Limits(seconds=120, memory_bytes=8 << 30)
# They fuse MatMul and Softmax into com.microsoft::Attention, which no NPU compiler knows.
_SKIPPED = ("fuse_attention", "fuse_gqa")
MAX_BYTES = 1 << 30  # onnxsim passes models as one protobuf, which cannot hold 2 GiB


def simplify(model: ir.Model) -> PassResult:
    """Returns the model that onnxsim makes, or the same one and a sentence why not."""
    if weight_bytes(model) > MAX_BYTES:
        return PassResult(NAME, model, 0, ("the model is too large for onnxsim",))
    proto = ir.to_proto(model)
    with scratch_directory() as folder:
        source, target = folder / "in.onnx", folder / "out.onnx"
        source.write_bytes(proto.SerializeToString())
        try:
            run_in_child(
                f"{__name__}:simplify_file",
                {"source": str(source), "target": str(target)},
                stage="simplify",
                workdir=folder,
                limits=LIMITS,
            )
        except RuntimeCrashed as crash:
            what = str(crash).partition("; what it printed")[0]  # that log goes with the folder
            return PassResult(NAME, model, 0, (f"went on without it: {what}",))
        simplified = ir.from_proto(_load(target))
    for key in [key for key in simplified.metadata_props if key.startswith("onnxsim.")]:
        del simplified.metadata_props[key]  # a list of all names, as long as the graph
    if gained := set(simplified.opset_imports) - set(model.opset_imports):
        told = f"went on without it: onnxsim brought in operators of {', '.join(sorted(gained))}"
        return PassResult(NAME, model, 0, (told,))
    count = count_nodes(model) - count_nodes(simplified)
    # onnxsim renames and reorders even where it removes nothing; then ours stays as it is.
    return PassResult(NAME, simplified if count > 0 else model, max(count, 0))


def _load(path: Path) -> Any:
    import onnx

    return onnx.load(path)


def simplify_file(source: str, target: str) -> None:
    """Writes to `target` what onnxsim makes of `source`. Runs in the child process."""
    import onnx
    import onnxsim

    model, same = onnxsim.simplify(source, skipped_optimizers=list(_SKIPPED))
    if not same:
        raise ValueError("onnxsim's own check found a different answer")
    onnx.save(model, target)
