"""Axis-aligned boxes: areas and the IoU family, always in float32.

Boxes are xyxy in input pixels. `pairwise_*` compares every row of one set with every row of the other,
`aligned_*` compares row with row.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Return areas in px^2; a reversed box has area 0.

    Args:
        boxes: (..., 4) xyxy.

    Returns:
        (...) float32, >= 0.

    Example:
        >>> box_area(torch.tensor([[0.0, 0.0, 2.0, 3.0]]))
        tensor([6.])
    """
    sides = (boxes[..., 2:].float() - boxes[..., :2].float()).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of matching rows; 0 where both boxes are empty.

    Args:
        first: (P, 4) xyxy.
        second: (P, 4) xyxy.

    Returns:
        (P,) float32 in [0, 1].

    Example:
        >>> aligned_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        tensor([0.3333])
    """
    first, second = first.float(), second.float()
    overlap = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(0)
    intersection = overlap[..., 0] * overlap[..., 1]
    return _ratio(intersection, box_area(first) + box_area(second) - intersection)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of every pair; 0 where both boxes are empty.

    Args:
        first: (M, 4) xyxy.
        second: (A, 4) xyxy.

    Returns:
        (M, A) float32 in [0, 1].
    """
    first, second = first.float(), second.float()
    width = torch.minimum(first[:, None, 2], second[:, 2]) - torch.maximum(first[:, None, 0], second[:, 0])
    height = torch.minimum(first[:, None, 3], second[:, 3]) - torch.maximum(first[:, None, 1], second[:, 1])
    intersection = width.clamp_(min=0).mul_(height.clamp_(min=0))
    return _ratio(intersection, box_area(first)[:, None] + box_area(second) - intersection)


def aligned_ciou(first: Tensor, second: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Return the complete IoU of matching rows (Zheng et al., AAAI 2020, eq. 10), as Ultralytics computes it.

    Args:
        first: (P, 4) xyxy.
        second: (P, 4) xyxy.
        eps: added to heights and denominators.

    Returns:
        (P,) float32 in (-2, 1].
    """
    # Sides lie side by side: atan and the rest work on neighbours in memory.
    left1, top1, right1, bottom1 = first.float().movedim(-1, 0).contiguous()
    left2, top2, right2, bottom2 = second.float().movedim(-1, 0).contiguous()
    w1, h1 = right1 - left1, bottom1 - top1 + eps
    w2, h2 = right2 - left2, bottom2 - top2 + eps
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(0)
    iou = width * height / (w1 * h1 + w2 * h2 - width * height + eps)
    across = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    down = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    diagonal = across.square() + down.square() + eps
    offset = ((left2 + right2 - left1 - right1).square() + (top2 + bottom2 - top1 - bottom1).square()) / 4
    aspect = (4 / math.pi**2) * (torch.atan(w2 / h2) - torch.atan(w1 / h1)).square()
    complete: Tensor = iou - (offset / diagonal + aspect * aspect / (aspect - iou + (1 + eps)))
    return complete


def xywh(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return boxes by their upper left corner, width and height, as COCO's files and pycocotools take them.

    Args:
        rows: (N, 4 or more) numbers, the first four xyxy.

    Returns:
        (N, 4) float64, also of float32 corners.

    Example:
        >>> xywh(np.array([[1.0, 2.0, 4.0, 6.0, 0.9]])).tolist()
        [[1.0, 2.0, 3.0, 4.0]]
    """
    boxes = rows[:, :4].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _ratio(intersection: Tensor, union: Tensor) -> Tensor:
    return torch.where(union > 0, intersection / union.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
