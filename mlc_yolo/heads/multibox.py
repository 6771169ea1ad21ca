"""The head of Mutual Guidance's detectors (Zhang et al., ACCV 2020): SSD's, with six priors per cell.

Source: SSD (Liu et al., ECCV 2016, section 2.2): one 3x3 convolution per level and task, shared with no other level.

1. Priors are centred on the cells. On level k they have sides 24 * 2^k px and sqrt(2) times that, and a side s has the
   ratios r = 1, 2 and 1/2 as s * sqrt(r) by s / sqrt(r).
2. Boxes are deltas to the priors with SSD's variances 0.1 and 0.2.
3. Class biases start at a score of 0.01, as in focal loss' paper (RetinaNet, ICCV 2017, section 4.1).

Our decisions: decoded sides are bounded as in the other heads, and the IoU layer (MLC, arXiv 2103.08958, section 3.2),
a further 3x3 convolution per level, is optional. Level k has stride 8 * 2^k also where the input is no multiple of it:
the last cells then reach over the input's edge.

Difference: Mutual Guidance's code clips the sides of priors to the image's, at 320 px two of the six of the coarsest
cells (50 of 12,750 priors, 384 px long). Here inputs may be smaller at validation than in training, and deltas learned
for one prior must not be decoded with another. Effect not measured.

The import paths of these classes are written into checkpoints: they are a file format and must not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mlc_yolo.assigners.max_iou import MaxIoU
from mlc_yolo.coding import decode_delta, encode_delta
from mlc_yolo.heads.dense import DenseDetect, LossRecipe, Quality, flat, level_sizes, zero_conv
from mlc_yolo.heads.prior_cache import built_once
from mlc_yolo.priors import Priors, grid_priors

#: SSD's divisors of the centre and of the size deltas.
VARIANCES = (0.1, 0.2)
#: A decoded side is at most this many times its prior's, as in torchvision.
_MAX_GROWTH = math.log(1000 / 16)
_FINEST_SIDE = 24.0
_SCALES = (1.0, math.sqrt(2))
_RATIOS = (1.0, 2.0, 0.5)
_CLASS_PRIOR = 0.01


class MultiBoxDetect(DenseDetect):
    """SSD's head: one convolution per level and task, six priors per cell."""

    own_assigner = MaxIoU(positive_iou=0.5, negative_iou=0.4)
    recipe = LossRecipe("focal", "balanced_l1", gamma=1.0)

    def __init__(self, num_classes: int, widths: Sequence[int], *, quality: Quality):
        """Build the head.

        Args:
            num_classes: K.
            widths: channels of the L levels, with strides 8, 16, ...: 4 for inputs of 320 px (12,750 priors), 5 for
                512 px (32,736).
            quality: "iou" or "none".
        """
        super().__init__(num_classes, tuple(8 * 2**level for level in range(len(widths))), quality=quality)
        self.levels = nn.ModuleList([LevelOutputs(width, num_classes, quality=quality) for width in widths])

    def priors(self, feats: list[Tensor], *, scale: float) -> Priors:
        """Return the priors, a cell's six together: sides ascending, each with ratios 1, 2, 1/2.

        `scale` is for point-based heads.
        """
        return _priors(level_sizes(feats), feats[0].device)

    def raw(self, feats: list[Tensor]) -> dict[str, Any]:
        """Return deltas, class logits and, with the IoU layer, quality logits."""
        outputs = [level(m) for level, m in zip(self.levels, feats, strict=True)]
        raw: dict[str, Any] = {
            name: flat([maps[name] for maps in outputs], width)
            for name, width in (("boxes", 4), ("scores", self.nc), ("quality", 1))
            if name in outputs[0]
        }
        if self.quality == "iou":
            raw["quality"] = raw["quality"][..., 0]
        return {**raw, "feats": feats}

    def decode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Decode deltas (..., 4) to xyxy px."""
        shift, growth = boxes.float().split(2, -1)
        bounded = torch.cat((shift, growth.clamp(max=_MAX_GROWTH / VARIANCES[1])), -1)
        return decode_delta(bounded, priors.boxes, variances=VARIANCES)

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Encode xyxy px boxes as deltas."""
        return encode_delta(boxes, priors.boxes, variances=VARIANCES)


class LevelOutputs(nn.Module):
    """The output convolutions of one level."""

    def __init__(self, width: int, num_classes: int, *, quality: Quality):
        """Build them with small weights, as focal loss' paper has it."""
        super().__init__()
        priors = len(_SCALES) * len(_RATIOS)
        self.cls_logits = nn.Conv2d(width, priors * num_classes, 3, padding=1)
        self.bbox_reg = nn.Conv2d(width, priors * 4, 3, padding=1)
        for conv, score in ((self.cls_logits, _CLASS_PRIOR), (self.bbox_reg, 0.5)):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.get_parameter("bias"), math.log(score / (1 - score)))
        if quality == "iou":
            self.cv_iou = zero_conv(width, priors, 3)

    def forward(self, level: Tensor) -> dict[str, Tensor]:
        """Return the maps (B, 6 * n, H, W) of one level (B, width, H, W): n is 4 boxes, K scores or 1 quality."""
        maps = {"boxes": self.bbox_reg(level), "scores": self.cls_logits(level)}
        return {**maps, "quality": self.cv_iou(level)} if hasattr(self, "cv_iou") else maps


@built_once
def _priors(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Priors:
    strides = [8.0 * 2**level for level in range(len(sizes))]
    cells = grid_priors(sizes, strides, device=device)
    growth = cells.strides / strides[0]  # sides double with the stride
    offsets = _finest_priors().to(growth.device) * growth[:, None, None]
    boxes = torch.cat((cells.points, cells.points), 1)[:, None] + offsets
    cell = torch.arange(len(cells), device=growth.device)[:, None].expand(-1, len(offsets[0])).reshape(-1)
    return replace(cells[cell], boxes=boxes.reshape(-1, 4))


def _finest_priors() -> Tensor:
    """Return the finest level's priors (6, 4) around a cell's centre."""
    sides = [
        (_FINEST_SIDE * scale * math.sqrt(ratio), _FINEST_SIDE * scale / math.sqrt(ratio))
        for scale in _SCALES
        for ratio in _RATIOS
    ]
    half = torch.tensor(sides) / 2
    return torch.cat((-half, half), 1)


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([MultiBoxDetect, LevelOutputs])
