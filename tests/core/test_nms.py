"""IoU-guided NMS against the paper's loop, and the choice of detections against Ultralytics'."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo import nms
from mlc_yolo.nms import iou_guided_nms, select_detections


def overlap(first: list[float], second: list[float]) -> float:
    """IoU of two boxes, 0 if both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - both
    return both / union if union > 0 else 0.0


def loop(
    boxes: Tensor, scores: Tensor, predicted: Tensor, groups: Tensor, threshold: float
) -> tuple[list[int], list[float]]:
    """IoU-Net's algorithm 1 as printed, within groups; ties go to the first of the input."""
    b, s, p, g = boxes.tolist(), scores.tolist(), predicted.tolist(), groups.tolist()
    left, found = list(range(len(b))), []
    while left:
        best = max(left, key=p.__getitem__)  # the first of equals
        cluster = {i for i in left if i == best or (g[i] == g[best] and overlap(b[best], b[i]) > threshold)}
        found.append((best, max(s[i] for i in cluster)))
        left = [i for i in left if i not in cluster]
    found.sort(key=lambda pair: -pair[1])  # stable: equals stay in the order of predicted IoU
    return [i for i, _ in found], [score for _, score in found]


def heap(seed: int, most: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Crowded boxes, some reaching below 0: odd seeds on a coarse grid, where everything ties, even ones anywhere."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(most // 2, most)) if seed > 9 else seed + 1
    centre, side = rng.uniform(-10, 30, (count, 2)), 10 + rng.uniform(0, 40, (count, 2))
    scores, predicted = rng.random((2, count))
    if seed % 2:
        centre, side = (centre / 10).round() * 10, (side / 20).round() * 20  # some sides are 0
        scores, predicted = (scores * 4).round() / 4, (predicted * 4).round() / 4
    boxes = np.hstack((centre - side / 2, centre + side / 2))
    groups = rng.integers(0, rng.integers(1, 6), count)
    return (*(torch.from_numpy(a.astype(np.float32)) for a in (boxes, scores, predicted)), torch.from_numpy(groups))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 40, nms.MAX_OVERLAPS])
def test_two_hundred_heaps_with_and_without_ties_equal_the_papers_loop(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nms, "MAX_OVERLAPS", chunk)
    suppressed = raised = 0
    for seed in range(200):
        boxes, scores, predicted, groups = heap(seed)
        threshold = (0.5, 0.7, 0.3, 0.6)[seed // 2 % 4]
        keep, new = iou_guided_nms(boxes, scores, predicted, groups, iou_threshold=threshold)
        expected_keep, expected_scores = loop(boxes, scores, predicted, groups, threshold)
        assert (keep.tolist(), new.tolist()) == (expected_keep, expected_scores), seed
        assert (keep.dtype, new.dtype) == (torch.int64, torch.float32)
        suppressed += len(boxes) - len(keep)
        raised += int((new > scores[keep]).sum())
    assert suppressed > 1000 and raised > 300  # the heaps put both steps to the test


@pytest.mark.parametrize("seed", [100, 101])
def test_a_thousand_boxes_and_more_equal_the_papers_loop(seed: int) -> None:
    boxes, scores, predicted, groups = heap(seed, most=3000)
    assert len(boxes) > 1000  # from here on torchvision goes group by group
    keep, new = iou_guided_nms(boxes, scores, predicted, groups, iou_threshold=0.6)
    assert (keep.tolist(), new.tolist()) == loop(boxes, scores, predicted, groups, 0.6)


def test_a_suppressed_box_gives_its_score_to_the_first_kept_box_that_overlaps_it() -> None:
    # The middle box overlaps both others by 5/15 > 0.3; they overlap each other by 0. It belongs to the higher-ranked.
    boxes = torch.tensor([[0.0, 0, 10, 10], [5.0, 0, 15, 10], [10.0, 0, 20, 10]])
    scores, predicted = torch.tensor([0.25, 0.75, 0.5]), torch.tensor([0.7, 0.6, 0.8])
    keep, new = iou_guided_nms(boxes, scores, predicted, torch.zeros(3).long(), iou_threshold=0.3)
    assert keep.tolist() == [2, 0]
    assert new.tolist() == [0.75, 0.25]


def test_an_overlap_equal_to_the_threshold_does_not_suppress() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 6]])  # IoU 60 / 100; float32 would round 0.6 up
    keep, _ = iou_guided_nms(boxes, torch.ones(2), torch.ones(2), torch.zeros(2).long(), iou_threshold=0.6)
    assert keep.tolist() == [0, 1]


