"""What is wrong with a detector's boxes: its errors split by kind.

Source: TIDE (Bolya et al., ECCV 2020), section 2.2. Detections choose in the order of their scores; each takes the
object of its class that it overlaps most among those not yet taken, if their IoU is 0.5 at least, and is *correct*. Of
any other detection, the first that holds is its kind:

1. *localization*: its best IoU with objects of its class is 0.1 or more, but below 0.5;
2. *class*: it has an IoU of 0.5 or more with an object of another class;
3. *duplicate*: it has an IoU of 0.5 or more with an object of its class, which a better-scored detection took;
4. *background*: its IoU with every object is below 0.1;
5. *both*: the rest, which are off in box and class: their best IoU is with another class, 0.1 or more, but below 0.5.

An object that no detection took is *missed*, unless a localization or class error was meant for it, as the object of
the largest IoU in 1 or 2: then that error alone is counted.

Difference from TIDE: there, a kind weighs as much as the AP that mending it would bring, over all detections. Here
errors are counted, which a reader can do again by eye, and so only over the best-scored detections, as many as there
are objects (`best_detections`): a fixed score threshold would favour one detector over another, as each has a scale of
scores of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlc_yolo.boxes import pairwise_iou

if TYPE_CHECKING:
    from mlc_yolo.metrics.records import Records

#: IoU from which a detection has found an object, and below which the two have nothing to do with each other.
FOREGROUND, BACKGROUND = 0.5, 0.1
#: Object of a detection that took none.
NO_OBJECT = -1

Int64Array = NDArray[np.int64]


class Kind(IntEnum):
    """What a detection is, or, in the case of MISSED, an object."""

    CORRECT = 0
    LOCALIZATION = 1
    CLASS = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5
    MISSED = 6


@dataclass(frozen=True)
class ImageErrors:
    """The verdict on one image.

    Attributes:
        detections: (n,) rows, in the records, of the detections that were judged, best score first.
        objects: (m,) rows, in the records, of the image's objects.
        kind: (n,) `Kind` of each detection.
        taken: (n,) the object, in 0..m-1, that a correct detection took; -1 for the others.
        iou: (n,) IoU with the object taken, in [0.5, 1]; 0 for the others.
        missed: (m,) bool, objects that count as missed.
    """

    detections: Int64Array
    objects: Int64Array
    kind: Int64Array
    taken: Int64Array
    iou: NDArray[np.float32]
    missed: NDArray[np.bool_]


def best_detections(scores: NDArray[np.floating], count: int) -> Int64Array:
    """Return the rows of the `count` highest scores, best first, equal ones in their order; all if there are fewer.

    Example:
        >>> best_detections(np.array([0.2, 0.9, 0.9]), 2).tolist()
        [1, 2]
    """
    return np.argsort(-scores, kind="stable")[:count]


def judge(records: Records) -> list[ImageErrors]:
    """Judge the best-scored detections of a data set, as many as it has objects.

    Args:
        records: what was found and what is there.

    Returns:
        A verdict per image, in the records' order.
    """
    best = best_detections(records.scores, len(records.gt_labels))
    count = len(records.images)
    detections, truth = rows_by_image(records.image[best], count), rows_by_image(records.gt_image, count)
    overlaps = iou_of_boxes(records)
    images = zip(detections, truth, strict=True)
    return [_judge_image(records, overlaps, best[rows], objects) for rows, objects in images]


def count_kinds(judged: list[ImageErrors]) -> dict[Kind, int]:
    """Return how many detections are of each kind over all images, and how many objects are missed."""
    kinds = np.concatenate([np.empty(0, dtype=np.int64), *(image.kind for image in judged)])
    counts = np.bincount(kinds, minlength=len(Kind))
    counts[Kind.MISSED] = sum(int(image.missed.sum()) for image in judged)
    return {kind: int(counts[kind]) for kind in Kind}


def rows_by_image(image: NDArray[np.integer], num_images: int) -> list[Int64Array]:
    """Return the rows of every image in their order.

    Args:
        image: (N,) in 0..num_images-1, in any order.
        num_images: I.

    Returns:
        I arrays, together a permutation of 0..N-1.
    """
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))[:num_images]


def iou_of_boxes(records: Records) -> Callable[[Int64Array, Int64Array], NDArray[np.floating]]:
    """Return what gives the overlaps (n, m) of rows of detections and of objects: IoU, of oriented boxes probiou."""
    if records.task == "obb":
        known = records.similarities()
        return lambda rows, objects: np.asarray(known[rows][:, objects].toarray())
    boxes, gt_boxes = torch.from_numpy(records.boxes), torch.from_numpy(records.gt_boxes)
    return lambda rows, objects: pairwise_iou(boxes[rows], gt_boxes[objects]).numpy()


def _judge_image(records: Records, overlaps: Any, detections: Int64Array, objects: Int64Array) -> ImageErrors:
    """Return the verdict on the image that these rows, detections best first, are of."""
    iou = overlaps(detections, objects)
    same = records.labels[detections][:, None] == records.gt_labels[objects]
    taken = np.full(len(detections), NO_OBJECT)
    kind = np.full(len(detections), Kind.BACKGROUND, dtype=np.int64)
    meant = np.zeros(len(objects), dtype=bool)
    if len(objects):
        own, other = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
        taken = _take(own)
        kind = _kinds(taken, own, other)
        meant[own.argmax(1)[kind == Kind.LOCALIZATION]] = True
        meant[other.argmax(1)[kind == Kind.CLASS]] = True
        meant[taken[taken != NO_OBJECT]] = True
    overlap = np.zeros(len(detections), dtype=np.float32)
    correct = np.flatnonzero(taken != NO_OBJECT)
    overlap[correct] = iou[correct, taken[correct]]
    return ImageErrors(detections, objects, kind, taken, overlap, ~meant)


def _take(own: NDArray[np.floating]) -> Int64Array:
    """Return the object that each detection takes, (n,), -1 for none, of the IoU (n, m) with objects of its class."""
    taken = np.full(len(own), NO_OBJECT)
    free = np.ones(own.shape[1], dtype=bool)
    for row in np.flatnonzero(own.max(1) >= FOREGROUND):
        best = int(np.where(free, own[row], -1.0).argmax())
        if free[best] and own[row, best] >= FOREGROUND:
            taken[row], free[best] = best, False
    return taken


def _kinds(taken: Int64Array, own: NDArray[np.floating], other: NDArray[np.floating]) -> Int64Array:
    """Return the kind of each detection, (n,), of the IoU (n, m) with objects of its class and of others."""
    best_own, best_other = own.max(1), other.max(1)
    tests = (
        (taken != NO_OBJECT, Kind.CORRECT),
        ((best_own >= BACKGROUND) & (best_own < FOREGROUND), Kind.LOCALIZATION),
        (best_other >= FOREGROUND, Kind.CLASS),
        (best_own >= FOREGROUND, Kind.DUPLICATE),
        (best_other < BACKGROUND, Kind.BACKGROUND),  # and best_own, or the second or fourth held
    )
    return np.select([test for test, _ in tests], [kind for _, kind in tests], Kind.BOTH)
