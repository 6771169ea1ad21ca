"""How well the anchor of a pair suits its object: by its box, and by what it predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.assignment import Predictions
from mlc_yolo.assigners.objects import Objects
from mlc_yolo.assigners.pairs import Pairs, rows_of


def pairs_iou(pairs: Pairs, objects: Objects, boxes: Tensor) -> Tensor:
    """Return the IoU of each pair's object with its anchor's box; their probiou where boxes are oriented.

    Args:
        pairs: P pairs.
        objects: N objects.
        boxes: (A, 4) or (B, A, 4), alike for every image or not, of the objects' kind.

    Returns:
        (P,) float32 in [0, 1].
    """
    return objects.kind.overlap(rows_of(pairs, objects, boxes), objects.boxes.index_select(0, pairs.object))


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
    return pairs_score(pairs, objects, predictions.scores), pairs_iou(pairs, objects, predictions.boxes)


def pairs_score(pairs: Pairs, objects: Objects, scores: Tensor) -> Tensor:
    """Return each pair's score of its object's class, (P,).

    Args:
        pairs: P pairs.
        objects: N objects.
        scores: (B, A, K), laid out in any way: a criterion's are (B, K, A) in memory.
    """
    if not scores.numel():
        return scores.new_zeros(len(pairs))
    by_image, by_anchor, by_class = scores.stride()
    length = 1 + sum((size - 1) * stride for size, stride in zip(scores.shape, scores.stride(), strict=True))
    # One index into memory, where three indices with brackets take several times as long.
    first = objects.image * by_image + objects.labels * by_class
    place = first.index_select(0, pairs.object) + pairs.anchor * by_anchor
    return torch.as_strided(scores, (length,), (1,)).index_select(0, place)