def test_a_box_that_only_rounding_suppressed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "_separable", lambda boxes: boxes)  # float32, as where there is no float64
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 6]])
    keep, new = iou_guided_nms(boxes, torch.tensor([0.5, 0.9]), torch.ones(2), torch.zeros(2).long(), iou_threshold=0.6)
    assert keep.tolist() == [0]
    assert new.tolist() == [0.5]


def test_boxes_below_zero_do_not_compete_with_those_of_another_group() -> None:
    # Moved by the largest coordinate + 1, the second would lie on the first.
    boxes = torch.tensor([[40.0, 40, 50, 50], [-11.0, -11, -1, -1]])
    keep, _ = iou_guided_nms(boxes, torch.ones(2), torch.ones(2), torch.arange(2), iou_threshold=0.5)
    assert keep.tolist() == [0, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_no_box_and_one_box_come_back_as_they_are(count: int) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]])[:count]
    scores, predicted = torch.tensor([0.25])[:count], torch.tensor([0.5])[:count]
    keep, new = iou_guided_nms(boxes, scores, predicted, torch.zeros(count).long(), iou_threshold=0.5)
    assert keep.tolist() == list(range(count)) and keep.dtype == torch.int64
    assert new.tolist() == [0.25] * count


def test_of_a_hundred_equal_boxes_the_best_placed_keeps_the_best_score() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, predicted = torch.rand(2, 100, generator=generator)
    boxes = torch.tensor([[3.0, 4, 30, 40]]).expand(100, 4)
    keep, new = iou_guided_nms(boxes, scores, predicted, torch.zeros(100).long(), iou_threshold=0.5)
    assert keep.tolist() == [predicted.argmax().item()]
    assert new.tolist() == [scores.max().item()]


def test_half_precision_scores_rank_as_the_same_numbers_in_single() -> None:
    boxes, scores, predicted, groups = heap(4)
    scores, predicted = scores.half(), predicted.half()
    keep, new = iou_guided_nms(boxes, scores, predicted, groups, iou_threshold=0.5)
    expected = iou_guided_nms(boxes, scores.float(), predicted.float(), groups, iou_threshold=0.5)
    assert keep.tolist() == expected[0].tolist()
    assert new.dtype == torch.float32 and torch.equal(new, expected[1])


def test_five_thousand_boxes_are_done_within_five_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(5000, 2, generator=generator) * 600
    boxes = torch.cat((corner, corner + 20 + torch.rand(5000, 2, generator=generator) * 80), dim=1)
    scores, predicted = torch.rand(2, 5000, generator=generator)
    began = time.perf_counter()
    keep, new = iou_guided_nms(boxes, scores, predicted, torch.zeros(5000).long(), iou_threshold=0.5)
    assert time.perf_counter() - began < 5
    assert 100 < len(keep) < 4900
    assert (new >= scores[keep]).all()


