"""From a head's decoded output to detections, where that takes more than Ultralytics' NMS.

A head that hands on channels after its class scores (`extra_channels`) wants them in NMS: "iou" ranks, "level" keeps
apart. Any other output goes to Ultralytics' own NMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo.nms import select_detections


def native(model: nn.Module) -> nn.Module:
    """Return the PyTorch model inside Ultralytics' `AutoBackend`, which does not register it; others as they are."""
    inner: Any = model.model if getattr(model, "format", None) == "pt" else model
    return inner


def extra_channels(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the channels after the class scores; none where it is stock or exported."""
    for module in native(model).modules():
        names: Any = getattr(module, "extra_channels", None)
        if names is not None:
            return tuple(names)
    return ()


def detections(
    prediction: Tensor,
    extras: Sequence[str],
    *,
    confidence: float,
    iou_threshold: float,
    max_det: int,
    agnostic: bool,
    multi_label: bool,
    classes: int | Sequence[int] | None = None,
) -> list[Tensor]:
    """Apply NMS to every image of a batch.

    Args:
        prediction: (B, 4 + K + E, A): xywh px boxes, class scores, extra channels.
        extras: the E names.
        confidence: scores above it count.
        iou_threshold: overlap from which a lower box is suppressed.
        max_det: detections per image.
        agnostic: let boxes of different classes compete.
        multi_label: let an anchor give a detection of each class.
        classes: keep only these; an anchor whose best class is another gives its best among them.

    Returns:
        B tensors (n, 6): xyxy px, score, class.
    """
    found = []
    num_classes = prediction.shape[1] - 4 - len(extras)
    for image in prediction.float().transpose(1, 2):
        boxes, scores, columns = image.split((4, num_classes, len(extras)), 1)
        if classes is not None:
            wanted = torch.as_tensor(classes, device=scores.device).flatten()
            scores = scores.where(torch.isin(torch.arange(num_classes, device=scores.device), wanted), 0)
        extra = dict(zip(extras, columns.unbind(1), strict=True))
        groups = extra.get("level")
        found.append(
            select_detections(
                xywh2xyxy(boxes),
                scores,
                confidence=confidence,
                iou_threshold=iou_threshold,
                max_det=max_det,
                predicted_ious=extra.get("iou"),
                groups=None if groups is None else groups.long(),
                multi_label=multi_label and num_classes > 1,
                agnostic=agnostic,
            )
        )
    return found
