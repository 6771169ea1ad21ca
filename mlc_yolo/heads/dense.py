"""The common base of RetinaNet, FCOS and RPN heads: raw output, ranking, and the form that Ultralytics reads.

Raw predictions are a dict: `boxes` (B, A, 4) in the head's own coding, `scores` (B, A, K) class logits, `quality`
(B, A) logits of the predicted IoU or centerness where the head has such a layer, and `feats`, the L feature maps. They
keep the layout (B, A, ...) in which torchvision's heads give them.

At inference:
1. confidence = sigmoid(class) * sigmoid(quality) (FCOS as torchvision trains it: the square root).
2. Per level the `pre_nms` best (anchor, class) pairs stay, as torchvision selects them; their anchors are handed on.
3. Boxes are decoded and clipped to the network's input.

Heads derive from `Detect` because Ultralytics asks for it: strides, export flags and task guessing then work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.ops import xyxy2xywh

from mlc_yolo.assigners.claims import StaticAssigner
from mlc_yolo.priors import Priors

#: What the layer beside the boxes predicts, if there is one.
Quality = Literal["iou", "centerness", "none"]


@dataclass(frozen=True)
class LossRecipe:
    """How a detector is trained; read by the criterion.

    Attributes:
        classification: "focal" or "bce".
        box: "smooth_l1", "l1", "balanced_l1" (on the head's coding), "giou" or "log_iou" (on decoded boxes).
        gamma: exponent of the focal loss.
        sample: anchors per image that the losses see, half of them positive at most; None is all.
        weigh_by_centerness: where centerness is learned, boxes weigh by it.
    """

    classification: Literal["focal", "bce"]
    box: Literal["smooth_l1", "l1", "balanced_l1", "giou", "log_iou"]
    gamma: float = 2.0
    sample: int | None = None
    weigh_by_centerness: bool = False


class DenseDetect(Detect):
    """Base of the ported heads.

    Attributes:
        quality: what the quality layer predicts.
        rescore: whether inference ranks by the predicted quality too.
        rank_by_iou: whether inference hands the predicted IoU to NMS as a channel of its own (IoU-guided NMS), the
            class scores then being the classes' alone.
        placement: whether inference appends the predicted IoU to its output, as exported files may have it.
        recipe: how to train it.
        own_assigner: the static assigner the detector was published with.
        pre_nms: pairs kept per level.
    """

    rank_by_iou = False
    placement = False
    level_strides: tuple[int, ...]
    recipe: LossRecipe
    own_assigner: StaticAssigner

    def __init__(self, num_classes: int, level_strides: tuple[int, ...], *, quality: Quality, pre_nms: int = 1000):
        """Set up what Ultralytics reads; subclasses add the layers.

        Args:
            num_classes: K.
            level_strides: input px per cell, finest level first.
            quality: what the layer beside the boxes predicts.
            pre_nms: (anchor, class) pairs kept per level at inference.
        """
        nn.Module.__init__(self)  # Detect's own would build YOLO's towers
        self.nc = num_classes
        self.nl = len(level_strides)
        self.reg_max = 1
        self.no = num_classes + 4
        self.level_strides = level_strides  # plain numbers: reading `stride` would wait for an accelerator
        self.stride = torch.tensor(level_strides, dtype=torch.float32)
        self.cv2, self.cv3 = nn.ModuleList(), nn.ModuleList()  # None would mean a branch that fusion removed
        self.dfl = nn.Identity()
        self.quality = quality
        self.rescore = True
        self.pre_nms = pre_nms

    def priors(self, feats: list[Tensor], *, scale: float) -> Priors:
        """Return the priors of feature maps of these sizes: of one size the same object, not to be written to.

        Args:
            feats: L feature maps (B, C, H, W).
            scale: side of the square priors of point-based heads, in strides.
        """
        raise NotImplementedError

    def raw(self, feats: list[Tensor]) -> dict[str, Any]:
        """Return the raw predictions on L feature maps."""
        raise NotImplementedError

    def decode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Decode raw boxes (..., 4) to xyxy px, float32; `priors` has the same leading shape, or broadcasts to it."""
        raise NotImplementedError

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        """Encode xyxy px boxes as this head regresses them; the inverse of `decode`."""
        raise NotImplementedError

    def confidence(self, scores: Tensor, quality: Tensor | None) -> Tensor:
        """Return what detections are ranked by, in [0, 1].

        Args:
            scores: (..., K) class logits.
            quality: (...,) quality logits, or None.
        """
        confidence = scores.sigmoid()
        return confidence if quality is None else confidence * quality.sigmoid()[..., None]

    def forward(self, x: list[Tensor]) -> Any:
        """Return the raw predictions in training; else (B, 4 + K [+ extra], N) and, unless exporting, the raw ones."""
        raw = self.raw(x)
        if self.training:
            return raw
        decoded = self._inference(raw)
        return decoded if self.export else (decoded, raw)

    def bias_init(self) -> None:
        """Do nothing: torchvision's layers come with their initial biases."""

    @property
    def extra_channels(self) -> tuple[str, ...]:
        """Names of the channels after the class scores, outside exports."""
        return ("iou",) if self.rank_by_iou and not self.export else ()

    def _inference(self, raw: dict[str, Any]) -> Tensor:
        """Select, decode and clip; boxes are xywh px (xyxy where Ultralytics asks for it), then confidences; float32.

        Half precision would round coordinates above 1,024 to whole pixels. Outside exports `raw` gets an entry
        `selected`, (B, N) int64: the anchors.
        """
        feats = raw["feats"]
        priors = self.priors(feats, scale=1.0)
        by_iou = "iou" in self.extra_channels  # exports have no such channel: there the IoU stays in the score
        quality = raw.get("quality") if self.rescore and not by_iou else None
        sizes = _anchors_per_level(raw["scores"].shape[1], feats)
        parts, selected, start = [], [], 0
        for level, size in enumerate(sizes):
            here = slice(start, start + size)
            start = start + size  # not in place: while exporting these are tensors, and `here` holds one
            level_quality = None if quality is None else quality[:, here]
            index, confidence = self._select(raw["scores"][:, here], level_quality)
            anchor = index + here.start
            selected.append(anchor)
            boxes = self.decode(_rows(raw["boxes"], anchor), priors[anchor])
            columns = [boxes, confidence]
            for name in (*self.extra_channels, *(("iou",) if self.placement else ())):
                columns.append(
                    _rows(raw["quality"][..., None], anchor).sigmoid()
                    if name == "iou"
                    else torch.full_like(boxes[..., :1], level)
                )
            parts.append(torch.cat([column.float() for column in columns], -1))
        rows = torch.cat(parts, 1)
        if not self.export:
            raw["selected"] = torch.cat(selected, 1)
        height, width = (float(n * self.level_strides[0]) for n in feats[0].shape[2:])
        x, y = rows[..., 0:4:2].clamp(0, width), rows[..., 1:4:2].clamp(0, height)
        boxes = torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1)
        if not self.xyxy:
            boxes = xyxy2xywh(boxes)
        return torch.cat((boxes, rows[..., 4:]), -1).transpose(1, 2)

    def _select(self, scores: Tensor, quality: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the anchors (B, n) of a level's best pairs and their confidences (B, n, K), other pairs at 0."""
        best = self.confidence(scores.amax(-1, keepdim=True), quality)[..., 0]
        index = best.topk(min(self.pre_nms, best.shape[1]), 1).indices
        kept_quality = None if quality is None else quality.gather(1, index)
        confidence = self.confidence(_rows(scores, index), kept_quality)
        pairs = confidence.flatten(1)
        if pairs.shape[1] <= self.pre_nms:
            return index, confidence
        weakest = pairs.topk(self.pre_nms, 1).values[:, -1:, None]
        return index, confidence * (confidence >= weakest)


def zero_conv(channels: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that predicts logit 0 until it is trained, and draws nothing from the global generator."""
    conv = nn.utils.skip_init(nn.Conv2d, channels, outputs, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def flat(maps: list[Tensor], width: int) -> Tensor:
    """Join L maps (B, n * width, H, W) to (B, A, width), a cell's n anchors together, as torchvision does."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, width) for m in maps], 1)


def level_sizes(feats: list[Tensor]) -> tuple[tuple[int, int], ...]:
    """Return (H, W) in cells of L feature maps (B, C, H, W)."""
    return tuple((m.shape[2], m.shape[3]) for m in feats)


def grid_steps(sizes: Sequence[tuple[int, int]], finest: float) -> list[tuple[int, int]]:
    """Return px per cell (y, x) of every level as torchvision has it: the input's size by the map's, rounded down.

    On inputs that the coarsest stride does not divide this is less than that stride.

    Args:
        sizes: (H, W) in cells of every level, finest first.
        finest: stride of the finest.
    """
    height, width = (int(n * finest) for n in sizes[0])
    return [(height // rows, width // columns) for rows, columns in sizes]


def _anchors_per_level(anchors: int, feats: list[Tensor]) -> list[int]:
    cells = [m.shape[2] * m.shape[3] for m in feats]
    return [n * (anchors // sum(cells)) for n in cells]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows: (B, A, C), (B, n) -> (B, n, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([LossRecipe])
