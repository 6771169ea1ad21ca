"""Divergence: how well the score that NMS ranks by orders boxes by their overlap with the objects.

Source: MLC (arXiv 2103.08958), section 4.2, which measures it as Spearman's rank correlation between class score and
localisation quality. The paper does not say over which boxes; these are our decisions:

1. An *entry* is one (anchor, class) pair whose score, as NMS sees it (the predicted IoU included where the head has
   one), is above 0.05: with several labels per anchor, each is a box of its own to NMS. The threshold does not follow
   the user's `conf`, so that numbers compare. An image contributes its 1,000 best entries at most.
2. An entry's IoU is that with its best object *of the same class*, 0 if it overlaps none; entries of a class the image
   does not contain have nothing to be compared with and are left out.
3. An object's *candidates* are the entries that have it as best object with IoU > 0 (ties: the first object).
4. *Per object*: rho over each object's candidates where there are five or more, averaged over objects.
   *Pooled*: rho over all entries at once, five or more.
5. Equal values get average ranks. Too few values, or equal ones throughout, have no rho: nan, left out of the mean.

The two answer different questions: per object, whether NMS keeps an object's best box; pooled, whether a confident box
is a good box anywhere in the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlc_yolo.boxes import pairwise_iou

SCORE_THRESHOLD = 0.05
MAX_ENTRIES = 1000
MIN_VALUES = 5

#: Columns of a sample array.
SCORE, IOU, OBJECT, LABEL = range(4)
#: Object of an entry that overlaps none.
NO_OBJECT = -1

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Spearman's rho between score and IoU over a data set; every value in [-1, 1] or nan where undefined.

    Attributes:
        per_object: rho over an object's candidates, averaged over objects.
        pooled: rho over all entries.
        per_object_by_class: `per_object` over the objects of each class, shape (K,).
        pooled_by_class: `pooled` over the entries of each class, shape (K,).
    """

    per_object: float
    pooled: float
    per_object_by_class: Float64Array
    pooled_by_class: Float64Array


def entries(boxes: Tensor, scores: Tensor, *, threshold: float = SCORE_THRESHOLD, limit: int = MAX_ENTRIES) -> Tensor:
    """Return what NMS sees of one image above `threshold`, one row per (anchor, class).

    Args:
        boxes: (A, 4) xyxy pixels, any float dtype; (A, 5) of oriented boxes.
        scores: (A, K) scores NMS ranks by, in [0, 1], same device.
        threshold: scores must be above it; nan never is.
        limit: most rows returned; the highest scores stay.

    Returns:
        (N, 6) float32 rows x1, y1, x2, y2, score, label; (N, 7) of oriented boxes.
    """
    above = torch.where(scores.amax(1) > threshold)[0]  # a search over A*K values would take several times as long
    row, label = torch.where(scores[above] > threshold)
    anchor = above[row]
    score = scores[anchor, label]
    if len(score) > limit:
        score, top = score.topk(limit)
        anchor, label = anchor[top], label[top]
    return torch.cat((boxes[anchor].float(), score[:, None].float(), label[:, None].float()), 1)


def match(
    image_entries: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    *,
    overlap: Callable[[Tensor, Tensor], Tensor] = pairwise_iou,
) -> Float32Array:
    """Compare one image's entries with its objects.

    Args:
        image_entries: (N, 6) rows x1, y1, x2, y2, score, label, as `entries` returns them; (N, 7) of oriented boxes.
        gt_boxes: (M, 4) xyxy, same pixels and device; (M, 5) of oriented boxes.
        gt_labels: (M,) in 0..K-1, any dtype.
        overlap: of (M, 4) objects and (n, 4) boxes, (M, n) in [0, 1].

    Returns:
        (n, 4) rows score, IoU in [0, 1], object in 0..M-1 or -1, label; n <= N, entries of absent classes and boxes
        that are not finite left out.

    Example:
        One object; a box that covers its left half, one elsewhere, one of another class:

        >>> rows = torch.tensor([[0., 0, 5, 10, .9, 0], [20, 20, 30, 30, .5, 0], [0, 0, 10, 10, .7, 1]])
        >>> match(rows, torch.tensor([[0., 0, 10, 10]]), torch.tensor([0])).round(2).tolist()
        [[0.8999999761581421, 0.5, 0.0, 0.0], [0.5, 0.0, -1.0, 0.0]]
    """
    samples = np.empty((0, 4), dtype=np.float32)
    if len(image_entries) and len(gt_boxes):
        same_class = gt_labels[:, None] == image_entries[None, :, -1]
        comparable = same_class.any(0) & image_entries.isfinite().all(1)
        rows = image_entries[comparable]
        if len(rows):
            iou = overlap(gt_boxes, rows[:, :-2]).masked_fill(~same_class[:, comparable], -1.0)
            best, index = iou.max(0)
            index = torch.where(best > 0, index, NO_OBJECT)
            samples = torch.stack((rows[:, -2], best, index.float(), rows[:, -1]), 1).cpu().numpy()
    return samples


