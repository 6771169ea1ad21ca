"""Box voting against a loop over boxes and sides, its laws, and what it does where there is nothing to vote on."""

from __future__ import annotations

from math import exp, isfinite
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlc_yolo import voting
from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.voting import LEAST_VARIANCE, distance_variances, vote

OPTIONS: dict[str, Any] = {"iou_threshold": 0.6, "sigma": 0.05}


def crowd(seed: int, count: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes around a few objects, scores, groups and variances; sizes from 20 to 60 px."""
    rng = np.random.default_rng(seed)
    objects = rng.uniform(0, 200, (6, 2))
    centres = objects[rng.integers(0, 6, count)] + rng.normal(0, 2, (count, 2))
    sides = rng.uniform(20, 60, (6, 2))[rng.integers(0, 6, count)] * rng.uniform(0.9, 1.1, (count, 2))
    boxes = np.hstack((centres - sides / 2, centres + sides / 2))
    arrays = boxes, rng.uniform(0.01, 1, count), rng.uniform(0.1, 30, (count, 4))
    corners, scores, variances = (torch.from_numpy(each.astype(np.float32)) for each in arrays)
    return corners, scores, torch.from_numpy(rng.integers(0, 2, count)), variances


def loop(
    kept: list[int],
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    variances: Tensor | None,
    *,
    iou_threshold: float,
    sigma: float,
) -> list[list[float]]:
    """The paper's equation as printed, times the score: box by box and side by side, in Python's own numbers."""
    overlaps, rows, votes = pairwise_iou(boxes, boxes).tolist(), boxes.tolist(), scores.tolist()
    result = []
    for i in kept:
        sides = []
        for side in range(4):
            above = below = 0.0
            for j in range(len(rows)):
                if groups[i] == groups[j] and overlaps[i][j] > iou_threshold:
                    weight = votes[j] * exp(-((1 - overlaps[i][j]) ** 2) / sigma)
                    weight /= 1 if variances is None else float(variances[j, side])
                    above, below = above + weight * rows[j][side], below + weight
            sides.append(above / below)
        result.append(sides)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("spread", [False, True], ids=["alike", "by variance"])
@pytest.mark.parametrize("chunk", [1, 200, voting.MAX_OVERLAPS])
def test_voting_equals_the_loop_over_boxes(chunk: int, spread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voting, "MAX_OVERLAPS", chunk)
    moved = 0.0
    for seed in range(20):
        boxes, scores, groups, variances = crowd(seed)
        known = variances if spread else None
        kept = list(range(0, len(boxes), 7))
        for options in (OPTIONS, {"iou_threshold": 0.3, "sigma": 0.5}, {"iou_threshold": 0.0, "sigma": 0.001}):
            voted = vote(boxes[kept], groups[kept], boxes, scores, groups, variances=known, **options)
            expected = torch.tensor(loop(kept, boxes, scores, groups, known, **options))
            torch.testing.assert_close(voted, expected, rtol=0, atol=1e-4)
            moved = max(moved, float((voted - boxes[kept]).abs().max()))
    assert moved > 2, "the crowds put it to the test"


def test_identical_boxes_and_one_candidate_alone_change_nothing_to_the_last_bit() -> None:
    boxes, scores, groups, variances = crowd(1)
    for i in range(len(boxes)):
        for known in (None, variances):
            same = boxes[i].expand_as(boxes)
            assert torch.equal(vote(same[:1], groups[:1], same, scores, groups, variances=known, **OPTIONS), same[:1])
            one = slice(i, i + 1)
            alone = (boxes[one], groups[one], boxes[one], scores[one], groups[one])
            assert torch.equal(vote(*alone, variances=None if known is None else known[one], **OPTIONS), boxes[one])


def test_voted_boxes_stay_within_the_hull_of_their_voters() -> None:
    for seed in range(10):
        boxes, scores, groups, variances = crowd(seed)
        voted = vote(boxes, groups, boxes, scores, groups, variances=variances * 1e-3, **OPTIONS)
        votes = (pairwise_iou(boxes, boxes) > OPTIONS["iou_threshold"]) & (groups[:, None] == groups)
        for i, box in enumerate(voted):
            hull = boxes[votes[i]]
            assert (box >= hull.amin(0)).all() and (box <= hull.amax(0)).all()


def test_flipping_shifting_and_scaling_boxes_does_so_to_the_voted_ones() -> None:
    boxes, scores, groups, variances = crowd(2)

    def voted(moved: Tensor, spread: Tensor) -> Tensor:
        return vote(moved, groups, moved, scores, groups, variances=spread, **OPTIONS)

    plain = voted(boxes, variances)
    assert (plain - boxes).abs().max() > 0.5
    flipped = torch.tensor([256.0, 0, 256, 0]) - boxes * torch.tensor([1.0, -1, 1, -1])
    swap = [2, 1, 0, 3]
    back = voted(flipped[:, swap], variances[:, swap])[:, swap]
    torch.testing.assert_close(torch.tensor([256.0, 0, 256, 0]) - back * torch.tensor([1.0, -1, 1, -1]), plain)
    torch.testing.assert_close(voted(boxes + 64, variances) - 64, plain, rtol=0, atol=1e-4)
    assert torch.equal(voted(boxes * 4, variances * 16), plain * 4), "a power of two rounds nothing"


def test_order_of_candidates_and_the_boxes_of_other_groups_have_no_say() -> None:
    boxes, scores, groups, variances = crowd(3)
    kept, label = boxes[:9], groups[:9]
    plain = vote(kept, label, boxes, scores, groups, variances=variances, **OPTIONS)
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))
    shuffled = (boxes[order], scores[order], groups[order])
    torch.testing.assert_close(vote(kept, label, *shuffled, variances=variances[order], **OPTIONS), plain)
    strangers = (torch.cat((boxes, boxes + 1)), scores.repeat(2), torch.cat((groups, groups + 2)))
    torch.testing.assert_close(vote(kept, label, *strangers, variances=variances.repeat(2, 1), **OPTIONS), plain)


def test_the_surer_of_two_sides_decides_it() -> None:
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [4.0, 0.0, 100.0, 100.0]])
    scores, groups = torch.ones(2), torch.zeros(2, dtype=torch.int64)
    variances = torch.ones(2, 4)
    variances[0, 0] = 1e6
    (voted,) = vote(boxes[:1], groups[:1], boxes, scores, groups, variances=variances, iou_threshold=0.5, sigma=1.0)
    assert 3.99 < voted[0] < 4 and voted[1:].tolist() == [0, 100, 100]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_boxes_of_other_precisions_are_voted_on_in_float32(dtype: torch.dtype) -> None:
    boxes, scores, groups, _ = crowd(4)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    voted = vote(boxes, groups, boxes, scores, groups, **OPTIONS)
    assert voted.dtype == torch.float32
    assert torch.equal(voted, vote(boxes.float(), groups, boxes.float(), scores.double(), groups, **OPTIONS))


def test_nothing_kept_and_no_candidates_give_nothing_and_the_box_itself() -> None:
    boxes, scores, groups, _ = crowd(5)
    assert vote(boxes[:0], groups[:0], boxes, scores, groups, **OPTIONS).shape == (0, 4)
    assert torch.equal(vote(boxes[:2], groups[:2], boxes[:0], scores[:0], groups[:0], **OPTIONS), boxes[:2])
    empty = torch.tensor([[5.0, 5.0, 5.0, 9.0]])  # of no area: overlaps nothing, not even itself
    assert torch.equal(vote(empty, groups[:1], empty, scores[:1], groups[:1], **OPTIONS), empty)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_boxes_and_variances_that_are_not_finite_do_not_vote(bad: float) -> None:
    boxes, scores, groups, variances = crowd(6)
    plain = vote(boxes[1:], groups[1:], boxes[1:], scores[1:], groups[1:], variances=variances[1:], **OPTIONS)
    for broken in (boxes, variances):
        kept = broken[0].clone()
        broken[0, 2] = bad
        voted = vote(boxes, groups, boxes, scores, groups, variances=variances, **OPTIONS)
        assert torch.equal(voted[1:], plain)
        broken[0] = kept


def test_scores_and_closeness_that_would_vanish_in_float32_still_weigh() -> None:
    boxes, scores, groups, _ = crowd(7)
    plain = vote(boxes, groups, boxes, scores, groups, **OPTIONS)
    assert plain.isfinite().all()
    faint = vote(boxes, groups, boxes, scores.double() * 1e-60, groups, **OPTIONS)
    torch.testing.assert_close(faint, plain)
    assert torch.equal(vote(boxes, groups, boxes, scores, groups, iou_threshold=0.1, sigma=1e-9), boxes)


def test_the_variance_of_a_distance_is_that_of_its_distribution() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (50, 4, 16))
    weights = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    bins = np.arange(16)
    mean = (weights * bins).sum(2)
    expected = (weights * bins**2).sum(2) - mean**2
    got = distance_variances(torch.from_numpy(logits.reshape(50, 64)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert got.min() > LEAST_VARIANCE and isfinite(float(got.max()))


def test_a_certain_distance_has_the_least_variance_and_nobody_divides_by_zero() -> None:
    logits = torch.full((1, 4, 16), -1000.0)
    logits[:, :, 9] = 1000
    assert distance_variances(logits.flatten(1)).tolist() == [[pytest.approx(LEAST_VARIANCE)] * 4]
    assert distance_variances(torch.zeros(0, 64)).shape == (0, 4)
