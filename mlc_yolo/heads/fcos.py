"""FCOS' head (Tian et al., ICCV 2019): torchvision's layers, boxes as distances from a point, a quality layer.

Two sets of conventions, chosen by `follows`:

| | paper (and mmdetection, where MLC's baselines come from) | torchvision |
|---|---|---|
| points | cell centres | cells' upper left corners |
| distances | exp(scale of the level * x) px | relu(x) * stride |
| centerness reads | the classification tower | the regression tower |
| confidence | class * centerness | its square root |
| box loss | -ln IoU, weighed by centerness where that is learned | GIoU |

MLC (arXiv 2103.08958, section 3.2) replaces centerness by the predicted IoU, on the regression tower.

The import path of `FCOSDetect` is written into checkpoints: it is a file format and must not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

from mlc_yolo.assigners.point_in_box import PointInBox
from mlc_yolo.coding import decode_distance, encode_distance
from mlc_yolo.heads.dense import DenseDetect, LossRecipe, Quality, flat, grid_steps, level_sizes, zero_conv
from mlc_yolo.heads.prior_cache import built_once
from mlc_yolo.priors import Priors, grid_priors, square_priors

#: Largest log distance: e^9 px is beyond any image, and keeps float32 gradients finite.
_MAX_LOG_DISTANCE = 9.0


class FCOSDetect(DenseDetect):
    """FCOS: two towers of four convolutions with group norm, one anchor per cell."""

    level_strides = (8, 16, 32, 64, 128)
    own_assigner = PointInBox()

    def __init__(self, num_classes: int, width: int, *, quality: Quality, follows: str):
        """Build the head.

        Args:
            num_classes: K.
            width: channels of the pyramid and the towers, a multiple of 32.
            quality: "iou", "centerness" or "none".
            follows: "paper" or "torchvision".
        """
        super().__init__(num_classes, self.level_strides, quality=quality)
        self.torchvision_rules = follows == "torchvision"
        self.classification_head = FCOSClassificationHead(width, 1, num_classes)
        self.regression_head = FCOSRegressionHead(width, 1)
        if quality != "centerness":
            del self.regression_head.bbox_ctrness
        if quality == "iou":
            self.cv_iou = zero_conv(width, 1, 3)
        if not self.torchvision_rules:
            self.scales = nn.Parameter(torch.ones(self.nl))
        self.recipe = LossRecipe(
            "focal",
            "giou" if self.torchvision_rules else "log_iou",
            weigh_by_centerness=not self.torchvision_rules,
        )

    def priors(self, feats: list[Tensor], *, scale: float) -> Priors:
        """Return the anchor points with square priors of `scale` strides."""
        corners = self.torchvision_rules
        return _priors(level_sizes(feats), self.level_strides, scale, corners, feats[0].device)

    def raw(self, feats: list[Tensor]) -> dict[str, Any]:
        """Return log distances (torchvision: distances in strides), class logits and, where learned, quality logits."""
        regression = [self.regression_head.conv(m) for m in feats]
        classification = [self.classification_head.conv(m) for m in feats]
        boxes = [self.regression_head.bbox_reg(t) for t in regression]
        if self.torchvision_rules:
            boxes = [b.relu() for b in boxes]
        else:
            boxes = [b * scale for b, scale in zip(boxes, self.scales, strict=True)]
        raw = {
            "boxes": flat(boxes, 4),
            "scores": flat([self.classification_head.cls_logits(t) for t in classification], self.nc),
            "feats": feats,
        }
        if self.quality == "iou":
            raw["quality"] = flat([self.cv_iou(t) for t in regression], 1)[..., 0]
        elif self.quality == "centerness":
            towers = regression if self.torchvision_rules else classification
            raw["quality"] = flat([self.regression_head.bbox_ctrness(t) for t in towers], 1)[..., 0]
        return raw

    def confidence(self, scores: Tensor, quality: Tensor | None) -> Tensor:
        """Return class times quality, and its square root where torchvision takes that."""
        confidence = super().confidence(scores, quality)
        return confidence.sqrt() if self.torchvision_rules and self.quality == "centerness" else confidence

    def decode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Decode raw distances (..., 4) to xyxy px."""
        if self.torchvision_rules:
            distances = boxes.float() * priors.strides[..., None]
        else:
            distances = boxes.float().clamp(max=_MAX_LOG_DISTANCE).exp()
        return decode_distance(distances, priors.points)

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Encode xyxy px boxes that hold their point as raw distances."""
        distances = encode_distance(boxes, priors.points)
        return distances / priors.strides[..., None] if self.torchvision_rules else distances.log()


@built_once
def _priors(
    sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], scale: float, corners: bool, device: torch.device
) -> Priors:
    centred = grid_priors(sizes, strides, scale=scale, device=device)
    if not corners:
        return centred
    points = []
    for (height, width), (step_y, step_x) in zip(sizes, grid_steps(sizes, strides[0]), strict=True):
        y, x = torch.arange(height, device=device), torch.arange(width, device=device)
        grid = torch.meshgrid(y * step_y, x * step_x, indexing="ij")
        points.append(torch.stack((grid[1], grid[0]), -1).reshape(-1, 2))
    return square_priors(torch.cat(points), centred.strides, centred.levels, scale=scale)


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([FCOSDetect, FCOSClassificationHead, FCOSRegressionHead])
