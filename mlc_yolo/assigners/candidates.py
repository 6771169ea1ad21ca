"""Objects and (object, anchor) pairs as flat lists, so that all objects of a batch are handled at once.

Padded (B, M, A) tensors spend their time on padding and on anchors far from every object. Here N real objects of a
batch are rows, and the P pairs under consideration are two index vectors, ordered by object and then by anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlc_yolo.assigners.assignment import Predictions, Role, Targets, TaskAssignment, all_negative
from mlc_yolo.boxes import aligned_iou, box_area
from mlc_yolo.priors import Priors


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

    def __getitem__(self, keep: Tensor) -> Pairs:
        """Return the pairs where `keep` (P,) bool is True."""
        return Pairs(self.object[keep], self.anchor[keep])

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


def pairs_where(mask: Tensor) -> Pairs:
    """Return the True entries of an (N, A) mask as pairs."""
    return Pairs(*mask.nonzero(as_tuple=True))


def inside_box(boxes: Tensor, points: Tensor) -> Tensor:
    """Tell which anchor points lie strictly inside which box.

    Args:
        boxes: (N, 4) xyxy px.
        points: (A, 2) px.

    Returns:
        (N, A) bool.
    """
    x, y = points[:, 0], points[:, 1]
    inside = x > boxes[:, None, 0]
    inside &= x < boxes[:, None, 2]
    inside &= y > boxes[:, None, 1]
    inside &= y < boxes[:, None, 3]
    return inside


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
    return scores, aligned_iou(predictions.boxes[image, pairs.anchor], objects.boxes[pairs.object])


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


def count_in_group(group: Tensor, num_groups: int) -> Tensor:
    """Return how often each group occurs: (G,) int64."""
    return torch.zeros(num_groups, dtype=torch.int64, device=group.device).index_add_(0, group, torch.ones_like(group))


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
