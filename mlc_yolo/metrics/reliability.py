"""Reliability: is a detection's score an honest estimate of its IoU?

Scores are cut into bins of equal width; where the score is honest, the mean score of a bin is the mean IoU of its
detections. The *expected calibration error* (ECE) is the difference of the two, its sign left out, averaged over the
bins with their detections as weight.

Source: localisation-aware ECE (LaECE; Oksuz et al., CVPR 2023, section 4), whose target for the score is precision
times mean IoU of the correct. With its threshold for being correct at 0 (Kuzucu et al., ECCV 2024), that is the mean
IoU. Differences, for which our numbers do not compare with theirs: bins are filled over all classes, where they average
an error per class, as most bins of a small data set's rarer classes would be empty; there are 10 instead of 25, for the
same reason; and any number of detections may be compared with one object, as a box is no worse for being the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.metrics.errors import iou_of_boxes, rows_by_image

if TYPE_CHECKING:
    from mlc_yolo.metrics.records import Records

BINS = 10

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Scores against IoU by bins of the score, S in all.

    Attributes:
        count: (S,) int64 detections in the bin.
        score: (S,) their mean score, in [0, 1]; nan where there are none.
        iou: (S,) their mean IoU, in [0, 1]; nan where there are none.
        error: expected calibration error, in [0, 1]; nan without detections.
        bias: mean score minus mean IoU over all, in [-1, 1]: above 0 where scores promise too much; nan likewise.
    """

    count: NDArray[np.int64]
    score: Float64Array
    iou: Float64Array
    error: float
    bias: float


def reliability(scores: NDArray[np.floating], ious: NDArray[np.floating], *, bins: int = BINS) -> Reliability:
    """Compare scores with IoU.

    Args:
        scores: (N,) in [0, 1]; a score on a bin's edge belongs to the bin above it, 1 to the last.
        ious: (N,) in [0, 1].
        bins: S, at least 1.

    Returns:
        The comparison. `error` is at least the absolute `bias`, and 0 where every score is its IoU.

    Raises:
        ValueError: arrays of different length, or no bins.

    Example:
        Two bins: scores .2 and .4 with mean IoU .5, and .9 with IoU .8. ECE = 2/3 * |.3 - .5| + 1/3 * |.9 - .8| = 1/6.

        >>> measured = reliability(np.array([.2, .4, .9]), np.array([.4, .6, .8]), bins=2)
        >>> measured.count.tolist(), round(measured.error, 6), round(measured.bias, 6)
        ([2, 1], 0.166667, -0.1)
    """
    if len(scores) != len(ious) or bins < 1:
        raise ValueError(
            f"Expected as many scores as IoUs and one bin or more, got {len(scores)}, {len(ious)} and bins={bins}."
        )
    scores, ious = scores.astype(np.float64), ious.astype(np.float64)
    which = np.minimum((scores * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    sums = [np.bincount(which, values, minlength=bins) for values in (scores, ious)]
    total = len(scores)
    nan = float("nan")
    score, iou = (np.divide(values, count, out=np.full(bins, nan), where=count > 0) for values in sums)
    gap = sums[0] - sums[1]
    return Reliability(
        count,
        score,
        iou,
        error=float(np.abs(gap).sum() / total) if total else nan,
        bias=float(gap.sum() / total) if total else nan,
    )


def best_ious(records: Records) -> NDArray[np.float32]:
    """Return the IoU of every detection with the object of its class and image that it overlaps most.

    Args:
        records: N detections and their images' objects.

    Returns:
        (N,) in [0, 1]; 0 where the image has no object of that class.
    """
    best = np.zeros(len(records.scores), dtype=np.float32)
    count, overlaps = len(records.images), iou_of_boxes(records)
    for rows, objects in zip(rows_by_image(records.image, count), rows_by_image(records.gt_image, count), strict=True):
        if len(rows) and len(objects):
            same = records.labels[rows][:, None] == records.gt_labels[objects]
            best[rows] = np.where(same, overlaps(rows, objects), 0.0).max(1)
    return best
