"""What runs a part of a graph: onnxruntime on this machine, or a runtime that compiles it first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx
from numpy.typing import NDArray

from edgeport.private import scratch_directory
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.lowering import compile_for, run_compiled
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits
from edgeport.subgraph import run_on_host, save_onnx
from edgeport.types import Device, Precision

Array = NDArray[Any]


class Executor(Protocol):
    """What runs the parts of a graph."""

    @property
    def wide(self) -> bool:
        """Whether a run may show any number of tensors without being changed by it."""
        ...

    def run(self, model: onnx.ModelProto, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Returns the outputs in the graph's order; raises StageFailed."""
        ...


@dataclass
class Counted:
    """An executor that counts its runs."""

    executor: Executor
    runs: int = 0

    def run(self, model: onnx.ModelProto, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Returns the outputs; one run more."""
        self.runs += 1
        return self.executor.run(model, feed)


@dataclass(frozen=True)
class OnHost:
    """onnxruntime on this machine: node by node where `wide`, else with its optimizations."""

    wide: bool

    def run(self, model: onnx.ModelProto, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Returns the outputs; raises StageFailed."""
        return run_on_host(model, feed, optimize=not self.wide)


@dataclass(frozen=True)
class Compiled:
    """A runtime that compiles what it runs; a converter that quantizes calibrates on the feed."""

    runtime: str
    device: Device
    precision: Precision
    limits: Limits
    wide = False

    def run(self, model: onnx.ModelProto, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Returns the outputs; raises StageFailed and RuntimeCrashed."""
        with scratch_directory() as folder:
            source, inputs = folder / "part.onnx", folder / "inputs.npz"
            save_onnx(model, source)
            save_samples(inputs, [feed])
            made = folder / "made"
            made.mkdir()
            quantizes = RUNTIMES[self.runtime].compiles == "rewritten"
            compile_for(
                self.runtime,
                source,
                made,
                self.device,
                self.precision,
                self.limits,
                inputs if quantizes and self.precision != "float" else None,
            )
            (outputs,) = run_compiled(self.runtime, made, folder, inputs, self.device, self.limits)
            return list(outputs.values())
