"""Focal loss (Lin et al., ICCV 2017, eq. 5) against an assignment, as torchvision computes it.

Targets are those of `assigned_bce`: a positive's quality at its object's class, 0 everywhere else. With hard targets
this is the paper's loss. With a soft target t torchvision's function interpolates: the cross entropy of t, times
alpha t + (1 - alpha)(1 - t), times (p (1 - t) + t (1 - p))^gamma. It has one minimum, which grows with t but lies
further from 0.5 than t does: for gamma = 2, t = 0.2, 0.5, 0.8 and 0.9 are best answered with p = 0.05, 0.50, 0.95 and
0.99. Soft targets thus keep their order and lose their calibration.

torchvision's function makes some ten temporaries of the logits' size and keeps most of them for the backward pass.
Here it runs on a few anchors at a time and only their gradient is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import sigmoid_focal_loss

from mlc_yolo.assigners.assignment import TaskAssignment
from mlc_yolo.losses.class_targets import class_targets


def assigned_focal(
    logits: Tensor, labels: Tensor, task: TaskAssignment, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return the summed, weighted focal loss; the caller divides by its normaliser.

    Args:
        logits: (B, A, K) class logits.
        labels: (B, M) int64 in [0, K), the objects' classes.
        task: who is positive for what, how well, and with which weight.
        alpha: factor of the targets 1 in [0, 1]; the targets 0 get 1 - alpha.
        gamma: 0, or >= 1: exponent of the distance between score and target.

    Returns:
        Scalar float32, differentiable once; a differentiable 0 for A = 0.

    Example:
        Score 1/2 of one background anchor costs (1 - alpha) * (1/2)^2 * log 2.

        >>> from mlc_yolo.assigners.assignment import all_negative
        >>> task = all_negative(1, 1, torch.device("cpu"))
        >>> assigned_focal(torch.zeros(1, 1, 1), torch.zeros(1, 0, dtype=torch.int64), task)
        tensor(0.1300)
    """
    loss: Tensor = _ChunkedFocal.apply(logits, labels, task, alpha, gamma)
    return loss


class _ChunkedFocal(torch.autograd.Function):
    """The loss and, in the same pass, its gradient: the loss is a sum, so both are sums over chunks of anchors."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, task: TaskAssignment, alpha: float, gamma: float) -> Tensor:
        """Add up the chunks; keep the gradient in float32, since unscaled ones underflow in half precision."""
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits, dtype=torch.float32) if wants_gradient else None
        total = torch.zeros((), device=logits.device)
        batch, anchors, classes = logits.shape
        size = max(1, _chunk_elements(logits.device) // max(1, batch * classes))
        for start in range(0, anchors, size):
            part = slice(start, start + size)
            part_task = TaskAssignment(
                task.gt_index[:, part], task.role[:, part], task.weight[:, part], task.quality[:, part]
            )
            x = logits[:, part].detach().float().requires_grad_(wants_gradient)
            with torch.set_grad_enabled(wants_gradient):
                loss = sigmoid_focal_loss(x, class_targets(x, labels, part_task), alpha, gamma)
                loss = (loss * part_task.weight[..., None]).sum()
            if gradient is not None:
                (gradient[:, part],) = torch.autograd.grad(loss, x)
            total += loss.detach()
        ctx.dtype = logits.dtype
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Scale the gradient."""
        (gradient,) = ctx.saved_tensors
        return (gradient * factor).to(ctx.dtype), None, None, None, None


def _chunk_elements(device: torch.device) -> int:
    """Return how many logits to work on at once: what a CPU's cache holds, or what keeps an accelerator busy."""
    return 2**18 if device.type == "cpu" else 2**22
