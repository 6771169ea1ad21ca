"""Adaptive training sample selection (Zhang et al., CVPR 2020, algorithm 1).

1. On each level the `topk` priors whose centres are nearest to the object's centre are candidates. 2. The object's
threshold is mean + standard deviation of its candidates' IoU. 3. Candidates at or above it whose centre lies inside
the box are positive. 4. An anchor positive for several objects goes to the one it overlaps most.

The standard deviation is the sample's (n - 1), as in the authors' code; the paper does not say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.candidates import Objects, Pairs, count_in_group, pairs_iou, rows_where
from mlc_yolo.assigners.claims import Claims, StaticAssigner
from mlc_yolo.assigners.conflicts import keep_best
from mlc_yolo.priors import Priors


class ATSS(StaticAssigner):
    """Assign both tasks alike, by a threshold each object sets itself."""

    def __init__(self, *, topk: int = 9) -> None:
        """Set the assigner up.

        Args:
            topk: candidates per level and object.
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
        inside = ((point > box[:, :2]) & (point < box[:, 2:])).all(1)
        candidates = rows_where(above & inside)
        pairs, iou = pairs[candidates], iou[candidates]
        kept = rows_where(keep_best(pairs, objects, iou, batch=batch, anchors=len(priors)))
        return Claims(pairs[kept], torch.ones_like(kept, dtype=torch.bool))


def _nearest(priors: Priors, objects: Objects, topk: int) -> Pairs:
    """Return each object's `topk` nearest anchors of every level, ordered by object."""
    centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2
    anchors = []
    for level in torch.unique(priors.levels):
        (of_level,) = (priors.levels == level).nonzero(as_tuple=True)
        x, y = priors.points[of_level].T
        distance = (centres[:, :1] - x).square_()
        distance += (centres[:, 1:] - y).square_()
        nearest = distance.topk(min(topk, len(of_level)), dim=1, largest=False).indices
        anchors.append(of_level[nearest])
    anchor = torch.cat(anchors, 1)
    owner = torch.arange(len(objects), device=anchor.device)[:, None].expand_as(anchor)
    return Pairs(owner.reshape(-1), anchor.reshape(-1))


def _mean_plus_std(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return mean + sample standard deviation of each group; the deviation of a single value is 0.

    In float64, where the mean of equal IoUs is that IoU: rounded up, it would leave their object without a positive.
    """
    values = values if values.device.type == "mps" else values.double()
    size = count_in_group(group, num_groups)
    mean = values.new_zeros(num_groups).index_add_(0, group, values) / size
    squares = values.new_zeros(num_groups).index_add_(0, group, (values - mean[group]).square())
    return mean + (squares / (size - 1).clamp(min=1)).sqrt()
