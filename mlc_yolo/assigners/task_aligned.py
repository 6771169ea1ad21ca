"""Task-aligned assignment (TOOD, ICCV 2021, section 3.2), as Ultralytics trains YOLO with.

1. Candidates of an object are the anchor points inside its box; boxes narrower than the second stride are widened to
   it. 2. metric = score^0.5 * CIoU^6, CIoU clamped at 0. 3. The 10 best candidates of each object claim their anchors.
4. An anchor claimed twice goes to the object it overlaps most, among all that contain it. 5. The soft target is the
   metric, rescaled per object so that its largest value is the object's largest CIoU. Oriented boxes are compared by
   probiou.

The same selection and targets as `ultralytics.utils.tal.TaskAlignedAssigner` (a test compares them), but worked on the
pairs inside boxes. Difference: a pair whose metric is 0 is never positive, where upstream may fill up to 10 with such
pairs, which then train nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mlc_yolo.assigners.anchor_labels import label_anchors
from mlc_yolo.assigners.assignment import Assignment, Predictions, Role, Targets, all_negative
from mlc_yolo.assigners.claims import Claims
from mlc_yolo.assigners.conflicts import anchor_key, keep_best
from mlc_yolo.assigners.groups import count_in_group, rank_in_group
from mlc_yolo.assigners.objects import Objects, flatten_targets
from mlc_yolo.assigners.pair_quality import pairs_score
from mlc_yolo.assigners.pairs import Pairs, pairs_inside, rows_of, rows_where
from mlc_yolo.priors import Priors


@dataclass(frozen=True)
class Alignment:
    """How well the P pairs inside boxes are aligned, by what their anchors predict.

    Attributes:
        pairs: P pairs.
        metric: (P,) float32 in [0, 1].
        overlap: (P,) float32 in [0, 1], CIoU clamped at 0.
    """

    pairs: Pairs
    metric: Tensor
    overlap: Tensor


@dataclass(frozen=True)
class AlignedClaims(Claims):
    """Candidates that won their anchor: each anchor of an image in at most one pair.

    Attributes:
        metric: (P,) float32 > 0.
        overlap: (P,) float32, CIoU clamped at 0.
    """

    soft: ClassVar[bool] = True

    metric: Tensor
    overlap: Tensor

    def quality(self, positive: Tensor, num_objects: int) -> Tensor:
        """Return the soft target, metric / max metric * max overlap over each object's positives.

        Args:
            positive: (P,) bool.
            num_objects: N.

        Returns:
            (P,) float32 in [0, 1], 0 where not positive.
        """
        metric, overlap = self.metric * positive, self.overlap * positive
        top = metric.new_zeros((2, num_objects))
        top[0].scatter_reduce_(0, self.pairs.object, metric, "amax")
        top[1].scatter_reduce_(0, self.pairs.object, overlap, "amax")
        best = top.index_select(1, self.pairs.object)
        return metric * best[1] / (best[0] + 1e-9)


class TaskAligned:
    """Assign both tasks alike, by class score and CIoU together (TOOD, ICCV 2021, as Ultralytics has it)."""

    def __init__(self, *, topk: int = 10, alpha: float = 0.5, beta: float = 6.0) -> None:
        """Set the assigner up.

        Args:
            topk: positives an object may claim, >= 1.
            alpha: exponent of the class score, > 0.
            beta: exponent of the CIoU, > 0.
        """
        self.topk = topk
        self.alpha = alpha
        self.beta = beta

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign. See the module's head for the steps and `assignment.py` for shapes."""
        batch, anchors = predictions.boxes.shape[:2]
        objects = flatten_targets(targets)
        if not len(objects) or not anchors:
            task = all_negative(batch, anchors, predictions.boxes.device)
            return Assignment(task, task)
        claims = self.candidates(predictions, priors, objects)
        task = label_anchors(
            objects,
            claims.pairs,
            role=torch.full_like(claims.pairs.anchor, Role.POSITIVE, dtype=torch.int8),
            weight=torch.ones_like(claims.metric),
            quality=claims.quality(claims.positive, len(objects)),
            batch=batch,
            anchors=anchors,
        )
        return Assignment(task, task)

    def candidates(
        self, predictions: Predictions, priors: Priors, objects: Objects, *, extra: int = 0
    ) -> AlignedClaims:
        """Return the positives, and on anchors that nobody claimed each object's next-best candidates.

        Args:
            predictions: scores and boxes of the batch.
            priors: A > 0 anchors.
            objects: N > 0 objects.
            extra: how many candidates after the first `topk` an object may add. They come second, so that no object
                loses a positive to another's afterthought; an anchor two objects add goes to the one it overlaps most.

        Returns:
            The winning pairs; positive where the task-aligned assignment itself trains them.
        """
        batch, anchors = predictions.boxes.shape[:2]
        aligned = self._alignment(predictions, priors, objects)
        rank = rank_in_group(aligned.metric, aligned.pairs.object, len(objects))
        aligned_at_all = aligned.metric > 0
        claimed = aligned_at_all & (rank < self.topk)
        claims = claims_of_anchor(aligned.pairs, objects, claimed, batch=batch, anchors=anchors)
        positive = winners(aligned, objects, claimed, claims, batch=batch, anchors=anchors)
        kept = positive
        if extra:
            added = aligned_at_all & (rank < self.topk + extra) & (claims == 0)
            kept = positive | _best_of(aligned, objects, added, batch=batch, anchors=anchors)
        rows = rows_where(kept)
        return AlignedClaims(aligned.pairs[rows], positive[rows], aligned.metric[rows], aligned.overlap[rows])

    def _alignment(self, predictions: Predictions, priors: Priors, objects: Objects) -> Alignment:
        """Steps 1 and 2: the P pairs of an anchor point inside a widened box, with their metric."""
        pairs = pairs_in_widened(objects, priors)
        boxes = objects.boxes.index_select(0, pairs.object)
        overlap = objects.kind.alignment(boxes, rows_of(pairs, objects, predictions.boxes))
        metric = pairs_score(pairs, objects, predictions.scores).pow(self.alpha) * overlap.pow(self.beta)
        return Alignment(pairs, metric, overlap)


