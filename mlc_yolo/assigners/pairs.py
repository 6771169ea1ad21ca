"""(object, anchor) pairs under consideration, as two flat lists.

Padded (B, M, A) tensors spend their time on padding and on anchors far from every object. Here N real objects of a
batch are rows, and the P pairs under consideration are two index vectors, ordered by object and then by anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlc_yolo.assigners.objects import Objects

#: Anchors that are compared with an object together before they are one by one.
RUN = 32


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
        return Pairs(self.object.index_select(0, index), self.anchor.index_select(0, index))

    def __len__(self) -> int:
        """Return P."""
        return len(self.object)


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
        boxes: (A, 4) or (B, A, 4), alike for every image or not, of the objects' kind. A reversed box xyxy counts by
            its corners; nan touches nothing.

    Returns:
        P pairs.
    """
    kind = objects.kind
    pairs = _extents_touching(objects, kind.extent(objects.boxes), kind.extent(boxes))
    if kind.fills_extent:
        return pairs
    return pairs[rows_where(kind.touch(objects.boxes[pairs.object], rows_of(pairs, objects, boxes)))]


def _extents_touching(objects: Objects, own: Tensor, boxes: Tensor) -> Pairs:
    """Return the pairs whose upright boxes share more than an edge: (N, 4) of the objects, (A, 4) or (B, A, 4)."""
    image = objects.image if boxes.ndim == 3 else objects.image.new_zeros(1)
    boxes = boxes.reshape(-1, *boxes.shape[-2:])
    # One tensor for each side: what is compared lies side by side, and nothing is made of four at once. The last run
    # is filled up with inf, which touches nothing.
    sides = F.pad(boxes.movedim(2, 0), (0, -boxes.shape[1] % RUN), value=torch.inf)
    left, top, right, bottom = sides.reshape(*sides.shape[:2], -1, RUN)
    x1, y1, x2, y2 = own.T.contiguous()[..., None]

    apart = left.amin(2).index_select(0, image) >= x2
    apart |= top.amin(2).index_select(0, image) >= y2
    apart |= right.amax(2).index_select(0, image) <= x1
    apart |= bottom.amax(2).index_select(0, image) <= y1
    # Of a run with a nan the smallest and the largest are nan: that is not apart, for the sake of its other anchors.
    owner, run = apart.logical_not_().nonzero(as_tuple=True)

    row = image.expand(len(objects)).index_select(0, owner) * left.shape[1] + run
    touches = left.flatten(0, 1).index_select(0, row) < x2.index_select(0, owner)
    touches &= top.flatten(0, 1).index_select(0, row) < y2.index_select(0, owner)
    touches &= right.flatten(0, 1).index_select(0, row) > x1.index_select(0, owner)
    touches &= bottom.flatten(0, 1).index_select(0, row) > y1.index_select(0, owner)
    hit, place = touches.nonzero(as_tuple=True)
    return Pairs(owner.index_select(0, hit), run.index_select(0, hit) * RUN + place)


def pairs_inside(objects: Objects, points: Tensor) -> Pairs:
    """Return the pairs whose anchor point lies strictly inside the object.

    Args:
        objects: N objects.
        points: (A, 2) px.

    Returns:
        P pairs.
    """
    kind = objects.kind
    pairs = _extents_touching(objects, kind.extent(objects.boxes), torch.cat((points, points), 1))
    if kind.fills_extent:
        return pairs
    inside = kind.sides_from(points[pairs.anchor], objects.boxes[pairs.object]).amin(1) > 0
    return pairs[rows_where(inside)]


def rows_of(pairs: Pairs, objects: Objects, boxes: Tensor) -> Tensor:
    """Return the anchors' boxes, (P, 4), of (A, 4) alike for every image, or (B, A, 4)."""
    anchor = pairs.anchor
    if boxes.ndim == 3:
        anchor = (objects.image * boxes.shape[1]).index_select(0, pairs.object) + anchor
    # index_select copies whole rows, which indexing with brackets does not.
    return boxes.reshape(-1, boxes.shape[-1]).index_select(0, anchor)
