"""edgeport takes PyTorch and ONNX models to phones, with proof at every step.

    import edgeport
    result = edgeport.export("padre", device="s24", precision="w8a16", output_dir="build/padre")

Importing it is cheap: torch, onnx and the vendor's compiler are loaded when a step needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Benchmark",
    "Diagnosis",
    "Export",
    "__version__",
    "examine",
    "export",
    "run_benchmark",
    "sensitivity",
]

_HOMES = {
    "Export": "edgeport.pipeline",
    "export": "edgeport.pipeline",
    "sensitivity": "edgeport.pipeline",
    "Benchmark": "edgeport.benchmarking",
    "run_benchmark": "edgeport.benchmarking",
    "examine": "edgeport.doctor",
    "Diagnosis": "edgeport.diagnosis",
}

if TYPE_CHECKING:
    from edgeport.benchmarking import Benchmark, run_benchmark
    from edgeport.diagnosis import Diagnosis
    from edgeport.doctor import examine
    from edgeport.pipeline import Export, export, sensitivity


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgeport' has no attribute {name!r}")
