"""The best-placed candidate of every object, against a loop over objects and candidates."""

from __future__ import annotations

import pytest
import torch

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.metrics.reach import IOU, SCORE, best_placed


def _slow(candidates: torch.Tensor, gt_boxes: torch.Tensor, gt_labels: torch.Tensor) -> list[float]:
    reached = [0.0] * len(gt_boxes)
    for row in candidates:
        overlaps = [
            float(pairwise_iou(box[None], row[None, :4])) if label == row[5] else 0.0
            for box, label in zip(gt_boxes, gt_labels, strict=True)
        ]
        if overlaps:
            best = overlaps.index(max(overlaps))
            reached[best] = max(reached[best], overlaps[best])
    return reached


@pytest.mark.parametrize("seed", range(20))
def test_each_object_gets_the_candidate_that_a_loop_gives_it(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, objects = (int(torch.randint(0, limit, (), generator=generator)) for limit in (40, 6))
    corners = torch.rand(count + objects, 2, generator=generator) * 50
    boxes = torch.cat((corners, corners + 5 + 30 * torch.rand(count + objects, 2, generator=generator)), 1)
    labels = torch.randint(0, 2, (count + objects,), generator=generator)
    scores = torch.rand(count, generator=generator)
    rows = torch.cat((boxes[:count], scores[:, None], labels[:count, None].float()), 1)
    got = best_placed(rows, boxes[count:], labels[count:])
    assert got[:, IOU].tolist() == pytest.approx(_slow(rows, boxes[count:], labels[count:]), abs=1e-6)
    assert torch.equal(best_placed(rows, boxes[count:], labels[count:].float()), got)


def test_without_candidates_or_objects_there_is_nothing() -> None:
    box, label = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0])
    assert best_placed(torch.zeros(0, 6), box, label).tolist() == [[0.0] * 6]
    assert best_placed(torch.tensor([[0.0, 0, 10, 10, 0.5, 0]]), torch.zeros(0, 4), torch.zeros(0)).shape == (0, 6)


def test_of_equal_boxes_the_better_scored_comes_first_and_what_is_not_finite_is_left_out() -> None:
    rows = torch.tensor([[0.0, 0, 9, 10, 0.2, 0], [0, 0, 9, 10, 0.6, 0], [0, 0, float("nan"), 10, 0.9, 0]])
    (best,) = best_placed(rows, torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]))
    assert best[SCORE] == pytest.approx(0.6)
    assert best[IOU] == pytest.approx(0.9)
