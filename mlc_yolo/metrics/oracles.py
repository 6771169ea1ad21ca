"""What a detector's AP would be if one kind of mistake were mended, and the others were not.

Each *repair* is stated on the decisions behind AP: at one IoU threshold t, detections of a class in the order of their
scores are true or false positives. COCO's matching gives the detector's own decisions. A false positive has one kind,
by the object it overlaps most:

1. *duplicate*: IoU >= t with an object of its class; all such objects are taken by better-scored detections.
2. *class*: IoU >= t with an object of another class.
3. *background*: IoU < 0.1 with every object.
4. *localization*: its best IoU, 0.1 or more but below t, is with an object of its class.
5. *both*: that best IoU is with an object of another class.

An object that no detection took is *missed*, unless a false positive of kind 2, 4 or 5 is meant for it.

| repair | what it changes |
|---|---|
| INSIDE | a localization error whose object has a candidate of IoU >= t before NMS takes the object |
| ACROSS | true positives come before false ones, as if the score of a detection that took an object were its IoU |
| PLACE | localization errors take their object |
| CLASS | class errors take their object, under its class; those whose object is taken by a better-scored one go |
| DUPLICATES | duplicates go |
| BACKGROUND | background detections go |
| MISSED | missed objects are detected, with the highest score |

Of several detections that may take an object, the best-scored one does. So a true positive only ever moves up in its
list, or comes without a false one, and three laws hold: no repair lowers AP; all together give 1; a repair that changes
nothing gives exactly the detector's own AP. Repairs may be combined: an error of both kinds needs PLACE and CLASS.

Source: TIDE (Bolya et al., ECCV 2020) for the kinds and the idea. Differences: TIDE mends at IoU 0.5 only, takes a
detection that overlaps its own class by 0.1 to t for a localization error even where it sits well on an object of
another class, and mends missed objects by leaving them out of the count. TIDE has no INSIDE and no ACROSS.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mlc_yolo.metrics.errors import BACKGROUND, rows_by_image
from mlc_yolo.metrics.lanes import MAX_DETECTIONS, THRESHOLDS, Lanes, mean_over_defined
from mlc_yolo.metrics.overlaps import Overlaps, of_boxes
from mlc_yolo.metrics.records import Records

BoolArray = NDArray[np.bool_]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
IntArray = NDArray[np.signedinteger]

NAMES = ("AP", "AP50", "AP75")

_NONE = -1
_AP50, _AP75 = 0, 5  # indices of thresholds


class Repair(Enum):
    """A kind of mistake that is mended; see the head of this file."""

    INSIDE = "rank inside objects"
    ACROSS = "rank across objects"
    PLACE = "place"
    CLASS = "class"
    DUPLICATES = "duplicates"
    BACKGROUND = "background"
    MISSED = "missed"


class Fault(Enum):
    """The kind of a false positive."""

    DUPLICATE = 0
    CLASS = 1
    BACKGROUND = 2
    LOCALIZATION = 3
    BOTH = 4


@dataclass(frozen=True)
class Scope:
    """The part of a repair that is carried out; the default is all of it.

    Attributes:
        objects: (G,) bool, the objects whose errors are mended; None is every object. Background detections are mended
            only where it is None.
        confusion: CLASS mends errors between these two classes only.
    """

    objects: BoolArray | None = None
    confusion: tuple[int, int] | None = None


EVERYTHING = Scope()


@dataclass(frozen=True)
class _List:
    """The decisions at one threshold under some repairs, n detections, by class and then by rank."""

    image: Int64Array
    label: Int64Array
    true: BoolArray


class Oracles:
    """AP of one validation's records under repairs.

    Attributes:
        rows: (n,) the detections that COCO judges, as rows of the records, by class and then by falling score.
        taken: (n, 10) object that the detection took at IoU 0.50, 0.55 ... 0.95, a row of the records; -1 for none.

    Example:
        One object of two is detected, at IoU 0.8; a better box of it lost in NMS, the other object was missed:

        >>> boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], dtype=np.float32)
        >>> zero = np.zeros(1, dtype=np.int64)
        >>> records = Records(
        ...     ["a"], np.full((1, 2), 64), zero.repeat(2), boxes, zero.repeat(2),
        ...     zero, np.array([[0, 0, 8, 10]], dtype=np.float32), np.ones(1, dtype=np.float32), zero, {0: "thing"},
        ... )
        >>> oracles = Oracles(records, reach=np.array([1.0, 0.0]))
        >>> [round(float(oracles(repairs)["AP75"][0]), 2) for repairs in ((), (Repair.MISSED,), tuple(Repair))]
        [0.5, 1.0, 1.0]
        >>> [round(float(oracles(repairs)["AP"][0]), 2) for repairs in ((), (Repair.INSIDE,), (Repair.PLACE,))]
        [0.35, 0.5, 0.5]
    """

    def __init__(
        self, records: Records, *, reach: NDArray[np.floating] | None = None, overlaps: Overlaps | None = None
    ) -> None:
        """Match the detections with the objects.

        Args:
            records: of one validation, G objects.
            reach: (G,) best IoU, in [0, 1], of each object's candidates of its class before NMS; None where it is not
                known: INSIDE then changes nothing.
            overlaps: by what detections and objects are compared; None is what boxes are placed by.

        Raises:
            ValueError: `reach` of another length.
        """
        count = len(records.gt_labels)
        if reach is not None and len(reach) != count:
            raise ValueError(f"expected reach of {count} objects, got {len(reach)}")
        self._records, self._count = records, count
        # Of each object, and last of none, which index -1 means.
        self._reach = np.append(np.zeros(count) if reach is None else reach, 0.0)
        self._gt_labels = np.append(records.gt_labels, _NONE)
        self._num_classes = len(records.names)
        self.rows = _judged(records)
        self._image, self._label = records.image[self.rows], records.labels[self.rows]
        self._rank = np.empty(len(self.rows), dtype=np.int64)
        self._rank[np.lexsort((self._image, -records.scores[self.rows]))] = np.arange(len(self.rows))
        self.taken, self._own, self._other = self._match(overlaps or of_boxes(records))
        self._faults = [self._name_faults(i) for i in range(len(THRESHOLDS))]
        ones = np.ones(count)
        shape = self._num_classes, len(records.images)
        self._objects = sparse.csr_array((ones, (records.gt_labels, records.gt_image)), shape)

    def __call__(
        self, repairs: Collection[Repair] = (), weights: Float64Array | None = None, *, scope: Scope = EVERYTHING
    ) -> dict[str, Float64Array]:
        """Compute AP under repairs, for B weightings of the images.

        Args:
            repairs: what is mended; nothing gives the detector's own AP, pycocotools' to the last digit but one.
            weights: (I, B) whole numbers >= 0, how often each image is there; None is once each, B = 1.
            scope: the part that is mended.

        Returns:
            `NAMES` -> (B,) in [0, 1]; nan where there are no objects.
        """
        return summary(self.aps(repairs, weights, scope=scope))

    def aps(
        self,
        repairs: Collection[Repair] = (),
        weights: Float64Array | None = None,
        *,
        scope: Scope = EVERYTHING,
        classes: Sequence[int] | None = None,
    ) -> Float64Array:
        """Compute the AP of every class and threshold; `summary` makes a table's numbers of it.

        Args:
            repairs: as for a call.
            weights: as for a call.
            scope: as for a call.
            classes: compute these only, which must hold every class between which the repairs move detections.

        Returns:
            (10, K, B) in [0, 1]; nan for classes without objects or left out.
        """
        if weights is None:
            weights = np.ones((len(self._records.images), 1))
        chosen = np.arange(len(self.rows)) if classes is None else np.flatnonzero(np.isin(self._label, classes))
        lists = [self._repaired(i, frozenset(repairs), scope, chosen) for i in range(len(THRESHOLDS))]
        blocks = ((i * self._num_classes + part.label, part.image, part.true) for i, part in enumerate(lists))
        num_lanes = len(THRESHOLDS) * self._num_classes
        lanes = Lanes(blocks, num_lanes=num_lanes, num_images=len(self._records.images))
        objects = np.tile(self._objects @ weights, (len(THRESHOLDS), 1))
        aps = lanes.average_precision(weights, objects).reshape(len(THRESHOLDS), self._num_classes, -1)
        if classes is not None:
            aps[:, np.isin(np.arange(self._num_classes), classes, invert=True)] = np.nan
        return aps

    def faults(self, threshold: int = 0) -> tuple[IntArray, IntArray]:
        """Say what is wrong with each judged detection at one IoU threshold.

        Args:
            threshold: its index: 0 is IoU 0.50, 9 is 0.95.

        Returns:
            kind: (n,) value of its `Fault`, -1 for a true positive.
            target: (n,) object that it is meant for, a row of the records; -1 for background and true positives.
        """
        return self._faults[threshold]

    def _name_faults(self, threshold: int) -> tuple[IntArray, IntArray]:
        false = self.taken[:, threshold] == _NONE
        (own, own_iou), (other, other_iou) = self._own, self._other
        limit = THRESHOLDS[threshold]
        tests = (
            (~false, _NONE, _NONE),
            (own_iou >= limit, Fault.DUPLICATE.value, own),
            (other_iou >= limit, Fault.CLASS.value, other),
            (np.maximum(own_iou, other_iou) < BACKGROUND, Fault.BACKGROUND.value, _NONE),
            (own_iou >= other_iou, Fault.LOCALIZATION.value, own),
        )
        conditions = [test for test, _, _ in tests]
        kind = np.select(conditions, [value for _, value, _ in tests], Fault.BOTH.value).astype(np.int8)
        return kind, np.select(conditions, [np.broadcast_to(target, false.shape) for _, _, target in tests], other)

    @property
    def overlaps(self) -> tuple[tuple[IntArray, Float64Array], tuple[IntArray, Float64Array]]:
        """Each judged detection's best object of its own class, and of others: (n,) rows of the records and (n,) IoU.

        The IoU is 0 where there is no such object.
        """
        return self._own, self._other

    def missed(self, threshold: int = 0) -> BoolArray:
        """Return (G,) whether an object is missed at one IoU threshold, given by its index."""
        kind, target = self.faults(threshold)
        meant = np.isin(kind, (Fault.CLASS.value, Fault.LOCALIZATION.value, Fault.BOTH.value))
        open_objects = np.ones(self._count, dtype=bool)
        open_objects[target[meant]] = False
        taken = self.taken[:, threshold]
        open_objects[taken[taken != _NONE]] = False
        return open_objects

    def _repaired(self, threshold: int, repairs: frozenset[Repair], scope: Scope, chosen: Int64Array) -> _List:
        """Return the decisions on the chosen detections at a threshold once the repairs are done."""
        taken = self.taken[chosen, threshold]
        kind, target = (part[chosen] for part in self._faults[threshold])
        image, own_label, rank = self._image[chosen], self._label[chosen], self._rank[chosen]
        claims, renamed = self._claims(threshold, kind, target, own_label, repairs, scope)
        claimed = np.where(taken != _NONE, taken, np.where(claims, target, _NONE))

        # Of those that claim an object, the best-ranked takes it: written last.
        claimants = np.flatnonzero(claimed != _NONE)
        claimants = claimants[np.argsort(-rank[claimants])]
        taker = np.full(self._count, _NONE)
        taker[claimed[claimants]] = claimants
        true = np.zeros(len(taken), dtype=bool)
        true[taker[taker != _NONE]] = True
        loses = (claimed != _NONE) & ~true
        label = np.where(renamed & true, self._gt_labels[target], own_label)

        goes = renamed & loses
        goes[loses] |= renamed[taker[claimed[loses]]]  # of two classes' detections of an object one stays
        if Repair.DUPLICATES in repairs:
            goes |= loses | ((kind == Fault.DUPLICATE.value) & self._in_scope(scope)[target])
        if Repair.BACKGROUND in repairs and scope.objects is None:
            goes |= kind == Fault.BACKGROUND.value
        if goes.any():
            stays = ~goes
            image, label, true, rank = image[stays], label[stays], true[stays], rank[stays]

        if Repair.MISSED in repairs:
            added = np.flatnonzero(self.missed(threshold) & (taker == _NONE) & self._in_scope(scope)[:-1])
            image = np.concatenate((image, self._records.gt_image[added]))
            label = np.concatenate((label, self._gt_labels[added]))
            true = np.concatenate((true, np.ones(len(added), dtype=bool)))
            rank = np.concatenate((rank, np.full(len(added), _NONE)))
        place = 2 * label + (~true if Repair.ACROSS in repairs else 0)
        order = np.argsort(place * (len(self.rows) + 1) + rank + 1, kind="stable")  # quick, as it is nearly sorted
        return _List(image[order], label[order], true[order])

    def _claims(
        self,
        threshold: int,
        kind: IntArray,
        target: IntArray,
        label: Int64Array,
        repairs: frozenset[Repair],
        scope: Scope,
    ) -> tuple[BoolArray, BoolArray]:
        """Return (n,) which false positives may take their target, and which of them do under another class."""
        placed = np.full(len(kind), Repair.PLACE in repairs)
        if Repair.INSIDE in repairs:
            placed |= self._reach[target] >= THRESHOLDS[threshold]
        well = (kind == Fault.LOCALIZATION.value) & placed
        renamed = np.zeros(len(kind), dtype=bool)
        if Repair.CLASS in repairs:
            renamed = (kind == Fault.CLASS.value) | ((kind == Fault.BOTH.value) & placed)
        if scope.confusion is not None:
            pairs = np.sort(np.stack((label, self._gt_labels[target]), 1), axis=1)
            renamed &= (pairs == sorted(scope.confusion)).all(1)
        within = self._in_scope(scope)[target]
        return (well | renamed) & within, renamed & within

    def _in_scope(self, scope: Scope) -> BoolArray:
        """Return (G + 1,) whether an object is in the scope, last no object at all."""
        if scope.objects is None:
            return np.ones(self._count + 1, dtype=bool)
        return np.append(scope.objects, False)

    def _match(
        self, overlaps: Overlaps
    ) -> tuple[IntArray, tuple[IntArray, Float64Array], tuple[IntArray, Float64Array]]:
        """Return what each detection took, (n, 10), and its best object of its own class and of others, with IoU."""
        records, count = self._records, len(self.rows)
        taken = np.full((count, len(THRESHOLDS)), _NONE, dtype=np.int32)
        best = [(np.full(count, _NONE, dtype=np.int32), np.zeros(count)) for _ in range(2)]
        by_rank = np.argsort(self._rank)
        images = len(records.images)
        detections = [by_rank[rows] for rows in rows_by_image(self._image[by_rank], images)]
        for mine, there in zip(detections, rows_by_image(records.gt_image, images), strict=True):
            if not len(mine) or not len(there):
                continue
            ious = overlaps(self.rows[mine], there)
            same = self._label[mine][:, None] == records.gt_labels[there]
            for (index, iou), rivals in zip(best, (np.where(same, ious, 0.0), np.where(same, 0.0, ious)), strict=True):
                index[mine], iou[mine] = there[rivals.argmax(1)], rivals.max(1)
            _take(mine, there, np.where(same, ious, 0.0), taken)
        own, other = best
        return taken, own, other


def summary(aps: Float64Array) -> dict[str, Float64Array]:
    """Return `NAMES` -> (B,) of what `Oracles.aps` returns; nan where there are no objects."""
    return {
        "AP": mean_over_defined(aps),
        "AP50": mean_over_defined(aps[_AP50]),
        "AP75": mean_over_defined(aps[_AP75]),
    }


def _judged(records: Records) -> Int64Array:
    """Return the rows of the detections that COCO judges, 100 of each image and class, by class and falling score."""
    order = np.lexsort((-records.scores, records.labels, records.image))
    label, image = records.labels[order], records.image[order]
    first = np.flatnonzero((np.diff(label, prepend=-1) != 0) | (np.diff(image, prepend=-1) != 0))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    order = order[rank < MAX_DETECTIONS]
    return order[np.lexsort((records.image[order], -records.scores[order], records.labels[order]))]


def _take(mine: Int64Array, there: Int64Array, ious: Float64Array, taken: IntArray) -> None:
    """Let detections take objects as pycocotools does, at every threshold.

    Args:
        mine: (k,) one image's detections, best-ranked first.
        there: (m,) its objects.
        ious: (k, m) of the same class, 0 elsewhere.
        taken: (n, 10), written.
    """
    free = np.ones((len(THRESHOLDS), len(there)), dtype=bool)
    for row in np.flatnonzero(ious.max(1) >= THRESHOLDS[0]):
        rivals = np.where(free & (ious[row] >= THRESHOLDS[:, None]), ious[row], _NONE)
        chosen = len(there) - 1 - rivals[:, ::-1].argmax(1)  # of equals the last, as pycocotools
        took = np.flatnonzero(rivals.max(1) >= THRESHOLDS[0])
        free[took, chosen[took]] = False
        taken[mine[row], took] = there[chosen[took]]