def pairs_in_widened(objects: Objects, priors: Priors) -> Pairs:
    """Step 1: return the pairs of an anchor point inside an object's widened box."""
    boxes = objects.kind.widened(objects.boxes, _narrowest(priors))
    return pairs_inside(replace(objects, boxes=boxes), priors.points)


def claims_of_anchor(pairs: Pairs, objects: Objects, claimed: Tensor, *, batch: int, anchors: int) -> Tensor:
    """Step 3: how many objects claim each pair's anchor, (P,) int64; `claimed` is (P,) bool."""
    key = anchor_key(pairs, objects, anchors)
    return count_in_group(key, batch * anchors, of=claimed).index_select(0, key)


def winners(
    aligned: Alignment, objects: Objects, claimed: Tensor, claims: Tensor, *, batch: int, anchors: int
) -> Tensor:
    """Step 4: which pairs train, (P,) bool: uncontested claims, and of a contested anchor the largest overlap.

    The winner of a contested anchor need not have it among its own best: upstream's rule, kept.
    """
    contested = claims > 1
    largest = _best_of(aligned, objects, contested, batch=batch, anchors=anchors)
    return torch.where(contested, largest, claimed) & (aligned.metric > 0)


def _best_of(aligned: Alignment, objects: Objects, some: Tensor, *, batch: int, anchors: int) -> Tensor:
    """Of `some` pairs, (P,) bool, keep the largest overlap of each anchor: (P,) bool."""
    overlap = aligned.overlap.where(some, -1)
    return some & keep_best(aligned.pairs, objects, overlap, batch=batch, anchors=anchors)


def _narrowest(priors: Priors) -> Tensor:
    """Return the second stride, below which sides are widened so that small objects keep candidates."""
    return torch.where(priors.levels == priors.levels.amax().clamp(max=1), priors.strides, torch.inf).amin()
