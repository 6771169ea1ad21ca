"""The objects of a batch as one flat list, so that all of them are handled at once and padding costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mlc_yolo.assigners.assignment import Targets
from mlc_yolo.box_kinds import UPRIGHT, BoxKind


@dataclass(frozen=True)
class Objects:
    """The N objects of a batch that have an area.

    Attributes:
        image: (N,) int64 in [0, B).
        slot: (N,) int64 in [0, M), the object's place in its image's targets.
        labels: (N,) int64 in [0, K).
        boxes: (N, 4) float32, xyxy px; (N, 5) of oriented ones.
        kind: what the boxes are.
    """

    image: Tensor
    slot: Tensor
    labels: Tensor
    boxes: Tensor
    kind: BoxKind = UPRIGHT

    def __len__(self) -> int:
        """Return N."""
        return len(self.image)


def flatten_targets(targets: Targets) -> Objects:
    """Drop padding and boxes without area.

    Args:
        targets: labels, boxes and validity of a batch.

    Returns:
        N objects, image by image in slot order.
    """
    image, slot = (targets.valid & (targets.kind.area(targets.boxes) > 0)).nonzero(as_tuple=True)
    return Objects(image, slot, targets.labels[image, slot], targets.boxes[image, slot], targets.kind)
