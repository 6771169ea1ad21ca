"""Measure what limits a detector: numbers and intervals from the records of one validation.

AP and its gains are COCO's, in percent points; an interval is a 95 % interval over images, for these very weights, from
100 draws of the images with replacement, the same for every number, as `metrics.bootstrap` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.evaluation.repaired_ap import Gain, RepairedAP
from mlc_yolo.metrics.bootstrap import Difference, difference, draw_images
from mlc_yolo.metrics.coverage import Coverage, Spread, coverage, spread
from mlc_yolo.metrics.operating_point import OperatingCurve, operating_curve
from mlc_yolo.metrics.oracles import Fault, Oracles, Repair, Scope
from mlc_yolo.metrics.overlaps import similar
from mlc_yolo.metrics.reach import IOU
from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.reliability import Reliability, best_ious, reliability

BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

RESAMPLES = 100
#: Bounds between sizes of objects: the square root of the area, in pixels of the network's input.
SIZES = (16.0, 32.0, 96.0)
#: Fewest objects of a class that allow to speak of it.
FEW_OBJECTS = 10
#: Confusions of classes that are measured, those with the most class errors, and that are listed.
CONFUSIONS_TRIED, MOST_CONFUSIONS = 15, 5
#: Repairs that can be done for some objects only.
OF_OBJECTS = (Repair.INSIDE, Repair.PLACE, Repair.CLASS, Repair.MISSED, Repair.DUPLICATES)


@dataclass(frozen=True)
class Part:
    """What a task finds beside boxes: its name, for many and for one, and what it is compared by."""

    many: str
    one: str
    by: str


#: Task -> what it finds beside boxes.
PARTS = {"segment": Part("masks", "mask", "mask IoU"), "pose": Part("keypoints", "set of keypoints", "OKS")}


@dataclass(frozen=True)
class Turned:
    """Oriented boxes as they lie: rows x, y, w, h, angle, in pixels of the original image and radians.

    Attributes:
        objects: (G, 5).
        detections: (N, 5).
        candidates: (G, 5) the best-placed candidate of each object, zeros without one.
    """

    objects: Float32Array
    detections: Float32Array
    candidates: Float32Array


@dataclass(frozen=True)
class Observations:
    """What one validation saw.

    Attributes:
        records: N detections after NMS and G objects.
        candidates: (G, 6) the best-placed candidate of each object, in pixels of the original image, as
            `metrics.reach.best_placed` returns it; None where outputs before NMS are not to be had.
        sides: (G,) square root of each object's area in pixels of the network's input.
        without_rescoring: records of the same outputs ranked by the class score alone; None for a head without a
            predicted IoU, or one that ranks so anyway.
        predicted: (n, 2) predicted and actual IoU of boxes that overlap an object; None without a channel.
        edges: (e, 9) of confident detections that have an object: errors and deviations of left, top, right and bottom,
            the object's area, in px of the original image; None or e = 0 where the head states no deviations.
        own_reach: (G,) best similarity of masks or keypoints that any candidate has with each object, in [0, 1], 0
            without one; of masks among the image's best boxes alone. None of other tasks, and as for `candidates`.
        unlabelled: objects without a labelled keypoint, which has a similarity of 0 with all.
        turned: oriented boxes as they lie; None of other tasks.
    """

    records: Records
    candidates: Float32Array | None
    sides: Float64Array
    without_rescoring: Records | None = None
    predicted: Float32Array | None = None
    edges: Float64Array | None = None
    own_reach: Float32Array | None = None
    unlabelled: int = 0
    turned: Turned | None = None


@dataclass(frozen=True)
class Size:
    """Objects of a range of sizes.

    Attributes:
        name: such as "16 to 32 px".
        objects: how many.
        detected: share of them that a detection took at IoU 0.5, however low its score; nan without any.
        spearman: mean rank correlation of score and IoU over their candidates; nan where undefined.
        gain: in AP, if all that is wrong with these objects were mended, percent points; None without any.
    """

    name: str
    objects: int
    detected: float
    spearman: float
    gain: float | None


@dataclass(frozen=True)
class ClassRow:
    """One class: AP in percent, objects, mean rank correlation over its objects (nan where undefined).

    `own_ap` is by masks or keypoints; None where boxes are all there is.
    """

    name: str
    objects: int
    ap: float
    spearman: float
    own_ap: float | None = None


@dataclass(frozen=True)
class Tried:
    """What a remedy brings that takes no training.

    Attributes:
        name: as an argument, such as "imgsz=320".
        pixels: how many times the pixels of an image, and about how many times its cost.
        change: of AP by boxes, with its interval over images, percent points.
        own: of AP by masks or keypoints; None where boxes are all there is.
    """

    name: str
    pixels: float
    change: Difference
    own: Difference | None

    @property
    def decisive(self) -> Difference:
        """The change of what the task's own AP goes by."""
        return self.change if self.own is None else self.own


