"""A YOLO head that predicts the IoU of its own boxes, and ranks its detections by it.

Source: MLC (arXiv 2103.08958), IoU rescoring: one convolution on the localisation branch predicts the IoU of the
decoded box with its object, and at inference confidence = sigmoid(class logit) * sigmoid(IoU logit).

1. `cv_iou` holds one 1x1 convolution per level. It reads what enters the last convolution of the regression tower
   `cv2`.
2. End-to-end heads carry a second one, `one2one_cv_iou`; the prefix is how Ultralytics' `fuse()` finds the branch to
   drop.
3. The product is taken inside the head, so NMS, trackers and exports see ordinary class scores.

The convolutions stand beside the stock ones and are no part of them: every tensor of a stock checkpoint keeps its name
and shape. The import path of `IoUAwareDetect` is written into checkpoints: it is a file format and must
not change.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect

from mlc_yolo.heads.dense import DenseDetect

__all__ = [
    "NEUTRAL_BIAS",
    "PAPER_BIAS",
    "IoUAwareDetect",
    "add_iou_channel",
    "check_head",
    "has_iou_channel",
    "has_room",
    "rank_by_iou",
    "set_rescore",
]

#: Bias of a fresh channel. sigmoid(5) = 0.9933: a stock model keeps its scores to 0.7 %, and has nothing to relearn.
NEUTRAL_BIAS = 5.0
#: The same where the channel is taught the positives' IoU alone, as in the paper: 0.5, amidst what it will predict.
PAPER_BIAS = 0.0


class IoUAwareDetect(Detect):
    """Ultralytics' `Detect` with one predicted-IoU logit per anchor.

    Raw predictions are those of `Detect` plus `"iou"`: (B, 1, A) logits, in the dtype of the features.

    Attributes:
        cv_iou: ModuleList of L 1x1 convolutions with one output channel; None once `fuse()` dropped the branch.
        one2one_cv_iou: the same for the one-to-one branch, on end-to-end heads only.
        rescore: whether inference multiplies the class scores by the predicted IoU.
        rank_by_iou: whether inference hands the predicted IoU on in a channel of its own instead, for IoU-guided NMS.
    """

    cv_iou: nn.ModuleList | None
    one2one_cv_iou: nn.ModuleList | None
    rescore: bool
    rank_by_iou = False

    def __init__(self, nc: int = 80, reg_max: int = 16, end2end: bool = False, ch: list[int] | tuple[int, ...] = ()):
        """Build the stock head, then its IoU channel. The arguments are those of `Detect`."""
        super().__init__(nc, reg_max, end2end, ch)
        self._attach_iou()

    def _attach_iou(self, bias: float = NEUTRAL_BIAS) -> None:
        """Give each branch its IoU convolutions, and switch rescoring on."""
        convolution = partial(_iou_conv, bias=bias)
        for prefix in ("", "one2one_"):
            if hasattr(self, f"{prefix}cv2"):
                towers = getattr(self, f"{prefix}cv2")
                setattr(self, f"{prefix}cv_iou", None if towers is None else nn.ModuleList(map(convolution, towers)))
        self.rescore = True

    @property
    def one2many(self) -> dict[str, Any]:
        """The modules of the one-to-many branch, by argument name of `forward_head`."""
        return {**super().one2many, "iou_head": self.cv_iou}

    @property
    def one2one(self) -> dict[str, Any]:
        """The modules of the one-to-one branch, by argument name of `forward_head`."""
        return {**super().one2one, "iou_head": self.one2one_cv_iou}

    def forward_head(
        self,
        x: list[Tensor],
        box_head: Iterable[nn.Sequential] | None = None,
        cls_head: Iterable[nn.Module] | None = None,
        iou_head: Iterable[nn.Module] | None = None,
    ) -> dict[str, Any]:
        """Raw predictions of one branch.

        Args:
            x: L feature maps (B, C, H, W), finest first.
            box_head: L regression towers; None for a branch that `fuse()` dropped.
            cls_head: L classification towers.
            iou_head: L IoU convolutions.

        Returns:
            `boxes` (B, 4 * reg_max, A), `scores` (B, K, A), `iou` (B, 1, A), all logits, and `feats`, which is `x`;
            an empty dict for a dropped branch.
        """
        if box_head is None or cls_head is None or iou_head is None:
            return {}
        boxes, scores, ious = [], [], []
        for to_boxes, to_scores, to_iou, features in zip(box_head, cls_head, iou_head, x, strict=True):
            *tower, last = to_boxes
            regression = features
            for block in tower:
                regression = block(regression)
            # flatten, not view: these maps may be channels_last
            boxes.append(last(regression).flatten(2))
            scores.append(to_scores(features).flatten(2))
            ious.append(to_iou(regression).flatten(2))
        return {"boxes": torch.cat(boxes, -1), "scores": torch.cat(scores, -1), "iou": torch.cat(ious, -1), "feats": x}

    def _inference(self, x: dict[str, Any]) -> Tensor:
        """Decode raw predictions.

        Returns:
            (B, 4 + K [+ extra], A): boxes in input pixels (xywh, or xyxy when end-to-end), then confidences in [0, 1]:
            sigmoid(class) * sigmoid(IoU) if `rescore`, else sigmoid(class); then the extra channels.
        """
        confidence = x["scores"].sigmoid()
        if self.extra_channels:
            return torch.cat((self._get_decode_boxes(x), confidence, x["iou"].sigmoid()), 1)
        if self.rescore:
            confidence = confidence * x["iou"].sigmoid()
        return torch.cat((self._get_decode_boxes(x), confidence), 1)

    @property
    def extra_channels(self) -> tuple[str, ...]:
        """Names of the channels after the class scores; exports have none."""
        return ("iou",) if self.rank_by_iou and not self.export else ()

    def bias_init(self) -> None:
        """Reset the biases of the last convolutions, those of the IoU channel included."""
        super().bias_init()
        for name, bias in self.named_parameters():
            if "cv_iou." in name and name.endswith("bias"):
                nn.init.constant_(bias, NEUTRAL_BIAS)


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([IoUAwareDetect])


def add_iou_channel(head: nn.Module, *, bias: float = NEUTRAL_BIAS) -> IoUAwareDetect:
    """Turn a stock `Detect` head into an IoU-aware one, in place.

    Strides, layer index, class count and every weight stay. A head that already is IoU-aware is returned as it is.
    Until it is trained, the new channel predicts sigmoid(bias) for every anchor, so detections rank as with the stock
    head.

    Args:
        head: the last module of a detection model, `model.model[-1]`.
        bias: logit that the channel starts with.

    Returns:
        `head` itself.

    Raises:
        TypeError: `head` is of another class, subclasses of `Detect` included: their towers are laid out differently.
    """
    check_head(head)
    if isinstance(head, IoUAwareDetect):
        return head
    # Upstream's model builder names the head's class from its YAML, and no argument replaces it. A second head would
    # draw weights anew and lose strides, `i` and `f`, which the builder sets on this object.
    head.__class__ = IoUAwareDetect
    head._attach_iou(bias)  # type: ignore[operator]  # the class changed under the checker's eyes
    return head  # type: ignore[return-value]


def has_iou_channel(model: nn.Module) -> bool:
    """Whether `model` holds an IoU-aware head."""
    return any(isinstance(module, IoUAwareDetect) for module in model.modules())


def rank_by_iou(head: nn.Module, by_iou: bool) -> None:
    """Choose whether a head hands its predicted IoU to NMS, which then ranks by it.

    Raises:
        ValueError: the head predicts no IoU, or needs no NMS.
    """
    predicts_iou = isinstance(head, IoUAwareDetect) or (isinstance(head, DenseDetect) and head.quality == "iou")
    if by_iou and (not predicts_iou or getattr(head, "end2end", False)):
        raise ValueError(
            "nms_by=iou ranks by the predicted IoU, but this model has no such layer or has no NMS: leave it out, or "
            "train a YOLO with iou_head=True"
        )
    head.rank_by_iou = by_iou  # type: ignore[assignment]


def set_rescore(model: nn.Module, rescore: bool) -> None:
    """Choose whether heads in `model` multiply class scores by the predicted quality; no-op on stock models."""
    for module in model.modules():
        if isinstance(module, IoUAwareDetect | DenseDetect):
            module.rescore = rescore


def _iou_conv(tower: nn.Sequential, *, bias: float) -> nn.Conv2d:
    """A 1x1 convolution C -> 1 of logit `bias` everywhere, C being the width that enters the tower's last layer.

    Zero weights are safe in a layer of one output: its gradient is the features times the error, so it learns from the
    first step, and until then it sends no noise into a pretrained tower. They also draw nothing from the global
    generator: a model built from one seed has the same stock weights, and trains in the same order, with and without
    the channel.
    """
    last = tower[-1]
    conv = nn.utils.skip_init(nn.Conv2d, last.in_channels, 1, 1, device=last.weight.device, dtype=last.weight.dtype)
    nn.init.zeros_(conv.weight)
    nn.init.constant_(conv.bias, bias)
    return conv


def has_room(head: nn.Module) -> bool:
    """Whether a head is one that the IoU channel can be added to, or has it."""
    return type(head) in (Detect, IoUAwareDetect)


def check_head(head: nn.Module) -> None:
    """Refuse a head that cannot carry the IoU channel.

    Args:
        head: the last module of a model.

    Raises:
        TypeError: `head` is neither a plain `Detect` nor IoU-aware already.
    """
    if not has_room(head):
        raise TypeError(
            f"an IoU channel needs the plain Detect head of a detection model, got {type(head).__name__}; "
            "train this model with iou_head=False, or use a yolov8, yolo11, yolo12 or yolo26 detection model"
        )
