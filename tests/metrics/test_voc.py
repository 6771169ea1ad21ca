"""VOC's average precision against numbers worked by hand and against the development kit's rules, step by step."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest

from mlc_yolo.metrics.coco import coco_evaluate
from mlc_yolo.metrics.voc import NAMES, THRESHOLDS, voc_evaluate

Arrays = list[np.ndarray]
EMPTY = np.empty((0, 6))


def by_the_kit(detections: Arrays, objects: Arrays, difficult: Arrays, label: int, threshold: float) -> tuple:
    """Both APs of one class, or None without an object to find: the kit's description, with its inclusive pixels."""
    results = []
    for image, rows in enumerate(detections):
        for x1, y1, x2, y2, score, k in rows.tolist():
            if k == label:
                results.append((score, image, (x1 + 1, y1 + 1, x2, y2)))
    truth = [
        [
            {"box": (x1 + 1, y1 + 1, x2, y2), "difficult": flag, "detected": False}
            for (x1, y1, x2, y2, k), flag in zip(rows.tolist(), flags.tolist(), strict=True)
            if k == label
        ]
        for rows, flags in zip(objects, difficult, strict=True)
    ]
    positives = sum(not item["difficult"] for items in truth for item in items)
    if not positives:
        return None
    true = false = 0
    curve = []  # recall, precision
    for _, image, box in sorted(results, key=lambda result: -result[0]):
        match, largest = None, 0.0
        for item in truth[image]:
            other = item["box"]
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > largest:
                    match, largest = item, overlap
        if match is None or largest < threshold:
            false += 1
        elif match["difficult"]:
            continue
        elif match["detected"]:
            false += 1
        else:
            match["detected"] = True
            true += 1
        curve.append((Fraction(true, positives), Fraction(true, true + false)))
    eleven = sum(max((p for r, p in curve if r >= Fraction(t, 10)), default=0) for t in range(11)) / Fraction(11)
    area = last = Fraction(0)
    for recall in sorted({r for r, _ in curve}):
        area += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return float(eleven), float(area)


def expected(detections: Arrays, objects: Arrays, difficult: Arrays, num_classes: int) -> list[float]:
    """The numbers in the order of `NAMES`."""
    rows = []
    for threshold in THRESHOLDS:
        judged = [by_the_kit(detections, objects, difficult, k, threshold) for k in range(num_classes)]
        present = [pair for pair in judged if pair is not None]
        rows.append([sum(pair[i] for pair in present) / len(present) if present else math.nan for i in (0, 1)])
    mean = [sum(row[i] for row in rows) / len(rows) for i in (0, 1)]
    return [*mean, *rows[THRESHOLDS.index(0.5)], *rows[THRESHOLDS.index(0.75)]]


def random_set(seed: int) -> tuple[Arrays, Arrays, Arrays]:
    """Five images, three classes; odd seeds on a grid, where boxes, overlaps and scores tie; some images are empty."""
    rng = np.random.default_rng(seed)
    detections, objects, difficult = [], [], []
    for _ in range(5):
        count = int(rng.integers(0, 5))
        corner, side = rng.uniform(0, 40, (count, 2)), rng.uniform(20, 60, (count, 2))
        boxes = np.hstack((corner, corner + side))
        labels = rng.integers(0, 3, (count, 1))
        noise = rng.uniform((0, 0, 60, 60), (60, 60, 120, 120), (int(rng.integers(0, 4)), 4))
        found = np.vstack((boxes.repeat(3, 0) + rng.normal(0, 4, (3 * count, 4)), noise))
        guessed = np.vstack((labels.repeat(3, 0), rng.integers(0, 3, (len(noise), 1))))
        score = rng.random((len(found), 1))
        if seed % 2:
            boxes, found, score = (boxes / 5).round() * 5, (found / 5).round() * 5, (score * 4).round() / 4
        rows = np.hstack((found, score, guessed)).astype(np.float32)
        rng.shuffle(rows)
        detections.append(rows[:0] if rng.random() < 0.1 else rows)
        objects.append(np.hstack((boxes, labels)).astype(np.float32))
        difficult.append(rng.random(count) < 0.3)
    return detections, objects, difficult


def row_of_squares(count: int) -> np.ndarray:
    """`count` objects of class 0, 10 px wide, 20 px apart."""
    left = 20.0 * np.arange(count)
    return np.column_stack((left, 0 * left, left + 10, 0 * left + 10, 0 * left))


