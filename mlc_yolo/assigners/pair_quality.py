"""How well the anchor of a pair suits its object: by its box, and by what it predicts."""

from __future__ import annotations

from torch import Tensor

from mlc_yolo.assigners.assignment import Predictions
from mlc_yolo.assigners.objects import Objects
from mlc_yolo.assigners.pairs import Pairs
from mlc_yolo.boxes import aligned_iou


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
