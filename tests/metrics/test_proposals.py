"""Average recall of proposals against pycocotools with categories off and against a plain loop."""

from __future__ import annotations

import contextlib
import io
import math
import time

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mlc_yolo.metrics.proposals import NAMES, average_recall

Arrays = list[np.ndarray]


def by_pycocotools(detections: Arrays, objects: Arrays, limits: tuple[int, ...]) -> list[float]:
    """AR at each limit, -1 where there is no object."""
    apis = []
    for rows in (objects, detections):
        annotations = [
            {"id": 0, "image_id": i, "category_id": 7, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            | {"area": (x2 - x1) * (y2 - y1), "score": score[0] if score else 1.0}
            for i, image in enumerate(rows)
            for x1, y1, x2, y2, *score in image.tolist()
        ]
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        api = COCO()
        api.dataset = {"images": [{"id": i} for i in range(len(rows))], "categories": [{"id": 7}]}
        api.dataset["annotations"] = annotations
        apis.append(api)
    with contextlib.redirect_stdout(io.StringIO()):
        for api in apis:
            api.createIndex()
        judge = COCOeval(*apis, iouType="bbox")
        judge.params.useCats = 0
        judge.params.maxDets = list(limits)
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    recall = judge.eval["recall"]  # thresholds, classes (one: off), areas, limits
    return [float(recall[:, 0, 0, i].mean()) for i in range(len(limits))]


def by_loop(detections: Arrays, objects: Arrays, limit: int) -> float:
    """The definition: one threshold, one image, one detection, one object at a time."""
    found = total = 0
    for threshold in np.linspace(0.5, 0.95, 10):
        for rows, truth in zip(detections, objects, strict=True):
            total += len(truth)
            free = truth.tolist()
            for x1, y1, x2, y2, _ in sorted(rows.tolist(), key=lambda row: -row[4])[:limit]:
                best, best_iou = None, threshold
                for i, (u1, v1, u2, v2) in enumerate(free):
                    width, height = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
                    both = max(width, 0) * max(height, 0)
                    iou = both / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - both)
                    if iou >= best_iou:
                        best, best_iou = i, iou
                if best is not None:
                    del free[best]
                    found += 1
    return found / total


def proposals(seed: int) -> tuple[Arrays, Arrays]:
    """Five images; odd seeds on a grid, where boxes, overlaps and scores tie; a few images are empty of either."""
    rng = np.random.default_rng(seed)
    detections, objects = [], []
    for _ in range(5):
        count = int(rng.integers(0, 6))
        corner, side = rng.uniform(0, 100, (count, 2)), rng.uniform(20, 60, (count, 2))
        truth = np.hstack((corner, corner + side))
        boxes = truth.repeat(4, 0) + rng.normal(0, 4, (4 * count, 4))
        noise = rng.uniform((0, 0, 60, 60), (60, 60, 120, 120), (int(rng.integers(0, 5)), 4))
        rows = np.hstack((np.vstack((boxes, noise)), rng.random((len(boxes) + len(noise), 1))))
        if seed % 2:
            truth, rows[:, :4] = (truth / 10).round() * 10, (rows[:, :4] / 10).round() * 10
            rows[:, 4] = (rows[:, 4] * 4).round() / 4
        rng.shuffle(rows)
        detections.append(rows[:0].astype(np.float32) if rng.random() < 0.1 else rows.astype(np.float32))
        objects.append(truth.astype(np.float32))
    return detections, objects


LIMITS = (2, 5, 1000)


@pytest.mark.slow
def test_two_hundred_data_sets_equal_pycocotools_with_categories_off() -> None:
    grew = 0
    for seed in range(200):
        detections, objects = proposals(seed)
        found = list(average_recall(detections, objects, limits=LIMITS).values())
        assert found == pytest.approx(by_pycocotools(detections, objects, LIMITS), abs=1e-9), seed
        grew += found[0] < found[1] < found[2] < 1
    assert grew > 150  # the limits matter and not everything is found


@pytest.mark.slow
def test_two_hundred_data_sets_equal_a_plain_loop() -> None:
    for seed in range(200):
        detections, objects = proposals(seed)
        found = average_recall(detections, objects, limits=LIMITS)
        for limit in LIMITS:
            assert found[f"AR@{limit}"] == pytest.approx(by_loop(detections, objects, limit), abs=1e-9), seed


def test_the_order_of_the_limits_and_of_the_images_does_not_matter() -> None:
    detections, objects = proposals(2)
    found = average_recall(detections, objects, limits=(2, 5))
    assert average_recall(detections[::-1], objects[::-1], limits=(5, 2)) == found
    assert 0 < found["AR@2"] < found["AR@5"]


def test_a_detection_beyond_the_limit_does_not_count() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    misses = np.tile([50.0, 50, 60, 60, 0.9], (299, 1))
    found = average_recall([np.vstack((misses, [[0.0, 0, 10, 10, 0.5]]))], [box])
    assert tuple(found) == NAMES == ("AR@100", "AR@300", "AR@1000")
    assert list(found.values()) == [0, 1, 1]


def test_two_detections_of_one_object_count_once() -> None:
    objects = [np.array([[0.0, 0, 10, 10], [100.0, 100, 110, 110]])]
    found = average_recall([np.array([[0.0, 0, 10, 10, 0.9], [0.0, 0, 10, 10, 0.8]])], objects)
    assert found["AR@100"] == 0.5


@pytest.mark.parametrize(
    ("num_detections", "num_objects", "expected"), [(0, 2, 0.0), (2, 0, math.nan), (0, 0, math.nan)]
)
def test_without_detections_recall_is_zero_and_without_objects_undefined(
    num_detections: int, num_objects: int, expected: float
) -> None:
    box = np.array([[0.0, 0, 10, 10]])
    detections = [np.insert(box, 4, 0.5, axis=1).repeat(num_detections, 0), np.empty((0, 5))]
    objects = [box.repeat(num_objects, 0), np.empty((0, 4))]
    assert list(average_recall(detections, objects).values()) == pytest.approx([expected] * 3, nan_ok=True)


def test_no_images_at_all_have_no_recall() -> None:
    assert all(math.isnan(value) for value in average_recall([], []).values())


def test_the_input_is_left_unchanged() -> None:
    detections, objects = proposals(4)
    before = [array.copy() for array in (*detections, *objects)]
    average_recall(detections, objects)
    for array, old in zip((*detections, *objects), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_five_thousand_proposals_of_twenty_objects_are_done_within_five_seconds() -> None:
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 500, (20, 2)), rng.uniform(20, 100, (20, 2))
    truth = np.hstack((corner, corner + side))
    rows = np.hstack((truth.repeat(250, 0) + rng.normal(0, 4, (5000, 4)), rng.random((5000, 1))))
    began = time.perf_counter()
    found = average_recall([rows], [truth])
    assert time.perf_counter() - began < 5
    assert 0.3 < found["AR@100"] < found["AR@1000"]


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of detections and 1 of objects"):
        average_recall([np.empty((0, 5))] * 2, [np.empty((0, 4))])
