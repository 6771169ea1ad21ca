"""PASCAL VOC's average precision: the 11-point AP of VOC2007 and the area AP of VOC2010 and later, at many IoUs.

Per class and IoU threshold:

1. The detections of all images are sorted by score, best first; equal scores keep the order in which they came.
2. Each looks at the object of its class and image that it overlaps most (the first of equals), taken or free.
3. Overlap below the threshold: a miss. A difficult object: the detection does not count. A free object: a hit, and the
   object is taken. A taken one: a miss.
4. After each hit, recall is hits / objects that are not difficult, precision is hits / (hits + misses); the precision
   *at* a recall is the largest one there or at any larger recall, 0 beyond the last.
5. The 11-point AP is its mean at recall 0, 0.1 ... 1, the area AP its integral over recall.
6. Both are averaged over the classes that have an object which is not difficult, then over the thresholds.

Step 2 is why neither is COCO's AP: there, a detection whose best object is taken may take the next best one.

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, and the
development kits of VOC2007 and VOC2010, sections 3.4 (AP) and 4.4 (detections). Mutual Guidance (Zhang et al., ACCV
2020) reports the 11-point AP averaged over IoU 0.50:0.05:0.95. Where they leave a choice:

- An overlap equal to the threshold is enough, as in the kit's program; its text says "exceed".
- Boxes are continuous, as everywhere in this package: a width is x2 - x1. VOC's files number pixels from 1 and include
  the last, and the kit computes x2 - x1 + 1. With those read as x1 - 1 .. x2 both give the same overlaps. Programs that
  add the 1 to continuous boxes find more: 66 / 121 instead of 50 / 100 for one half of a 10 px square.
- Recall is compared with the tenths in integers. A program that compares floats with multiples of 0.1 can lose a point:
  3 / 10 is less than 3 * 0.1 in floats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from mlc_yolo.boxes import xywh

#: Names of the numbers: the mean over the thresholds, then at IoU 0.5 and 0.75.
NAMES = ("AP_11", "AP_area", "AP50_11", "AP50_area", "AP75_11", "AP75_area")
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def voc_evaluate(
    detections: Sequence[NDArray[np.floating]],
    objects: Sequence[NDArray[np.floating]],
    num_classes: int,
    *,
    difficult: Sequence[NDArray[np.bool_]] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """Judge detections.

    Args:
        detections: per image (n, 6) rows x1, y1, x2, y2, score, label, in any order; equal scores count in this order.
        objects: per image (m, 5) rows x1, y1, x2, y2, label, in the same pixels.
        num_classes: K; labels are 0..K-1.
        difficult: per image (m,), which objects are neither to be found nor to be missed; None: none.
        thresholds: IoU in (0, 1] over which "AP_11" and "AP_area" are averaged.

    Returns:
        `NAMES` -> value in [0, 1], or nan where no class has an object that is not difficult.

    Raises:
        ValueError: as many images with detections as with objects, one `difficult` per object, labels below K and at
            least one threshold in (0, 1] were expected.

    Example:
        >>> measured = voc_evaluate([np.array([[0., 0, 9, 88, 0.8, 0]])], [np.array([[0., 0, 9, 100, 0]])], 1)
        >>> round(measured["AP_area"], 6), measured["AP75_11"]  # IoU 0.88: a hit at 0.50, 0.55 ... 0.85, a miss beyond
        (0.8, 1.0)
    """
    if difficult is None:
        difficult = [np.zeros(len(rows), dtype=bool) for rows in objects]
    _check(detections, objects, num_classes, difficult, thresholds)
    is_difficult = np.concatenate([np.empty(0, dtype=bool), *difficult])
    object_label = np.concatenate([np.empty(0), *(rows[:, 4] for rows in objects)])
    sizes = {
        label: int((object_label[~is_difficult] == label).sum()) for label in np.unique(object_label[~is_difficult])
    }
    if not sizes:
        return dict.fromkeys(NAMES, float("nan"))

    score = np.concatenate([np.empty(0), *(rows[:, 4] for rows in detections)])
    best_first = np.argsort(-score, kind="stable")
    label = np.concatenate([np.empty(0), *(rows[:, 5] for rows in detections)])[best_first]
    best, overlap = _best_objects(detections, objects)
    best, overlap = best[best_first], overlap[best_first]
    members = {k: np.flatnonzero(label == k) for k in sizes}

    precisions = []  # (thresholds + 2, 2)
    for threshold in (*thresholds, 0.5, 0.75):
        hit, counts = _judge(best, overlap >= threshold, is_difficult)
        per_class = [_average_precision(hit[rows[counts[rows]]], sizes[k]) for k, rows in members.items()]
        precisions.append(np.mean(per_class, axis=0))
    averaged = np.mean(precisions[:-2], axis=0)
    return dict(zip(NAMES, np.concatenate((averaged, *precisions[-2:])).tolist(), strict=True))


def _check(
    detections: Sequence[NDArray[np.floating]],
    objects: Sequence[NDArray[np.floating]],
    num_classes: int,
    difficult: Sequence[NDArray[np.bool_]],
    thresholds: Sequence[float],
) -> None:
    if len(detections) != len(objects):
        raise ValueError(
            f"Expected one array per image in both, got {len(detections)} of detections and {len(objects)} of objects."
        )
    if [len(flags) for flags in difficult] != [len(rows) for rows in objects]:
        raise ValueError("Expected in `difficult` one array per image with one value per object of `objects`.")
    for name, images in (("detections", detections), ("objects", objects)):
        for i, rows in enumerate(images):
            if len(rows) and not 0 <= rows[:, -1].min() <= rows[:, -1].max() < num_classes:
                raise ValueError(
                    f"Expected labels 0..{num_classes - 1} in the last column, got {rows[:, -1].min():g} to "
                    f"{rows[:, -1].max():g} in image {i} of {name}."
                )
    if not len(thresholds) or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"Expected at least one IoU threshold, each in (0, 1], got {thresholds}.")


def _best_objects(
    detections: Sequence[NDArray[np.floating]], objects: Sequence[NDArray[np.floating]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for every detection of all images its object's index among all objects, and their IoU, (n,) each.

    Where no object of its class overlaps it the IoU is 0 and the index means nothing.
    """
    best, overlap, before = [np.empty(0, dtype=np.int64)], [np.empty(0)], 0
    for boxes, truth in zip(detections, objects, strict=True):
        index, value = np.zeros(len(boxes), dtype=np.int64), np.zeros(len(boxes))
        if len(boxes) and len(truth):
            iou = np.asarray(mask.iou(xywh(boxes), xywh(truth), [0] * len(truth)))
            iou[boxes[:, 5, None] != truth[:, 4]] = 0
            index, value = iou.argmax(1), iou.max(1)
        best.append(before + index)
        overlap.append(value)
        before += len(truth)
    return np.concatenate(best), np.concatenate(overlap)


