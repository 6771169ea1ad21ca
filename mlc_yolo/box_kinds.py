"""What an assigner asks of boxes, for upright and for oriented ones: one set of rules serves both.

An assigner compares, places and ranks boxes, and never looks at their numbers. `Targets` says of which kind the boxes
of a batch are; predictions and priors are of the same kind.
"""

from __future__ import annotations

from typing import Final, Protocol

import torch
from torch import Tensor

from mlc_yolo import oriented
from mlc_yolo.boxes import aligned_ciou, aligned_iou, box_area


class BoxKind(Protocol):
    """The geometry of one kind of boxes, each `numbers` long; lengths in input px.

    Attributes:
        numbers: length of a box's row.
        fills_extent: whether a box is all of its extent.
    """

    numbers: int
    fills_extent: bool

    def area(self, boxes: Tensor) -> Tensor:
        """Return areas in px^2, (...) of (..., numbers); 0 of a box without area."""

    def overlap(self, first: Tensor, second: Tensor) -> Tensor:
        """Return how well matching rows fit, (P,) float32 in [0, 1]."""

    def alignment(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the overlap that task-aligned assignment goes by, (P,) float32 in [0, 1]."""

    def extent(self, boxes: Tensor) -> Tensor:
        """Return the upright boxes around boxes, (..., 4) xyxy."""

    def touch(self, first: Tensor, second: Tensor) -> Tensor:
        """Tell whether matching rows share more than an edge, (P,) bool."""

    def centre(self, boxes: Tensor) -> Tensor:
        """Return centres, (..., 2)."""

    def sides_from(self, points: Tensor, boxes: Tensor) -> Tensor:
        """Return the distances (P, 4) of points (P, 2) from the sides of boxes, above 0 inside: l, t, r, b."""

    def widened(self, boxes: Tensor, minimum: Tensor) -> Tensor:
        """Return boxes whose sides are `minimum` at least, about the same centres."""

    def of_labels(self, rows: Tensor) -> Tensor:
        """Return the boxes of rows of labels, (N, numbers) in px: x, y, w, h and, of oriented boxes, the angle."""

    def of_upright(self, boxes: Tensor) -> Tensor:
        """Return upright boxes (..., 4) xyxy as boxes of this kind."""

    def scaled(self, boxes: Tensor, factor: Tensor | float) -> Tensor:
        """Return boxes (..., numbers) with every length times `factor`, (..., 1) or a number."""


class _Upright:
    """Boxes xyxy, compared by IoU, for alignment by CIoU."""

    numbers, fills_extent = 4, True

    def area(self, boxes: Tensor) -> Tensor:
        return box_area(boxes)

    def overlap(self, first: Tensor, second: Tensor) -> Tensor:
        return aligned_iou(first, second)

    def alignment(self, first: Tensor, second: Tensor) -> Tensor:
        return aligned_ciou(first, second).clamp_(min=0)

    def extent(self, boxes: Tensor) -> Tensor:
        return boxes

    def touch(self, first: Tensor, second: Tensor) -> Tensor:
        begin, end = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
        return (begin < end).all(1)

    def centre(self, boxes: Tensor) -> Tensor:
        return (boxes[..., :2] + boxes[..., 2:]) / 2

    def sides_from(self, points: Tensor, boxes: Tensor) -> Tensor:
        return torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), 1)

    def widened(self, boxes: Tensor, minimum: Tensor) -> Tensor:
        centre, half = self.centre(boxes), torch.maximum(boxes[:, 2:] - boxes[:, :2], minimum) / 2
        return torch.cat((centre - half, centre + half), 1)

    def of_labels(self, rows: Tensor) -> Tensor:
        centre, half = rows[:, :2], rows[:, 2:] / 2
        return torch.cat((centre - half, centre + half), 1)

    def of_upright(self, boxes: Tensor) -> Tensor:
        return boxes

    def scaled(self, boxes: Tensor, factor: Tensor | float) -> Tensor:
        return boxes * factor


class _Oriented:
    """Boxes (x, y, w, h, r), compared by probiou; their rules are those of `mlc_yolo/oriented.py`."""

    numbers, fills_extent = 5, False

    def area(self, boxes: Tensor) -> Tensor:
        return boxes[..., 2:4].float().clamp(min=0).prod(-1)

    def overlap(self, first: Tensor, second: Tensor) -> Tensor:
        return oriented.aligned_probiou(first, second)

    def alignment(self, first: Tensor, second: Tensor) -> Tensor:
        return oriented.aligned_probiou(first, second)

    def extent(self, boxes: Tensor) -> Tensor:
        return oriented.extent(boxes)

    def touch(self, first: Tensor, second: Tensor) -> Tensor:
        return oriented.aligned_touch(first, second)

    def centre(self, boxes: Tensor) -> Tensor:
        return boxes[..., :2]

    def sides_from(self, points: Tensor, boxes: Tensor) -> Tensor:
        return oriented.sides_from(points, boxes)

    def widened(self, boxes: Tensor, minimum: Tensor) -> Tensor:
        return torch.cat((boxes[:, :2], torch.maximum(boxes[:, 2:4], minimum), boxes[:, 4:]), 1)

    def of_labels(self, rows: Tensor) -> Tensor:
        return rows

    def of_upright(self, boxes: Tensor) -> Tensor:
        begin, end = boxes[..., :2], boxes[..., 2:]
        return torch.cat(((begin + end) / 2, end - begin, torch.zeros_like(boxes[..., :1])), -1)

    def scaled(self, boxes: Tensor, factor: Tensor | float) -> Tensor:
        return torch.cat((boxes[..., :4] * factor, boxes[..., 4:]), -1)


UPRIGHT: Final[BoxKind] = _Upright()
ORIENTED: Final[BoxKind] = _Oriented()
