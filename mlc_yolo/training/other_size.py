"""A teacher that sees the student's images at another size: its predictions, brought to the student's cells.

1. The augmented image is resized; its boxes are scaled back to the student's px.
2. A level of the teacher goes to the student's level whose cells cover about as much of the image. At twice the size
   that is the next finer one: objects are then taught where the student has objects of their size.
3. The teacher's finest and coarsest levels stay at the ends where there is no such level; a level that has no partner
   takes the teacher's nearest.
4. A student's cell takes, of the teacher's cells in it (or around its centre, where those are larger), the surest
   anchor: class scores, box and predicted IoU of one anchor. So nothing that the teacher sees is lost.

Box distributions are not brought: they count in strides, and a stride is another distance there. Boxes are taught by
their overlap, as where one side has no distributions. Step 2, not level by level, which would teach a level objects of
other sizes than its labels have (not compared in trainings).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlc_yolo.losses.distillation import foreground
from mlc_yolo.training.dense_outputs import Dense

#: (H, W) in cells, of each level.
Sizes = Sequence[tuple[int, int]]


def refuse_size(imgsz: float, student: Any) -> None:
    """Refuse an image size of the teacher that its levels do not tile.

    Args:
        imgsz: the option `teacher_imgsz`, px.
        student: the network to be trained, whose strides the teacher has.

    Raises:
        ValueError: names the nearest sizes that do.
    """
    step = max(int(max(student.stride)), 32)
    if imgsz % step:
        below = int(imgsz // step) * step
        sizes = " or ".join(str(size) for size in (below, below + step) if size)
        raise ValueError(f"teacher_imgsz={imgsz:g} must be a multiple of {step}: give {sizes}")


def resized(images: Tensor, imgsz: int) -> Tensor:
    """Return square images at another size, (B, 3, imgsz, imgsz); as they are where they have it.

    Args:
        images: (B, 3, H, H) in [0, 1].
        imgsz: px.
    """
    if images.shape[-1] == imgsz:
        return images
    return F.interpolate(images, (imgsz, imgsz), mode="bilinear", antialias=True)


def at_cells(seen: Dense, sizes: Sizes) -> Dense:
    """Return predictions at the cells of another grid over the same image.

    Args:
        seen: a teacher's, at its own cells; boxes in px of the image that the other grid covers.
        sizes: of the student's levels, with as many anchors to a cell.

    Returns:
        Predictions of A anchors, those of the student; without distributions. `seen` itself, if its grid is that one.
    """
    if list(sizes) == list(seen.sizes):
        return seen
    sure = foreground(seen.logits)
    per_cell = sure.shape[1] // sum(height * width for height, width in seen.sizes)
    places = []
    for anchors in _candidates(tuple(seen.sizes), tuple(sizes), per_cell, sure.device):
        surest = sure[:, anchors].argmax(1)  # of (B, C, n)
        places.append(anchors.gather(0, surest))
    chosen = torch.cat(places, 1)
    image = torch.arange(len(sure), device=sure.device)[:, None]
    quality = None if seen.quality is None else seen.quality[image, chosen]
    return Dense(seen.logits[image, chosen], seen.boxes[image, chosen], None, quality, list(sizes), seen.kind)


def partners(own: Sizes, sizes: Sizes) -> list[list[int]]:
    """Return for each level of `sizes` the levels of `own` that teach it, finest first.

    Example:
        At twice the size the teacher's two finest levels teach the finest one, and its coarsest the two coarsest.

        >>> partners([(16, 16), (8, 8), (4, 4)], [(8, 8), (4, 4), (2, 2)])
        [[0, 1], [2], [2]]
    """
    nearest = [_nearest(size, sizes) for size in own]
    found = [[level for level, other in enumerate(nearest) if other == mine] for mine in range(len(sizes))]
    return [levels or [_nearest(size, own)] for levels, size in zip(found, sizes, strict=True)]


def _nearest(size: tuple[int, int], sizes: Sizes) -> int:
    """Return the index of the level whose number of cells is nearest, as a ratio."""
    return min(range(len(sizes)), key=lambda level: abs(math.log(math.prod(sizes[level]) / math.prod(size))))


@lru_cache(maxsize=32)
def _candidates(
    own: tuple[tuple[int, int], ...], sizes: tuple[tuple[int, int], ...], per_cell: int, device: torch.device
) -> list[Tensor]:
    """Return for each level of `sizes` which anchors of `own` may teach its n anchors, (C, n) int64."""
    starts = [0]
    for height, width in own:
        starts.append(starts[-1] + height * width * per_cell)
    candidates = []
    for (height, width), levels in zip(sizes, partners(own, sizes), strict=True):
        parts = []
        for level in levels:
            rows, columns = _within(height, own[level][0]), _within(width, own[level][1])
            cells = (rows[:, None, :, None] * own[level][1] + columns[:, None, :]).flatten(2).flatten(0, 1)
            anchors = cells[..., None] * per_cell + torch.arange(per_cell) + starts[level]
            parts.append(anchors.flatten(1))
        candidates.append(torch.cat(parts).to(device))
    return candidates


def _within(cells: int, own: int) -> Tensor:
    """Return for each of `cells` cells along one side those of `own` in it or around its centre, (n, cells) int64.

    Evenly spaced points are looked up, no further apart than a cell of `own` is long: every one of those is met.

    Example:
        >>> _within(2, 4).tolist(), _within(4, 2).tolist()
        ([[0, 2], [1, 3]], [[0, 0, 1, 1]])
    """
    number = -(-own // cells)
    points = 2 * torch.arange(cells * number) + 1
    return (points * own // (2 * cells * number)).view(cells, number).T
