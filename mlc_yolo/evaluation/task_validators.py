"""Validators of segmentation, pose and oriented boxes: Ultralytics' own, which also measure divergence.

Score is compared with the IoU of boxes, of oriented boxes with their probiou, over what the model hands to NMS; of
poses also with the similarity of keypoints (OKS) that their AP goes by. Every number of upstream's stays; the columns
of divergence stand behind them.
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
from ultralytics.utils.metrics import OBBMetrics, PoseMetrics, SegmentMetrics, kpt_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.evaluation.divergence_rows import HEADER, DivergenceRows
from mlc_yolo.metrics.divergence import MAX_ENTRIES, SCORE_THRESHOLD, Divergence, divergence, entries, match
from mlc_yolo.oriented import pairwise_probiou


class _MLCSegmentMetrics(DivergenceRows, SegmentMetrics):
    """Boxes, masks and the boxes' divergence."""


class _MLCPoseMetrics(DivergenceRows, PoseMetrics):
    """Boxes, keypoints and the divergence of both.

    Attributes:
        keypoint_divergence: of score and OKS in the last validation; None before.
    """

    def __init__(self, names: dict[int, str] | None = None) -> None:
        """Start empty."""
        super().__init__(names)
        self.stats["score_oks"] = []
        self.keypoint_divergence: Divergence | None = None

    def process(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Compute every metric from the gathered statistics."""
        self.keypoint_divergence = divergence(self.stats["score_oks"], len(self.names))
        results: dict[str, np.ndarray] = super().process(*args, **kwargs)
        return results

    @property
    def keys(self) -> list[str]:
        """Names of `mean_results`, as in results.csv."""
        return [*super().keys, "metrics/spearman(P)", "metrics/spearman_pooled(P)"]

    def mean_results(self) -> list[float]:
        """Return the table's row "all"."""
        measured = self.keypoint_divergence
        own = (measured.per_object, measured.pooled) if measured else (float("nan"), float("nan"))
        return [*super().mean_results(), *own]

    def class_result(self, i: int) -> tuple[float, ...]:
        """Return the row of the i-th class that has objects."""
        return (*super().class_result(i), *self._class_spearman(i, self.keypoint_divergence))


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
        if self._is_final(prediction):
            rows = prediction[prediction[:, 4] > SCORE_THRESHOLD][:MAX_ENTRIES].float()  # best first
            image = torch.cat((rows[:, :4], rows[:, -1:], rows[:, 4:6]), 1) if self.oriented else rows[:, :6]
        else:
            boxes, scores = prediction[:4].T, prediction[4 : 4 + self.nc].T
            rows = torch.cat((boxes, prediction[-1:].T), 1) if self.oriented else xywh2xyxy(boxes)
            image = entries(rows, scores)
        if self.args.single_cls:
            image[:, -1] = 0
        return image

    def _is_final(self, prediction: Tensor) -> bool:
        """Tell whether an image's output needs no NMS, as upstream's NMS does."""
        return bool(self.end2end) or prediction.shape[-1] == 6

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
    """`PoseValidator` that also measures the divergence of boxes and of keypoints."""

    kind = _MLCPoseMetrics
    _poses: deque[Tensor]  # of the current batch, an image each, on the CPU: keypoints, score, label

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._poses = deque()

    def get_desc(self) -> str:
        """Return the table's header."""
        return str(super().get_desc()) + ("%11s" * 2) % ("Pose(Sp.", "(pooled)")

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Apply NMS after keeping its keypoints, too."""
        dense: Tensor = preds[0] if isinstance(preds, list | tuple) else preds
        self._poses.extend(self._image_poses(image).cpu() for image in dense)
        images: list[dict[str, Tensor]] = super().postprocess(preds)
        return images

    def _image_poses(self, prediction: Tensor) -> Tensor:
        """Return the keypoints, score and label of one image's entries, (N, K * D + 2)."""
        if self._is_final(prediction):
            rows = prediction[prediction[:, 4] > SCORE_THRESHOLD][:MAX_ENTRIES].float()  # best first
            image = torch.cat((rows[:, 6:], rows[:, 4:6]), 1)
        else:
            image = entries(prediction[4 + self.nc :].T, prediction[4 : 4 + self.nc].T)
        if self.args.single_cls:
            image[:, -1] = 0
        return image

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        stat = super()._process_batch(preds, batch)
        labelled = (batch["keypoints"][..., 2] != 0).any(1)  # of other objects no similarity is known
        truth, labels = batch["keypoints"][labelled].cpu(), batch["cls"][labelled].cpu()
        areas = xyxy2xywh(batch["bboxes"][labelled].cpu())[:, 2:].prod(1) * 0.53  # as upstream's AP has it

        def similarity(objects: Tensor, rows: Tensor) -> Tensor:
            poses = objects.reshape(-1, *truth.shape[1:]), rows.reshape(len(rows), *self.kpt_shape)
            oks: Tensor = kpt_iou(*poses, sigma=self.sigma, area=areas)
            return oks

        return {**stat, "score_oks": match(self._poses.popleft(), truth.flatten(1), labels, overlap=similarity)}


class MLCOrientedValidator(_WithDivergence, OBBValidator, _BeforeNMS):
    """`OBBValidator` that also measures divergence, of score and probiou."""

    kind, oriented = _MLCOrientedMetrics, True


#: Task -> validator, of the tasks beside detection.
TASK_VALIDATORS: dict[str, type[DetectionValidator]] = {
    "segment": MLCSegmentationValidator,
    "pose": MLCPoseValidator,
    "obb": MLCOrientedValidator,
}
