"""Multiply-accumulates of each variant, and the tokens that make the rivals cost what ToSA costs.

As in `edgeport.macs`, biases, elementwise products, softmax and sums count nothing.
"""

from __future__ import annotations

from edgeport_recipes.tosa.configs import Shape

STEPS = 1000  # of the share that dropping keeps


def count_macs(variant: str, shape: Shape) -> int:
    """Returns the multiply-accumulates of one image."""
    return ends(shape) + body(variant, shape)


def saving(variant: str, shape: Shape) -> float:
    """Returns the share of the full network's multiply-accumulates that a variant does without."""
    return 1 - count_macs(variant, shape) / count_macs("full", shape)


def ends(shape: Shape) -> int:
    """Returns those of patches and head, the same in every variant."""
    rows = shape.tokens if shape.head == "dense" else 1
    pixels = 3 * shape.patch**2
    return shape.tokens * pixels * shape.dim + rows * shape.dim * shape.outputs


def body(variant: str, shape: Shape) -> int:
    """Returns those of the layers and of what stands between them."""
    count, kept = shape.tokens, shape.kept
    if variant == "full":
        return shape.depth * layer(shape, count, count)
    if variant == "drop":
        return dropping(shape, drop_counts(shape))
    if variant == "merge":
        return merging(shape, merge_counts(shape))
    between = {"topk": selector(shape), "onehot": selector(shape) + 2 * kept * count * shape.dim}
    pair = layer(shape, count, count) + between.get(variant, 0) + layer(shape, kept, kept)
    return shape.depth // 2 * pair


def layer(shape: Shape, attended: int, passed: int) -> int:
    """Returns those of one layer: attention among `attended` tokens, MLP of `passed`."""
    attention = 4 * attended * shape.dim**2 + 2 * attended**2 * shape.dim
    return attention + 2 * passed * shape.mlp * shape.dim**2


def selector(shape: Shape) -> int:
    """Returns those of the two convolutions on the logits: 4 heads^2 N^2."""
    return 4 * shape.heads**2 * shape.tokens**2


def dropping(shape: Shape, counts: tuple[int, ...]) -> int:
    """Returns those of the layers where `counts` tokens are left after the first of each pair."""
    before = (shape.tokens, *counts[:-1])
    return sum(layer(shape, a, a) + layer(shape, b, b) for a, b in zip(before, counts, strict=True))


def drop_counts(shape: Shape) -> tuple[int, ...]:
    """Returns the tokens left after each pair's first layer: N r, N r^2, ...

    r is the least share, in thousandths, at which dropping costs no less than ToSA.
    """
    wanted = body("topk", shape)
    for step in range(1, STEPS + 1):
        share = step / STEPS
        counts = tuple(
            max(1, round(shape.tokens * share**stage)) for stage in range(1, shape.depth // 2 + 1)
        )
        if dropping(shape, counts) >= wanted:
            return counts
    return (shape.tokens,) * (shape.depth // 2)  # a selector that costs more than it saves


def merging(shape: Shape, counts: tuple[int, ...]) -> int:
    """Returns those of the layers where each merges `counts` tokens, with those of the matching."""
    total, tokens = 0, shape.tokens
    for count in counts:
        matching = (tokens + 1) // 2 * (tokens // 2) * (shape.dim // shape.heads)
        total += layer(shape, tokens, tokens - count) + matching
        tokens -= count
    return total


def merge_counts(shape: Shape) -> tuple[int, ...]:
    """Returns how many tokens each layer merges, as equally as can be: the most, of all layers, at
    which merging costs no less than ToSA. A layer merges at most half of what it has."""
    wanted, best = body("topk", shape), (0,) * shape.depth
    for total in range(shape.tokens):
        each, more = divmod(total, shape.depth)
        counts = (each,) * (shape.depth - more) + (each + 1,) * more
        last = shape.tokens - sum(counts[:-1])
        if 2 * counts[-1] > last or merging(shape, counts) < wanted:
            break
        best = counts
    return best
