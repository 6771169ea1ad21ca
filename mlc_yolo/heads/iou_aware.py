"""A YOLO head that predicts the IoU of its own boxes, and ranks its detections by it.

Source: MLC (arXiv 2103.08958), IoU rescoring: one convolution on the localisation branch predicts the IoU of the
decoded box with its object, and at inference confidence = sigmoid(class logit) * sigmoid(IoU logit).

1. `cv_iou` holds one 1x1 convolution per level. It reads what enters the last convolution of the regression tower
   `cv2`.
2. End-to-end heads carry a second one, `one2one_cv_iou`; the prefix is how Ultralytics' `fuse()` finds the branch to
   drop.
3. The product is taken inside the head, so NMS, trackers and exports see ordinary class scores.

The convolutions stand beside the stock ones and are no part of them: every tensor of a stock checkpoint keeps its name
and shape. Heads of segmentation and pose predict the IoU of boxes, those of oriented boxes their probiou. The import
paths of the `IoUAware...` classes are written into checkpoints: they are a file format and must not change.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import OBB, OBB26, Detect, Pose, Pose26, Segment, Segment26

from mlc_yolo.heads.dense import DenseDetect

__all__ = [
    "NEUTRAL_BIAS",
    "PAPER_BIAS",
    "IoUAwareDetect",
    "IoUAwareOBB",
    "IoUAwareOBB26",
    "IoUAwarePose",
    "IoUAwarePose26",
    "IoUAwareSegment",
    "IoUAwareSegment26",
    "IoUAwareTask",
    "add_iou_channel",
    "check_head",
    "has_iou_channel",
    "has_room",
    "keep_boxes",
    "rank_by_iou",
    "set_rescore",
    "stock_head",
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

    def __init__(self, *args: Any, **kwargs: Any):
        """Build the stock head, then its IoU channel. The arguments are those of the stock head."""
        super().__init__(*args, **kwargs)
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
        **of_task: Any,
    ) -> dict[str, Any]:
        """Raw predictions of one branch.

        Args:
            x: L feature maps (B, C, H, W), finest first.
            box_head: L regression towers; None for a branch that `fuse()` dropped.
            cls_head: L classification towers.
            iou_head: L IoU convolutions.
            **of_task: further towers of heads of other tasks.

        Returns:
            `boxes` (B, 4 * reg_max, A), `scores` (B, K, A), `iou` (B, 1, A), all logits, `feats`, which is `x`, and
            what the task adds; an empty dict for a dropped branch.
        """
        if box_head is None or cls_head is None or iou_head is None:
            return {}
        towers = [_ReadTower(tower) for tower in box_head]
        raw: dict[str, Any] = super().forward_head(x, towers, cls_head, **of_task)
        # flatten, not view: these maps may be channels_last
        ious = [to_iou(tower.features).flatten(2) for to_iou, tower in zip(iou_head, towers, strict=True)]
        return {**raw, "iou": torch.cat(ious, -1)}

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


class _ReadTower:
    """A regression tower that keeps what enters its last layer, `features` (B, C, H, W)."""

    features: Tensor

    def __init__(self, tower: nn.Sequential) -> None:
        self.tower = tower

    def __call__(self, features: Tensor) -> Tensor:
        *blocks, last = self.tower
        for block in blocks:
            features = block(features)
        self.features = features
        boxes: Tensor = last(features)
        return boxes


class IoUAwareTask(IoUAwareDetect):
    """The channel on a head with more at each anchor than a box; stands before that head's class."""

    def _inference(self, x: dict[str, Any]) -> Tensor:
        """Decode raw predictions.

        Returns:
            (B, 4 + K + E, A): as `IoUAwareDetect`, then the E values of the task, as the stock head has them.
        """
        decoded: Tensor = super(IoUAwareDetect, self)._inference(x)
        if not self.rescore:
            return decoded
        boxes, confidence, task = decoded.split((4, self.nc, decoded.shape[1] - 4 - self.nc), 1)
        return torch.cat((boxes, confidence * x["iou"].sigmoid(), task), 1)

    @property
    def extra_channels(self) -> tuple[str, ...]:
        """None: NMS of these tasks takes what follows the class scores for the task's own."""
        return ()


