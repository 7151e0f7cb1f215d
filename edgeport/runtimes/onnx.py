"""The runtime `onnx`: an .onnx file, run by onnxruntime's CPU provider in this process.

The file is the flow's own: nothing compiles it, and no operator of it is placed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgeport.errors import StageFailed
from edgeport.types import TensorSpec

NAME = "onnx"
# It rounds the weights of a layer that stands in float between integer ones, as if that were a
# mistake; in a mixed model it is what was asked for.
REWRITES_FLOAT_LAYERS = ["WeightBiasQuantization"]
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class Session:
    """A model, from a file or its bytes, that runs feeds on this machine's CPU.

    `threads` of 0 leaves the number to onnxruntime; `spin` lets its threads wait busily between
    calls, which steals time from whatever else is timed. Without `optimize` every node is computed
    as the file states it: nothing is fused. `profile` starts the names of the file that
    `end_profile` writes. Raises StageFailed where it does not load.
    """

    def __init__(
        self,
        model: Path | bytes,
        threads: int = 0,
        *,
        spin: bool = True,
        optimize: bool = True,
        profile: Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.log_severity_level = 4  # errors reach the user as exceptions
        options.intra_op_num_threads = threads
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            self._session = ort.InferenceSession(
                model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=REWRITES_FLOAT_LAYERS,
            )
        except Exception as error:  # onnxruntime's binding raises a class per status code
            name = model.name if isinstance(model, Path) else "the graph"
            line = str(error).splitlines()[0]
            raise StageFailed("onnx", f"onnxruntime cannot load {name}: {line}") from error

    def run(self, feed: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Returns the outputs in the graph's order; raises StageFailed where a node fails."""
        try:
            return tuple(np.asarray(output) for output in self._session.run(None, dict(feed)))
        except Exception as error:  # onnxruntime's binding raises a class per status code
            line = str(error).splitlines()[0]
            raise StageFailed("onnx", f"onnxruntime cannot run the graph: {line}") from error

    def end_profile(self) -> Path:
        """Returns the file with the times of all runs, in the trace format of Chrome."""
        return Path(self._session.end_profiling())

    def output_names(self) -> tuple[str, ...]:
        """Returns the names of the outputs in the graph's order."""
        return tuple(value.name for value in self._session.get_outputs())

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Returns the specs of the inputs."""
        return tuple(
            TensorSpec(value.name, _dtype(value.type), tuple(value.shape))
            for value in self._session.get_inputs()
        )


def load(directory: Path, device: Mapping[str, Any]) -> Session:
    """Returns the export's ONNX model, the quantized one where there is one."""
    files = (directory / name for name in ("quantized.onnx", "optimized.onnx"))
    return Session(next(file for file in files if file.is_file()))


def _dtype(onnx_type: str) -> str:
    return _TYPES.get(onnx_type, onnx_type.removeprefix("tensor(").removesuffix(")"))
