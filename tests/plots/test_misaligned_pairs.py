"""Which detections count as misaligned, condition by condition, and how they are drawn."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.nms import select_detections
from mlc_yolo.plots.misaligned_pairs import (
    ComparedImage,
    Detected,
    Misaligned,
    Total,
    find_misaligned,
    misaligned_figure,
)

GT, LABELS = torch.tensor([[0.0, 0.0, 100.0, 100.0]]), torch.tensor([1])
# IoU with the object 0.6; the box that gives way reaches 0.8, and the two overlap by 0.6 / 0.8 = 0.75.
KEPT = [0.0, 0.0, 100.0, 60.0, 0.9, 1.0]
BETTER = [0.0, 0.0, 100.0, 80.0, 0.4, 1.0]


def find(
    kept: list[list[float]], dropped: list[list[float]], gt: Any = GT, labels: Any = LABELS, **k: Any
) -> Misaligned:
    detections, rest = (torch.tensor(rows).reshape(-1, 6) for rows in (kept, dropped))
    return find_misaligned(detections, torch.cat((detections, rest)), gt, labels, **k)


def test_a_detection_kept_in_place_of_a_better_box_is_misaligned() -> None:
    found = find([KEPT], [BETTER])
    assert len(found) == 1
    assert (found.objects.tolist(), found.kept.tolist(), found.better.tolist()) == ([0], [0], [1])
    assert found.kept_ious.tolist() == pytest.approx([0.6])
    assert found.better_ious.tolist() == pytest.approx([0.8])


def test_of_several_better_boxes_the_best_placed_is_named() -> None:
    assert find([KEPT], [BETTER, [0.0, 0, 100, 90, 0.3, 1], [0.0, 0, 100, 78, 0.5, 1]]).better.tolist() == [2]


@pytest.mark.parametrize(
    ("kept", "dropped", "why"),
    [
        ([[*KEPT[:5], 0.0]], [BETTER], "the detection is of another class"),
        ([KEPT], [[*BETTER[:5], 0.0]], "the better box is of another class"),
        ([[0.0, 0, 100, 76, 0.9, 1]], [BETTER], "the detection is well placed"),
        ([KEPT], [[0.0, 0, 100, 74, 0.4, 1]], "no other box is well placed"),
        ([KEPT, [0.0, 0, 100, 76, 0.3, 1]], [BETTER], "another detection is well placed"),
        ([KEPT], [[*BETTER[:4], 0.95, 1.0]], "the better box has the higher score: another suppressed it"),
        ([[0.0, 0, 100, 38, 0.9, 1]], [BETTER], "the two overlap too little for suppression: 0.38 / 0.8 = 0.475"),
        ([], [BETTER], "nothing was detected"),
        ([KEPT], [], "nothing was suppressed"),
    ],
)
def test_no_detection_is_misaligned_where(kept: list[list[float]], dropped: list[list[float]], why: str) -> None:
    assert len(find(kept, dropped)) == 0, why


def test_a_detection_that_overlaps_another_object_of_its_class_more_belongs_to_that_one() -> None:
    neighbour = [0.0, 0.0, 100.0, 50.0]  # the detection has IoU 5 / 6 with it
    assert len(find([KEPT], [BETTER], torch.cat((GT, torch.tensor([neighbour]))), torch.tensor([1, 1]))) == 0
    assert len(find([KEPT], [BETTER], torch.cat((GT, torch.tensor([neighbour]))), torch.tensor([1, 0]))) == 1


def test_both_thresholds_may_be_set() -> None:
    assert len(find([KEPT], [BETTER], iou_threshold=0.76)) == 0
    assert len(find([KEPT], [BETTER], strict_iou=0.85)) == 0
    assert len(find([[0.0, 0, 100, 38, 0.9, 1]], [BETTER], iou_threshold=0.45)) == 1


def by_loop(kept: torch.Tensor, rows: torch.Tensor, gt: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, ...]]:
    expected = []
    for g in range(len(gt)):
        iou = [float(pairwise_iou(gt[g : g + 1], d[None, :4])) * float(d[5] == labels[g]) for d in kept]
        d = int(np.argmax(iou))
        others = [
            float(pairwise_iou(gt[o : o + 1], kept[d, None, :4])) for o in range(len(gt)) if labels[o] == kept[d, 5]
        ]
        if not 0 < iou[d] < 0.75 or max(others) > iou[d]:
            continue
        better = [
            (float(pairwise_iou(gt[g : g + 1], c[None, :4])), i)
            for i, c in enumerate(rows)
            if c[5] == labels[g] and c[4] <= kept[d, 4] and float(pairwise_iou(kept[d, None, :4], c[None, :4])) > 0.5
        ]
        if better and max(better)[0] >= 0.75:
            expected.append((g, d, max(better)[1]))
    return expected


@pytest.mark.slow
def test_it_equals_a_loop_over_objects_on_random_scenes() -> None:
    total = 0
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        corner, side = torch.rand(6, 2, generator=rng) * 60, 20 + torch.rand(6, 2, generator=rng) * 30
        gt, labels = torch.cat((corner, corner + side), 1), torch.randint(2, (6,), generator=rng)
        near = torch.randint(6, (200,), generator=rng)
        boxes = gt[near] + torch.randn(200, 4, generator=rng) * 4
        scores = torch.zeros(200, 2).scatter_(1, labels[near, None], torch.rand(200, 1, generator=rng))
        kept = select_detections(boxes, scores, confidence=0.2, iou_threshold=0.5, max_det=300)
        rows = torch.cat((boxes, scores.max(1).values[:, None], labels[near, None].float()), 1)
        found = find_misaligned(kept, rows, gt, labels)
        assert list(zip(found.objects.tolist(), found.kept.tolist(), found.better.tolist(), strict=True)) == by_loop(
            kept, rows, gt, labels
        )
        total += len(found)
    assert total > 5  # else they would agree on nothing but nothing


def compared(*models: Detected, **changes: Any) -> ComparedImage:
    fields: dict[str, Any] = {"image": np.full((120, 120, 3), 90, np.uint8), "gt_boxes": GT, "source": "cat.jpg"}
    return ComparedImage(**fields | changes, models=models)


def result(kept: list[list[float]], dropped: list[list[float]]) -> Detected:
    detections, rest = (torch.tensor(rows).reshape(-1, 6) for rows in (kept, dropped))
    return Detected(detections, torch.cat((detections, rest)), find(kept, dropped))


LOST, FINE = result([KEPT, [5.0, 5, 30, 30, 0.5, 0]], [BETTER]), result([[0.0, 0, 100, 90, 0.7, 1]], [BETTER])
TOTALS = [Total("static", 12, 345), Total("guided", 7, 345)]
NAMES = {0: "cat", 1: "dog"}


def drawn(axes: Axes, gid: str) -> list[tuple[float, ...]]:
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches if p.get_gid() == gid]


def test_misaligned_detections_and_what_they_suppressed_are_marked_with_their_numbers() -> None:
    left, right = misaligned_figure([compared(LOST, FINE)], TOTALS, NAMES).axes
    assert drawn(left, "misaligned") == [(0, 0, 100, 60)]
    assert drawn(left, "better") == [(0, 0, 100, 80)]
    assert drawn(left, "detection") == [(5, 5, 25, 25)]
    assert {"dog 0.90, IoU 0.60", "0.40, IoU 0.80"} <= {text.get_text() for text in left.texts}
    assert (drawn(right, "misaligned"), drawn(right, "detection")) == ([], [(0, 0, 100, 90)])
    assert all(drawn(axes, "objects") == [(0, 0, 100, 100)] for axes in (left, right))


def test_titles_count_here_and_in_all_images() -> None:
    figure = misaligned_figure([compared(LOST, FINE), compared(FINE, LOST)], TOTALS, NAMES, source="2 of 9 images")
    here = [axes.get_title(loc="left") for axes in figure.axes]
    assert here == [
        "here: 2 detections, 1 misaligned",
        "here: 1 detection, 0 misaligned",
        "here: 1 detection, 0 misaligned",
        "here: 2 detections, 1 misaligned",
    ]
    heads = [text.get_text() for text in figure.axes[1].texts]
    assert heads[:2] == ["guided", "in all images: 7 of 345 objects lost to misalignment"]
    assert figure.texts[1].get_text() == "2 of 9 images"
    assert len(figure.legends[0].get_texts()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("place", [(0, 0), (60, 0), (0, 70), (60, 70)])
def test_labels_stay_within_the_image(place: tuple[int, int]) -> None:
    x, y = place
    gt = torch.tensor([[x, y, x + 60.0, y + 50.0]])
    kept = [[x, y, x + 60.0, y + 30.0, 0.9, 1.0]]
    dropped = [[x, y, x + 60.0, y + 45.0, 0.4, 1.0]]
    detections, candidates = torch.tensor(kept), torch.tensor(kept + dropped)
    found = Detected(detections, candidates, find(kept, dropped, gt))
    figure = misaligned_figure([compared(found, FINE, gt_boxes=gt)], TOTALS, NAMES)
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    labels = [text for text in axes.texts if "IoU" in text.get_text()]
    assert len(labels) == 2
    for label in labels:
        inner, outer = label.get_window_extent(), axes.get_window_extent().padded(4)
        assert outer.x0 <= inner.x0 and inner.x1 <= outer.x1
        assert outer.y0 <= inner.y0 and inner.y1 <= outer.y1


def test_labels_do_not_cover_one_another() -> None:
    gt = torch.tensor([[x, 10.0, x + 50.0, 60.0] for x in (5.0, 20.0, 35.0)])
    labels = torch.tensor([0, 1, 2])
    kept = [[*box[:3], 40.0, 0.9, float(k)] for k, box in enumerate(gt.tolist())]
    dropped = [[*box[:3], 55.0, 0.4, float(k)] for k, box in enumerate(gt.tolist())]
    found = Detected(torch.tensor(kept), torch.tensor(kept + dropped), find(kept, dropped, gt, labels))
    figure = misaligned_figure([compared(found, FINE, gt_boxes=gt)], TOTALS, {0: "cat", 1: "dog", 2: "cow"})
    figure.savefig(io.BytesIO())
    extents = [text.get_window_extent() for text in figure.axes[0].texts if ", IoU" in text.get_text()]
    assert len(extents) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])


def test_an_iou_below_the_threshold_never_reads_as_having_reached_it() -> None:
    left = misaligned_figure([compared(result([[0.0, 0, 100, 74.99, 0.9, 1]], [BETTER]), FINE)], TOTALS, NAMES).axes[0]
    assert "dog 0.90, IoU 0.74" in {text.get_text() for text in left.texts}


def test_images_without_objects_or_detections_are_drawn_too() -> None:
    none = result([], [])
    figure = misaligned_figure([compared(none, none, gt_boxes=GT[:0])], TOTALS, NAMES)
    figure.savefig(io.BytesIO())
    assert figure.axes[0].get_title(loc="left") == "here: 0 detections, 0 misaligned"
    assert plt.get_fignums() == []


@pytest.mark.parametrize("images", [[], [compared(LOST)]])
def test_anything_but_a_finding_per_model_is_refused(images: list[ComparedImage]) -> None:
    with pytest.raises(ValueError, match="2 findings each"):
        misaligned_figure(images, TOTALS, NAMES)