def as_detections(objects: np.ndarray, *scores: float) -> np.ndarray:
    return np.insert(objects, 4, scores, axis=1)


MISS = np.array([[0.0, 500, 10, 510, 0]])


@pytest.mark.slow
def test_two_hundred_data_sets_equal_the_kit_step_by_step() -> None:
    told_apart = 0
    for seed in range(200):
        detections, objects, difficult = random_set(seed)
        found = voc_evaluate(detections, objects, 3, difficult=difficult)
        assert tuple(found) == NAMES
        wanted = expected(detections, objects, difficult, 3)
        assert list(found.values()) == pytest.approx(wanted, abs=1e-12, nan_ok=True), seed
        without = voc_evaluate(detections, objects, 3)
        everything = [np.zeros(len(rows), dtype=bool) for rows in objects]
        assert list(without.values()) == pytest.approx(expected(detections, objects, everything, 3), abs=1e-12), seed
        told_apart += without != found and 0.05 < found["AP_11"] < found["AP50_11"] < 1
    assert told_apart > 150  # difficult objects matter, and not everything is found or missed


def test_hits_and_misses_in_turn_give_the_areas_worked_by_hand() -> None:
    # Four objects. By score: hit, miss, hit, second detection of the first object = miss, hit.
    # Precision at recall 1/4, 2/4, 3/4: 1, 2/3, 3/5. Area: (1 + 2/3 + 3/5) / 4.
    # Tenths: 1 at 0, 0.1, 0.2; 2/3 at 0.3, 0.4, 0.5; 3/5 at 0.6, 0.7; 0 at 0.8, 0.9, 1: (3 + 2 + 1.2) / 11.
    objects = row_of_squares(4)
    chosen = np.vstack((objects[0], MISS[0], objects[1], objects[0], objects[2]))
    found = voc_evaluate([as_detections(chosen, 0.9, 0.8, 0.7, 0.6, 0.5)], [objects], 1)
    assert [found[f"AP{at}_area"] for at in ("", "50", "75")] == pytest.approx([(1 + 2 / 3 + 3 / 5) / 4] * 3)
    assert [found[f"AP{at}_11"] for at in ("", "50", "75")] == pytest.approx([6.2 / 11] * 3)


def test_precision_that_rises_later_also_counts_at_smaller_recall() -> None:
    # Two objects: miss, hit, hit. Precision 1/2 at recall 1/2 and 2/3 at recall 1; so 2/3 everywhere.
    objects = row_of_squares(2)
    found = voc_evaluate([as_detections(np.vstack((MISS, objects)), 0.9, 0.8, 0.7)], [objects], 1)
    assert list(found.values()) == pytest.approx([2 / 3] * 6)


def test_each_threshold_is_judged_by_itself_and_then_averaged() -> None:
    # One object. The best-scored detection has IoU 6 / 10, the next IoU 1. At 0.5, 0.55, 0.6 the first is a hit: AP 1.
    # At the other seven it is a miss and the second a hit: precision 1/2 at every recall. (3 + 7 / 2) / 10 = 0.65.
    objects = row_of_squares(1)
    detections = np.array([[0, 0, 6, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 0]])
    assert voc_evaluate([detections], [objects], 1) == pytest.approx(
        dict(zip(NAMES, (0.65, 0.65, 1, 1, 0.5, 0.5), strict=True))
    )
    chosen = voc_evaluate([detections], [objects], 1, thresholds=(0.6, 0.95))
    assert chosen == pytest.approx(dict(zip(NAMES, (0.75, 0.75, 1, 1, 0.5, 0.5), strict=True)))


@pytest.mark.parametrize("percent", range(50, 100, 5))
def test_an_overlap_equal_to_the_threshold_is_a_hit(percent: int) -> None:
    detections = np.array([[0, 0, 1, percent, 0.9, 0]], dtype=np.float32)
    objects = np.array([[0, 0, 1, 100, 0]], dtype=np.float32)
    assert voc_evaluate([detections], [objects], 1)["AP_area"] == pytest.approx((percent - 45) / 50)


@pytest.mark.parametrize("hits", range(11))
def test_recall_equal_to_a_tenth_reaches_that_tenth(hits: int) -> None:
    # Without a miss, `hits` of 10 objects reach 0, 0.1 ... hits / 10; comparing floats would lose 0.3, 0.6 and 0.7.
    objects = row_of_squares(10)
    found = voc_evaluate([as_detections(objects[:hits], *[0.5] * hits)], [objects], 1)
    assert found["AP50_11"] == pytest.approx((hits + 1) / 11 if hits else 0)
    assert found["AP50_area"] == pytest.approx(hits / 10)


