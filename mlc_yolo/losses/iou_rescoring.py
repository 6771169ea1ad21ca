"""The predicted-IoU loss (MLC, arXiv 2103.08958, section 3.2, eq. 10-11).

Mean squared error between P = sigmoid(logit) and I, the IoU of the decoded box with its object, over the anchors that
are positive for either task. I is detached: the loss teaches the channel, it does not move boxes.
"""

from __future__ import annotations

from torch import Tensor


def iou_rescoring_loss(logits: Tensor, ious: Tensor, count: Tensor) -> Tensor:
    """Return sum (sigmoid(logit) - IoU)^2 / count.

    Args:
        logits: (P,) predicted-IoU logits of the positives of either task.
        ious: (P,) IoU of decoded box and object, in [0, 1]; gradients are not followed.
        count: scalar > 0, max(P, 1), or its share where a batch is spread over ranks.

    Returns:
        Scalar float32; a differentiable 0 for P = 0.

    Example:
        >>> import torch
        >>> iou_rescoring_loss(torch.zeros(2), torch.tensor([0.5, 1.0]), torch.tensor(2))
        tensor(0.1250)
    """
    error = logits.float().sigmoid() - ious.detach().float()
    return error.square().sum() / count
