"""What a detector does at the score threshold it is deployed with: precision, recall, false boxes.

A detection is right at IoU 0.5 or more with an object of its class that no better-scored one took, as for AP50. An
anchor predicts its best class only, so of an image's detections with the very same box the best-scored one counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.metrics.oracles import Oracles
from mlc_yolo.metrics.records import Records


@dataclass(frozen=True)
class OperatingPoint:
    """Detections of a score from `threshold` on.

    Attributes:
        threshold: least score, in [0, 1].
        detections: how many there are.
        right: how many of them are right.
        objects: how many objects there are.
        images: how many images there are.
    """

    threshold: float
    detections: int
    right: int
    objects: int
    images: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right; nan without any."""
        return self.right / self.detections if self.detections else float("nan")

    @property
    def recall(self) -> float:
        """Share of the objects that are detected; nan without any."""
        return self.right / self.objects if self.objects else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; nan where there are neither detections nor objects."""
        total = self.detections + self.objects
        return 2 * self.right / total if total else float("nan")

    @property
    def false(self) -> int:
        """How many detections are wrong."""
        return self.detections - self.right

    @property
    def per_image(self) -> float:
        """Detections per image; nan without images."""
        return self.detections / self.images if self.images else float("nan")


@dataclass(frozen=True)
class OperatingCurve:
    """The operating points of a detector, ready to be asked for.

    Attributes:
        scores: (n,) float32 scores of the detections that count, falling.
        right: (n,) int64 how many of these up to each are right.
        objects: how many objects there are.
        images: how many images there are.

    Example:
        Two objects; right at 0.9, wrong at 0.6, right at 0.3:

        >>> curve = OperatingCurve(np.array([0.9, 0.6, 0.3], np.float32), np.array([1, 1, 2]), objects=2, images=1)
        >>> point = curve.at(0.5)
        >>> point.detections, point.right, point.precision, point.recall
        (2, 1, 0.5, 0.5)
        >>> curve.best_f1().f1  # at 0.3: 2 * 2 / (3 + 2), against 2 * 1 / (1 + 2) at 0.9
        0.8
    """

    scores: NDArray[np.float32]
    right: NDArray[np.int64]
    objects: int
    images: int

    def at(self, threshold: float) -> OperatingPoint:
        """Return the point at a threshold in [0, 1]; a score that equals it counts."""
        count = int(np.searchsorted(-self.scores, -np.float32(threshold), side="right"))
        return OperatingPoint(threshold, count, int(self.right[count - 1]) if count else 0, self.objects, self.images)

    def best_f1(self) -> OperatingPoint:
        """Return the point of the best F1, the highest threshold of equals; at 1 where nothing is right."""
        if not len(self.scores) or not self.right[-1]:
            return self.at(1.0)
        f1 = 2 * self.right / (np.arange(1, len(self.scores) + 1) + self.objects)
        last = np.append(self.scores[1:] != self.scores[:-1], True)  # equal scores come together
        return self.at(float(self.scores[np.where(last, f1, -1.0).argmax()]))


def operating_curve(records: Records, oracles: Oracles | None = None) -> OperatingCurve:
    """Return a detector's operating points.

    Args:
        records: of one validation.
        oracles: of the same records, where there are some already.
    """
    oracles = oracles or Oracles(records)
    rows = oracles.rows
    rows_by_score = np.argsort(-records.scores[rows], kind="stable")
    rows, right = rows[rows_by_score], oracles.taken[rows_by_score, 0] >= 0
    anchor = np.concatenate(
        (records.image[rows][:, None].astype(np.float64), records.boxes[rows].astype(np.float64)), 1
    )
    _, first = np.unique(anchor, axis=0, return_index=True)
    first.sort()
    return OperatingCurve(
        records.scores[rows][first],
        np.cumsum(right[first]),
        objects=len(records.gt_labels),
        images=len(records.images),
    )