def predictions(seed: int, anchors: int, classes: int) -> tuple[Tensor, Tensor]:
    """Dense boxes cx, cy, w, h, (A, 4), and scores with many small and few large, (A, K)."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(anchors, 2, generator=generator) * 200
    boxes = torch.cat((centre, 10 + torch.rand(anchors, 2, generator=generator) * 40), dim=1)
    scores = torch.rand(anchors, classes, generator=generator) ** 4
    # Every fifth image in steps of 1/16: many scores tie.
    return boxes, (scores * 16).round() / 16 if seed % 5 == 0 else scores


@pytest.mark.slow
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("classes", [1, 3, 80])
def test_detections_equal_ultralytics(classes: int, multi_label: bool, agnostic: bool) -> None:
    found = 0
    for seed in range(20):
        boxes, scores = predictions(seed, anchors=150, classes=classes)
        (expected,) = non_max_suppression(
            torch.cat((boxes, scores), dim=1).T[None],
            conf_thres=0.2,
            iou_thres=0.45,
            agnostic=agnostic,
            multi_label=multi_label,
            max_det=100,
        )
        result = select_detections(
            xywh2xyxy(boxes),
            scores,
            confidence=0.2,
            iou_threshold=0.45,
            max_det=100,
            multi_label=multi_label,
            agnostic=agnostic,
        )
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
        found += len(result)
    assert found > 500


def test_more_pairs_than_the_limit_equal_ultralytics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "MAX_PAIRS", 50)
    boxes, scores = predictions(1, anchors=150, classes=3)
    stacked = torch.cat((boxes, scores), dim=1).T[None]
    (expected,) = non_max_suppression(stacked, conf_thres=0.2, multi_label=True, max_nms=50)
    result = select_detections(xywh2xyxy(boxes), scores, confidence=0.2, iou_threshold=0.45, max_det=300)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert 0 < len(result) <= 50 < int((scores > 0.2).sum())


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("anchors", "confidence"), [(0, 0.2), (7, 1.0)])
def test_nothing_above_the_confidence_gives_no_detections(
    anchors: int, confidence: float, grouped: bool, guided: bool, multi_label: bool
) -> None:
    boxes, scores = predictions(0, anchors=anchors, classes=3)
    found = select_detections(
        boxes,
        scores,
        confidence=confidence,
        iou_threshold=0.5,
        max_det=300,
        predicted_ious=torch.ones(anchors) if guided else None,
        groups=torch.zeros(anchors).long() if grouped else None,
        multi_label=multi_label,
    )
    assert found.shape == (0, 6) and found.dtype == torch.float32


@pytest.mark.parametrize("seed", range(10))
def test_groups_are_suppressed_as_if_each_were_alone(seed: int) -> None:
    boxes, scores = predictions(seed, anchors=200, classes=2)
    boxes, levels = xywh2xyxy(boxes), torch.arange(200) % 3
    options = {"confidence": 0.1, "iou_threshold": 0.5}
    found = select_detections(boxes, scores, max_det=60, groups=levels, **options)
    alone = [
        select_detections(boxes[levels == level], scores[levels == level], max_det=300, **options) for level in range(3)
    ]
    together = torch.cat(alone)
    assert len(found) == 60 < len(together)
    assert torch.equal(found[:, 4], together[:, 4].sort(descending=True).values[:60])
    assert {tuple(row) for row in found[:, :5].tolist()} <= {tuple(row) for row in together[:, :5].tolist()}


def test_guided_detections_compete_within_class_and_group() -> None:
    for seed in range(20):
        boxes, scores = predictions(seed, anchors=80, classes=3)
        boxes, levels = xywh2xyxy(boxes), torch.arange(80) % 2
        predicted = torch.rand(80, generator=torch.Generator().manual_seed(seed))
        found = select_detections(
            boxes,
            scores,
            confidence=0.1,
            iou_threshold=0.5,
            max_det=25,
            predicted_ious=predicted,
            groups=levels,
        )
        anchor, label = torch.where(scores > 0.1)
        keep, new = loop(boxes[anchor], scores[anchor, label], predicted[anchor], levels[anchor] * 3 + label, 0.5)
        expected = torch.cat((boxes[anchor][keep], torch.tensor(new)[:, None], label[keep, None].float()), dim=1)[:25]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_guided_and_agnostic_a_detection_has_the_class_of_its_score() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9]])
    scores = torch.tensor([[0.0, 0.5], [0.875, 0.0]])
    found = select_detections(
        boxes,
        scores,
        confidence=0.1,
        iou_threshold=0.5,
        max_det=300,
        predicted_ious=torch.tensor([0.9, 0.5]),
        agnostic=True,
    )
    assert found.tolist() == [[0, 0, 10, 10, 0.875, 0]]


def test_the_best_class_only_is_not_the_same_as_all_classes() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.5, 0.75]])
    options = {"confidence": 0.1, "iou_threshold": 0.5, "max_det": 300}
    assert select_detections(boxes, scores, **options)[:, 5].tolist() == [1, 0]
    assert select_detections(boxes, scores, multi_label=False, **options)[:, 5].tolist() == [1]


@pytest.mark.parametrize("guided", [False, True])
def test_the_input_is_left_unchanged(guided: bool) -> None:
    boxes, scores = predictions(2, anchors=60, classes=3)
    predicted, before = scores[:, 0].clone(), (boxes.clone(), scores.clone())
    found = select_detections(
        boxes, scores, confidence=0.1, iou_threshold=0.5, max_det=9, predicted_ious=predicted if guided else None
    )
    found.zero_()
    assert torch.equal(boxes, before[0]) and torch.equal(scores, before[1]) and torch.equal(predicted, before[1][:, 0])
