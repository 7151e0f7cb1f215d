"""edgeport takes PyTorch and ONNX models to phones, with proof at every step.

    import edgeport
    result = edgeport.export("padre", device="s24", precision="w8a16", output_dir="build/padre")

Importing it is cheap: torch, onnx and the vendor's compiler are loaded when a step needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Export", "__version__", "export"]

if TYPE_CHECKING:
    from edgeport.pipeline import Export, export


def __getattr__(name: str) -> Any:
    if name in ("Export", "export"):
        from edgeport import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'edgeport' has no attribute {name!r}")