class Diagnosis(RepairedAP):
    """The diagnosis of one detector on one set of images.

    Attributes:
        seen: what the validation saw.
        confidence: the score threshold that the detector is deployed with.
        folder: where its files are; None where none were written.
        training: a sentence on a training that was too short; None where nothing is to be said of it.
        votes: whether it is one of a detector with box voting.
        tried: remedies that take no training, with the same weights, each alone.
    """

    def __init__(self, seen: Observations, *, confidence: float = 0.25, resamples: int = RESAMPLES) -> None:
        """Prepare the oracles.

        Args:
            seen: what the validation saw.
            confidence: score threshold in [0, 1].
            resamples: draws of the images.

        Raises:
            ValueError: no objects, without which nothing can be judged.
        """
        if not len(seen.records.gt_labels):
            raise ValueError(
                f"none of the {len(seen.records.images)} images has an object: nothing can be judged. Is the data set "
                "labelled, and is its labels folder beside images/?"
            )
        self.seen, self.confidence = seen, confidence
        self.folder: Path | None = None
        self.training: str | None = None
        self.votes = False
        self.tried: list[Tried] = []
        reach = None if seen.candidates is None else seen.candidates[:, IOU]
        images = len(seen.records.images)
        weights = np.concatenate((np.ones((images, 1)), draw_images(images, resamples=resamples)), 1)
        super().__init__(Oracles(seen.records, reach=reach), weights, inside=reach is not None)

    def __str__(self) -> str:
        """Return the table of repairs and the verdict."""
        from mlc_yolo.evaluation import diagnosis_files  # what puts it into words imports this module

        return diagnosis_files.as_text(self)

    @property
    def part(self) -> Part | None:
        """What the detector finds beside boxes; None where boxes are all there is."""
        return PARTS.get(self.seen.records.task)

    @cached_property
    def own(self) -> RepairedAP | None:
        """AP and gains of that part, by what the task's own AP goes by; None where boxes are all there is."""
        if self.part is None:
            return None
        records, reach = self.seen.records, self.seen.own_reach
        oracles = Oracles(records, reach=reach, overlaps=similar(records))
        return RepairedAP(oracles, self._weights, inside=reach is not None)

    @cached_property
    def own_behind(self) -> Difference | None:
        """AP of boxes less AP of that part: what it would gain if it were right wherever its box is; None likewise."""
        if self.own is None:
            return None
        behind = self.ap_draws - self.own.ap_draws
        return difference(behind[:1], behind[None, 1:])

    def changed(self, records: Records) -> tuple[Difference, Difference | None]:
        """Return what AP changes by with other detections on the same images, drawn as they are here.

        Args:
            records: of that validation.

        Returns:
            By boxes, and by masks or keypoints; None where boxes are all there is. In percent points.
        """
        by_boxes = RepairedAP(Oracles(records), self._weights, inside=False).ap_draws - self.ap_draws
        own = None
        if self.own is not None:
            oracles = Oracles(records, overlaps=similar(records))
            by_own = RepairedAP(oracles, self._weights, inside=False).ap_draws - self.own.ap_draws
            own = difference(by_own[:1], by_own[None, 1:])
        return difference(by_boxes[:1], by_boxes[None, 1:]), own

    @cached_property
    def confusions(self) -> list[Gain]:
        """What telling two classes apart would bring, the pairs that cost most, largest gain first."""
        kind, target = self.oracles.faults()
        wrong = kind == Fault.CLASS.value
        labels = self.seen.records.labels[self.oracles.rows[wrong]], self.seen.records.gt_labels[target[wrong]]
        weight = self.seen.records.scores[self.oracles.rows[wrong]].astype(np.float64)
        pairs, index = np.unique(np.sort(np.stack(labels, 1), axis=1), axis=0, return_inverse=True)
        most = np.argsort(-np.bincount(index.ravel(), weight, len(pairs)), kind="stable")[:CONFUSIONS_TRIED]
        names = self.seen.records.names
        gains = []
        for a, b in pairs[most].tolist():
            part = self.oracles.aps((Repair.CLASS,), self._weights, scope=Scope(confusion=(a, b)), classes=(a, b))
            aps = self._plain_aps.copy()
            aps[:, [a, b]] = part[:, [a, b]]
            gains.append(self._compared(f"{names[a]} and {names[b]}", aps))
        return sorted(gains, key=lambda gain: -gain.gain.mean)[:MOST_CONFUSIONS]

    @cached_property
    def sizes(self) -> list[Size]:
        """The objects by size, smallest first."""
        bounds = (0.0, *SIZES, np.inf)
        names = [f"under {SIZES[0]:g} px", *(f"{a:g} to {b:g} px" for a, b in pairwise(SIZES))]
        names.append(f"{SIZES[-1]:g} px and more")
        taken = np.zeros(len(self.seen.sides), dtype=bool)
        first = self.oracles.taken[:, 0]
        taken[first[first >= 0]] = True
        sizes = []
        for name, low, high in zip(names, bounds[:-1], bounds[1:], strict=True):
            inside = (self.seen.sides >= low) & (self.seen.sides < high)
            gain = self._gain_of(inside) if inside.any() else None
            detected = float(taken[inside].mean()) if inside.any() else float("nan")
            sizes.append(Size(name, int(inside.sum()), detected, self._spearman(inside), gain))
        return sizes

    @cached_property
    def classes(self) -> list[ClassRow]:
        """The classes that have objects, by label."""
        records, values = self.seen.records, self.class_aps
        own = None if self.own is None else self.own.class_aps
        count = np.bincount(records.gt_labels, minlength=len(records.names))
        return [
            ClassRow(
                name,
                int(count[label]),
                float(values[label]),
                self._spearman(records.gt_labels == label),
                None if own is None else float(own[label]),
            )
            for label, name in records.names.items()
            if count[label]
        ]

    @property
    def spearman(self) -> float:
        """Mean rank correlation of score and IoU over an object's candidates; nan where undefined."""
        return self._spearman(np.ones(len(self.seen.sides), dtype=bool))

    @cached_property
    def reliability(self) -> Reliability:
        """The score as an estimate of the IoU, over detections from `confidence` on."""
        records = self.seen.records
        kept = records.scores >= self.confidence
        return reliability(records.scores[kept], best_ious(records)[kept])

    @cached_property
    def predicted_iou(self) -> Reliability | None:
        """The predicted IoU as an estimate of the IoU; None for a head without the channel."""
        seen = self.seen.predicted
        return None if seen is None else reliability(seen[:, 0], seen[:, 1])

    @cached_property
    def coverage(self) -> Coverage | None:
        """How many true edges lie within one stated deviation; None where the head states none."""
        rows = self.seen.edges
        return None if rows is None or not len(rows) else coverage(rows[:, :4], rows[:, 4:8], rows[:, 8])

    @cached_property
    def spread(self) -> Spread | None:
        """Whether a larger deviation means a larger error; None where the head states none."""
        rows = self.seen.edges
        return None if rows is None or not len(rows) else spread(rows[:, :4], rows[:, 4:8])

    @cached_property
    def curve(self) -> OperatingCurve:
        """Operating points as the model ranks."""
        return operating_curve(self.seen.records, self.oracles)

    @cached_property
    def curve_without_rescoring(self) -> OperatingCurve | None:
        """Operating points of the class score alone; None where that is how the model ranks."""
        plain = self.seen.without_rescoring
        return None if plain is None else operating_curve(plain)

    @property
    def rare(self) -> list[str]:
        """Classes with too few objects to speak of."""
        return [row.name for row in self.classes if row.objects < FEW_OBJECTS]

    def _gain_of(self, objects: BoolArray) -> float:
        """Return what mending everything that is wrong with some objects brings in AP, percent points."""
        repairs = tuple(repair for repair in OF_OBJECTS if repair in self.gains)
        mended = self.oracles(repairs, scope=Scope(objects=objects))["AP"]
        return 100 * float(mended[0] - self._plain["AP"][0])

    def _spearman(self, objects: BoolArray) -> float:
        if self.seen.records.spearman is None:
            return float("nan")
        values = self.seen.records.spearman[objects]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")