def test_a_detection_whose_best_object_is_taken_is_a_miss_unlike_in_coco() -> None:
    # The second detection overlaps the first object by 9.5 / 10.5 and the second by 8.5 / 11.5. VOC: a miss, one of two
    # objects found with precision 1. COCO lets it take the second object, so pycocotools' AP cannot be the reference.
    objects = np.array([[0.0, 0, 10, 10, 0], [2.0, 0, 12, 10, 0]])
    detections = np.array([[0, 0, 10, 10, 0.9, 0], [0.5, 0, 10.5, 10, 0.8, 0]])
    assert voc_evaluate([detections], [objects], 1)["AP50_area"] == 0.5
    assert coco_evaluate([detections], [objects], 1)["AP50"] == pytest.approx(1)


def test_detections_of_difficult_objects_are_neither_hits_nor_misses() -> None:
    # The difficult object is detected twice with the best scores; the two others are then a hit and not found.
    objects = row_of_squares(3)
    detections = [as_detections(objects[[0, 0, 1]], 0.9, 0.8, 0.7)]
    found = voc_evaluate(detections, [objects], 1, difficult=[np.array([True, False, False])])
    assert (found["AP50_area"], found["AP50_11"]) == pytest.approx((1 / 2, 6 / 11))
    # Not difficult: hit, miss, hit of three; precision 1, 2/3. Tenths: 1 at 0 to 0.3, 2/3 at 0.4, 0.5, 0.6.
    plain = voc_evaluate(detections, [objects], 1)
    assert (plain["AP50_area"], plain["AP50_11"]) == pytest.approx(((1 + 2 / 3) / 3, (4 + 2) / 11))


def test_a_difficult_object_far_from_the_detection_does_not_excuse_it() -> None:
    objects = row_of_squares(2)
    detections = [as_detections(np.vstack((MISS, objects[1])), 0.9, 0.8)]
    found = voc_evaluate(detections, [objects], 1, difficult=[np.array([True, False])])
    assert found["AP50_area"] == 0.5


def test_of_objects_overlapped_equally_the_first_is_chosen() -> None:
    objects = row_of_squares(1).repeat(2, 0)
    detections = [as_detections(objects[:1], 0.9)]
    for flags, value in (([True, False], 0.0), ([False, True], 1.0)):
        assert voc_evaluate(detections, [objects], 1, difficult=[np.array(flags)])["AP50_area"] == value


def test_the_mean_is_over_the_classes_with_an_object_that_is_not_difficult() -> None:
    # Class 0: found. Class 1: not found. Class 2: difficult only. Class 3: detected, has no object. Class 4: nothing.
    objects = row_of_squares(3)
    objects[:, 4] = 0, 1, 2
    detections = objects[[0, 2, 1]]
    detections[2, 4] = 3
    difficult = [np.array([False, False, True])]
    found = voc_evaluate([as_detections(detections, 0.5, 0.9, 0.8)], [objects], 5, difficult=difficult)
    assert list(found.values()) == pytest.approx([0.5] * 6)


def test_scores_are_sorted_over_the_whole_set_and_equal_ones_keep_their_order() -> None:
    hit, miss = as_detections(row_of_squares(1), 0.5), as_detections(MISS, 0.5)
    objects = [row_of_squares(1), np.empty((0, 5))]
    assert voc_evaluate([hit, miss], objects, 1)["AP50_area"] == 1
    assert voc_evaluate([miss, hit], objects[::-1], 1)["AP50_area"] == 0.5
    assert voc_evaluate([np.vstack((hit, miss)), EMPTY], objects, 1)["AP50_area"] == 1
    assert voc_evaluate([np.vstack((miss, hit)), EMPTY], objects, 1)["AP50_area"] == 0.5


def test_an_object_is_found_only_in_its_own_image_and_by_its_own_class() -> None:
    objects = [row_of_squares(1), np.empty((0, 5))]
    right = as_detections(row_of_squares(1), 0.9)
    wrong_class = right.copy()
    wrong_class[:, 5] = 1
    assert voc_evaluate([right, EMPTY], objects, 2)["AP_11"] == 1
    assert voc_evaluate([EMPTY, right], objects, 2)["AP_11"] == 0
    assert voc_evaluate([wrong_class, EMPTY], objects, 2)["AP_11"] == 0