def divergence(images: Sequence[Float32Array], num_classes: int, *, minimum: int = MIN_VALUES) -> Divergence:
    """Return a data set's divergence.

    Args:
        images: one (n, 4) array per image as `match` returns it; n may be 0.
        num_classes: K.
        minimum: fewest values that give a rho.

    Returns:
        The coefficients.
    """
    samples = merge(images)
    score, iou, label = samples[:, SCORE], samples[:, IOU], samples[:, LABEL].astype(np.int64)
    pooled_by_class = segmented_spearman(score, iou, label, num_classes, minimum=minimum)

    candidate = samples[:, OBJECT] != NO_OBJECT
    objects, first, segments = np.unique(samples[candidate, OBJECT], return_index=True, return_inverse=True)
    rho = segmented_spearman(score[candidate], iou[candidate], segments, len(objects), minimum=minimum)
    object_label = label[candidate][first]
    defined = ~np.isnan(rho)
    counts = np.bincount(object_label[defined], minlength=num_classes)
    sums = np.bincount(object_label[defined], rho[defined], minlength=num_classes)
    return Divergence(
        per_object=float(rho[defined].mean()) if defined.any() else float("nan"),
        pooled=spearman(score, iou, minimum=minimum),
        per_object_by_class=np.divide(sums, counts, out=np.full(num_classes, np.nan), where=counts > 0),
        pooled_by_class=pooled_by_class,
    )


def merge(images: Sequence[Float32Array]) -> Float64Array:
    """Concatenate images' samples, numbering their objects through; -1 stays.

    Args:
        images: (n, 4) arrays as `match` returns them.

    Returns:
        (N, 4) float64: object numbers of a large data set are not exact in float32.
    """
    merged = np.concatenate([np.empty((0, 4)), *images])
    counts = [int(image[:, OBJECT].max()) + 1 if len(image) else 0 for image in images]
    offsets = np.cumsum([0, *counts[:-1]]) if counts else np.empty(0)
    shift = np.repeat(offsets, [len(image) for image in images])
    merged[:, OBJECT] += np.where(merged[:, OBJECT] == NO_OBJECT, 0, shift)
    return merged


def spearman(x: NDArray[np.floating], y: NDArray[np.floating], *, minimum: int = MIN_VALUES) -> float:
    """Return Spearman's rho of two (N,) arrays, nan where it is undefined.

    Example:
        Ranks 1 2 3 4 5 against 2 1 3 5 4: 1 - 6 * (1 + 1 + 0 + 1 + 1) / (5 * 24) = 0.8

        >>> spearman(np.array([.1, .2, .3, .4, .5]), np.array([.2, .1, .3, .5, .4]))
        0.8
    """
    return float(segmented_spearman(x, y, np.zeros(len(x), dtype=np.int64), 1, minimum=minimum)[0])


def segmented_spearman(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    segments: NDArray[np.integer],
    num_segments: int,
    *,
    minimum: int = MIN_VALUES,
) -> Float64Array:
    """Return Spearman's rho of every segment at once.

    Each segment's rho equals `scipy.stats.spearmanr` of its values; a strictly increasing map of x or y changes
    nothing, a decreasing one flips the sign.

    Args:
        x: (N,) finite.
        y: (N,) finite.
        segments: (N,) in 0..num_segments-1, in any order.
        num_segments: how many there are, empty ones included.
        minimum: fewest values that give a rho.

    Returns:
        (num_segments,) in [-1, 1]; nan with fewer than `minimum` values or where x or y is constant.
    """
    count = np.bincount(segments, minlength=num_segments)
    # Deviations from the mean rank are multiples of 1/2, so these sums are exact and agreement gives exactly 1.
    mean_rank = (count[segments] + 1) / 2
    dx = _average_ranks(x, segments, count) - mean_rank
    dy = _average_ranks(y, segments, count) - mean_rank
    sxy, sxx, syy = (np.bincount(segments, product, num_segments) for product in (dx * dy, dx * dx, dy * dy))
    norm = np.sqrt(sxx * syy)
    defined = (count >= minimum) & (norm > 0)
    rho: Float64Array = np.divide(sxy, norm, out=np.full(num_segments, np.nan), where=defined)
    return rho.clip(-1.0, 1.0)


def _average_ranks(
    values: NDArray[np.floating], segments: NDArray[np.integer], count: NDArray[np.integer]
) -> Float64Array:
    """Return each value's rank within its segment, from 1; equal values share the mean of their ranks."""
    order = np.lexsort((values, segments))
    value, segment = values[order], segments[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (value[1:] != value[:-1]) | (segment[1:] != segment[:-1])
    first = np.flatnonzero(starts)
    length = np.diff(first, append=len(order))
    position = np.repeat(first + (length + 1) / 2, length)
    ranks = np.empty(len(order))
    ranks[order] = position - (np.cumsum(count) - count)[segment]
    return ranks
