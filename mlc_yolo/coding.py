"""Boxes as heads regress them: deltas relative to a prior, distances from a point, and DFL distributions.

Each encoder is the inverse of its decoder: decode(encode(box)) gives the box back.
"""

from __future__ import annotations

import torch
from torch import Tensor


def encode_delta(boxes: Tensor, priors: Tensor, *, variances: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Encode boxes as (dx, dy, dw, dh) relative to their priors (Faster R-CNN eq. 2; SSD adds the variances).

    Args:
        boxes: (..., 4) xyxy px, sides > 0.
        priors: (..., 4) xyxy px, sides > 0.
        variances: divisors of the centre and of the size terms.

    Returns:
        (..., 4) float32, unbounded.

    Example:
        >>> encode_delta(torch.tensor([2.0, 0.0, 6.0, 4.0]), torch.tensor([0.0, 0.0, 4.0, 4.0]))
        tensor([0.5000, 0.0000, 0.0000, 0.0000])
    """
    boxes, priors = boxes.float(), priors.float()
    prior_size = priors[..., 2:] - priors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - priors[..., :2] - priors[..., 2:]) / (2 * prior_size)
    growth = torch.log((boxes[..., 2:] - boxes[..., :2]) / prior_size)
    return torch.cat((shift / variances[0], growth / variances[1]), -1)


def decode_delta(deltas: Tensor, priors: Tensor, *, variances: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Decode (dx, dy, dw, dh) to xyxy px; the inverse of `encode_delta`.

    Args:
        deltas: (..., 4).
        priors: (..., 4) xyxy px.
        variances: as in `encode_delta`.

    Returns:
        (..., 4) float32 xyxy px.
    """
    deltas, priors = deltas.float(), priors.float()
    prior_size = priors[..., 2:] - priors[..., :2]
    centre = (priors[..., :2] + priors[..., 2:]) / 2 + deltas[..., :2] * variances[0] * prior_size
    half = prior_size * torch.exp(deltas[..., 2:] * variances[1]) / 2
    return torch.cat((centre - half, centre + half), -1)


def encode_distance(boxes: Tensor, points: Tensor) -> Tensor:
    """Encode boxes as distances (left, top, right, bottom) from a point, in the boxes' unit.

    Args:
        boxes: (..., 4) xyxy.
        points: (..., 2).

    Returns:
        (..., 4) float32; negative where the point is outside that side.

    Example:
        >>> encode_distance(torch.tensor([0.0, 0.0, 10.0, 10.0]), torch.tensor([4.0, 5.0]))
        tensor([4., 5., 6., 5.])
    """
    boxes, points = boxes.float(), points.float()
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)


def decode_distance(distances: Tensor, points: Tensor) -> Tensor:
    """Decode (left, top, right, bottom) to xyxy; the inverse of `encode_distance`.

    Args:
        distances: (..., 4).
        points: (..., 2), same unit.

    Returns:
        (..., 4) float32 xyxy.
    """
    distances, points = distances.float(), points.float()
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)


def encode_dfl(distances: Tensor, *, reg_max: int) -> Tensor:
    """Encode distances as two-bin distributions whose mean is the distance (Generalized Focal Loss, eq. 5-6).

    Args:
        distances: (..., 4) in strides; clamped to [0, reg_max - 1], which is lossy outside.
        reg_max: number of bins, >= 2.

    Returns:
        (..., 4, reg_max) float32 probabilities.

    Example:
        >>> encode_dfl(torch.tensor([[1.25, 0.0, 2.0, 0.5]]), reg_max=3)[0, 0]
        tensor([0.0000, 0.7500, 0.2500])
    """
    clamped = distances.float().clamp(0, reg_max - 1)
    bins = torch.arange(reg_max, dtype=torch.float32, device=distances.device)
    return (1 - (clamped[..., None] - bins).abs()).clamp(min=0)


def decode_dfl(distribution: Tensor) -> Tensor:
    """Return the mean bin of each distribution; the inverse of `encode_dfl`.

    Args:
        distribution: (..., 4, R) probabilities over bins 0..R-1.

    Returns:
        (..., 4) float32 distances in strides, in [0, R - 1].
    """
    distribution = distribution.float()
    return distribution @ torch.arange(distribution.shape[-1], dtype=torch.float32, device=distribution.device)