class IoUAwareSegment(IoUAwareTask, Segment):
    """Ultralytics' `Segment` with the predicted IoU of boxes."""


class IoUAwareSegment26(IoUAwareTask, Segment26):
    """Ultralytics' `Segment26` with the predicted IoU of boxes."""


class IoUAwarePose(IoUAwareTask, Pose):
    """Ultralytics' `Pose` with the predicted IoU of boxes."""


class IoUAwarePose26(IoUAwareTask, Pose26):
    """Ultralytics' `Pose26` with the predicted IoU of boxes."""


class IoUAwareOBB(IoUAwareTask, OBB):
    """Ultralytics' `OBB` with the predicted probiou of oriented boxes."""


class IoUAwareOBB26(IoUAwareTask, OBB26):
    """Ultralytics' `OBB26` with the predicted probiou of oriented boxes."""


#: Stock head -> the same with a channel.
_AWARE: dict[type[Detect], type[IoUAwareDetect]] = {
    Detect: IoUAwareDetect,
    Segment: IoUAwareSegment,
    Segment26: IoUAwareSegment26,
    Pose: IoUAwarePose,
    Pose26: IoUAwarePose26,
    OBB: IoUAwareOBB,
    OBB26: IoUAwareOBB26,
}
# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals(list(_AWARE.values()))


def add_iou_channel(head: nn.Module, *, bias: float = NEUTRAL_BIAS) -> IoUAwareDetect:
    """Turn a stock head into an IoU-aware one, in place.

    Strides, layer index, class count and every weight stay. A head that already is IoU-aware is returned as it is.
    Until it is trained, the new channel predicts sigmoid(bias) for every anchor, so detections rank as with the stock
    head.

    Args:
        head: the last module of a model, `model.model[-1]`.
        bias: logit that the channel starts with.

    Returns:
        `head` itself.

    Raises:
        TypeError: `head` is of another class, other subclasses of `Detect` included: their towers are laid out
            differently.
    """
    check_head(head)
    if isinstance(head, IoUAwareDetect):
        return head
    # Upstream's model builder names the head's class from its YAML, and no argument replaces it. A second head would
    # draw weights anew and lose strides, `i` and `f`, which the builder sets on this object.
    head.__class__ = _AWARE[type(head)]
    head._attach_iou(bias)  # type: ignore[operator]  # the class changed under the checker's eyes
    return head  # type: ignore[return-value]


def keep_boxes(head: nn.Module) -> None:
    """Make a head of masks or keypoints one of boxes and classes alone, in place, its channel kept; no-op on others."""
    if isinstance(head, Segment | Pose):
        head.__class__ = IoUAwareDetect if isinstance(head, IoUAwareDetect) else Detect


def has_iou_channel(model: nn.Module) -> bool:
    """Whether `model` holds an IoU-aware head."""
    return any(isinstance(module, IoUAwareDetect) for module in model.modules())


def rank_by_iou(head: nn.Module, by_iou: bool) -> None:
    """Choose whether a head hands its predicted IoU to NMS, which then ranks by it.

    Raises:
        ValueError: the head predicts no IoU, or needs no NMS.
    """
    predicts_iou = isinstance(head, IoUAwareDetect) or (isinstance(head, DenseDetect) and head.quality == "iou")
    if by_iou and isinstance(head, IoUAwareTask):
        raise ValueError("nms_by=iou ranks in the NMS of detection models alone, not of other tasks: leave it out")
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
    return type(head) in _AWARE or type(head) in _AWARE.values()


def stock_head(head: nn.Module) -> type[Detect]:
    """Return the stock class of a head that has the IoU channel."""
    return next(stock for stock, aware in _AWARE.items() if aware is type(head))


def check_head(head: nn.Module) -> None:
    """Refuse a head that cannot carry the IoU channel.

    Args:
        head: the last module of a model.

    Raises:
        TypeError: `head` is no stock head of detection, segmentation, pose or oriented boxes, nor IoU-aware already.
    """
    if not has_room(head):
        raise TypeError(
            f"an IoU channel needs Ultralytics' own head of detection, segmentation, pose or oriented boxes, got "
            f"{type(head).__name__}; train with iou_head=False, or use a yolov8, yolo11, yolo12 or yolo26 model"
        )
