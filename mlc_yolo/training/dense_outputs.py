"""A head's decoded predictions at every anchor, with gradients. Distillation compares student and teacher by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mlc_yolo.box_kinds import ORIENTED, UPRIGHT, BoxKind
from mlc_yolo.coding import decode_distance
from mlc_yolo.losses.product import product_logits
from mlc_yolo.oriented import from_sides
from mlc_yolo.priors import grid_priors


@dataclass(frozen=True)
class Dense:
    """A branch's predictions of boxes and classes at every anchor.

    Attributes:
        logits: (B, A, K) class logits; of a YOLO whose class loss is that of class score times predicted IoU, logits of
            that product.
        boxes: (B, A, 4) xyxy px of its own input, or (B, A, 5) of oriented boxes.
        distributions: (B, A, 4, R) logits over distances in strides, where the head has them; of oriented boxes along
            their own axes.
        quality: (B, A) logits of predicted IoU or centerness, where the head has them.
        sizes: (H, W) in cells, of each level.
        kind: what the boxes are.
    """

    logits: Tensor
    boxes: Tensor
    distributions: Tensor | None
    quality: Tensor | None
    sizes: list[tuple[int, int]]
    kind: BoxKind = UPRIGHT

    def at(self, anchors: slice, *, zoom: float = 1.0) -> Dense:
        """Return some anchors, their boxes `zoom` times as large."""
        cut = [None if part is None else part[:, anchors] for part in (self.distributions, self.quality)]
        boxes = self.kind.scaled(self.boxes[:, anchors], zoom)
        return Dense(self.logits[:, anchors], boxes, cut[0], cut[1], self.sizes, self.kind)

    def of(self, classes: Tensor) -> Dense:
        """Return some classes, by their indices (n,)."""
        return replace(self, logits=self.logits[..., classes])


@dataclass(frozen=True)
class Gains:
    """Weights of a criterion's terms.

    Attributes:
        classes: of the class loss.
        boxes: of 1 - GIoU, of oriented boxes 1 - probiou.
        distributions: of the distributions' KL.
        quality: of the predicted IoU's squared error.
    """

    classes: float
    boxes: float
    distributions: float
    quality: float


def yolo_dense(raw: dict[str, Any], strides: Sequence[float], *, rescore: bool = True) -> Dense:
    """Return a YOLO's raw predictions decoded, by its outputs' shapes alone.

    Its logits are those of what it ranks detections by: with an IoU channel, of class score times predicted IoU.

    Args:
        raw: boxes (B, 4R, A), scores (B, K, A), feats, and where the head has them iou (B, 1, A) and angle (B, 1, A).
        strides: input px per cell of each level.
        rescore: whether it ranks by the predicted IoU too.
    """
    sizes = level_sizes(raw["feats"])
    sides = raw["boxes"].float().transpose(1, 2).unflatten(2, (4, -1))
    bins = torch.arange(sides.shape[-1], dtype=torch.float32, device=sides.device)
    distances = sides.softmax(-1) @ bins if len(bins) > 1 else sides[..., 0]
    priors = grid_priors(sizes, strides, device=sides.device)
    sides_px = distances * priors.strides[:, None]
    if "angle" in raw:
        boxes, kind = from_sides(priors.points, sides_px, raw["angle"].transpose(1, 2)), ORIENTED
    else:
        boxes, kind = decode_distance(sides_px, priors.points), UPRIGHT
    quality = raw["iou"][:, 0] if "iou" in raw else None
    logits = raw["scores"].transpose(1, 2)
    if quality is not None and rescore:
        logits = product_logits(logits, quality[..., None])
    return Dense(logits, boxes, sides if len(bins) > 1 else None, quality, sizes, kind)


def level_sizes(feats: list[Tensor]) -> list[tuple[int, int]]:
    """Return (H, W) in cells of each feature map (B, C, H, W)."""
    return [(int(features.shape[2]), int(features.shape[3])) for features in feats]
