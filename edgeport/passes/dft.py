"""Replaces DFT with the product with a constant matrix of cosines and sines.

Why: no runtime for phones has the operator. X_k = sum_n x_n exp(-2 pi i k n / N) is linear: real
and imaginary parts of all n are one row of 2 N numbers, and one real [2 N, 2 K] matrix holds the
products with cosine and sine for each part. The inverse has the other sign and the factor 1 / N;
from one side only it counts all bins but the first and last twice, and its result is real.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, opset, shape_of
from edgeport.types import PassResult

NAME = "DFT to MatMul"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 8, 1] x) => (float[1, 5, 2] y) <int64 axis = {1}> {
  y = DFT <onesided: int = 1> (x, , axis)
}
"""
_MAX_ELEMENTS = 1 << 24  # of the matrix: 64 MiB of float32


def dft_to_matmul(model: ir.Model) -> PassResult:
    """Returns the model without DFT of static length; refuses a matrix above 64 MiB."""
    editor = Editor(model)
    for node in nodes_of(model, "DFT"):
        value, shape = node.inputs[0], shape_of(node.inputs[0])
        known = _length_and_axis(node, opset(model))
        if shape is None or known is None or value is None or value.dtype is None:
            editor.refuse(node, "its shape, length or axis is not static")
            continue
        axis = known[1] % len(shape)
        own = 2 * (shape[axis] - 1) if _is_real_inverse(node) else shape[axis]
        length = known[0] or own
        if _is_real_inverse(node) and (length % 2 or shape[-1] != 2):
            why = "an inverse from one side to an odd length is not the same everywhere"
            editor.refuse(node, why)
            continue
        if 4 * shape[axis] * length > _MAX_ELEMENTS:
            editor.refuse(node, f"a length of {length} makes a matrix above 64 MiB")
            continue
        _replace(editor, node, length, axis, shape)
    return editor.result(NAME)


def _is_real_inverse(node: ir.Node) -> bool:
    return bool(attribute(node, "inverse", 0)) and bool(attribute(node, "onesided", 0))


def _length_and_axis(node: ir.Node, version: int) -> tuple[int | None, int] | None:
    """Returns the stated length, or None for the axis's own, and the axis."""
    inputs = [*node.inputs, None, None][:3]
    arrays = [array_of(value) for value in inputs[1:]]
    if any(value is not None and a is None for value, a in zip(inputs[1:], arrays)):
        return None
    length = None if arrays[0] is None else int(arrays[0].reshape(()))
    default = -2 if version >= 20 else int(attribute(node, "axis", 1))
    return length, default if arrays[1] is None else int(arrays[1].reshape(()))


def _replace(editor: Editor, node: ir.Node, length: int, axis: int, shape: tuple[int, ...]) -> None:
    value, rank = node.inputs[0], len(shape)
    assert value is not None and value.dtype is not None
    kind = value.dtype.numpy()
    order = [*(a for a in range(rank - 1) if a != axis), axis, rank - 1]
    outer = tuple(shape[a] for a in order[:-2])
    if _is_real_inverse(node):
        bins, parts, matrix = length, 1, _real_inverse_matrix(shape[axis], length)
    else:
        bins, parts = length // 2 + 1 if attribute(node, "onesided", 0) else length, 2
        matrix = _matrix(shape[axis], length, bins, bool(attribute(node, "inverse", 0)), shape[-1])
    value = editor.transpose(node, value, order)
    value = editor.reshape(node, value, (*outer, shape[axis] * shape[-1]))
    weight = editor.constant(node, matrix.astype(kind), "matrix")
    product = editor.add(node, "MatMul", [value, weight])
    result = editor.reshape(node, product, (*outer, bins, parts))
    editor.replace(node.outputs[0], editor.transpose(node, result, np.argsort(order).tolist()))


def _matrix(given: int, length: int, bins: int, inverse: bool, parts: int) -> NDArray[np.float64]:
    """Returns [given * parts, bins * 2]: rows (n, re|im), columns (k, re|im).

    Rows beyond `length` are zero, which cuts the input; missing rows are its zero padding.
    """
    n, k = np.arange(given)[:, None], np.arange(bins)[None, :]
    cosine, sine = (wave * (n < length) for wave in _waves(n * k, length))
    sine = sine if inverse else -sine
    from_real = np.stack([cosine, sine], axis=-1)
    from_imaginary = np.stack([-sine, cosine], axis=-1)
    rows = np.stack([from_real, from_imaginary], axis=1)[:, :parts]
    return rows.reshape(given * parts, bins * 2) / (length if inverse else 1)


def _real_inverse_matrix(given: int, length: int) -> NDArray[np.float64]:
    """Returns [given * 2, length]: rows (k, re|im); a bin between the first and last counts twice.

    The bins that are left out are the conjugates of those, since the result is real.
    """
    k, n = np.arange(given)[:, None], np.arange(length)[None, :]
    cosine, sine = _waves(n * k, length)
    weight = np.where(k > length // 2, 0.0, np.where((k == 0) | (2 * k == length), 1.0, 2.0))
    rows = np.stack([weight * cosine, -weight * sine], axis=1)
    return rows.reshape(2 * given, length) / length


def _waves(products: NDArray[Any], length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns cosine and sine of 2 pi n k / N, exactly 0 where they are.

    A column of rounding errors would get a scale of its own where it is quantized: 0.5 dB in w8a16.
    """
    angle = 2 * np.pi * (products % length) / length  # for large n k the product would round
    waves = (np.cos(angle), np.sin(angle))
    cosine, sine = (np.where(np.abs(wave) < 1e-12, 0.0, wave) for wave in waves)
    return cosine, sine
