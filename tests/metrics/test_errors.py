"""Errors by kind: hand-made examples of each, the bounds between them, and what adds up."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mlc_yolo.metrics.errors import Kind, best_detections, count_kinds, judge, rows_by_image
from mlc_yolo.metrics.records import Records

NAMES = {0: "cat", 1: "dog"}
Row = tuple[float, ...]


def records(images: list[tuple[list[Row], list[Row]]]) -> Records:
    """Records of images, each its detections (x1, y1, x2, y2, score, label) and objects (x1, y1, x2, y2, label)."""
    found = [np.array(rows, dtype=np.float32).reshape(-1, 6) for rows, _ in images]
    truth = [np.array(rows, dtype=np.float32).reshape(-1, 5) for _, rows in images]
    detections, objects = (np.concatenate([np.empty((0, n), np.float32), *x]) for n, x in ((6, found), (5, truth)))
    return Records(
        images=[f"{i}.jpg" for i in range(len(images))],
        sizes=np.full((len(images), 2), 200),
        gt_image=np.repeat(np.arange(len(images)), [len(rows) for rows in truth]),
        gt_boxes=objects[:, :4],
        gt_labels=objects[:, 4].astype(np.int64),
        image=np.repeat(np.arange(len(images)), [len(rows) for rows in found]),
        boxes=detections[:, :4],
        scores=detections[:, 4],
        labels=detections[:, 5].astype(np.int64),
        names=NAMES,
    )


def random_records(seed: int) -> Records:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(8):
        count = int(rng.integers(0, 6))
        corner, side = rng.random((count, 2)) * 100, 10 + rng.random((count, 2)) * 60
        objects = np.hstack((corner, corner + side, rng.integers(0, 2, (count, 1))))
        boxes = np.vstack((objects[:, :4].repeat(3, 0), rng.random((4, 4)) * 50 + [0, 0, 50, 50]))
        boxes += rng.normal(0, 6, boxes.shape) * [1, 1, 1, 1]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = rng.integers(0, 2, (len(boxes), 1))
        found = np.hstack((boxes, rng.random((len(boxes), 1)), labels))
        images.append((list(map(tuple, found)), list(map(tuple, objects))))
    return records(images)


# One object, a cat of 100 x 100 px. A detection of its upper q px covers it with IoU q / 100.
CAT = (0, 0, 100, 100, 0)


@pytest.mark.parametrize(
    ("detection", "kind", "missed"),
    [
        ((0, 0, 100, 80, 0.9, 0), Kind.CORRECT, 0),
        ((0, 0, 100, 50, 0.9, 0), Kind.CORRECT, 0),  # IoU 0.5: found
        ((0, 0, 100, 49, 0.9, 0), Kind.LOCALIZATION, 0),
        ((0, 0, 100, 11, 0.9, 0), Kind.LOCALIZATION, 0),
        ((0, 0, 100, 9, 0.9, 0), Kind.BACKGROUND, 1),
        ((120, 120, 180, 180, 0.9, 0), Kind.BACKGROUND, 1),
        ((0, 0, 100, 80, 0.9, 1), Kind.CLASS, 0),
        ((0, 0, 100, 50, 0.9, 1), Kind.CLASS, 0),
        ((0, 0, 100, 49, 0.9, 1), Kind.BOTH, 1),
        ((0, 0, 100, 11, 0.9, 1), Kind.BOTH, 1),
        ((0, 0, 100, 9, 0.9, 1), Kind.BACKGROUND, 1),
    ],
)
def test_a_lone_detection_of_a_lone_cat_is_of_one_kind(detection: Row, kind: Kind, missed: int) -> None:
    (image,) = judge(records([([detection], [CAT])]))
    assert image.kind.tolist() == [kind]
    assert image.missed.sum() == missed


def test_the_better_scored_of_two_on_one_object_is_correct_and_the_better_box_a_duplicate() -> None:
    dog_far_away = (150, 150, 190, 190, 1)
    worse, better = (0, 0, 100, 60, 0.9, 0), (0, 0, 100, 95, 0.8, 0)
    (image,) = judge(records([([better, worse], [CAT, dog_far_away])]))
    assert image.detections.tolist() == [1, 0]
    assert image.kind.tolist() == [Kind.CORRECT, Kind.DUPLICATE]
    assert image.taken.tolist() == [0, -1]
    assert image.iou.tolist() == pytest.approx([0.6, 0])
    assert image.missed.tolist() == [False, True]


def test_a_detection_takes_the_free_object_that_it_overlaps_most() -> None:
    # The second detection overlaps the first object more, 98/102 against 92/108, but finds it taken.
    second = (0, 10, 100, 110, 0)
    (image,) = judge(records([([(0, 0, 100, 100, 0.9, 0), (0, 2, 100, 102, 0.8, 0)], [CAT, second])]))
    assert image.kind.tolist() == [Kind.CORRECT, Kind.CORRECT]
    assert image.taken.tolist() == [0, 1]
    assert image.iou.tolist() == pytest.approx([1, 92 / 108])


def test_a_localization_error_on_an_object_that_another_found_leaves_nothing_missed() -> None:
    dog = (150, 150, 190, 190, 1)
    (image,) = judge(records([([(0, 0, 100, 90, 0.9, 0), (0, 0, 100, 30, 0.8, 0)], [CAT, dog])]))
    assert image.kind.tolist() == [Kind.CORRECT, Kind.LOCALIZATION]
    assert image.missed.tolist() == [False, True]


def test_an_error_of_two_kinds_counts_once_as_the_first_of_the_list() -> None:
    # A "dog" whose IoU with a dog is 24 / (80 + 144 - 24) = 0.12, and with a cat 0.8.
    dog = (0, 56, 100, 200, 1)
    (image,) = judge(records([([(0, 0, 100, 80, 0.9, 1)], [CAT, dog])]))
    assert image.kind.tolist() == [Kind.LOCALIZATION]
    assert image.missed.tolist() == [True, False]


def test_only_as_many_detections_as_there_are_objects_are_judged_the_best_of_the_data_set() -> None:
    first = ([(0, 0, 100, 90, 0.3, 0), (120, 120, 180, 180, 0.2, 0)], [CAT])
    second = ([(0, 0, 100, 90, 0.9, 0), (120, 120, 180, 180, 0.8, 0)], [CAT])
    judged = judge(records([first, second]))
    assert [image.detections.tolist() for image in judged] == [[], [2, 3]]
    assert count_kinds(judged) == dict.fromkeys(Kind, 0) | {Kind.CORRECT: 1, Kind.BACKGROUND: 1, Kind.MISSED: 1}


def test_images_without_objects_or_detections_are_judged() -> None:
    judged = judge(records([([], []), ([(0, 0, 9, 9, 0.9, 0)], []), ([], [CAT])]))
    assert [image.kind.tolist() for image in judged] == [[], [Kind.BACKGROUND], []]
    assert [image.missed.tolist() for image in judged] == [[], [], [True]]
    assert judge(records([])) == []
    assert count_kinds([]) == dict.fromkeys(Kind, 0)


@pytest.mark.parametrize("seed", range(4))
def test_every_detection_has_one_kind_and_every_object_is_found_or_missed_or_meant_by_an_error(seed: int) -> None:
    data = random_records(seed)
    judged = judge(data)
    counts = count_kinds(judged)
    kinds = {kind: count for kind, count in counts.items() if kind != Kind.MISSED}
    assert sum(kinds.values()) == sum(len(image.detections) for image in judged) == len(data.gt_labels)
    assert len({kind for kind, count in kinds.items() if count}) >= 4
    objects = len(data.gt_labels)
    covered = counts[Kind.CORRECT] + counts[Kind.LOCALIZATION] + counts[Kind.CLASS]
    assert objects - covered <= counts[Kind.MISSED] <= objects - counts[Kind.CORRECT]
    for image in judged:
        taken = image.taken[image.taken >= 0]
        assert len(set(taken.tolist())) == len(taken)
        assert (image.iou[image.kind == Kind.CORRECT] >= 0.5).all()
        assert (image.iou[image.kind != Kind.CORRECT] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_as_many_are_correct_as_pycocotools_finds_at_an_iou_of_one_half(seed: int) -> None:
    data = random_records(seed)
    correct = [data.gt_labels[image.objects[image.taken[image.taken >= 0]]] for image in judge(data)]
    correct_of_class = np.bincount(np.concatenate(correct), minlength=2)
    recall = correct_of_class / np.bincount(data.gt_labels, minlength=2)
    assert 0 < recall.min() <= recall.max() < 1
    assert recall.tolist() == pytest.approx(recall_by_pycocotools(data))


def recall_by_pycocotools(data: Records) -> list[float]:
    """Recall of each class at IoU 0.5, of as many of the best detections as there are objects."""
    best = best_detections(data.scores, len(data.gt_labels))
    truth, found = [], []
    for image, box, label in zip(data.gt_image, data.gt_boxes, data.gt_labels, strict=True):
        truth.append(annotation(image, box, label))
    for image, box, label, score in zip(data.image, data.boxes, data.labels, data.scores, strict=True):
        found.append(annotation(image, box, label) | {"score": float(score)})
    judge_of_coco = COCOeval(
        *(coco(rows, len(data.images)) for rows in (truth, [found[i] for i in best])), iouType="bbox"
    )
    judge_of_coco.params.iouThrs = np.array([0.5])
    with contextlib.redirect_stdout(io.StringIO()):
        judge_of_coco.evaluate()
        judge_of_coco.accumulate()
    return judge_of_coco.eval["recall"][0, :, 0, -1].tolist()


def coco(annotations: list[dict[str, Any]], num_images: int) -> COCO:
    """Annotations of two classes, numbered from 1: pycocotools takes a match with id 0 for none."""
    filled = COCO()
    filled.dataset = {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": k} for k in range(2)],
        "annotations": [{"id": i, **each} for i, each in enumerate(annotations, start=1)],
    }
    filled.createIndex()
    return filled


def annotation(image: int, box: np.ndarray, label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, box)
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": int(image), "category_id": int(label), "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}


def test_rows_by_image_keeps_their_order_and_gives_empty_images_none() -> None:
    assert [rows.tolist() for rows in rows_by_image(np.array([2, 0, 2]), 4)] == [[1], [], [0, 2], []]
    assert rows_by_image(np.empty(0, dtype=np.int64), 0) == []


def test_fewer_detections_than_objects_are_all_judged() -> None:
    assert best_detections(np.array([0.1, 0.2]), 5).tolist() == [1, 0]
