"""The two forms of token selection: the same bits, ties included, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.token_selection import (
    OneHotTokens,
    TopKTokens,
    ranks,
    replace_top_k,
    top_tokens,
)

N, D = 13, 6


class Twice(nn.Module):
    """Gives other values, and no two tokens the same way: their order counts."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + torch.arange(x.shape[1])[:, None]


def scores(kind: str, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    if kind == "ties":
        return torch.randint(0, 3, (4, N), generator=drawn).float()
    if kind == "equal":
        return torch.zeros(4, N)
    if kind == "infinite":
        return torch.tensor([[float("inf"), *range(N - 2), float("-inf")]] * 4)
    return torch.randn(4, N, generator=drawn)


def tokens() -> Tensor:
    return torch.randn(4, N, D, generator=torch.Generator().manual_seed(5))


KINDS = ("distinct", "ties", "equal", "infinite")


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_places_in_a_stable_sort(kind: str) -> None:
    rows = scores(kind).tolist()
    for dtype in (torch.int32, torch.float32):
        found = ranks(scores(kind), dtype)
        assert found.dtype == dtype
        for row, places in zip(rows, found.tolist()):
            order = sorted(range(N), key=lambda token: -row[token])  # sorted() is stable
            assert [places[token] for token in order] == list(range(N))


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_tokens_come_best_first_and_ties_by_index(kind: str) -> None:
    for row, chosen in zip(scores(kind).tolist(), top_tokens(scores(kind), 5).tolist()):
        assert chosen == sorted(range(N), key=lambda token: -row[token])[:5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5, N])
def test_the_chosen_pass_and_the_others_are_what_they_were(kind: str, count: int) -> None:
    x, given = tokens(), scores(kind)
    found = TopKTokens(Twice(), count)(x, given)
    for before, after, chosen in zip(x, found, top_tokens(given, count).tolist()):
        for token in range(N):
            wanted = 2 * before[token] + chosen.index(token) if token in chosen else before[token]
            assert torch.equal(after[token], wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5, N])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_both_forms_give_the_same_bits(kind: str, count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inner = nn.TransformerEncoderLayer(D, 2, 12, batch_first=True).eval()
    x, given = tokens(), scores(kind)
    with torch.no_grad():
        gathered = TopKTokens(inner, count)(x, given)
        multiplied = OneHotTokens(inner, count, dtype)(x, given)
    assert torch.equal(gathered, multiplied)
    assert not torch.equal(gathered, x)


def test_the_gradients_of_both_forms_agree_and_none_reaches_the_scores() -> None:
    inner, given = nn.Linear(D, D), scores("distinct").requires_grad_()
    found = []
    for form in (TopKTokens, OneHotTokens):
        x = tokens().requires_grad_()
        form(inner, 5)(x, given).square().sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    torch.testing.assert_close(*found)
    assert given.grad is None


class Net(nn.Module):
    """A net of someone else: a selection in a selection, and one in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.nested = TopKTokens(Scored(TopKTokens(nn.Linear(D, D), 3)), 7)
        self.listed = nn.ModuleList([TopKTokens(nn.Linear(D, D), 4)])

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.listed[0](self.nested(x, given), -given)


class Scored(nn.Module):
    """Scores tokens by their first feature."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x[:, :, 0])


def test_every_selection_in_a_copy_is_replaced_and_the_outputs_stay() -> None:
    net = Net().eval()
    copy = replace_top_k(net)
    kinds = [type(one) for one in copy.modules() if isinstance(one, TopKTokens)]
    assert kinds == [OneHotTokens] * 3
    assert not any(isinstance(one, OneHotTokens) for one in net.modules())
    assert list(copy.state_dict()) == list(net.state_dict())
    x, given = tokens(), scores("ties")
    with torch.no_grad():
        assert torch.equal(copy(x, given), net(x, given))
    whole = replace_top_k(TopKTokens(Twice(), 2))
    assert type(whole) is OneHotTokens and whole.count == 2


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(InputError, match="count is 0; give 1 or more tokens"):
        TopKTokens(Twice(), 0)
    for form in (TopKTokens, OneHotTokens):
        with pytest.raises(InputError, match="13 tokens are fewer than the 14 to pass"):
            form(Twice(), N + 1)(tokens(), scores("distinct"))
    with pytest.raises(InputError, match="the model has no TopKTokens"):
        replace_top_k(nn.Linear(2, 2))


class OneInput(nn.Module):
    """Takes the scores from the tokens; rounded, so that there are ties."""

    def __init__(self, form: type[TopKTokens]) -> None:
        super().__init__()
        self.select = form(nn.Linear(D, D), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.select(x, x.sum(2).round())


@pytest.mark.parametrize(
    ("form", "operators"),
    [(TopKTokens, {"TopK", "GatherElements", "ScatterElements"}), (OneHotTokens, set())],
)
def test_the_exported_graph_picks_the_same_tokens(
    form: type[TopKTokens], operators: set[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, file = OneInput(form).eval(), tmp_path / "net.onnx"
    torch.onnx.export(net, (tokens(),), file, dynamo=True, verbose=False)
    used = {node.op_type for node in onnx.load(file).graph.node}
    hostile = {"TopK", "GatherElements", "ScatterElements", "Where", "NonZero", "GatherND"}
    assert used & hostile == operators
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: tokens().numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, net(tokens()).numpy(), atol=1e-5)
