"""Anchor points and prior boxes: where each anchor of a dense head sits before it predicts anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Priors:
    """The reference geometry of A anchors, the same for every image of a batch.

    Attributes:
        points: (A, 2) float32, anchor points x, y in input px.
        boxes: (A, 4) float32 xyxy, prior boxes in input px; (A, 5) where the objects' boxes are oriented.
        strides: (A,) float32, input px per cell.
        levels: (A,) int64, 0 is the finest. Kept per anchor instead of as level sizes, so that nothing depends on the
            anchors' order.
    """

    points: Tensor
    boxes: Tensor
    strides: Tensor
    levels: Tensor

    def __len__(self) -> int:
        """Return A."""
        return len(self.points)

    def __getitem__(self, index: Tensor) -> Priors:
        """Return the priors at `index`, int64 of any shape (or a mask): every field gets that leading shape."""
        return Priors(self.points[index], self.boxes[index], self.strides[index], self.levels[index])


def square_priors(points: Tensor, strides: Tensor, levels: Tensor, *, scale: float = 5.0) -> Priors:
    """Give each anchor point of a point-based head a square prior of side `scale` * stride centred on it.

    Args:
        points: (A, 2) input px.
        strides: (A,) input px per cell.
        levels: (A,) int64.
        scale: side in strides.

    Returns:
        Priors of A anchors, float32.

    Example:
        >>> square_priors(torch.tensor([[4.0, 4.0]]), torch.tensor([8.0]), torch.tensor([0]), scale=1.0).boxes
        tensor([[0., 0., 8., 8.]])
    """
    points, strides = points.float(), strides.float()
    half = (strides * (scale / 2))[:, None]
    return Priors(points, torch.cat((points - half, points + half), 1), strides, levels)


def grid_priors(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    *,
    scale: float = 5.0,
    device: torch.device | str | None = None,
) -> Priors:
    """Return one anchor per cell at the cell's centre, row by row, finest level first.

    Args:
        sizes: (H, W) in cells of each level.
        strides: input px per cell of each level.
        scale: side of the square priors, in strides.
        device: where the tensors live.

    Returns:
        Priors with A = sum of H * W.

    Example:
        >>> grid_priors([(1, 2)], [8]).points
        tensor([[ 4.,  4.],
                [12.,  4.]])
    """
    points, per_anchor, levels = [], [], []
    for level, ((height, width), stride) in enumerate(zip(sizes, strides, strict=True)):
        y, x = torch.meshgrid(
            torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
        )
        points.append(torch.stack((x, y), -1).reshape(-1, 2) * stride)
        per_anchor.append(torch.full((height * width,), float(stride), device=device))
        levels.append(torch.full((height * width,), level, dtype=torch.int64, device=device))
    return square_priors(torch.cat(points), torch.cat(per_anchor), torch.cat(levels), scale=scale)
