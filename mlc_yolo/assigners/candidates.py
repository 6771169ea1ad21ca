"""Objects and (object, anchor) pairs as flat lists, so that all objects of a batch are handled at once.

Padded (B, M, A) tensors spend their time on padding and on anchors far from every object. Here N real objects of a
batch are rows, and the P pairs under consideration are two index vectors, ordered by object and then by anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlc_yolo.assigners.assignment import Predictions, Role, Targets, TaskAssignment, all_negative
from mlc_yolo.boxes import aligned_iou, box_area
from mlc_yolo.priors import Priors

#: Anchors that are compared with an object together before they are one by one.
RUN = 16


@dataclass(frozen=True)
class Objects:
    """The N objects of a batch that have an area.

    Attributes:
        image: (N,) int64 in [0, B).
        slot: (N,) int64 in [0, M), the object's place in its image's targets.
        labels: (N,) int64 in [0, K).
        boxes: (N, 4) float32, xyxy px.
    """

    image: Tensor
    slot: Tensor
    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.image)


@dataclass(frozen=True)
class Pairs:
    """P (object, anchor) pairs.

    Attributes:
        object: (P,) int64 in [0, N).
        anchor: (P,) int64 in [0, A).
    """

    object: Tensor
    anchor: Tensor

    def __getitem__(self, index: Tensor) -> Pairs:
        """Return the pairs at `index`, int64 (see `rows_where`)."""
        return Pairs(self.object[index], self.anchor[index])

    def __len__(self) -> int:
        """Return P."""
        return len(self.object)


def flatten_targets(targets: Targets) -> Objects:
    """Drop padding and boxes without area.

    Args:
        targets: labels, boxes and validity of a batch.

    Returns:
        N objects, image by image in slot order.
    """
    image, slot = (targets.valid & (box_area(targets.boxes) > 0)).nonzero(as_tuple=True)
    return Objects(image, slot, targets.labels[image, slot], targets.boxes[image, slot])


def rows_where(mask: Tensor) -> Tensor:
    """Return the places of True in a (P,) bool, int64.

    Indexing several tensors with a mask looks for its places each time, and a GPU's host waits for each.
    """
    return mask.nonzero()[:, 0]


def pairs_touching(objects: Objects, boxes: Tensor) -> Pairs:
    """Return the pairs in which the object and the anchor's box share more than an edge.

    Anchors are looked at in runs of `RUN` first, by the box around a run: neighbours in a row of cells lie close
    together, so most runs are apart from an object as a whole, and no tensor of size N x A is made. The order of the
    anchors decides how long this takes, never the result.

    Args:
        objects: N objects.
        boxes: (A, 4) xyxy px, alike for every image, or (B, A, 4). A reversed box counts by its corners; nan touches
            nothing.

    Returns:
        P pairs.
    """
    image = objects.image if boxes.ndim == 3 else objects.image.new_zeros(1)
    boxes = boxes.reshape(-1, *boxes.shape[-2:])
    # One tensor for each side: what is compared lies side by side, and nothing is made of four at once. The last run
    # is filled up with inf, which touches nothing.
    sides = F.pad(boxes.movedim(2, 0), (0, -boxes.shape[1] % RUN), value=torch.inf)
    left, top, right, bottom = sides.reshape(*sides.shape[:2], -1, RUN)
    x1, y1, x2, y2 = objects.boxes.T.contiguous()[..., None]

    apart = left.amin(2).index_select(0, image) >= x2
    apart |= top.amin(2).index_select(0, image) >= y2
    apart |= right.amax(2).index_select(0, image) <= x1
    apart |= bottom.amax(2).index_select(0, image) <= y1
    # Of a run with a nan the smallest and the largest are nan: that is not apart, for the sake of its other anchors.
    owner, run = apart.logical_not_().nonzero(as_tuple=True)

    row = image.expand(len(objects))[owner] * left.shape[1] + run
    touches = left.flatten(0, 1).index_select(0, row) < x2[owner]
    touches &= top.flatten(0, 1).index_select(0, row) < y2[owner]
    touches &= right.flatten(0, 1).index_select(0, row) > x1[owner]
    touches &= bottom.flatten(0, 1).index_select(0, row) > y1[owner]
    hit, place = touches.nonzero(as_tuple=True)
    return Pairs(owner[hit], run[hit] * RUN + place)


def pairs_inside(objects: Objects, points: Tensor) -> Pairs:
    """Return the pairs whose anchor point lies strictly inside the object.

    Args:
        objects: N objects.
        points: (A, 2) px.

    Returns:
        P pairs.
    """
    return pairs_touching(objects, torch.cat((points, points), 1))


def pairs_iou(pairs: Pairs, objects: Objects, boxes: Tensor) -> Tensor:
    """Return the IoU of each pair's object with its anchor's box.

    Args:
        pairs: P pairs.
        objects: N objects.
        boxes: (A, 4) xyxy px, alike for every image, or (B, A, 4).

    Returns:
        (P,) float32 in [0, 1].
    """
    anchor = pairs.anchor
    if boxes.ndim == 3:
        anchor = objects.image[pairs.object] * boxes.shape[1] + anchor
    # index_select copies whole rows, which indexing with brackets does not.
    return aligned_iou(boxes.reshape(-1, 4).index_select(0, anchor), objects.boxes.index_select(0, pairs.object))


def best_in_group(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return the largest value of each value's group.

    Args:
        values: (P,) >= 0, no nan.
        group: (P,) int64 in [0, num_groups).
        num_groups: G.

    Returns:
        (P,).
    """
    return values.new_zeros(num_groups).scatter_reduce_(0, group, values, "amax")[group]


