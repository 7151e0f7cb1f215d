"""Softmax attention in the forms in which torch and onnxruntime run it fastest: the baselines.

The recipe keeps features as `B x D x H x W`, which suits PADRe. Attention likes tokens `B x N x D`:
`on_tokens` gives the same network, with the same weights, in that layout.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from edgeport_recipes.padre.model import Attention, Block, ChannelLayerNorm, VisionTransformer
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from edgeport.capture import capture_module
from edgeport.runtimes.onnx import Session

_LAYOUT = ("Transpose", "Reshape", "Mul")  # what stands between a projection and the scores


class TokenAttention(nn.Module):
    """Softmax self-attention over tokens `B x N x D`, with one joint query-key-value projection.

    `fused` calls scaled_dot_product_attention; otherwise the `N x N` scores are made and kept.
    """

    def __init__(self, mixer: Attention, fused: bool) -> None:
        super().__init__()
        parts = [_linear(conv) for conv in (mixer.query, mixer.key, mixer.value)]
        dim = parts[0].in_features
        self.heads, self.fused = mixer.heads, fused
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), _linear(mixer.proj)
        self.qkv.weight = nn.Parameter(torch.cat([part.weight for part in parts]))
        self.qkv.bias = nn.Parameter(torch.cat([part.bias for part in parts]))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            scores = query @ key.mT * query.shape[-1] ** -0.5
            mixed = scores.softmax(-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))


class TokenBlock(nn.Module):
    """The recipe's block on tokens, with torch's own LayerNorm and Linear."""

    def __init__(self, block: Block, fused: bool) -> None:
        super().__init__()
        assert isinstance(block.mixer, Attention)
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2)
        self.mixer = TokenAttention(block.mixer, fused)
        self.mlp = nn.Sequential(_linear(block.mlp[0]), nn.GELU(), _linear(block.mlp[2]))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenTransformer(nn.Module):
    """The recipe's net on tokens, from image to logits."""

    def __init__(self, net: VisionTransformer, fused: bool) -> None:
        super().__init__()
        self.patches, self.position = net.patches, net.position
        self.blocks = nn.Sequential(*(TokenBlock(block, fused) for block in net.blocks))
        self.norm, self.head = _norm(net.norm), _linear(net.head)

    def forward(self, image: Tensor) -> Tensor:
        x = (self.patches(image) + self.position).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def on_tokens(module: nn.Module, fused: bool = True) -> nn.Module:
    """Returns the recipe's attention block or net in token layout, with copies of its weights."""
    if isinstance(module, VisionTransformer):
        return TokenTransformer(module, fused).eval()
    assert isinstance(module, Block)
    return TokenBlock(module, fused).eval()


def _linear(conv: nn.Conv2d) -> nn.Linear:
    linear = nn.Linear(conv.in_channels, conv.out_channels)
    linear.weight = nn.Parameter(conv.weight.detach()[:, :, 0, 0].clone())
    linear.bias = nn.Parameter(conv.bias.detach().clone())
    return linear


def _norm(norm: ChannelLayerNorm) -> nn.LayerNorm:
    result = nn.LayerNorm(norm.weight.numel(), eps=norm.eps)
    result.weight = nn.Parameter(norm.weight.detach().flatten().clone())
    result.bias = nn.Parameter(norm.bias.detach().flatten().clone())
    return result


def graphs(
    module: nn.Module, feed: Mapping[str, NDArray[Any]], token_feed: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[ir.Model, Mapping[str, NDArray[Any]]]]:
    """Returns every form of the recipe's attention for onnxruntime, with the feed that it takes."""
    tokens = on_tokens(module)
    heads = next(part.heads for part in module.modules() if isinstance(part, Attention))
    return {
        "attention": (capture_module(module, feed), feed),
        "attention, opset-23 Attention": (_export_opset_23(module, feed), feed),
        "attention, MultiHeadAttention": (with_fused_nodes(module, feed, heads), feed),
        "attention on tokens": (capture_module(tokens, token_feed), token_feed),
        "attention on tokens, MultiHeadAttention": (
            with_fused_nodes(tokens, token_feed, heads),
            token_feed,
        ),
    }


