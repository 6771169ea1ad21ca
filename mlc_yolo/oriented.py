"""Oriented boxes: rows (x, y, w, h, r) of centre and sides in input pixels and an angle in radians, always in float32.

The first side lies along (cos r, sin r), the second along (-sin r, cos r); y points down, so angles turn clockwise on
screen. A box stays itself when r grows by pi, or by pi / 2 with its sides swapped: every function here but `sides_from`
gives the same then, and that one a turned order. A side counts by its size: Ultralytics' heads without distributions
may predict one below 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def aligned_probiou(first: Tensor, second: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Return the probabilistic IoU of matching rows (Llerena et al., 2021, arXiv 2106.06072), as Ultralytics does.

    Boxes are compared as Gaussians with the mean and the covariance of a uniform distribution over them: 1 - the
    Hellinger distance. That of a square does not depend on its angle, and boxes that lie apart are not quite at 0.

    Args:
        first: (..., 5).
        second: (..., 5).
        eps: added to denominators and below roots; equal boxes therefore reach 0.9996.

    Returns:
        (...) float32 in [0, 1); 0 where a box is nan or too large to square.

    Example:
        >>> turned = torch.tensor([[10.0, 10.0, 8.0, 4.0, 0.0], [10.0, 10.0, 4.0, 8.0, 0.0]])
        >>> aligned_probiou(turned[:1], turned[1:])
        tensor([0.5528])
    """
    x1, y1, a1, b1, c1 = _gaussian(first)
    x2, y2, a2, b2, c2 = _gaussian(second)
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    determinant = a * b - c.square()
    dx, dy = x1 - x2, y1 - y2
    apart = (a * dy.square() + b * dx.square() - 2 * c * dx * dy) / (determinant + eps) / 4
    # The root of both determinants: taken of their differences it would have no gradient where rounding leaves 0.
    own = (first[..., 2:4].float().prod(-1) * second[..., 2:4].float().prod(-1)).abs() / 144
    unlike = (determinant / (4 * own + eps) + eps).log() / 2
    distance = (apart + unlike).clamp(eps, 100.0)
    overlap: Tensor = 1 - (1 - (-distance).exp() + eps).sqrt()
    return overlap.clamp(min=0).nan_to_num(nan=0.0)


def pairwise_probiou(first: Tensor, second: Tensor) -> Tensor:
    """Return `aligned_probiou` of every pair, (M, A) float32 of (M, 5) and (A, 5)."""
    return aligned_probiou(first[:, None], second[None])


def extent(boxes: Tensor) -> Tensor:
    """Return the upright boxes around oriented ones, xyxy px.

    Args:
        boxes: (..., 5).

    Returns:
        (..., 4).

    Example:
        >>> extent(torch.tensor([10.0, 10.0, 8.0, 4.0, 0.0]))
        tensor([ 6.,  8., 14., 12.])
    """
    boxes = boxes.float()
    half, along = boxes[..., 2:4].abs() / 2, _axes(boxes).abs()
    reach = (half[..., None] * along).sum(-2)
    return torch.cat((boxes[..., :2] - reach, boxes[..., :2] + reach), -1)


def aligned_touch(first: Tensor, second: Tensor) -> Tensor:
    """Tell whether matching rows share more than an edge, by separating axes.

    Two rectangles are apart exactly where their shadows on one of their four axes are.

    Args:
        first: (P, 5).
        second: (P, 5).

    Returns:
        (P,) bool; a box with nan touches nothing.

    Example:
        >>> touch = torch.tensor([[0.0, 0.0, 8.0, 2.0, 0.8]]), torch.tensor([[3.0, -3.0, 2.0, 2.0, 0.0]])
        >>> aligned_touch(*touch)  # their extents overlap
        tensor([False])
    """
    first, second = first.float(), second.float()
    between = second[:, None, :2] - first[:, None, :2]
    axes = torch.cat((_axes(first), _axes(second)), 1)  # (P, 4, 2)
    distance = (axes * between).sum(-1).abs()
    reach = _shadow(first, axes) + _shadow(second, axes)
    return (distance < reach).all(-1)


def sides_from(points: Tensor, boxes: Tensor) -> Tensor:
    """Return how far each side of a box lies from a point, along the box's own axes.

    Args:
        points: (P, 2) px.
        boxes: (P, 5).

    Returns:
        (P, 4) left, top, right, bottom as the box itself sees them, in px; all above 0 where the point is inside.

    Example:
        >>> sides_from(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0, 8.0, 4.0, 0.0]]))
        tensor([[6., 2., 2., 2.]])
    """
    boxes = boxes.float()
    place = (_axes(boxes) * (points.float() - boxes[:, :2])[:, None]).sum(-1)
    half = boxes[:, 2:4] / 2
    return torch.cat((half + place, half - place), 1)


def from_sides(points: Tensor, sides: Tensor, angles: Tensor) -> Tensor:
    """Return the boxes whose sides lie as far from points as given: the inverse of `sides_from`.

    Args:
        points: (..., 2) px.
        sides: (..., 4) left, top, right, bottom as the boxes themselves see them, in px.
        angles: (..., 1) radians.

    Returns:
        (..., 5).

    Example:
        >>> from_sides(torch.tensor([[2.0, 0.0]]), torch.tensor([[6.0, 2.0, 2.0, 2.0]]), torch.zeros(1, 1))
        tensor([[0., 0., 8., 4., 0.]])
    """
    first, second = sides.float().chunk(2, -1)
    away, angles = (second - first) / 2, angles.float()
    boxes = torch.cat((torch.zeros_like(away), first + second, angles), -1)
    centre = points.float() + (away[..., None] * _axes(boxes)).sum(-2)
    return torch.cat((centre, boxes[..., 2:]), -1)


def _gaussian(boxes: Tensor) -> tuple[Tensor, ...]:
    """Return x, y and the covariance's entries xx, yy and xy, (...) each."""
    x, y, width, height, angle = boxes.float().unbind(-1)
    across, down = width.square() / 12, height.square() / 12
    cos, sin = angle.cos(), angle.sin()
    xx = across * cos.square() + down * sin.square()
    yy = across * sin.square() + down * cos.square()
    return x, y, xx, yy, (across - down) * cos * sin


def _axes(boxes: Tensor) -> Tensor:
    """Return the unit vectors along both sides, (..., 2, 2)."""
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return torch.stack((torch.stack((cos, sin), -1), torch.stack((-sin, cos), -1)), -2)


def _shadow(boxes: Tensor, axes: Tensor) -> Tensor:
    """Return half the length of each box's shadow on each of its axes: (P, 4) of (P, 5) and (P, 4, 2)."""
    half = boxes[:, 2:4].abs() / 2
    return ((axes @ _axes(boxes).transpose(1, 2)).abs() * half[:, None]).sum(-1)