def in_level_range(pairs: Pairs, objects: Objects, priors: Priors) -> Tensor:
    """Tell whether an anchor's level is responsible for the box as seen from its point (FCOS, section 3.2).

    The farthest side must lie within 4 to 8 strides, both ends included; the finest level is open below, the coarsest
    above. With strides 8 to 128 these are FCOS' (0, 64), (64, 128), ... (512, inf).

    Args:
        pairs: P pairs.
        objects: N objects.
        priors: A anchors.

    Returns:
        (P,) bool.
    """
    point, stride, level = priors.points[pairs.anchor], priors.strides[pairs.anchor], priors.levels[pairs.anchor]
    box = objects.boxes[pairs.object]
    farthest = torch.cat((point - box[:, :2], box[:, 2:] - point), 1).amax(1)
    fits_below = (farthest >= 4 * stride) | (level == 0)
    return fits_below & ((farthest <= 8 * stride) | (level == priors.levels.amax()))


def predicted_quality(pairs: Pairs, objects: Objects, predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Return S and I of MLC section 3.1: how well each pair's anchor classifies and localises its object.

    Args:
        pairs: P pairs.
        objects: N objects.
        predictions: scores and boxes of the batch.

    Returns:
        scores: (P,) score of the object's class, in [0, 1].
        ious: (P,) IoU of the decoded box with the object, in [0, 1].
    """
    image = objects.image[pairs.object]
    scores = predictions.scores[image, pairs.anchor, objects.labels[pairs.object]]
    return scores, pairs_iou(pairs, objects, predictions.boxes)


def rank_in_group(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Rank values within their group, the largest first.

    Args:
        values: (P,).
        group: (P,) int64 in [0, num_groups).
        num_groups: G.

    Returns:
        (P,) int64 from 0; equal values rank in the order given.

    Example:
        >>> rank_in_group(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1]), 2)
        tensor([1, 0, 0])
    """
    by_value = values.argsort(descending=True, stable=True)
    order = by_value[group[by_value].argsort(stable=True)]
    sizes = count_in_group(group, num_groups)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - starts[group[order]]
    return rank


def count_in_group(group: Tensor, num_groups: int, *, of: Tensor | None = None) -> Tensor:
    """Return how often each group occurs, (G,) int64; with `of`, a (P,) bool, how often where that is True."""
    ones = torch.ones_like(group) if of is None else of.long()
    return torch.zeros(num_groups, dtype=torch.int64, device=group.device).index_add_(0, group, ones)


def to_task(
    objects: Objects,
    pairs: Pairs,
    *,
    role: Tensor,
    weight: Tensor,
    quality: Tensor,
    batch: int,
    anchors: int,
) -> TaskAssignment:
    """Write per-pair decisions into a (B, A) assignment; every other anchor is NEGATIVE with weight 1.

    Args:
        objects: N objects.
        pairs: P pairs, each anchor of an image in at most one of them.
        role: (P,) int8, a `Role`.
        weight: (P,) >= 0.
        quality: (P,) in [0, 1]; read where POSITIVE.
        batch: B.
        anchors: A.

    Returns:
        TaskAssignment of shape (B, A).
    """
    task = all_negative(batch, anchors, objects.boxes.device)
    where = (objects.image[pairs.object], pairs.anchor)
    positive, ignored = role == Role.POSITIVE, role == Role.IGNORED
    task.gt_index[where] = torch.where(positive, objects.slot[pairs.object], -1)
    task.role[where] = role
    task.weight[where] = weight.float().masked_fill(ignored, 0)
    task.quality[where] = quality.float() * positive
    return task
