"""COCO's AP of the same detections under many weightings of the images, at the cost of matching them once.

Source: the definition that `pycocotools.cocoeval` computes (see `metrics.coco`). A weight says how often an image is in
the set; every weight 1 gives pycocotools' numbers, and weight w those of a set with w copies of the image. That makes a
bootstrap over images cheap:

1. Detections are matched with objects per image and class, for 10 IoU thresholds and 4 ranges of area, as pycocotools
   does. No weight changes that.
2. A *lane* is one (area range, threshold, class). Its true positives in the order of their scores are its *steps*. For
   each step we keep how many detections of each image count from the step before up to it (sparse, steps x images).
3. Under weights, a product with that matrix and a running sum give the detections so far at each step, and so precision
   and recall there. False positives between two steps only lower the precision of points that the envelope hides.
4. The precision envelope is read at COCO's 101 recalls. AP is the mean over thresholds and classes that have objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from scipy import sparse

from mlc_yolo.metrics.records import Records

BoolArray = NDArray[np.bool_]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

#: What `WeightedAP` computes: COCO's numbers, and the mean rank correlation of score and IoU over objects.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "spearman")

# As pycocotools.cocoeval.Params has them, in its floating-point arithmetic.
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
_MAX_DETECTIONS = 100
_AP50, _AP75 = 0, 5  # indices of thresholds

_CHUNK = 32  # weightings at a time: more would not fit the processor's cache


class WeightedAP:
    """AP and rank correlation of one validation's records, ready to be weighted.

    Example:
        Two images with one object each, found in the first only. With the second image absent, all is found:

        >>> boxes = np.array([[0, 0, 50, 50]], dtype=np.float32)
        >>> zero = np.zeros(1, dtype=np.int64)
        >>> records = Records(
        ...     ["a", "b"], np.full((2, 2), 64), np.arange(2), boxes.repeat(2, 0), zero.repeat(2),
        ...     zero, boxes, np.ones(1, dtype=np.float32), zero, {0: "thing"},
        ... )
        >>> WeightedAP(records)(np.array([[1.0, 2.0], [1.0, 0.0]]))["AP"].round(3).tolist()  # 51 of 101 recalls; all
        [0.505, 1.0]
    """

    def __init__(self, records: Records) -> None:
        """Match the detections with the objects.

        Args:
            records: of one validation.
        """
        self.num_images, self.num_classes = len(records.images), len(records.names)
        self._objects = self._count_objects(records)
        self._steps, self._image, self._lane = self._find_steps(_match(records), records)
        starts = np.flatnonzero(np.diff(self._lane, prepend=-1))
        self._starts, self._start = starts, np.repeat(starts, np.diff(starts, append=len(self._lane)))
        rho = np.full(len(records.gt_image), np.nan) if records.spearman is None else records.spearman
        defined = ~np.isnan(rho)
        self._rho = np.stack(
            [np.bincount(records.gt_image[defined], w, self.num_images) for w in (rho[defined], np.ones(defined.sum()))]
        )

    def __call__(self, weights: Float64Array | None = None) -> dict[str, Float64Array]:
        """Compute every metric for B weightings.

        Args:
            weights: (I, B) whole numbers >= 0, how often each image is there; None is once each, B = 1.

        Returns:
            `NAMES` -> (B,); nan where there is nothing to judge.
        """
        if weights is None:
            weights = np.ones((self.num_images, 1))
        chunks = [self._evaluate(weights[:, i : i + _CHUNK]) for i in range(0, weights.shape[1], _CHUNK)]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in NAMES}

    def by_threshold(self) -> Float64Array:
        """Return AP at IoU 0.50, 0.55 ... 0.95 on the images as they are, (10,); nan where nothing is to judge."""
        aps = self._aps(np.ones((self.num_images, 1)))[0]
        return np.array([float(_mean(ap)[0]) for ap in aps])

    def _aps(self, weights: Float64Array) -> Float64Array:
        """Return (areas, thresholds, K, B) AP; nan for classes without objects, which COCO leaves out."""
        objects = self._objects @ weights  # (areas * K, B)
        shape = len(_AREAS), len(_THRESHOLDS), self.num_classes, weights.shape[1]
        aps = np.zeros(shape)
        if len(self._lane):
            aps.reshape(-1, shape[-1])[self._lane[self._starts]] = self._lane_aps(weights, objects)
        aps[np.broadcast_to(objects.reshape(shape[0], 1, *shape[2:]) == 0, shape)] = np.nan
        return aps

    def _evaluate(self, weights: Float64Array) -> dict[str, Float64Array]:
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        aps = self._aps(weights)
        rho, defined = self._rho @ weights
        return {
            "AP": _mean(aps[0]),
            "AP50": _mean(aps[0, _AP50]),
            "AP75": _mean(aps[0, _AP75]),
            **{f"AP{size}": _mean(aps[i]) for i, size in enumerate("sml", start=1)},
            "spearman": np.divide(rho, defined, out=np.full_like(rho, np.nan), where=defined > 0),
        }

    def _lane_aps(self, weights: Float64Array, objects: Float64Array) -> Float64Array:
        """Return the AP of each lane that has steps, (lanes, B)."""
        found = self._so_far(weights[self._image])
        counted = self._so_far(self._steps @ weights)
        precision = np.divide(found, counted, out=np.zeros_like(found), where=counted > 0)
        # A running maximum from the back that forgets at each lane's end: the lane before it starts 2 higher.
        shift = 2.0 * (self._lane[-1] - self._lane)[:, None]
        envelope = np.maximum.accumulate((precision + shift)[::-1])[::-1] - shift

        area, label = self._lane // (len(_THRESHOLDS) * self.num_classes), self._lane % self.num_classes
        total = objects[area * self.num_classes + label]
        recall = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
        reached = (recall * 100 + 1e-7).astype(np.int64)  # then exactly, as _RECALLS are not quite hundredths
        reached += recall >= _RECALLS[reached]
        new = np.diff(reached, axis=0, prepend=0)
        new[self._starts] = reached[self._starts]
        aps: Float64Array = np.add.reduceat(envelope * new, self._starts, axis=0) / len(_RECALLS)
        return aps

    def _so_far(self, values: Float64Array) -> Float64Array:
        """Return running sums that start anew with each lane; exact, as the values are whole numbers."""
        sums = np.cumsum(values, axis=0)
        before: Float64Array = sums[self._start] - values[self._start]
        return sums - before

    def _count_objects(self, records: Records) -> sparse.csr_array:
        """Count the objects of each (area range, class) in each image: (areas * K, I)."""
        inside = _inside(_xywh(records.gt_boxes))
        area, which = np.nonzero(inside)
        rows = area * self.num_classes + records.gt_labels[which]
        shape = len(_AREAS) * self.num_classes, self.num_images
        return sparse.csr_array((np.ones(len(rows)), (rows, records.gt_image[which])), shape)

    def _find_steps(self, matched: _Matched, records: Records) -> tuple[sparse.csr_array, Int64Array, Int64Array]:
        """Return the counts (S, I), each step's image (S,) and its lane (S,), rising."""
        image, label = records.image[matched.index], records.labels[matched.index]
        counts, images, lanes = [], [], []
        for area in range(len(_AREAS)):
            for threshold in range(len(_THRESHOLDS)):
                true = matched.true[:, area, threshold]
                steps = np.flatnonzero(true)
                if not len(steps):
                    continue
                next_step = np.minimum(np.cumsum(true) - true, len(steps) - 1)
                # What follows a class's last step has no effect: it reaches no further recall.
                counts_at = matched.counted[:, area, threshold] & (label[steps][next_step] == label)
                counts_at &= np.arange(len(label)) <= steps[next_step]
                entries = np.ones(counts_at.sum()), (next_step[counts_at], image[counts_at])
                counts.append(sparse.csr_array(entries, (len(steps), self.num_images)))
                images.append(image[steps])
                lanes.append((area * len(_THRESHOLDS) + threshold) * self.num_classes + label[steps])
        none = np.empty(0, dtype=np.int64)
        if not counts:
            return sparse.csr_array((0, self.num_images)), none, none
        return sparse.csr_array(sparse.vstack(counts)), np.concatenate(images), np.concatenate(lanes)


