"""Prediction alignment (MLC, arXiv 2103.08958, table 1): the class score and the box's IoU pull at each other.

Unlike the predicted-IoU loss, the gradient goes into both. The paper gives neither the gradient's path nor the weight.
"""

from __future__ import annotations

from torch import Tensor


def alignment_loss(scores: Tensor, ious: Tensor, count: Tensor) -> Tensor:
    """Return sum (score - IoU)^2 / count.

    Args:
        scores: (P,) the positives' score of their object's class, in [0, 1].
        ious: (P,) IoU of decoded box and object, in [0, 1].
        count: scalar > 0, max(P, 1), or its share where a batch is spread over ranks.

    Returns:
        Scalar float32; a differentiable 0 for P = 0.

    Example:
        >>> import torch
        >>> alignment_loss(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor(2))
        tensor(0.1250)
    """
    return (scores.float() - ious.float()).square().sum() / count
