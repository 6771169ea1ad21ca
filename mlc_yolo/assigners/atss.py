"""Adaptive training sample selection (Zhang et al., CVPR 2020, algorithm 1).

1. On each level the priors whose points are nearest to the object's centre are candidates: `topk` times as many as
share a cell there. 2. The object's threshold is mean + standard deviation of its candidates' IoU. 3. Candidates at or
above it whose point lies more than 0.01 px inside the box are positive. 4. An anchor positive for several objects goes
to the one it overlaps most.

Where the paper is silent this is the authors' code: the factor of step 1 (mmdetection takes `topk` a level however many
anchors a cell has), the 0.01 px, and the standard deviation of a sample (n - 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.claims import Claims, StaticAssigner
from mlc_yolo.assigners.conflicts import keep_best
from mlc_yolo.assigners.groups import count_in_group
from mlc_yolo.assigners.objects import Objects
from mlc_yolo.assigners.pair_quality import pairs_iou
from mlc_yolo.assigners.pairs import Pairs, rows_where
from mlc_yolo.priors import Priors

#: How far inside an object an anchor point must lie, in px.
MARGIN = 0.01


class ATSS(StaticAssigner):
    """Assign both tasks alike, by a threshold each object sets itself (ATSS, CVPR 2020, algorithm 1)."""

    def __init__(self, *, topk: int = 9) -> None:
        """Set the assigner up.

        Args:
            topk: cells per level and object whose anchors are candidates, >= 1.
        """
        self.topk = topk

    def claims(self, priors: Priors, objects: Objects, *, batch: int) -> Claims:
        """Return the positive pairs.

        Args:
            priors: A > 0 anchors.
            objects: N > 0 objects.
            batch: B.

        Returns:
            Claims with one object per anchor, all positive.
        """
        pairs = _nearest(priors, objects, self.topk)
        box = objects.boxes[pairs.object]
        iou = pairs_iou(pairs, objects, priors.boxes)
        above = iou >= _mean_plus_std(iou, pairs.object, len(objects))[pairs.object]
        point = priors.points[pairs.anchor]
        inside = objects.kind.sides_from(point, box).amin(1) > MARGIN
        candidates = rows_where(above & inside)
        pairs, iou = pairs[candidates], iou[candidates]
        kept = rows_where(keep_best(pairs, objects, iou, batch=batch, anchors=len(priors)))
        return Claims(pairs[kept], torch.ones_like(kept, dtype=torch.bool))


def _nearest(priors: Priors, objects: Objects, topk: int) -> Pairs:
    """Return each object's nearest anchors of every level, those of about `topk` cells, ordered by object."""
    centres = objects.kind.centre(objects.boxes)
    anchors = []
    for level in torch.unique(priors.levels):
        (of_level,) = (priors.levels == level).nonzero(as_tuple=True)
        x, y = priors.points[of_level].T
        distance = (centres[:, :1] - x).square_()
        distance += (centres[:, 1:] - y).square_()
        count = topk * _anchors_per_cell(priors.points[of_level], priors.strides[of_level])
        nearest = distance.topk(min(count, len(of_level)), dim=1, largest=False).indices
        anchors.append(of_level[nearest])
    anchor = torch.cat(anchors, 1)
    owner = torch.arange(len(objects), device=anchor.device)[:, None].expand_as(anchor)
    return Pairs(owner.reshape(-1), anchor.reshape(-1))


def _anchors_per_cell(points: Tensor, strides: Tensor) -> int:
    """Return how many anchors of a level share a point: its mean over the points, rounded.

    Points within an eighth of a stride are one, so that rounding does not tell a cell's anchors apart.

    Args:
        points: (A, 2) input px of one level's anchors, A > 0.
        strides: (A,) input px per cell.

    Returns:
        1 or more.

    Example:
        >>> _anchors_per_cell(torch.tensor([[4.0, 4.0], [4.0, 4.0], [12.0, 4.0], [12.0, 4.0]]), torch.full((4,), 8.0))
        2
    """
    column, row = (points * (4 / strides[:, None])).round().long().T
    cells = torch.unique(column * 2**32 + row)
    return round(len(points) / len(cells))


def _mean_plus_std(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return mean + sample standard deviation of each group; the deviation of a single value is 0.

    In float64, where the mean of equal IoUs is that IoU: rounded up, it would leave their object without a positive.
    """
    values = values if values.device.type == "mps" else values.double()
    size = count_in_group(group, num_groups)
    mean = values.new_zeros(num_groups).index_add_(0, group, values) / size
    squares = values.new_zeros(num_groups).index_add_(0, group, (values - mean[group]).square())
    return mean + (squares / (size - 1).clamp(min=1)).sqrt()
