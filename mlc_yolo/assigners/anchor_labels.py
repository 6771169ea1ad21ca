"""What was decided for pairs, written down for every anchor of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.assignment import Role, TaskAssignment, all_negative
from mlc_yolo.assigners.objects import Objects
from mlc_yolo.assigners.pairs import Pairs


def label_anchors(
    objects: Objects,
    pairs: Pairs,
    *,
    role: Tensor,
    weight: Tensor,
    quality: Tensor,
    batch: int,
    anchors: int,
) -> TaskAssignment:
    """Write per-pair decisions into a (B, A) assignment; every other anchor is NEGATIVE with weight 1.

    Args:
        objects: N objects.
        pairs: P pairs, each anchor of an image in at most one of them.
        role: (P,) int8, a `Role`.
        weight: (P,) >= 0.
        quality: (P,) in [0, 1]; read where POSITIVE.
        batch: B.
        anchors: A.

    Returns:
        TaskAssignment of shape (B, A).
    """
    task = all_negative(batch, anchors, objects.boxes.device)
    where = (objects.image[pairs.object], pairs.anchor)
    positive, ignored = role == Role.POSITIVE, role == Role.IGNORED
    task.gt_index[where] = torch.where(positive, objects.slot[pairs.object], -1)
    task.role[where] = role
    task.weight[where] = weight.float().masked_fill(ignored, 0)
    task.quality[where] = quality.float() * positive
    return task
