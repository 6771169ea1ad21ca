"""Ultralytics' own assigner as one of ours, for what upstream's loss cannot do with its decision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from ultralytics.utils.tal import TaskAlignedAssigner

from mlc_yolo.assigners import Assignment, Predictions, Role, Targets, TaskAssignment
from mlc_yolo.priors import Priors


@dataclass(frozen=True)
class UpstreamAssigner:
    """Task-aligned assignment as upstream's criterion decides it, both tasks alike.

    Attributes:
        assigner: of a criterion, with its own top-k: one-to-one branches have another one.
    """

    assigner: TaskAlignedAssigner

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign; see `assigners/assignment.py` for shapes."""
        _, _, *decision = self.assigner(
            predictions.scores,
            predictions.boxes,
            priors.points,
            targets.labels[..., None],
            targets.boxes,
            targets.valid[..., None].float(),
        )
        return as_assignment(*decision)


def as_assignment(scores: Tensor, positive: Tensor, slot: Tensor) -> Assignment:
    """Return upstream's decision in our words, both tasks alike.

    Args:
        scores: (B, A, K) soft class targets.
        positive: (B, A), bool or 0 and 1.
        slot: (B, A), the object of each anchor among its image's.
    """
    positive = positive.bool()
    task = TaskAssignment(
        gt_index=slot.long().where(positive, -1),
        role=torch.where(positive, int(Role.POSITIVE), int(Role.NEGATIVE)).to(torch.int8),
        weight=torch.ones_like(scores[..., 0]),
        quality=scores.sum(-1) * positive,
    )
    return Assignment(task, task)
