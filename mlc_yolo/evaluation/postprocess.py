"""From a head's decoded output to detections, however long that takes.

Ultralytics' NMS gives up after two seconds and 0.05 s an image, and leaves the rest of the batch without detections:
on a busy machine the same weights would then measure less. Here it is given all the time it wants. A head that hands on
channels after its class scores (`extra_channels`) wants them in NMS: "iou" ranks, "level" keeps apart. Its output goes
to our own selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo.nms import select_with_anchors


def native(model: nn.Module) -> nn.Module:
    """Return the PyTorch model inside Ultralytics' `AutoBackend`, which does not register it; others as they are."""
    inner: nn.Module = model.model if getattr(model, "format", None) == "pt" else model  # type: ignore[assignment]
    return inner


def extra_channels(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the channels after the class scores; none where it is stock or exported."""
    for module in native(model).modules():
        names: Any = getattr(module, "extra_channels", None)
        if names is not None:
            return tuple(names)
    return ()


def detections(prediction: Any, extras: Sequence[str], **options: Any) -> list[Tensor]:
    """Apply NMS to every image of a batch: `detections_with_anchors` without the anchors."""
    return detections_with_anchors(prediction, extras, **options)[0]


def detections_with_anchors(
    prediction: Any,
    extras: Sequence[str],
    *,
    confidence: float,
    iou_threshold: float,
    max_det: int,
    agnostic: bool,
    multi_label: bool,
    classes: int | Sequence[int] | None = None,
    end2end: bool = False,
    num_classes: int = 0,
    rotated: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Apply NMS to every image of a batch.

    Without extra channels the detections are those of Ultralytics' `non_max_suppression`, bit for bit, where that
    comes to its end.

    Args:
        prediction: (B, 4 + K + E, A): xywh px boxes, class scores, extra channels; or (B, N, 6 + E), the detections of
            a model that needs no NMS: xyxy px, score, class. Of a list or tuple, the first entry.
        extras: the E names; of other channels, which `num_classes` tells from the scores, none.
        confidence: scores above it count.
        iou_threshold: overlap from which a lower box is suppressed.
        max_det: detections per image.
        agnostic: let boxes of different classes compete.
        multi_label: let an anchor give a detection of each class.
        classes: keep only these; of a head with extra channels, an anchor whose best class is another gives its best
            among them.
        end2end: the model needs no NMS, whatever the shape of its output.
        num_classes: K, where channels after the scores go along with a box; 0 where there are none.
        rotated: the last of these is an angle, and boxes are compared by probiou and stay xywh.

    Returns:
        detections: B tensors (n, 6 + E): xyxy px, score, class, what goes along.
        anchors: B int64 tensors (n,): which of the A (or N) each box is.
    """
    dense: Tensor = prediction[0] if isinstance(prediction, list | tuple) else prediction
    if not extras:
        stock: tuple[list[Tensor], list[Tensor]] = non_max_suppression(
            dense,
            confidence,
            iou_threshold,
            classes,
            agnostic,
            multi_label,
            max_det=max_det,
            nc=num_classes,
            max_time_img=inf,
            rotated=rotated,
            end2end=end2end,
            return_idxs=True,
        )
        return stock[0], [anchors.long().flatten() for anchors in stock[1]]
    channels = dense.shape[1] - 4 - len(extras)
    rows, anchors = [], []
    for image in dense.float().transpose(1, 2):
        boxes, scores, columns = image.split((4, channels, len(extras)), 1)
        if classes is not None:
            wanted = torch.as_tensor(classes, device=scores.device).flatten()
            scores = scores.where(torch.isin(torch.arange(channels, device=scores.device), wanted), 0)
        extra = dict(zip(extras, columns.unbind(1), strict=True))
        groups = extra.get("level")
        selected, anchor = select_with_anchors(
            xywh2xyxy(boxes),
            scores,
            confidence=confidence,
            iou_threshold=iou_threshold,
            max_det=max_det,
            predicted_ious=extra.get("iou"),
            groups=None if groups is None else groups.long(),
            multi_label=multi_label and channels > 1,
            agnostic=agnostic,
        )
        rows.append(selected)
        anchors.append(anchor)
    return rows, anchors
