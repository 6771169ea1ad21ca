"""Coverage: does a stated standard deviation hold the share of true edges that it promises?

Were errors normal and their deviation stated honestly, 68.27 % of them would lie within one of it. A model whose
deviations are all off by one factor can be put right by that factor: the quantile of |error| / deviation at 68.27 %.

1. A detection is compared with the object of its class that it overlaps most, if their IoU reaches `MATCH_IOU`. Any
   number of detections may be compared with one object.
2. Each side gives an error, the distance of the two edges.
3. *Coverage* is the share of errors that are no larger than the deviation stated: over all, by side and by the object's
   size, small below 32^2 px^2 and large from 96^2 on, as COCO has it.
4. *Spread* asks whether a larger deviation means a larger error: edges are cut by their deviation into bins of equal
   count, and the quantile of |error| at 68.27 % of a bin is compared with its mean deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlc_yolo.boxes import box_area, pairwise_iou

#: Share of a normal distribution within one standard deviation.
WITHIN_ONE = 0.6827
#: Least overlap of a detection and the object whose edges are its true ones.
MATCH_IOU = 0.5
#: Areas, in px^2, from which objects are medium and large.
MEDIUM, LARGE = 32**2, 96**2

SIDES = ("left", "top", "right", "bottom")
SIZES = ("small", "medium", "large")

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """How many true edges lie within one standard deviation.

    Attributes:
        count: detections compared, E / 4.
        overall: share of the E edges within one standard deviation, in [0, 1]; nan without edges.
        by_side: (4,) of left, top, right, bottom.
        by_size: (3,) of small, medium and large objects; nan where there are none.
        factor: what to multiply every deviation by for `overall` to be 0.6827; nan without edges.
    """

    count: int
    overall: float
    by_side: Float64Array
    by_size: Float64Array
    factor: float

    def text(self) -> str:
        """Return it as one line."""
        sides = ", ".join(f"{name} {value:.2f}" for name, value in zip(SIDES, self.by_side, strict=True))
        known = ((name, value) for name, value in zip(SIZES, self.by_size, strict=True) if value == value)
        sizes = ", ".join(f"{name} {value:.2f}" for name, value in known)
        return (
            f"{self.overall:.2f} of the edges of {self.count} detections lie within one sigma, {WITHIN_ONE:.2f} is "
            f"honest ({sides}; {sizes}); sigma times {self.factor:.2f} would be"
        )


def coverage(errors: NDArray[np.floating], sigmas: NDArray[np.floating], areas: NDArray[np.floating]) -> Coverage:
    """Measure coverage.

    Args:
        errors: (N, 4) distances of detected and true left, top, right and bottom edges, of either sign, px.
        sigmas: (N, 4) standard deviations stated, px, above 0.
        areas: (N,) of the objects, px^2.

    Example:
        >>> coverage(np.array([[1.0, 1, 3, 0]]), np.full((1, 4), 2.0), np.array([50.0])).by_side.tolist()
        [1.0, 1.0, 0.0, 1.0]
    """
    ratios = np.abs(errors.astype(np.float64)) / sigmas.astype(np.float64)
    within = ratios <= 1
    size = np.digitize(areas, (MEDIUM, LARGE))
    return Coverage(
        len(ratios),
        _share(within),
        np.array([_share(within[:, side]) for side in range(4)]),
        np.array([_share(within[size == group]) for group in range(3)]),
        float(np.quantile(ratios, WITHIN_ONE)) if len(ratios) else float("nan"),
    )


@dataclass(frozen=True)
class Spread:
    """Stated and actual spread of edges, by S bins of rising stated deviation and equal count.

    Attributes:
        stated: (S,) mean deviation of the bin, px.
        actual: (S,) what 68.27 % of the bin's errors do not exceed, px.
        count: (S,) int64 edges in the bin.
    """

    stated: Float64Array
    actual: Float64Array
    count: NDArray[np.int64]


def spread(errors: NDArray[np.floating], sigmas: NDArray[np.floating], *, bins: int = 10) -> Spread:
    """Compare the deviations stated with the errors made.

    Args:
        errors: of any shape, px, of either sign.
        sigmas: of the same shape, px, above 0.
        bins: S; fewer where there are fewer edges.

    Example:
        >>> found = spread(np.array([1.0, 1, -6, 6]), np.array([1.0, 3, 4, 6]), bins=2)
        >>> found.stated.tolist(), found.actual.tolist()
        ([2.0, 5.0], [1.0, 6.0])
    """
    order = np.argsort(sigmas, axis=None, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    stated, sizes = sigmas.ravel().astype(np.float64), np.abs(errors.ravel().astype(np.float64))
    return Spread(
        np.array([stated[part].mean() for part in parts]),
        np.array([np.quantile(sizes[part], WITHIN_ONE) for part in parts]),
        np.array([len(part) for part in parts], dtype=np.int64),
    )


def edge_errors(boxes: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the detections of an image with its objects.

    Args:
        boxes: (n, 4) xyxy px.
        labels: (n,) their classes.
        gt_boxes: (M, 4) xyxy px.
        gt_labels: (M,).

    Returns:
        index: (k,) int64, the detections that have an object.
        errors: (k, 4) px, detected minus true edge.
        areas: (k,) px^2, of the objects.
    """
    if not len(gt_boxes) or not len(boxes):
        return labels.new_zeros(0, dtype=torch.int64), boxes.new_zeros((0, 4)), boxes.new_zeros(0)
    overlaps = pairwise_iou(gt_boxes, boxes) * (gt_labels[:, None] == labels)
    best, gt = overlaps.max(0)
    index = (best >= MATCH_IOU).nonzero().squeeze(1)
    matched = gt_boxes[gt[index]]
    return index, boxes[index] - matched, box_area(matched)


def _share(within: NDArray[np.bool_]) -> float:
    return float(within.mean()) if within.size else float("nan")
