"""The contract between assigners, losses and plots: what goes in, what comes out.

An assigner is any callable `(Predictions, Priors, Targets) -> Assignment`. It decides for the two tasks apart what each
anchor learns; it holds no state between calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from mlc_yolo.box_kinds import UPRIGHT, BoxKind
from mlc_yolo.priors import Priors


class Role(IntEnum):
    """What an anchor is to one task. IGNORED anchors take no part in its loss."""

    NEGATIVE = 0
    POSITIVE = 1
    IGNORED = 2


@dataclass(frozen=True)
class Predictions:
    """What the head says now; detached and float32 whatever was passed.

    Attributes:
        scores: (B, A, K) class scores in [0, 1], sigmoid of the class logits, without the predicted IoU.
        boxes: (B, A, 4) decoded boxes, xyxy input px; (B, A, 5) of oriented ones, x, y, w, h and angle.

    Raises:
        ValueError: the two shapes do not belong together.
    """

    scores: Tensor
    boxes: Tensor

    def __post_init__(self) -> None:
        """Check shapes, detach, cast."""
        shape = self.scores.shape[:2]
        if self.scores.ndim != 3 or self.boxes.shape not in ((*shape, 4), (*shape, 5)):
            raise ValueError(
                "expected scores (B, A, K) and boxes (B, A, 4), or (B, A, 5) of oriented boxes, got "
                f"{tuple(self.scores.shape)} and {tuple(self.boxes.shape)}"
            )
        object.__setattr__(self, "scores", self.scores.detach().float())
        object.__setattr__(self, "boxes", self.boxes.detach().float())


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch, padded to M objects an image.

    Attributes:
        labels: (B, M) int64 in [0, K).
        boxes: (B, M, 4) float32, xyxy input px; (B, M, 5) of oriented ones, x, y, w, h and angle.
        valid: (B, M) bool, False for padding. A box without area is never assigned.
        kind: what the boxes are, and those of predictions and priors with them.

    Raises:
        ValueError: the shapes do not belong together.
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    kind: BoxKind = UPRIGHT

    def __post_init__(self) -> None:
        """Check shapes, cast."""
        shape, numbers = tuple(self.labels.shape), self.kind.numbers
        if len(shape) != 2 or tuple(self.boxes.shape) != (*shape, numbers) or tuple(self.valid.shape) != shape:
            raise ValueError(
                f"expected labels (B, M), boxes (B, M, {numbers}) and valid (B, M), got {shape}, "
                f"{tuple(self.boxes.shape)} and {tuple(self.valid.shape)}"
            )
        object.__setattr__(self, "labels", self.labels.long())
        object.__setattr__(self, "boxes", self.boxes.detach().float())
        object.__setattr__(self, "valid", self.valid.bool())


@dataclass(frozen=True)
class TaskAssignment:
    """What every anchor learns for one task.

    A loss sums weight * quality-aware terms over the anchors that are not IGNORED and divides by the sum of the
    positives' quality, which is their number where targets are hard.

    Attributes:
        gt_index: (B, A) int64, the object's slot in [0, M); -1 unless the role is POSITIVE.
        role: (B, A) int8, a `Role`.
        weight: (B, A) float32 >= 0, factor of the anchor's loss; 0 where IGNORED.
        quality: (B, A) float32 in [0, 1], how good a positive is: the class target, and for boxes a second factor of
            the loss. 1 for hard positives, 0 where not POSITIVE.
    """

    gt_index: Tensor
    role: Tensor
    weight: Tensor
    quality: Tensor

    @property
    def positive(self) -> Tensor:
        """(B, A) bool."""
        return self.role == Role.POSITIVE


@dataclass(frozen=True)
class Assignment:
    """One decision per task; they may disagree, and that is the point.

    Attributes:
        classification: who learns which class, or background.
        localization: whose box learns which object.
    """

    classification: TaskAssignment
    localization: TaskAssignment


class Assigner(Protocol):
    """Anything that turns predictions, priors and targets into an assignment."""

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign; must not change its inputs, keep state, or draw random numbers."""


def all_negative(batch: int, anchors: int, device: torch.device) -> TaskAssignment:
    """Return the assignment of images without objects: every anchor NEGATIVE with weight 1.

    Args:
        batch: B.
        anchors: A.
        device: where the tensors live.

    Returns:
        TaskAssignment of shape (B, A).
    """
    return TaskAssignment(
        gt_index=torch.full((batch, anchors), -1, dtype=torch.int64, device=device),
        role=torch.zeros((batch, anchors), dtype=torch.int8, device=device),
        weight=torch.ones((batch, anchors), device=device),
        quality=torch.zeros((batch, anchors), device=device),
    )
