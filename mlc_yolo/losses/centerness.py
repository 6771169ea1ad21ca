"""Centerness (FCOS, Tian et al., ICCV 2019, section 3.3, eq. 3) and the loss that teaches it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def centerness(distances: Tensor) -> Tensor:
    """Return sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    Args:
        distances: (P, 4) l, t, r, b from a point inside its box, > 0, any unit.

    Returns:
        (P,) float32 in [0, 1]: 1 at the box's centre, towards 0 at its border.

    Example:
        >>> centerness(torch.tensor([[1.0, 2.0, 4.0, 2.0]]))
        tensor([0.5000])
    """
    left, top, right, bottom = distances.float().unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


def centerness_loss(logits: Tensor, target: Tensor, count: Tensor) -> Tensor:
    """Return the summed binary cross entropy / count; at its best it is the entropy of the targets, not 0.

    Args:
        logits: (P,) centerness logits of the positives.
        target: (P,) centerness in [0, 1]; gradients are not followed.
        count: scalar > 0, max(P, 1), or its share where a batch is spread over ranks.

    Returns:
        Scalar float32; a differentiable 0 for P = 0.

    Example:
        >>> centerness_loss(torch.zeros(2), torch.tensor([0.2, 0.9]), torch.tensor(2))  # log 2
        tensor(0.6931)
    """
    return F.binary_cross_entropy_with_logits(logits.float(), target.detach().float(), reduction="sum") / count