def _export_opset_23(module: nn.Module, feed: Mapping[str, NDArray[Any]]) -> ir.Model:
    """Returns the module at opset 23, whose exporter writes one Attention node a layer."""
    arguments = tuple(torch.from_numpy(array) for array in feed.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it remarks on torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            torch.export.export(module, arguments, strict=False),
            dynamo=True,
            opset_version=23,
            input_names=list(feed),
            verbose=False,
        )
    assert program is not None
    found = [node for node in program.model.graph if node.op_type == "Attention"]
    assert found, "the exporter wrote no Attention node"
    return program.model


def with_fused_nodes(module: nn.Module, feed: Mapping[str, NDArray[Any]], heads: int) -> ir.Model:
    """Returns the exported module with onnxruntime's MultiHeadAttention in place of its attention.

    Replaces MatMul(Softmax(MatMul(q, k)), v), with the reshapes and transposes around it, by the
    one node that onnxruntime's CPU provider computes without keeping the `N x N` scores.
    """
    model = capture_module(module, feed)
    assert fuse_attention(model, heads), "the exported attention has no Softmax"
    return model


def fuse_attention(model: ir.Model, heads: int) -> int:
    """Puts such nodes into a graph and returns how many; where anything else reads the scores, as a
    selector of tokens does, they have to be made, and attention stays as it is."""
    found = [node for node in model.graph if node.op_type == "Softmax" and _is_attention(node)]
    for softmax in found:
        _fuse(model, softmax, heads)
    RemoveUnusedNodesPass()(model)
    model.opset_imports["com.microsoft"] = 1
    return len(found)


def _is_attention(softmax: ir.Node) -> bool:
    """Returns whether it stands between two products, and alone reads the scores."""
    scores, readers = softmax.inputs[0].producer(), softmax.outputs[0].uses()
    alone = len(readers) == 1 and len(softmax.inputs[0].uses()) == 1
    ends = (scores, next(iter(readers)).node) if scores is not None and readers else ()
    return alone and len(ends) == 2 and all(node.op_type == "MatMul" for node in ends)


def _fuse(model: ir.Model, softmax: ir.Node, heads: int) -> None:
    scores, product = softmax.inputs[0].producer(), softmax.outputs[0].consumers()[0]
    sources = [_projection(v) for v in (*scores.inputs, product.inputs[1])]
    transpose = product.outputs[0].consumers()[0]
    reshape = transpose.outputs[0].consumers()[0]
    assert transpose.op_type == "Transpose" and reshape.op_type == "Reshape"
    nodes: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value], attributes: dict[str, Any], domain: str = "") -> Any:
        nodes.append(ir.node(op, inputs, attributes, domain=domain))
        nodes[-1].outputs[0].name = f"{softmax.name}_fused_{len(nodes)}"
        return nodes[-1].outputs[0]

    flat = len(sources[0].shape) == 4  # B x D x H x W, which the node takes as B x N x D
    if flat:
        batch, dim, height, width = sources[0].shape
        shape = ir.tensor(np.array([batch, dim, height * width]), name=f"{softmax.name}_tokens")
        known = ir.Value(name=shape.name, const_value=shape)
        model.graph.register_initializer(known)
        sources = [
            add("Transpose", [add("Reshape", [v, known], {})], {"perm": [0, 2, 1]}) for v in sources
        ]
    mixed = add("MultiHeadAttention", sources, {"num_heads": heads}, "com.microsoft")
    if flat:
        mixed = add("Transpose", [mixed], {"perm": [0, 2, 1]})
    result = add("Reshape", [mixed, reshape.inputs[1]], {})
    model.graph.insert_before(reshape, nodes)
    ir.convenience.replace_all_uses_with(reshape.outputs[0], result)


def _projection(value: ir.Value) -> ir.Value:
    """Returns what the projection gave, before the heads were split and the scores scaled."""
    node = value.producer()
    while node is not None and node.op_type in _LAYOUT:
        value = node.inputs[0]
        node = value.producer()
    assert node is not None
    return value


def load(model: ir.Model, threads: int) -> Session:
    """Returns the session of a graph; its threads do not spin, other arms run in between."""
    return Session(ir.to_proto(model).SerializeToString(), threads, spin=False)