@dataclass(frozen=True)
class _Matched:
    """The n detections that COCO judges, by class and then by falling score.

    Attributes:
        index: (n,) which detection of the records.
        true: (n, areas, thresholds) matched with an object of that range of area.
        counted: (n, areas, thresholds) not to be ignored.
    """

    index: Int64Array
    true: BoolArray
    counted: BoolArray


def _match(records: Records) -> _Matched:
    image, label, score = records.image, records.labels, records.scores
    order = np.lexsort((-score, label, image))
    group = np.diff(label[order], prepend=-1).astype(bool) | np.diff(image[order], prepend=-1).astype(bool)
    first = np.flatnonzero(group)
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    order = order[rank < _MAX_DETECTIONS]

    boxes, objects = _xywh(records.boxes[order]), _xywh(records.gt_boxes)
    outside = ~_inside(objects)
    counted = np.repeat(_inside(boxes).T[:, :, None], len(_THRESHOLDS), axis=2)  # of those not matched
    true = np.zeros_like(counted)
    for found, there in _groups(image[order] * len(records.names) + label[order], records):
        ious = np.asarray(mask.iou(boxes[found], objects[there], np.zeros(len(there))))
        near = ious.max(1) >= _THRESHOLDS[0]
        free = np.ones((len(_AREAS), len(_THRESHOLDS), len(there)), dtype=bool)
        for i, iou in zip(found[near], ious[near], strict=True):
            _take(free, iou, outside[:, there], true[i], counted[i])
    by_class = np.lexsort((image[order], -score[order], label[order]))
    return _Matched(order[by_class], true[by_class], counted[by_class])


