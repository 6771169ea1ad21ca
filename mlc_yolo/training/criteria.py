"""The criterion of a YOLO, by its head: detection, segmentation, pose or oriented boxes, one branch or two."""

from __future__ import annotations

from typing import Any

from torch import nn
from ultralytics.nn.modules.head import OBB, Pose, Pose26, Segment, Segment26
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.training.oriented_criterion import OrientedLoss
from mlc_yolo.training.task_criteria import KeypointLoss, KeypointLoss26, MaskLoss, MaskLoss26
from mlc_yolo.training.yolo_criterion import PerTaskE2ELoss, PerTaskLoss, YoloSchedule, with_stock_assignment

#: Head -> criterion of a branch; the first that fits. Any other head is one of detection.
_OF_HEADS: tuple[tuple[type[nn.Module], type[PerTaskLoss]], ...] = (
    (Segment26, MaskLoss26),
    (Segment, MaskLoss),
    (Pose26, KeypointLoss26),
    (Pose, KeypointLoss),
    (OBB, OrientedLoss),
)


def build_criterion(
    model: DetectionModel, *, schedule: YoloSchedule, prior_scale: float, iou_gain: float, by_product: bool = True
) -> PerTaskLoss | PerTaskE2ELoss:
    """Return the criterion that fits the model's head.

    Args:
        model: unwrapped model on its device, `args` attached.
        schedule: what trains by epoch.
        prior_scale: side of the square priors in strides.
        iou_gain: factor of the predicted-IoU loss.
        by_product: train the class loss through class score times predicted IoU, where the head has a channel.

    Returns:
        A callable `(preds, batch) -> (losses, items)` with settable `epoch` and `schedule`.
    """
    layers: Any = model.model
    head = layers[-1]
    kind = next((criterion for heads, criterion in _OF_HEADS if isinstance(head, heads)), PerTaskLoss)

    def branch(model: nn.Module, tal_topk: int = 10, tal_topk2: int | None = None) -> PerTaskLoss:
        # Upstream asks for a second, tighter top-k only for the one-to-one branch, which keeps its own assignment.
        own = schedule if tal_topk2 is None else with_stock_assignment(schedule)
        gains: dict[str, Any] = {"prior_scale": prior_scale, "iou_gain": iou_gain, "by_product": by_product}
        return kind(model, tal_topk, tal_topk2, schedule=own, **gains)

    if getattr(head, "one2one_cv2", None) is not None:
        return PerTaskE2ELoss(model, branch)
    return branch(model)
