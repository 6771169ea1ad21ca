"""Turn a teacher's confident detections into labels of unlabelled images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xyxy2xywh, xyxy2xywhn

from mlc_yolo.training.dense_outputs import Dense


@torch.no_grad()
def pseudo_labels(
    seen: Dense,
    classes: Tensor | None,
    size: tuple[int, int],
    *,
    threshold: float,
    nms_iou: float,
    max_det: int,
) -> dict[str, Tensor]:
    """Return a teacher's confident detections as a batch's labels.

    Args:
        seen: what the teacher sees.
        classes: (n,) int64, the student's class for each of the teacher's; None where they are the same.
        size: (H, W) of the input in px.
        threshold: least probability of `seen.logits`, which NMS ranks by too.
        nms_iou: overlap from which NMS suppresses; 1 keeps all, for a branch that finds an object once.
        max_det: labels per image.

    Returns:
        batch_idx (n,), cls (n, 1) and bboxes (n, 4), xywh in [0, 1].
    """
    decoded = torch.cat((xyxy2xywh(seen.boxes.float()), seen.logits.float().sigmoid()), 2).transpose(1, 2)
    # Without its limit of time: on a slow machine it would drop the rest of the batch.
    kept = non_max_suppression(decoded, threshold, nms_iou, max_det=max_det, max_time_img=float("inf"))
    rows = torch.cat([F.pad(labels[:, :6].float(), (1, 0), value=image) for image, labels in enumerate(kept)])
    labels = rows[:, 6:7] if classes is None else classes.to(rows.device)[rows[:, 6:7].long()].float()
    boxes = xyxy2xywhn(rows[:, 1:5], w=size[1], h=size[0], clip=True)
    return {"batch_idx": rows[:, 0], "cls": labels, "bboxes": boxes}
