"""What is claimed of PADRe; imports nothing heavy."""

from __future__ import annotations

from edgeport.types import Claim

CLAIMS = (
    Claim(
        "sqnr_db:qnn_context_binary",
        ">=",
        30.0,
        ("emulated", "device"),
        "torch's logits, on inputs not used to calibrate; with its mixers zeroed it has none",
    ),
    Claim(
        "cpu_ops:qnn_context_binary",
        "<=",
        0,
        ("host",),
        "no softmax and no product of activations is left for the CPU: all of it is on the NPU",
    ),
    Claim(
        "speedup:one block, 4,096 tokens",
        ">=",
        1.5,
        ("host",),
        "linear in tokens, attention is quadratic; the paper has no figure for a CPU",
    ),
    Claim(
        "speedup",
        ">=",
        11.0,
        ("device",),
        "the paper: 11x to 43x faster than self-attention, on a server GPU and a mobile NPU, "
        "over token counts that it does not list; only a device can hold or refute it",
    ),
    Claim(
        "top1_loss:shapes",
        "<=",
        1.0,
        ("host",),
        "points below attention on generated outlines; the paper: comparable or better on ImageNet",
    ),
    Claim(
        "top1_of_mixing:shapes",
        ">=",
        20.0,
        ("host",),
        "points that attention gains over no mixing: where it is little, the task proves nothing",
    ),
    Claim(
        "ap50_loss:boxes",
        "<=",
        1.0,
        ("host",),
        "points below attention on generated boxes; the paper: comparable or better in detection",
    ),
    Claim(
        "top1_loss:cifar10",
        "<=",
        1.0,
        ("host",),
        "points below attention on CIFAR-10; its weights are yours to train, into EDGEPORT_TRAINED",
    ),
)
