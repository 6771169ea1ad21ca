"""Box losses of the anchor-based and the point-based detectors: each a weighted sum over positives, in float32.

`smooth_l1` compares deltas (Fast R-CNN, Girshick, ICCV 2015, eq. 3); `giou` (Rezatofighi et al., CVPR 2019) and
`log_iou` (UnitBox, Yu et al., ACM MM 2016; FCOS, Tian et al., ICCV 2019, eq. 2) compare decoded boxes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from mlc_yolo.boxes import aligned_iou


def smooth_l1(predicted: Tensor, target: Tensor, weight: Tensor, *, beta: float) -> Tensor:
    """Return sum weight * smooth-L1 of the four deltas: d^2 / (2 beta) for |d| < beta, |d| - beta / 2 beyond.

    Args:
        predicted: (P, 4) deltas.
        target: (P, 4) deltas.
        weight: (P,) >= 0.
        beta: where the square becomes a line, >= 0; 0 is L1.

    Returns:
        Scalar float32; a differentiable 0 for P = 0.

    Example:
        >>> import torch
        >>> smooth_l1(torch.tensor([[0.5, -3.0, 0.0, 0.0]]), torch.zeros(1, 4), torch.ones(1), beta=1.0)
        tensor(2.6250)
    """
    loss = F.smooth_l1_loss(predicted.float(), target.float(), beta=beta, reduction="none").sum(-1)
    return (loss * weight).sum()


def giou(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return sum weight * (1 - GIoU).

    Args:
        predicted: (P, 4) xyxy, not reversed.
        target: (P, 4) xyxy, not reversed, same unit.
        weight: (P,) >= 0.

    Returns:
        Scalar float32, at most twice the sum of the weights; a differentiable 0 for P = 0. Disjoint boxes attract.

    Example:
        Overlap 2, union 6, enclosing box 6: GIoU = 1/3.

        >>> import torch
        >>> first, second = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])
        >>> giou(first, second, torch.ones(1))
        tensor(0.6667)
    """
    loss: Tensor = generalized_box_iou_loss(predicted.float(), target.float())
    return (loss * weight).sum()


def log_iou(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return sum weight * -ln IoU, with IoU at least 1e-6.

    Args:
        predicted: (P, 4) xyxy.
        target: (P, 4) xyxy, same unit.
        weight: (P,) >= 0.

    Returns:
        Scalar float32; a differentiable 0 for P = 0. Boxes below the bound, disjoint ones among them, cost 13.8 and
        get gradient 0: two boxes decoded around the same point always overlap, other pairs may not.

    Example:
        >>> import torch
        >>> first, second = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]])
        >>> log_iou(first, second, torch.ones(1))  # log 2
        tensor(0.6931)
    """
    return (-aligned_iou(predicted, target).clamp(min=1e-6).log() * weight).sum()
