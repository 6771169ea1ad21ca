"""RetinaNet's and RPN's heads: torchvision's layers, boxes as deltas to torchvision's anchors, and the IoU layer.

Sources: RetinaNet (Lin et al., ICCV 2017, section 4), RPN (Ren et al., NeurIPS 2015, with FPN), MLC (arXiv 2103.08958,
section 3.2) for the IoU layer: one convolution on the localisation branch, one logit per anchor. RPN has one branch for
both tasks; its IoU layer reads that.

The import paths of these classes are written into checkpoints: they are a file format and must not change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetRegressionHead
from torchvision.models.detection.rpn import RPNHead

from mlc_yolo.assigners.max_iou import MaxIoU
from mlc_yolo.coding import decode_delta, encode_delta
from mlc_yolo.heads.dense import DenseDetect, LossRecipe, Quality, flat, grid_steps, level_sizes, zero_conv
from mlc_yolo.heads.prior_cache import built_once
from mlc_yolo.priors import Priors

#: A decoded side is at most this many times its prior's: torchvision's bound, also mmdetection's.
_MAX_GROWTH = math.log(1000 / 16)
_RATIOS = (0.5, 1.0, 2.0)


class AnchorDetect(DenseDetect):
    """A head that regresses deltas to anchor boxes."""

    #: Anchor sides per level in px.
    sides: tuple[tuple[int, ...], ...]

    def priors(self, feats: list[Tensor], *, scale: float) -> Priors:
        """Return torchvision's anchors; `scale` is for point-based heads."""
        return _priors(level_sizes(feats), self.level_strides, self.sides, feats[0].device)

    def decode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Decode deltas (..., 4) to xyxy px."""
        shift, growth = boxes.float().split(2, -1)
        return decode_delta(torch.cat((shift, growth.clamp(max=_MAX_GROWTH)), -1), priors.boxes)

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Encode xyxy px boxes as deltas."""
        return encode_delta(boxes, priors.boxes)


class RetinaNetDetect(AnchorDetect):
    """RetinaNet: two towers of four convolutions, nine anchors per cell, focal loss."""

    level_strides = (8, 16, 32, 64, 128)
    sides = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512))
    own_assigner = MaxIoU(positive_iou=0.5, negative_iou=0.4)

    def __init__(self, num_classes: int, width: int, *, quality: Quality, follows: str):
        """Build the head.

        Args:
            num_classes: K.
            width: channels of the pyramid and the towers.
            quality: "iou" or "none".
            follows: "paper" (Smooth-L1 with beta 0.11) or "torchvision" (L1).
        """
        super().__init__(num_classes, self.level_strides, quality=quality)
        anchors = len(_RATIOS) * len(self.sides[0])
        self.classification_head = RetinaNetClassificationHead(width, anchors, num_classes)
        self.regression_head = RetinaNetRegressionHead(width, anchors)
        if quality == "iou":
            self.cv_iou = zero_conv(width, anchors, 3)
        self.recipe = LossRecipe("focal", "l1" if follows == "torchvision" else "smooth_l1")

    def raw(self, feats: list[Tensor]) -> dict[str, Any]:
        """Return deltas, class logits and, with the IoU layer, quality logits."""
        towers = [self.regression_head.conv(m) for m in feats]
        scores = [self.classification_head.cls_logits(self.classification_head.conv(m)) for m in feats]
        raw = {
            "boxes": flat([self.regression_head.bbox_reg(t) for t in towers], 4),
            "scores": flat(scores, self.nc),
            "feats": feats,
        }
        if self.quality == "iou":
            raw["quality"] = flat([self.cv_iou(t) for t in towers], 1)[..., 0]
        return raw


class RPNDetect(AnchorDetect):
    """RPN: one shared 3x3 convolution, three anchors per cell, one class ("object"); NMS within a level."""

    level_strides = (4, 8, 16, 32, 64)
    sides = ((32,), (64,), (128,), (256,), (512,))
    own_assigner = MaxIoU(positive_iou=0.7, negative_iou=0.3)
    recipe = LossRecipe("bce", "smooth_l1", sample=256)

    def __init__(self, num_classes: int, width: int, *, quality: Quality, follows: str):
        """Build the head.

        Args:
            num_classes: 1.
            width: channels of the pyramid.
            quality: "iou" or "none".
            follows: no difference here.
        """
        super().__init__(num_classes, self.level_strides, quality=quality, pre_nms=2000)
        self.rpn = RPNHead(width, len(_RATIOS))
        if quality == "iou":
            self.cv_iou = zero_conv(width, len(_RATIOS), 1)

    @property
    def extra_channels(self) -> tuple[str, ...]:
        """The pyramid level comes last, because NMS runs within levels."""
        return super().extra_channels if self.export else (*super().extra_channels, "level")

    def raw(self, feats: list[Tensor]) -> dict[str, Any]:
        """Return deltas, objectness logits and, with the IoU layer, quality logits."""
        hidden = [self.rpn.conv(m) for m in feats]
        raw = {
            "boxes": flat([self.rpn.bbox_pred(t) for t in hidden], 4),
            "scores": flat([self.rpn.cls_logits(t) for t in hidden], 1),
            "feats": feats,
        }
        if self.quality == "iou":
            raw["quality"] = flat([self.cv_iou(t) for t in hidden], 1)[..., 0]
        return raw


@built_once
def _priors(
    sizes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    sides: tuple[tuple[int, ...], ...],
    device: torch.device,
) -> Priors:
    generator = AnchorGenerator(sides, (_RATIOS,) * len(sides))
    generator.set_cell_anchors(torch.float32, device)
    steps = [list(step) for step in grid_steps(sizes, strides[0])]
    per_level = generator.grid_anchors([list(size) for size in sizes], steps)
    boxes = torch.cat(per_level)
    counts = torch.tensor([len(level) for level in per_level], device=device)
    levels = torch.arange(len(sizes), device=device).repeat_interleave(counts, output_size=len(boxes))
    per_anchor = torch.tensor(strides, dtype=torch.float32, device=device)[levels]
    return Priors((boxes[:, :2] + boxes[:, 2:]) / 2, boxes, per_anchor, levels)


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals(
    [RetinaNetDetect, RPNDetect, RetinaNetClassificationHead, RetinaNetRegressionHead, RPNHead, BoxCoder]
)
