"""Binary cross entropy against an assignment: class targets are the positives' quality, everything else is 0."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mlc_yolo.assigners.assignment import TaskAssignment
from mlc_yolo.losses.class_targets import class_targets


def assigned_bce(logits: Tensor, labels: Tensor, task: TaskAssignment, class_weights: Tensor | None = None) -> Tensor:
    """Return the summed, weighted cross entropy; the caller divides by its normaliser.

    Args:
        logits: (B, A, K) class logits.
        labels: (B, M) int64 in [0, K), the objects' classes.
        task: who is positive for what, how well, and with which weight.
        class_weights: (K,) factors, or None.

    Returns:
        Scalar float32; a differentiable 0 for A = 0.
    """
    target = class_targets(logits, labels, task)
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    if class_weights is not None:
        loss = loss * class_weights
    return (loss * task.weight[..., None]).sum()
