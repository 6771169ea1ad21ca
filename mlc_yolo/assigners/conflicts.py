"""One anchor claimed by several objects of its image: who gets it."""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.objects import Objects
from mlc_yolo.assigners.pairs import Pairs


def keep_best(pairs: Pairs, objects: Objects, values: Tensor, *, batch: int, anchors: int) -> Tensor:
    """Keep, for every anchor of every image, the pair with the largest value; ties go to the lower object.

    Args:
        pairs: P pairs.
        objects: N objects.
        values: (P,) float.
        batch: B.
        anchors: A.

    Returns:
        (P,) bool, True for at most one pair of each anchor.
    """
    key = anchor_key(pairs, objects, anchors)
    best = values.new_full((batch * anchors,), -torch.inf).scatter_reduce_(0, key, values, "amax")
    is_best = values == best.index_select(0, key)
    contender = torch.where(is_best, pairs.object, len(objects))
    first = contender.new_full((batch * anchors,), len(objects)).scatter_reduce_(0, key, contender, "amin")
    return is_best & (pairs.object == first.index_select(0, key))


def anchor_key(pairs: Pairs, objects: Objects, anchors: int) -> Tensor:
    """Number the anchors of the whole batch: (P,) int64 in [0, B * A)."""
    return (objects.image * anchors).index_select(0, pairs.object) + pairs.anchor
