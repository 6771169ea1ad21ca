"""Task-aligned assignment with exponents and candidates of each task's own (DDOD, ACM MM 2021, section 3.3).

1. Candidates are those of the task-aligned assigner: anchor points inside the object's widened box. 2. Each task has a
metric of its own, score^a * IoU^b: classes by 0.2 and 0.8, boxes by 0.5 and 0.5. 3. An object trains
k = max(1, floor(sum of its 15 best IoUs)) anchors for each task, its k best by that task's metric. 4. An anchor claimed
twice goes to the object it overlaps most. 5. A positive's quality is the metric, rescaled per object and task so that
its largest value is the largest IoU among the object's positives.

Task-aligned assignment weighs a confident, badly placed anchor's box by about IoU^6, which is next to nothing: the box
that most needs to move learns least. Here its weight falls with the root of the IoU. Differences from the paper, which
selects by ATSS' mean plus deviation among centre-nearest candidates and has hard targets: steps 1, 3 (OTA, CVPR 2021)
and 5. Their effect was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlc_yolo.assigners.anchor_labels import label_anchors
from mlc_yolo.assigners.assignment import Assignment, Predictions, Role, Targets, TaskAssignment, all_negative
from mlc_yolo.assigners.dynamic_k import dynamic_k
from mlc_yolo.assigners.groups import rank_in_group
from mlc_yolo.assigners.objects import Objects, flatten_targets
from mlc_yolo.assigners.pair_quality import predicted_quality
from mlc_yolo.assigners.pairs import rows_where
from mlc_yolo.assigners.task_aligned import AlignedClaims, Alignment, claims_of_anchor, pairs_in_widened, winners
from mlc_yolo.priors import Priors


@dataclass(frozen=True)
class Exponents:
    """A task's metric, score^score * IoU^iou.

    Attributes:
        score: of the class score, >= 0.
        iou: of the IoU, > 0, so that a box which misses its object is no candidate.
    """

    score: float
    iou: float

    def __post_init__(self) -> None:
        """Refuse exponents outside their domain."""
        if not (self.score >= 0 and self.iou > 0):
            raise ValueError(f"expected exponents score >= 0 and iou > 0, got {self.score} and {self.iou}")


class Disentangled:
    """Assign each task by its own metric of what the anchor predicts."""

    def __init__(self, *, classes: Exponents = Exponents(0.2, 0.8), boxes: Exponents = Exponents(0.5, 0.5)) -> None:
        """Set the assigner up.

        Args:
            classes: the metric of classification.
            boxes: the metric of localisation.
        """
        self.classes = classes
        self.boxes = boxes

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign. See the module's head for the steps and `assignment.py` for shapes."""
        batch, anchors = predictions.boxes.shape[:2]
        objects = flatten_targets(targets)
        if not len(objects) or not anchors:
            task = all_negative(batch, anchors, predictions.boxes.device)
            return Assignment(task, task)
        pairs = pairs_in_widened(objects, priors)
        scores, ious = predicted_quality(pairs, objects, predictions)
        hits = rows_where(ious > 0)
        pairs, scores, ious = pairs[hits], scores[hits], ious[hits]
        by_iou = rank_in_group(ious, pairs.object, len(objects))
        count = dynamic_k(ious, by_iou, pairs.object, len(objects))[pairs.object]

        def label(exponents: Exponents) -> TaskAssignment:
            metric = scores.pow(exponents.score) * ious.pow(exponents.iou)
            return _label(Alignment(pairs, metric, ious), count, objects, batch=batch, anchors=anchors)

        return Assignment(label(self.classes), label(self.boxes))


def _label(aligned: Alignment, count: Tensor, objects: Objects, *, batch: int, anchors: int) -> TaskAssignment:
    """Steps 3 to 5 for one task; `count` is (P,), the k of each pair's object."""
    rank = rank_in_group(aligned.metric, aligned.pairs.object, len(objects))
    claimed = (aligned.metric > 0) & (rank < count)
    rivals = claims_of_anchor(aligned.pairs, objects, claimed, batch=batch, anchors=anchors)
    rows = rows_where(winners(aligned, objects, claimed, rivals, batch=batch, anchors=anchors))
    positive = torch.ones_like(rows, dtype=torch.bool)
    claims = AlignedClaims(aligned.pairs[rows], positive, aligned.metric[rows], aligned.overlap[rows])
    return label_anchors(
        objects,
        claims.pairs,
        role=torch.full_like(rows, Role.POSITIVE, dtype=torch.int8),
        weight=torch.ones_like(claims.metric),
        quality=claims.quality(positive, len(objects)),
        batch=batch,
        anchors=anchors,
    )
