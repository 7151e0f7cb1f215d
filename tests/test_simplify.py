"""onnxsim's own fusions must not bring in operators that no NPU compiler knows."""

from __future__ import annotations

import importlib
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeport.capture import capture_module
from edgeport.passes.simplify import simplify

simplify_module = importlib.import_module("edgeport.passes.simplify")


class ZeroBiasAttention(nn.Module):
    """Attention whose q, k, v biases are zero, as in a fresh vision transformer."""

    def __init__(self, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        for linear in (self.q, self.k, self.v):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        normed = self.norm(x)
        q, k, v = (
            linear(normed).view(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj(mixed.reshape(batch, tokens, dim))


def test_attention_stays_in_standard_operators(monkeypatch) -> None:
    torch.manual_seed(0)
    feed = {"x": np.zeros((1, 16, 32), np.float32)}
    model = capture_module(ZeroBiasAttention().eval(), feed)
    result = simplify(model)
    operators = Counter(node.op_type for node in result.model.graph)
    assert result.count > 0
    assert set(result.model.opset_imports) == {""}
    assert operators["Softmax"] == 1
    assert operators["MatMul"] >= 2
    # The control: with its fusions on, onnxsim does bring one in, and the pass refuses it.
    monkeypatch.setattr(simplify_module, "_SKIPPED", ())
    monkeypatch.setattr(simplify_module, "run_in_child", _in_this_process)
    fused = simplify(capture_module(ZeroBiasAttention().eval(), feed))
    assert fused.count == 0
    assert "com.microsoft" in fused.refused[0]


def _in_this_process(target: str, arguments: dict[str, str], **_: object) -> None:
    """Runs the child's function here, where the test can change what it skips."""
    simplify_module.simplify_file(**arguments)
