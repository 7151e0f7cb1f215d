"""Generated shapes: where they are, and the average precision of known detections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgeport_recipes._shared.vision import boxes
from edgeport_recipes._shared.vision.tasks import Split, find_task
from torch import Tensor

from edgeport.errors import InputError


@pytest.fixture(scope="module")
def drawn() -> Split:
    return boxes.generate(300, 1)


def outputs_of(split: Split, shift: float = 0.0, grow: float = 1.0) -> Tensor:
    """Returns what a network would give that finds every shape, moved and grown by so much."""
    found, classes = split.targets["boxes"], split.targets["classes"]
    outputs = torch.full((split.count, boxes.OUTPUTS, 8, 8), -9.0)
    for image, shape in torch.nonzero(classes >= 0).tolist():
        x, y, width, height = found[image, shape].tolist()
        column, row = min(int(x / 4), 7), min(int(y / 4), 7)
        outputs[image, classes[image, shape], row, column] = 9.0
        outputs[image, 3:, row, column] = torch.tensor(
            [
                (x + shift * width) / 4 - column - 0.5,
                y / 4 - row - 0.5,
                np.log(grow * width / 12),
                np.log(grow * height / 12),
            ]
        )
    return outputs


def test_every_image_has_one_to_four_shapes_that_lie_within_it(drawn: Split) -> None:
    present = drawn.targets["classes"] >= 0
    assert set(present.sum(1).tolist()) == {1, 2, 3, 4}
    found = drawn.targets["boxes"][present]
    assert float((found[:, :2] - found[:, 2:] / 2).min()) >= -1e-4
    assert float((found[:, :2] + found[:, 2:] / 2).max()) <= 32 + 1e-4
    assert float(found[:, 2:].min()) >= boxes.SMALLEST - 1e-3
    assert float(found[:, 2:].max()) <= boxes.LARGEST + 1e-3
    assert not drawn.targets["boxes"][~present].any()
    assert set(drawn.targets["classes"].unique().tolist()) == {-1, 0, 1, 2}


def test_shapes_overlap_little_and_have_centres_in_cells_of_their_own(drawn: Split) -> None:
    found = drawn.targets["boxes"]
    overlap = boxes.iou(found, found) - torch.eye(4)
    assert float(overlap.max()) <= 0.2
    for image in range(drawn.count):
        cells = [tuple((one[:2] // 4).tolist()) for one in found[image] if one[2] > 0]
        assert len(set(cells)) == len(cells)


def test_a_shape_fills_the_share_of_its_box_that_its_class_does() -> None:
    box = np.array([[16, 16, 20, 20]], np.float32).repeat(4, 0)
    inside = boxes._mask(box, np.array([0, 1, 2, -1]))
    np.testing.assert_allclose(inside.mean((1, 2)) * 1024 / 400, [1, np.pi / 4, 0.5, 0], atol=0.03)
    widths = inside[2].sum(1)[6:26]
    assert widths[-1] == 20 and widths[0] <= 1  # it stands on its base
    assert (np.diff(widths) >= 0).all()


def test_what_is_drawn_follows_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = (boxes.generate(5, seed) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.targets["boxes"], again.targets["boxes"])
    assert not torch.equal(first.images, other.images)
    monkeypatch.setattr(boxes, "COUNTS", {"train": 4, "test": 4})
    task = find_task("boxes")
    assert torch.equal(task.data("test", 0).images, task.data("test", 5).images)
    assert not torch.equal(task.data("train", 0).images, task.data("train", 5).images)


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="cannot make 0 images; give 1 or more"):
        boxes.generate(0, 0)


# Loss and score


def test_perfect_outputs_lose_nothing_and_score_1(drawn: Split) -> None:
    outputs = outputs_of(drawn)
    assert float(boxes.loss(outputs, drawn.targets)) < 1e-3
    found = boxes.score(outputs, drawn.targets)["ap50"]
    assert found.shape == (drawn.count,)
    torch.testing.assert_close(found, torch.ones(drawn.count))


def test_a_net_that_is_sure_of_nothing_scores_next_to_nothing(drawn: Split) -> None:
    found = boxes.score(torch.zeros(drawn.count, boxes.OUTPUTS, 8, 8), drawn.targets)["ap50"]
    assert float(found.mean()) < 0.05


@pytest.mark.parametrize(("shift", "score"), [(0.3, 1.0), (0.36, 0.0)])
def test_a_shift_by_a_third_of_the_width_is_where_iou_50_ends(
    drawn: Split, shift: float, score: float
) -> None:
    single = (drawn.targets["classes"] >= 0).sum(1) == 1
    found = boxes.score(outputs_of(drawn, shift=shift), drawn.targets)["ap50"]
    torch.testing.assert_close(found[single], torch.full_like(found[single], score))


def test_the_wrong_class_is_no_detection(drawn: Split) -> None:
    outputs = outputs_of(drawn)
    outputs[:, :3] = outputs[:, :3].roll(1, dims=1)
    assert float(boxes.score(outputs, drawn.targets)["ap50"].mean()) < 0.05


def test_the_loss_falls_toward_the_truth(drawn: Split) -> None:
    losses = [
        float(boxes.loss(outputs_of(drawn, shift, grow), drawn.targets))
        for shift, grow in ((0.5, 2.0), (0.2, 1.5), (0.0, 1.1), (0.0, 1.0))
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-2] > 0.05


def test_the_loss_of_the_growth_is_its_logarithm(drawn: Split) -> None:
    extra = boxes.loss(outputs_of(drawn, grow=1.5), drawn.targets) - boxes.loss(
        outputs_of(drawn), drawn.targets
    )
    assert float(extra) == pytest.approx(2 * np.log(1.5), rel=1e-4)


def two_shapes() -> dict[str, Tensor]:
    found = torch.zeros(1, 4, 4)
    found[0, 0] = torch.tensor([8.0, 8, 10, 10])
    found[0, 1] = torch.tensor([24.0, 24, 8, 8])
    return {"boxes": found, "classes": torch.tensor([[1, 1, -1, -1]])}


def detections(*rows: tuple[float, float, float, int]) -> boxes.Detections:
    """Returns square detections (centre, side, class), the surest first."""
    found = torch.tensor([[[at, at, side, side] for at, side, *_ in rows]])
    sureness = torch.linspace(0.9, 0.5, len(rows))[None]
    return boxes.Detections(found, torch.tensor([[row[2] for row in rows]]), sureness)


A, B, WRONG = (8.0, 10.0, 1), (24.0, 8.0, 1), (16.0, 8.0, 1)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([A, B], 1.0),
        ([A, WRONG, B], 0.5 * 1 + 0.5 * 2 / 3),
        ([WRONG, A, B], 2 / 3),  # the precision at a recall is the best at that recall or above
        ([A, A, B], 0.5 * 1 + 0.5 * 2 / 3),  # a shape is found once
        ([A], 0.5),
        ([WRONG], 0.0),
        ([WRONG, WRONG, WRONG, A], 0.5 * 1 / 4),
    ],
)
def test_average_precision_by_hand(rows: list[tuple[float, float, int]], wanted: float) -> None:
    found = boxes.average_precision(detections(*rows), two_shapes())
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_duplicates_of_a_surer_detection_are_dropped() -> None:
    outputs = torch.full((1, boxes.OUTPUTS, 8, 8), -9.0)
    outputs[0, 1, 2, 2:4] = torch.tensor([3.0, 2.0])
    outputs[0, 3:, 2, 2:4] = torch.tensor([[0.5, -0.5], [0, 0], [0, 0], [0, 0]])
    outputs[0, 0, 6, 6] = 1.0
    found = boxes.decode(outputs)
    assert found.classes[0, :2].tolist() == [1, 0]
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([12.0, 10, 12, 12]))
    assert found.sureness[0, 1] == pytest.approx(torch.tensor(1.0).sigmoid().item())
    assert (found.sureness[0, 2:] < 0.01).all()


def test_an_image_without_shapes_has_no_score() -> None:
    targets = {"boxes": torch.zeros(1, 4, 4), "classes": torch.full((1, 4), -1)}
    with pytest.raises(InputError, match="1 images have no shape"):
        boxes.average_precision(detections(A), targets)
