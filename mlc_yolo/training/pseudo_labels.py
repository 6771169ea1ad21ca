"""Turn a teacher's confident detections into labels of unlabelled images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xyxy2xywhn

from mlc_yolo.evaluation.postprocess import detections


@torch.no_grad()
def pseudo_labels(
    decoded: Tensor,
    extras: tuple[str, ...],
    size: tuple[int, int],
    *,
    end2end: bool,
    threshold: float,
    nms_iou: float,
    max_det: int,
) -> dict[str, Tensor]:
    """Return a teacher's confident detections as a batch's labels.

    Args:
        decoded: the head's decoded output, as NMS takes it.
        extras: names of its channels after the class scores.
        size: (H, W) of the input in px.
        end2end: whether the head needs no NMS.
        threshold: least confidence; of a head that predicts it, IoU included.
        nms_iou: overlap from which NMS suppresses.
        max_det: labels per image.

    Returns:
        batch_idx (n,), cls (n, 1) and bboxes (n, 4), xywh in [0, 1].
    """
    if extras:
        kept = detections(
            decoded,
            extras,
            confidence=threshold,
            iou_threshold=nms_iou,
            max_det=max_det,
            agnostic=False,
            multi_label=False,
        )
    else:
        # Without its limit of time: on a slow machine it would drop the rest of the batch.
        never = float("inf")
        kept = non_max_suppression(decoded, threshold, nms_iou, max_det=max_det, end2end=end2end, max_time_img=never)
    rows = torch.cat([F.pad(labels[:, :6].float(), (1, 0), value=image) for image, labels in enumerate(kept)])
    boxes = xyxy2xywhn(rows[:, 1:5], w=size[1], h=size[0], clip=True)
    return {"batch_idx": rows[:, 0], "cls": rows[:, 6:7], "bboxes": boxes}
