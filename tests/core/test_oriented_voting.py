"""Voting on oriented boxes: a loop over boxes, and what neither an angle's period nor a box's form may change."""

from __future__ import annotations

from math import exp, pi
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlc_yolo import voting
from mlc_yolo.oriented import pairwise_probiou
from mlc_yolo.voting import vote_oriented

OPTIONS: dict[str, Any] = {"iou_threshold": 0.5, "sigma": 0.05}


def crowd(seed: int, count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Return long boxes around a few objects, askew, their scores and groups."""
    rng = np.random.default_rng(seed)
    objects = np.column_stack((rng.uniform(0, 200, (6, 2)), rng.uniform(40, 60, 6), rng.uniform(10, 20, 6)))
    angles, which = rng.uniform(-pi / 4, 3 * pi / 4, 6), rng.integers(0, 6, count)
    boxes = objects[which] * rng.normal(1, 0.03, (count, 4))
    rows = np.column_stack((boxes, angles[which] + rng.normal(0, 0.1, count)))
    scores = torch.from_numpy(rng.uniform(0.01, 1, count).astype(np.float32))
    return torch.from_numpy(rows.astype(np.float32)), scores, torch.from_numpy(rng.integers(0, 2, count))


def voted(boxes: Tensor, scores: Tensor, groups: Tensor, count: int = 10) -> Tensor:
    return vote_oriented(boxes[:count], groups[:count], boxes, scores, groups, **OPTIONS)


def assert_same(first: Tensor, second: Tensor) -> None:
    """Require the same rectangles to 1e-3 px, whatever their forms, by their corners' distances from one another."""
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        quarters = round((b[4] - a[4]) / (pi / 2))
        width, height = (b[3], b[2]) if quarters % 2 else (b[2], b[3])
        turned = b[4] - quarters * pi / 2
        assert [*b[:2], width, height, turned] == pytest.approx(a, abs=1e-3)


def test_voting_equals_the_loop_over_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores, groups = crowd(0)
    overlaps, rows = pairwise_probiou(boxes, boxes).tolist(), boxes.tolist()
    expected = []
    for i in range(10):
        sums, total = [0.0] * 5, 0.0
        for j, (x, y, w, h, r) in enumerate(rows):
            if groups[i] == groups[j] and overlaps[i][j] > OPTIONS["iou_threshold"]:
                weight = float(scores[j]) * exp(-((1 - overlaps[i][j]) ** 2) / OPTIONS["sigma"])
                values = (x, y, w, h, r - rows[i][4])
                sums, total = [a + weight * b for a, b in zip(sums, values, strict=True)], total + weight
        x, y, w, h, turned = (value / total for value in sums)
        expected.append([x, y, w, h, rows[i][4] + turned])
    np.testing.assert_allclose(voted(boxes, scores, groups), expected, atol=1e-3)
    assert (voted(boxes, scores, groups) - boxes[:10]).abs().max() > 0.1
    monkeypatch.setattr(voting, "MAX_OVERLAPS", 100)
    np.testing.assert_allclose(voted(boxes, scores, groups), expected, atol=1e-3)


@pytest.mark.parametrize("quarters", [1, 2, 3, -5])
def test_neither_the_form_of_a_voter_nor_that_of_the_kept_box_matters(quarters: int) -> None:
    boxes, scores, groups = crowd(1)
    other = boxes.clone()
    other[:, 4] += quarters * pi / 2
    if quarters % 2:
        other[:, 2:4] = boxes[:, [3, 2]]
    some = torch.rand(len(boxes), generator=torch.Generator().manual_seed(0)) < 0.5
    mixed = torch.where(some[:, None], other, boxes)
    for written in (other, mixed):
        assert_same(voted(boxes, scores, groups), voted(written, scores, groups))


def test_turning_and_shifting_all_boxes_does_so_to_the_voted_ones() -> None:
    boxes, scores, groups = crowd(2)
    angle = 1.0
    turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=torch.float32)

    def moved(rows: Tensor) -> Tensor:
        return torch.cat((rows[:, :2] @ turn + 30, rows[:, 2:4], rows[:, 4:] + angle), 1)

    assert_same(moved(voted(boxes, scores, groups)), voted(moved(boxes), scores, groups))


def test_equal_voters_one_alone_none_and_boxes_that_are_not_finite_change_nothing() -> None:
    box = torch.tensor([[50.0, 40.0, 30.0, 10.0, 0.7]])
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    assert torch.equal(voted(box, one, zero), box)
    assert torch.equal(vote_oriented(box, zero, box.repeat(3, 1), one.repeat(3), zero.repeat(3), **OPTIONS), box)
    assert torch.equal(vote_oriented(box, zero, box[:0], one[:0], zero[:0], **OPTIONS), box)
    assert vote_oriented(box[:0], zero[:0], box, one, zero, **OPTIONS).shape == (0, 5)
    bad = torch.cat((box, torch.full((1, 5), torch.nan)))
    assert torch.equal(vote_oriented(box, zero, bad, one.repeat(2), zero.repeat(2), **OPTIONS), box)