def test_the_order_of_detections_and_objects_does_not_matter_without_ties() -> None:
    detections, objects, difficult = random_set(2)
    found = voc_evaluate(detections, objects, 3, difficult=difficult)
    backwards = ([array[::-1] for array in arrays[::-1]] for arrays in (detections, objects, difficult))
    turned_detections, turned_objects, turned_difficult = backwards
    turned = voc_evaluate(turned_detections, turned_objects, 3, difficult=turned_difficult)
    assert turned == pytest.approx(found)
    assert 0 < found["AP_11"] < 1


@pytest.mark.parametrize(
    ("num_detections", "num_objects", "value"), [(0, 2, 0.0), (2, 0, math.nan), (0, 0, math.nan), (2, 2, 1.0)]
)
def test_without_detections_the_numbers_are_zero_and_without_objects_undefined(
    num_detections: int, num_objects: int, value: float
) -> None:
    objects = row_of_squares(2)
    detections = [as_detections(objects, 0.5, 0.5)[:num_detections], EMPTY]
    found = voc_evaluate(detections, [objects[:num_objects], np.empty((0, 5))], 1)
    assert list(found.values()) == pytest.approx([value] * 6, nan_ok=True)


def test_no_images_and_only_difficult_objects_have_no_numbers() -> None:
    objects = row_of_squares(2)
    difficult = voc_evaluate([as_detections(objects, 0.5, 0.5)], [objects], 1, difficult=[np.ones(2, dtype=bool)])
    for found in (difficult, voc_evaluate([], [], 1)):
        assert tuple(found) == NAMES
        assert all(math.isnan(value) for value in found.values())


def test_boxes_without_area_are_missed() -> None:
    point = np.array([[5.0, 5, 5, 5, 0]])
    assert voc_evaluate([as_detections(point, 0.5)], [point], 1)["AP50_11"] == 0


def test_the_input_is_left_unchanged() -> None:
    detections, objects, difficult = random_set(4)
    before = [array.copy() for array in (*detections, *objects, *difficult)]
    voc_evaluate(detections, objects, 3, difficult=difficult)
    for array, old in zip((*detections, *objects, *difficult), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_a_thousand_images_with_a_hundred_detections_each_are_done_within_five_seconds() -> None:
    rng = np.random.default_rng(0)
    detections, objects = [], []
    for _ in range(1000):
        corner, side = rng.uniform(0, 400, (5, 2)), rng.uniform(20, 100, (5, 2))
        truth = np.hstack((corner, corner + side, rng.integers(0, 20, (5, 1))))
        rows = np.insert(truth.repeat(20, 0), 4, rng.random(100), axis=1)
        rows[:, :4] += rng.normal(0, 4, (100, 4))
        objects.append(truth)
        detections.append(rows)
    began = time.perf_counter()
    found = voc_evaluate(detections, objects, 20)
    assert time.perf_counter() - began < 5
    assert 0 < found["AP_area"] < found["AP50_area"] < 1


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of detections and 1 of objects"):
        voc_evaluate([EMPTY] * 2, [np.empty((0, 5))], 1)


@pytest.mark.parametrize("difficult", [[], [np.zeros(1, dtype=bool)], [np.zeros(2, dtype=bool)] * 2])
def test_difficult_flags_that_do_not_fit_the_objects_are_refused(difficult: Arrays) -> None:
    with pytest.raises(ValueError, match="one value per object"):
        voc_evaluate([EMPTY], [row_of_squares(2)], 1, difficult=difficult)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    stray = row_of_squares(2)
    stray[1, 4] = label
    with pytest.raises(ValueError, match=r"labels 0\.\.1 .* image 1 of objects"):
        voc_evaluate([EMPTY] * 2, [row_of_squares(1), stray], 2)
    with pytest.raises(ValueError, match=r"labels 0\.\.1 .* image 0 of detections"):
        voc_evaluate([as_detections(stray, 0.5, 0.5)], [row_of_squares(1)], 2)


@pytest.mark.parametrize("thresholds", [(), (0.0, 0.5), (50,)])
def test_thresholds_outside_the_range_of_the_iou_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="IoU threshold"):
        voc_evaluate([EMPTY], [row_of_squares(1)], 1, thresholds=thresholds)
