"""A static baseline's labels: the pairs it trains as positive and those it leaves out, one object per anchor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlc_yolo.assigners.assignment import Role, TaskAssignment
from mlc_yolo.assigners.candidates import Objects, Pairs, to_task


@dataclass(frozen=True)
class Claims:
    """Pairs a static baseline labels positive or ignores: each anchor of an image in at most one pair.

    Attributes:
        pairs: P pairs.
        positive: (P,) bool; False where the baseline ignores the anchor.
    """

    pairs: Pairs
    positive: Tensor


def baseline_task(claims: Claims, objects: Objects, *, batch: int, anchors: int) -> TaskAssignment:
    """Return the baseline's own labels: hard positives of weight 1, and ignored anchors."""
    role = torch.where(claims.positive, int(Role.POSITIVE), int(Role.IGNORED)).to(torch.int8)
    ones = torch.ones_like(role, dtype=torch.float32)
    return to_task(objects, claims.pairs, role=role, weight=ones, quality=ones, batch=batch, anchors=anchors)
