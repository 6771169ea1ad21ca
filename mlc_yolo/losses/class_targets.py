"""Class targets of an assignment, shared by the classification losses."""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.assignment import TaskAssignment


def class_targets(logits: Tensor, labels: Tensor, task: TaskAssignment) -> Tensor:
    """Return what every class score should be: a positive's quality at its object's class, 0 everywhere else.

    Args:
        logits: (B, A, K), read for shape, layout and device only.
        labels: (B, M) int64 in [0, K), the objects' classes.
        task: who is positive for what, and how well.

    Returns:
        (B, A, K) float32 in [0, 1].
    """
    target = torch.zeros_like(logits, dtype=torch.float32)
    if labels.shape[1]:
        label = labels.gather(1, task.gt_index.clamp(min=0)).where(task.positive, 0)
        # What is not positive has quality 0 and writes it at class 0, which changes nothing.
        target.scatter_(2, label[..., None], task.quality[..., None])
    return target
