"""Detection heads that put out how well their boxes sit, for exported files.

After the class scores of an anchor come, in this order:

1. `iou`, the predicted IoU in [0, 1], where the head predicts it.
2. `sigma_left`, `sigma_top`, `sigma_right` and `sigma_bottom`, the standard deviation of each side in pixels of the
   network's input, where the head decodes sides from distributions (v8, 11, 12). The factor that the checkpoint was
   calibrated with is multiplied in.

A copy of a model gets such a head when it is exported; it is never saved. The ported heads have the first channel
built in (`DenseDetect.placement`).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.heads.iou_aware import IoUAwareDetect
from mlc_yolo.voting import distance_variances

__all__ = ["IOU", "SIGMAS", "PlacedDetect", "PlacedIoUAwareDetect", "placement_channels", "with_placement"]

IOU = "iou"
SIGMAS = ("sigma_left", "sigma_top", "sigma_right", "sigma_bottom")


class PlacedDetect(Detect):
    """`Detect` with the standard deviations of sides after its class scores.

    Attributes:
        sigma_scale: factor on the standard deviations.
    """

    sigma_scale: float

    def _inference(self, x: dict[str, Any]) -> Tensor:
        """Return (B, 4 + K + 4, A)."""
        return _with_sigmas(self, super()._inference(x), x["boxes"])


class PlacedIoUAwareDetect(IoUAwareDetect):
    """`IoUAwareDetect` with predicted IoU and, where there are distributions, standard deviations of sides.

    Attributes:
        sigma_scale: factor on the standard deviations.
    """

    sigma_scale: float

    def _inference(self, x: dict[str, Any]) -> Tensor:
        """Return (B, 4 + K + 1, A), or (B, 4 + K + 5, A)."""
        detections = torch.cat((super()._inference(x), x["iou"].sigmoid()), 1)
        return _with_sigmas(self, detections, x["boxes"])


def placement_channels(head: Any) -> tuple[str, ...]:
    """Return the names of the channels that a head can put out after its class scores; none of a head of another kind.

    Example:
        >>> placement_channels(Detect(nc=3, reg_max=16, ch=(8, 8)))
        ('sigma_left', 'sigma_top', 'sigma_right', 'sigma_bottom')
    """
    if isinstance(head, DenseDetect):
        return (IOU,) if head.quality == "iou" else ()
    if type(head) not in (Detect, IoUAwareDetect):
        return ()
    predicted = (IOU,) if isinstance(head, IoUAwareDetect) else ()
    return (*predicted, *(SIGMAS if head.reg_max > 1 else ()))


def with_placement(model: DetectionModel, *, sigma_scale: float = 1.0) -> DetectionModel:
    """Copy a model, for export, into one whose head puts out `placement_channels`.

    Args:
        model: a detection model; it is not changed.
        sigma_scale: factor on the standard deviations, above 0.

    Returns:
        The copy. Its boxes and class scores are those of `model`.

    Raises:
        ValueError: the head can put out neither.
    """
    if not placement_channels(model.model[-1]):
        raise ValueError(
            f"expected a head that predicts the IoU of its boxes or a distribution for each side, got "
            f"{type(model.model[-1]).__name__} with neither: there is no placement to export. Leave placement out, or "
            "train with the IoU channel (iou_head=True; quality=iou for the ported detectors)"
        )
    copy = deepcopy(model)
    head: Any = copy.model[-1]
    if isinstance(head, DenseDetect):
        head.placement = True
    else:
        head.__class__ = PlacedIoUAwareDetect if isinstance(head, IoUAwareDetect) else PlacedDetect
        head.sigma_scale = sigma_scale
    return copy


def _with_sigmas(head: PlacedDetect | PlacedIoUAwareDetect, detections: Tensor, logits: Tensor) -> Tensor:
    """Append the standard deviations (B, 4, A) of sides with logits (B, 4 * R, A); none where R is 1."""
    if head.reg_max == 1:
        return detections
    sigmas = distance_variances(logits.transpose(1, 2)).sqrt().transpose(1, 2) * (head.strides * head.sigma_scale)
    return torch.cat((detections, sigmas.to(detections.dtype)), 1)
