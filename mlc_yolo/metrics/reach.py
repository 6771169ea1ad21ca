"""What was there to be kept: each object's best-placed candidate before NMS.

A candidate is an entry of `metrics.divergence`: an (anchor, class) whose score is above 0.05, so that boxes which fit
by chance do not count. It belongs to the object of its class that it overlaps most. Where NMS kept another box, a
better choice among the candidates would have brought the difference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlc_yolo.boxes import pairwise_iou

#: Columns of `best_placed`, after the four of the box.
SCORE, IOU = 4, 5


def best_placed(
    candidates: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    *,
    overlap: Callable[[Tensor, Tensor], Tensor] = pairwise_iou,
) -> Tensor:
    """Return the best-placed candidate of every object of one image.

    Args:
        candidates: (N, 6) rows x1, y1, x2, y2, score, label, as `metrics.divergence.entries` returns them; (N, 7) of
            oriented boxes.
        gt_boxes: (M, 4) xyxy, same pixels and device; (M, 5) of oriented boxes.
        gt_labels: (M,) in 0..K-1, any dtype.
        overlap: of (M, 4) objects and (n, 4) boxes, (M, n) in [0, 1].

    Returns:
        (M, 6) rows x1, y1, x2, y2, score, IoU with the object, in [0, 1]; zeros for an object without a candidate. Of
        equal IoU the better-scored comes first. (M, 7) of oriented boxes.

    Example:
        Two boxes of one object; the second sits better. The third is of another class.

        >>> rows = torch.tensor([[0., 0, 5, 10, .9, 0], [0, 0, 8, 10, .5, 0], [0, 0, 10, 10, .7, 1]])
        >>> best_placed(rows, torch.tensor([[0., 0, 10, 10]]), torch.tensor([0]))[:, SCORE:].tolist()
        [[0.5, 0.800000011920929]]
    """
    best = candidates.new_zeros((len(gt_boxes), candidates.shape[1]))
    candidates = candidates[candidates.isfinite().all(1)]
    if not len(candidates) or not len(gt_boxes):
        return best
    candidates = candidates[candidates[:, -2].argsort(descending=True, stable=True)]
    iou = overlap(gt_boxes, candidates[:, :-2])
    iou = iou.masked_fill(gt_labels[:, None] != candidates[None, :, -1], 0.0)
    own = torch.zeros_like(iou).scatter_(0, iou.argmax(0, keepdim=True), 1.0)
    reached, index = (iou * own).max(1)
    rows = torch.cat((candidates[index, :-1], reached[:, None]), 1)
    return torch.where(reached[:, None] > 0, rows, best)
