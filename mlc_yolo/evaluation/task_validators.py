"""Validators of segmentation, pose and oriented boxes: Ultralytics' own, which also measure the divergence of boxes.

Score is compared with the IoU of boxes, of oriented boxes with their probiou, over what the model hands to NMS. Every
number of upstream's stays; two columns stand behind them.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.utils.metrics import OBBMetrics, PoseMetrics, SegmentMetrics
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.evaluation.divergence_rows import HEADER, DivergenceRows
from mlc_yolo.metrics.divergence import MAX_ENTRIES, SCORE_THRESHOLD, entries, match
from mlc_yolo.oriented import pairwise_probiou


class _MLCSegmentMetrics(DivergenceRows, SegmentMetrics):
    """Boxes, masks and the boxes' divergence."""


class _MLCPoseMetrics(DivergenceRows, PoseMetrics):
    """Boxes, keypoints and the boxes' divergence."""


class _MLCOrientedMetrics(DivergenceRows, OBBMetrics):
    """Oriented boxes and their divergence."""


class _BeforeNMS(DetectionValidator):
    """Keeps what NMS is about to see; stands behind a task's validator, which asks it for detections."""

    oriented: ClassVar[bool] = False
    _entries: deque[Tensor]  # of the current batch, an image each, on the CPU

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._entries = deque()

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Apply NMS as upstream does, for as long as it takes, after keeping its input."""
        dense: Tensor = preds[0] if isinstance(preds, list | tuple) else preds
        self._entries.extend(self._image_entries(image).cpu() for image in dense)
        images = non_max_suppression(
            dense,
            self.args.conf,
            self.args.iou,
            nc=self.nc,
            multi_label=True,
            agnostic=self.args.single_cls or self.args.agnostic_nms,
            max_det=self.args.max_det,
            max_time_img=inf,
            end2end=self.end2end,
            rotated=self.oriented,
        )
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in images]

    def _image_entries(self, prediction: Tensor) -> Tensor:
        """Return one image's entries from (4 + K + E, A) dense or (N, 6 + E) final predictions."""
        if self.end2end or prediction.shape[-1] == 6:  # the test upstream's NMS applies
            rows = prediction[prediction[:, 4] > SCORE_THRESHOLD][:MAX_ENTRIES].float()  # best first
            image = torch.cat((rows[:, :4], rows[:, -1:], rows[:, 4:6]), 1) if self.oriented else rows[:, :6]
        else:
            boxes, scores = prediction[:4].T, prediction[4 : 4 + self.nc].T
            rows = torch.cat((boxes, prediction[-1:].T), 1) if self.oriented else xywh2xyxy(boxes)
            image = entries(rows, scores)
        if self.args.single_cls:
            image[:, -1] = 0
        return image

    def sample(self, batch: dict[str, Any]) -> np.ndarray:
        """Return the next image's samples of score and overlap; upstream asks once per image, in order."""
        overlap = pairwise_probiou if self.oriented else pairwise_iou
        return match(self._entries.popleft(), batch["bboxes"].cpu(), batch["cls"].cpu(), overlap=overlap)


class _WithDivergence(DetectionValidator):
    """Adds the samples and the columns; stands before a task's validator."""

    kind: ClassVar[type[DivergenceRows]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take upstream's arguments."""
        super().__init__(*args, **kwargs)
        self.metrics = self.kind()

    def get_desc(self) -> str:
        """Return the table's header."""
        return str(super().get_desc()) + HEADER

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        return {**super()._process_batch(preds, batch), "score_iou": self.sample(batch)}


class MLCSegmentationValidator(_WithDivergence, SegmentationValidator, _BeforeNMS):
    """`SegmentationValidator` that also measures the divergence of boxes."""

    kind = _MLCSegmentMetrics


class MLCPoseValidator(_WithDivergence, PoseValidator, _BeforeNMS):
    """`PoseValidator` that also measures the divergence of boxes."""

    kind = _MLCPoseMetrics


class MLCOrientedValidator(_WithDivergence, OBBValidator, _BeforeNMS):
    """`OBBValidator` that also measures divergence, of score and probiou."""

    kind, oriented = _MLCOrientedMetrics, True


#: Task -> validator, of the tasks beside detection.
TASK_VALIDATORS: dict[str, type[DetectionValidator]] = {
    "segment": MLCSegmentationValidator,
    "pose": MLCPoseValidator,
    "obb": MLCOrientedValidator,
}