def _judge(
    best: NDArray[np.int64], claims: NDArray[np.bool_], is_difficult: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which detections are hits and which count at all, (n,) each.

    As a detection's best object does not depend on who took it, the hit on an object is its first claim.

    Args:
        best: (n,) index of each detection's object, best score first.
        claims: (n,) whether it overlaps that object enough.
        is_difficult: per object.
    """
    claimed = best[claims]
    hit, counts = np.zeros(len(best), dtype=bool), np.ones(len(best), dtype=bool)
    _, first = np.unique(claimed, return_index=True)
    hit[np.flatnonzero(claims)[first]] = True
    counts[claims] = ~is_difficult[claimed]
    return hit, counts


def _average_precision(hits: NDArray[np.bool_], num_objects: int) -> tuple[float, float]:
    """Return the 11-point and the area AP of one class from its counting detections, best score first.

    Args:
        hits: (n,) whether each is a hit; else it is a miss.
        num_objects: objects that are not difficult, at least 1.
    """
    ranks = np.flatnonzero(hits) + 1
    precision = np.arange(1, len(ranks) + 1) / ranks
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # at recall 1 / N, 2 / N ...
    needed = np.maximum((np.arange(11) * num_objects + 9) // 10, 1)  # hits that reach each tenth; one, for recall 0
    reached = needed[needed <= len(precision)]
    return float(precision[reached - 1].sum() / 11), float(precision.sum() / num_objects)
