"""A static baseline's labels: the pairs it trains as positive and those it leaves out, one object per anchor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mlc_yolo.assigners.assignment import Assignment, Predictions, Role, Targets, all_negative
from mlc_yolo.assigners.candidates import Objects, Pairs, flatten_targets, to_task
from mlc_yolo.priors import Priors


@dataclass(frozen=True)
class Claims:
    """Pairs a static baseline labels positive or ignores: each anchor of an image in at most one pair.

    Attributes:
        pairs: P pairs.
        positive: (P,) bool; False where the baseline ignores the anchor.
    """

    pairs: Pairs
    positive: Tensor


class StaticAssigner(ABC):
    """Assigns both tasks alike, by geometry alone: a subclass says who claims what."""

    @abstractmethod
    def claims(self, priors: Priors, objects: Objects, *, batch: int) -> Claims:
        """Return the positive and the ignored pairs.

        Args:
            priors: A > 0 anchors.
            objects: N > 0 objects.
            batch: B.

        Returns:
            Claims with one object per anchor.
        """

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign; the predictions are not looked at."""
        return self.assign(priors, targets)

    def assign(self, priors: Priors, targets: Targets) -> Assignment:
        """Assign: hard positives of weight 1, and ignored anchors. See `assignment.py` for shapes."""
        batch, anchors = len(targets.boxes), len(priors)
        objects = flatten_targets(targets)
        if not len(objects) or not anchors:
            task = all_negative(batch, anchors, targets.boxes.device)
            return Assignment(task, task)
        claims = self.claims(priors, objects, batch=batch)
        role = torch.where(claims.positive, int(Role.POSITIVE), int(Role.IGNORED)).to(torch.int8)
        ones = torch.ones_like(role, dtype=torch.float32)
        task = to_task(objects, claims.pairs, role=role, weight=ones, quality=ones, batch=batch, anchors=anchors)
        return Assignment(task, task)
