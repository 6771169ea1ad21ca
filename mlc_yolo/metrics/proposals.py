"""Class-agnostic average recall of proposals, by which an RPN is judged (AR@100, AR@300, AR@1000 of COCO).

1. Within an image, detections choose in the order of their scores. 2. At each IoU threshold 0.50, 0.55 ... 0.95 a
detection takes the object it overlaps most among those not yet taken, if by the threshold at least. 3. AR@n is the
share of all objects that the n best-scored detections of their images take, averaged over the thresholds.

These are pycocotools' numbers with `useCats = 0`, from its overlaps but not its loop, which takes seven times as long
and a dictionary per proposal. As the n best detections choose without regard to the rest, one pass that remembers who
took what serves every n. Nothing is rounded: many proposals' scores differ only beyond the digits that a
predictions.json keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from mlc_yolo.boxes import xywh

LIMITS = (100, 300, 1000)
#: Names of the numbers at these limits.
NAMES = tuple(f"AR@{limit}" for limit in LIMITS)

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
#: Rank of the detection that took an object which none took.
_NEVER = np.iinfo(np.int64).max


def average_recall(
    detections: Sequence[NDArray[np.floating]],
    objects: Sequence[NDArray[np.floating]],
    *,
    limits: Sequence[int] = LIMITS,
) -> dict[str, float]:
    """Judge proposals.

    Args:
        detections: per image (n, 5) rows x1, y1, x2, y2, score, in any order; equal scores choose in this order.
        objects: per image (m, 4) rows x1, y1, x2, y2, in the same pixels.
        limits: detections per image that count at most; one number each.

    Returns:
        "AR@<limit>" -> recall in [0, 1], or nan where there is no object at all.

    Raises:
        ValueError: as many images with detections as with objects were expected.

    Example:
        >>> measured = average_recall([np.array([[0., 0, 9, 88, 0.8]])], [np.array([[0., 0, 9, 100]])])
        >>> round(measured["AR@100"], 6)  # IoU 0.88: found at 0.50, 0.55 ... 0.85, not at 0.90 and 0.95
        0.8
    """
    if len(detections) != len(objects):
        raise ValueError(
            f"Expected one array per image in both, got {len(detections)} of detections and {len(objects)} of objects."
        )
    takers = [_takers(boxes, truth, max(limits)) for boxes, truth in zip(detections, objects, strict=True)]
    ranks = np.concatenate([np.empty((len(_THRESHOLDS), 0), dtype=np.int64), *takers], axis=1)
    return {f"AR@{limit}": float((ranks < limit).mean()) if ranks.size else float("nan") for limit in limits}


def _takers(detections: NDArray[np.floating], objects: NDArray[np.floating], limit: int) -> NDArray[np.int64]:
    """Return the rank by score of the detection that takes each object at each threshold, (10, m)."""
    ranks = np.full((len(_THRESHOLDS), len(objects)), _NEVER, dtype=np.int64)
    if not len(detections) or not len(objects):
        return ranks
    best_first = np.argsort(-detections[:, 4], kind="stable")[:limit]
    iou = np.asarray(mask.iou(xywh(detections[best_first]), xywh(objects), [0] * len(objects)))
    rows = np.arange(len(_THRESHOLDS))
    for rank in np.flatnonzero(iou.max(1) >= _THRESHOLDS[0]):
        can_take = (iou[rank] >= _THRESHOLDS[:, None]) & (ranks == _NEVER)
        value = np.where(can_take, iou[rank], -1.0)
        best = len(objects) - 1 - value[:, ::-1].argmax(1)  # the last of equals, as pycocotools chooses
        takes = can_take[rows, best]
        ranks[rows[takes], best[takes]] = rank
    return ranks
