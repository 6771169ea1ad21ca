"""What a baseline claims: the pairs it trains as positive and those that may be re-labelled, one object per anchor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mlc_yolo.assigners.anchor_labels import label_anchors
from mlc_yolo.assigners.assignment import Assignment, Predictions, Role, Targets, all_negative
from mlc_yolo.assigners.objects import Objects, flatten_targets
from mlc_yolo.assigners.pairs import Pairs
from mlc_yolo.priors import Priors


@dataclass(frozen=True)
class Claims:
    """Pairs a baseline labels positive or ignores: each anchor of an image in at most one pair.

    Attributes:
        pairs: P pairs.
        positive: (P,) bool; False where the baseline does not train the anchor.
        soft: whether positives have soft targets. What a baseline of hard targets does not train it ignores; what one
            of soft targets does not train is a negative.
    """

    soft: ClassVar[bool] = False

    pairs: Pairs
    positive: Tensor

    def quality(self, positive: Tensor, num_objects: int) -> Tensor:
        """Return the targets of a choice of these pairs: hard ones here.

        Args:
            positive: (P,) bool.
            num_objects: N.

        Returns:
            (P,) float32, 1 where positive and 0 elsewhere.
        """
        return positive.float()


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

    def candidates(self, predictions: Predictions, priors: Priors, objects: Objects, *, extra: int = 0) -> Claims:
        """Return what mutual labelling re-labels: the claims. Neither the predictions nor `extra` matter here."""
        return self.claims(priors, objects, batch=len(predictions.boxes))

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
        task = label_anchors(objects, claims.pairs, role=role, weight=ones, quality=ones, batch=batch, anchors=anchors)
        return Assignment(task, task)
