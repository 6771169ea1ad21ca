"""COCO's AP of the same detections under many weightings of the images, at the cost of matching them once.

Source: the definition that `pycocotools.cocoeval` computes (see `metrics.coco`). Every weight 1 gives pycocotools'
numbers. Detections are matched with objects per image and class, for 10 IoU thresholds and 4 ranges of area, as
pycocotools does; each (area range, threshold, class) is then a lane of `metrics.lanes`. AP is the mean over thresholds
and classes that have objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mlc_yolo.boxes import xywh
from mlc_yolo.metrics.lanes import MAX_DETECTIONS, THRESHOLDS, Lanes, mean_over_defined
from mlc_yolo.metrics.overlaps import Overlaps, similar, upright
from mlc_yolo.metrics.records import Records

BoolArray = NDArray[np.bool_]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

#: What `WeightedAP` computes of boxes: COCO's numbers, and the mean rank correlation of score and IoU over objects.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "spearman")
#: Task -> what its own AP is called; the same of IoU 0.50 and 0.75 ends in 50 and 75.
OWN_AP = {"segment": "mask_AP", "pose": "pose_AP", "obb": "obb_AP"}

_AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # px^2, as pycocotools has them
_AP50, _AP75 = 0, 5  # indices of thresholds


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
        self._lanes = self._match_by(records, upright(records))
        self._own_name = OWN_AP.get(records.task)
        self._own_lanes = self._match_by(records, similar(records)) if self._own_name else None
        self._box_lanes = self._own_lanes if self._own_lanes and records.task == "obb" else self._lanes
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
            `NAMES` -> (B,); nan where there is nothing to judge. First stands the task's own AP, if it has one: the
            same by mask IoU, OKS or probiou, over objects and detections of any size.
        """
        if weights is None:
            weights = np.ones((self.num_images, 1))
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        own = {}
        if self._own_lanes is not None:
            aps = self._aps(weights, self._own_lanes)[0]
            ends = {"": aps, "50": aps[_AP50], "75": aps[_AP75]}
            own = {f"{self._own_name}{end}": mean_over_defined(values) for end, values in ends.items()}
        aps = self._aps(weights, self._lanes)
        rho, defined = self._rho @ weights
        return {
            **own,
            "AP": mean_over_defined(aps[0]),
            "AP50": mean_over_defined(aps[0, _AP50]),
            "AP75": mean_over_defined(aps[0, _AP75]),
            **{f"AP{size}": mean_over_defined(aps[i]) for i, size in enumerate("sml", start=1)},
            "spearman": np.divide(rho, defined, out=np.full_like(rho, np.nan), where=defined > 0),
        }

    def by_threshold(self) -> Float64Array:
        """Return AP at IoU 0.50, 0.55 ... 0.95 on the images as they are, (10,); nan where nothing is to judge.

        Boxes are judged: oriented ones by probiou.
        """
        aps = self._aps(np.ones((self.num_images, 1)), self._box_lanes)[0]
        return np.array([float(mean_over_defined(ap)[0]) for ap in aps])

    def _match_by(self, records: Records, overlaps: Overlaps) -> Lanes:
        num_lanes = len(_AREAS) * len(THRESHOLDS) * self.num_classes
        blocks = self._blocks(_match(records, overlaps), records)
        return Lanes(blocks, num_lanes=num_lanes, num_images=self.num_images)

    def _aps(self, weights: Float64Array, lanes: Lanes) -> Float64Array:
        """Return (areas, thresholds, K, B) AP; nan for classes without objects, which COCO leaves out."""
        shape = len(_AREAS), len(THRESHOLDS), self.num_classes, weights.shape[1]
        objects = (self._objects @ weights).reshape(shape[0], 1, *shape[2:])
        return lanes.average_precision(weights, np.broadcast_to(objects, shape).reshape(-1, shape[-1])).reshape(shape)

    def _count_objects(self, records: Records) -> sparse.csr_array:
        """Count the objects of each (area range, class) in each image: (areas * K, I)."""
        inside = _inside(xywh(records.gt_boxes))
        area, which = np.nonzero(inside)
        rows = area * self.num_classes + records.gt_labels[which]
        shape = len(_AREAS) * self.num_classes, self.num_images
        return sparse.csr_array((np.ones(len(rows)), (rows, records.gt_image[which])), shape)

    def _blocks(self, matched: _Matched, records: Records) -> Iterator[tuple[Int64Array, Int64Array, BoolArray]]:
        """Yield lane, image and truth of the detections that count, a block per area range and threshold."""
        image, label = records.image[matched.index], records.labels[matched.index]
        for area in range(len(_AREAS)):
            for threshold in range(len(THRESHOLDS)):
                counted = matched.counted[:, area, threshold]
                lane = (area * len(THRESHOLDS) + threshold) * self.num_classes + label[counted]
                yield lane, image[counted], matched.true[counted, area, threshold]


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


def _match(records: Records, overlaps: Overlaps) -> _Matched:
    image, label, score = records.image, records.labels, records.scores
    order = np.lexsort((-score, label, image))
    group = np.diff(label[order], prepend=-1).astype(bool) | np.diff(image[order], prepend=-1).astype(bool)
    first = np.flatnonzero(group)
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    order = order[rank < MAX_DETECTIONS]

    boxes, objects = xywh(records.boxes[order]), xywh(records.gt_boxes)
    outside = ~_inside(objects)
    counted = np.repeat(_inside(boxes).T[:, :, None], len(THRESHOLDS), axis=2)  # of those not matched
    true = np.zeros_like(counted)
    for ours, there in _groups(image[order] * len(records.names) + label[order], records):
        ious = overlaps(order[ours], there)
        near = ious.max(1) >= THRESHOLDS[0]
        free = np.ones((len(_AREAS), len(THRESHOLDS), len(there)), dtype=bool)
        for i, iou in zip(ours[near], ious[near], strict=True):
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
    open_to = free & (iou >= THRESHOLDS[:, None])
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


def _inside(boxes: Float64Array) -> BoolArray:
    """Return (areas, n): whether a box's area lies in the range, both ends included."""
    area = boxes[:, 2] * boxes[:, 3]
    inside: BoolArray = (area >= _AREAS[:, :1]) & (area <= _AREAS[:, 1:])
    return inside
