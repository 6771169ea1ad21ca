"""One comparison of student and teacher for every kind of teaching: anchor by anchor, in three terms.

1. Classes: every anchor towards the teacher's probabilities.
2. Boxes: distributions over distances where both sides have them, over as many bins; 1 - GIoU elsewhere, or beside.
   Of oriented boxes 1 - probiou always, as distributions say nothing of angles; they are compared where the student's
   axes lie within 45 degrees of the teacher's, as elsewhere its left is another side than the teacher's.
3. Predicted IoU, where both have it.

Boxes and predicted IoU weigh by the caller's trust in the teacher's boxes. What teaches, and which anchors are trusted,
is the business of `training.taught_criterion` and `training.semi_criterion`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.box_kinds import ORIENTED
from mlc_yolo.losses.distillation import (
    distilled_boxes,
    distilled_classes,
    distilled_distributions,
    distilled_oriented_boxes,
    distilled_quality,
    foreground_normaliser,
)
from mlc_yolo.training.dense_outputs import Dense, Gains


def normalisers(sure: Tensor, trusted: Tensor) -> Tensor:
    """Return this rank's normalisers of classes and boxes, (2,) float32.

    Args:
        sure: (B, A) in [0, 1], the teacher's foreground.
        trusted: (B, A) >= 0, weight of its boxes.
    """
    return torch.stack((foreground_normaliser(sure), trusted.sum()))


def compared(
    student: Dense,
    teacher: Dense,
    trusted: Tensor,
    totals: Tensor,
    gains: Gains,
    *,
    power: float,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return class loss and the sum of the losses of boxes, both times their gains.

    Args:
        student: A anchors.
        teacher: the same ones, of the same classes.
        trusted: (B, A) >= 0, weight of the teacher's boxes.
        totals: (2,) sums of `normalisers` over all ranks; at least 1 is divided by.
        gains: weights of the terms; those of weight 0 are not computed.
        power: exponent of the classes' re-weighting by the disagreement; 0 leaves it out.
        temperature: of the distributions.
    """
    normaliser, weight = totals.clamp(min=1)
    classes = gains.classes * distilled_classes(student.logits, teacher.logits, normaliser, power=power)
    boxes = student.logits.new_zeros((), dtype=torch.float32)
    if gains.boxes:
        of_boxes = distilled_oriented_boxes if student.kind is ORIENTED else distilled_boxes
        boxes = gains.boxes * of_boxes(student.boxes, teacher.boxes, trusted, total=weight)
    sides = trusted * _alike(student.boxes, teacher.boxes) if student.kind is ORIENTED else trusted
    if gains.distributions and student.distributions is not None and teacher.distributions is not None:
        boxes = boxes + gains.distributions * distilled_distributions(
            student.distributions, teacher.distributions, sides, total=weight, temperature=temperature
        )
    if gains.quality and student.quality is not None and teacher.quality is not None:
        boxes = boxes + gains.quality * distilled_quality(student.quality, teacher.quality, trusted, total=weight)
    return classes, boxes


def _alike(boxes: Tensor, others: Tensor) -> Tensor:
    """Tell where the first sides of oriented boxes (B, A, 5) lie within 45 degrees of each other, (B, A) bool."""
    return (boxes[..., 4] - others[..., 4]).detach().cos() > 0.5**0.5