def _take(free: BoolArray, iou: Float64Array, outside: BoolArray, true: BoolArray, counted: BoolArray) -> None:
    """Let one detection take the free object it overlaps most, in every lane, one outside the range only if it must.

    Args:
        free: (areas, thresholds, m), written.
        iou: (m,).
        outside: (areas, m), which objects are outside the range of area.
        true: (areas, thresholds), written.
        counted: (areas, thresholds), written where the detection takes an object.
    """
    open_to = free & (iou >= _THRESHOLDS[:, None])
    preferred = open_to & ~outside[:, None]
    inside: BoolArray = np.any(preferred, axis=2)
    rivals = np.where(np.where(inside[..., None], preferred, open_to), iou, -1.0)
    taken = iou.size - 1 - rivals[..., ::-1].argmax(2)  # of equals the last, as pycocotools
    took: BoolArray = np.any(open_to, axis=2)
    area, threshold = np.nonzero(took)
    free[area, threshold, taken[took]] = False
    true |= inside
    counted[took] = inside[took]


def _groups(key: Int64Array, records: Records) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Pair detections with the objects of the same image and class.

    Args:
        key: (n,) image * K + class of each detection; those of equal keys are neighbours.
        records: the objects.

    Yields:
        Indices of detections and of objects, both not empty.
    """
    gt_key = records.gt_image * len(records.names) + records.gt_labels
    gt_order = np.argsort(gt_key, kind="stable")
    unique: tuple[Int64Array, ...] = np.unique(gt_key[gt_order], return_index=True, return_counts=True)
    keys, start, count = unique
    low, high = np.searchsorted(key, keys), np.searchsorted(key, keys, side="right")
    for i in np.flatnonzero(low < high):
        yield np.arange(low[i], high[i]), gt_order[start[i] : start[i] + count[i]]


def _xywh(boxes: NDArray[np.float32]) -> Float64Array:
    exact = boxes.astype(np.float64)
    return np.concatenate((exact[:, :2], exact[:, 2:] - exact[:, :2]), 1)


def _inside(xywh: Float64Array) -> BoolArray:
    """Return (areas, n): whether a box's area lies in the range, both ends included."""
    area = xywh[:, 2] * xywh[:, 3]
    inside: BoolArray = (area >= _AREAS[:, :1]) & (area <= _AREAS[:, 1:])
    return inside


def _mean(aps: Float64Array) -> Float64Array:
    """Return the mean over all axes but the last, nan left out; nan where all are."""
    values = aps.reshape(-1, aps.shape[-1])
    defined = (~np.isnan(values)).sum(0)
    total: Float64Array = np.nansum(values, axis=0)
    mean: Float64Array = np.divide(total, defined, out=np.full_like(total, np.nan), where=defined > 0)
    return mean
