"""What is claimed of ToSA; imports nothing heavy."""

from __future__ import annotations

from edgeport.types import Claim

CLAIMS = (
    Claim(
        "sqnr_db:qnn_context_binary",
        ">=",
        20.0,
        ("emulated", "device"),
        "torch's logits, on inputs not used to calibrate; with tokens picked at random it has 12",
    ),
    Claim(
        "cpu_ops:qnn_context_binary",
        "<=",
        0,
        ("host",),
        "ranks, one-hot products and logits all run on the NPU",
    ),
    Claim(
        "macs_saving",
        ">=",
        20.0,
        ("host",),
        "percent of the full network's, in both forms; the paper's own figure could not be read",
    ),
    Claim(
        "top1_loss:shapes",
        "<=",
        1.0,
        ("host",),
        "points below the full network, trained as long, on generated outlines; the paper: "
        "accuracy maintained on ImageNet",
    ),
    Claim(
        "top1_loss:cifar10",
        "<=",
        1.0,
        ("host",),
        "points below the full network on CIFAR-10; its weights are yours to train, into "
        "EDGEPORT_TRAINED",
    ),
    Claim(
        "absrel_growth:rooms",
        "<=",
        2.0,
        ("host",),
        "percent more depth error than the full network in generated rooms; the paper: similar "
        "accuracy on NYU Depth v2",
    ),
    Claim(
        "selector_overlap_gain:shapes",
        ">=",
        1.0,
        ("host",),
        "points more of the next layer's best tokens found than by copying this layer's attention",
    ),
    Claim(
        "speedup",
        ">=",
        1.0,
        ("device",),
        "fewer multiply-accumulates have to be less time; only a device can hold or refute it",
    ),
)
