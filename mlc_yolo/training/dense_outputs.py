"""A head's decoded predictions at every anchor, with gradients. Distillation compares student and teacher by them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """A branch's predictions at every anchor.

    Attributes:
        logits: (B, A, K) class logits.
        boxes: (B, A, 4) xyxy px of its own input.
        distributions: (B, A, 4, R) logits over distances in strides, where the head has them.
        quality: (B, A) logits of predicted IoU or centerness, where the head has them.
        sizes: (H, W) in cells, of each level.
    """

    logits: Tensor
    boxes: Tensor
    distributions: Tensor | None
    quality: Tensor | None
    sizes: list[tuple[int, int]]

    def at(self, anchors: slice, *, zoom: float = 1.0) -> Dense:
        """Return some anchors, their boxes `zoom` times as large."""
        cut = [None if part is None else part[:, anchors] for part in (self.distributions, self.quality)]
        return Dense(self.logits[:, anchors], self.boxes[:, anchors] * zoom, cut[0], cut[1], self.sizes)


@dataclass(frozen=True)
class Gains:
    """Weights of a criterion's terms.

    Attributes:
        classes: of the class loss.
        boxes: of 1 - GIoU.
        distributions: of the distributions' KL.
        quality: of the predicted IoU's squared error.
    """

    classes: float
    boxes: float
    distributions: float
    quality: float


def level_sizes(feats: list[Tensor]) -> list[tuple[int, int]]:
    """Return (H, W) in cells of each feature map (B, C, H, W)."""
    return [(int(features.shape[2]), int(features.shape[3])) for features in feats]
