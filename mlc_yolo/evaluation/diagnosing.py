"""A validation that also keeps the data of a diagnosis: predicted IoUs, edges and the effect of rescoring.

Everything is taken from the outputs of the one pass that a validation makes. Of an image it keeps a row per object, the
detections, and of predicted IoUs the best boxes' alone: memory does not grow with the candidates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlc_yolo.evaluation.diagnosis import Observations, Turned
from mlc_yolo.evaluation.placement import Placement
from mlc_yolo.evaluation.postprocess import native
from mlc_yolo.evaluation.recording import (
    RecordingOriented,
    RecordingPose,
    RecordingSegmentation,
    RecordingValidator,
    columns,
    image_index,
    similar_pairs,
)
from mlc_yolo.evaluation.task_validators import labelled_poses
from mlc_yolo.heads.iou_aware import IoUAwareDetect
from mlc_yolo.metrics import divergence
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD
from mlc_yolo.oriented import extent

Float32Array = NDArray[np.float32]

#: Boxes of an image whose predicted IoU is compared with the actual one, best scores first.
MOST_PREDICTED = 300


class DiagnosingValidator(RecordingValidator):
    """`RecordingValidator` that hands over what `Diagnosis` needs.

    Attributes:
        observations: of the last validation; None before it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `MLCValidator` takes."""
        super().__init__(*args, **kwargs)
        self.observations: Observations | None = None
        self._predicted: deque[Tensor] = deque()  # of the current batch, an image each
        self._plain: deque[Tensor] = deque()
        self._sides: list[np.ndarray] = []  # an image each, of all
        self._pairs: list[np.ndarray] = []
        self._plain_rows: list[np.ndarray] = []
        self._plain_pairs: list[Float32Array] = []
        self._rescores = False

    def init_metrics(self, model: Any) -> None:
        """Prepare a validation.

        Raises:
            ValueError: data without objects, or with a class that the model does not know.
        """
        super().init_metrics(model)
        self._refuse_other_classes(getattr(model, "names", {}))
        if not any(len(label["cls"]) for label in self.dataloader.dataset.labels):
            raise ValueError(
                f"none of the {len(self.dataloader.dataset.labels)} images of {self.args.data} has an object: nothing "
                "can be judged. Is the split labelled, and is its labels folder beside images/?"
            )
        for kept in (self._predicted, self._plain):
            kept.clear()
        self._sides, self._pairs, self._plain_rows, self._plain_pairs = [], [], [], []
        modules = native(model).modules()
        self._rescores = any(isinstance(module, IoUAwareDetect) and module.rescore for module in modules)

    def _placed(self, dense: Tensor, placement: Placement) -> tuple[list[Tensor], list[Tensor]]:
        """Keep predicted IoUs of the batch, then go on as a validation does."""
        if placement.predicted is not None:
            self._keep_predicted(placement, placement.predicted)
        return super()._placed(dense, placement)

    def get_stats(self) -> dict[str, Any]:
        """Return the metrics as upstream does; put the observations together first."""
        order = self.image_order()
        objects = list(self.metrics.stats["coco_objects"])  # which upstream drops
        metrics: dict[str, Any] = super().get_stats()
        records = self.records
        assert records is not None
        sides = np.concatenate([self._sides[i] for i in order])
        plain = None
        if self._plain_rows:
            rows = [self._plain_rows[i] for i in order]
            boxes, (scores, labels) = columns(rows, 2)
            pairs = (
                self.merged_pairs(order, self._plain_pairs, [objects[i] for i in order], rows) if self.oriented else {}
            )
            plain = records.with_detections(image_index(rows), boxes, scores, labels.astype(np.int64), **pairs)
        self.observations = Observations(
            records,
            self._candidates_of_all(order) if self._raw_outputs else None,
            sides,
            without_rescoring=plain,
            predicted=np.concatenate(self._pairs) if self._pairs else None,
            edges=torch.cat(self._edges).double().numpy() if self._edges else None,
        )
        return metrics

    def _candidates_of_all(self, order: list[int]) -> Float32Array:
        """Return the best-placed candidates of all images, (G, 6)."""
        return np.concatenate([self.best[i] for i in order])

    def _refuse_other_classes(self, names: Any) -> None:
        """Refuse data whose labels mean other classes than the model's: every one would count as a class error."""
        if self.args.single_cls or not isinstance(names, dict):
            return
        for label, name in self.data["names"].items():
            if names.get(label) != name:
                theirs = f"'{names[label]}' to the model" if label in names else f"unknown to the model of {len(names)}"
                raise ValueError(
                    f"class {label} is '{name}' in {self.args.data} and {theirs}: a diagnosis needs data of the "
                    "model's own classes, in the same order. Give the data it was trained for, or single_cls=True, "
                    "which merges all classes"
                )

    def _keep_predicted(self, placement: Placement, predicted: Tensor) -> None:
        """Keep the predicted IoU of an image's best boxes, and of a YOLO the detections ranked by class score alone.

        Of a ported detector these are not to be had: it chose its best pairs of anchor and class by the product.
        """
        dense = placement.dense
        for image, ious in zip(dense, predicted, strict=True):
            score, anchor = self._dense_scores(image).amax(1).topk(min(MOST_PREDICTED, dense.shape[-1]))
            anchor = anchor[score > SCORE_THRESHOLD]
            boxes = self._dense_boxes(image[:, anchor]).float()
            self._predicted.append(torch.cat((boxes, ious[anchor, None]), 1).cpu())
        if self._rescores and not self._extras:
            stop = 4 + (self._num_classes or dense.shape[1] - 4)
            scores = dense[:, 4:stop] / predicted[:, None].clamp(min=1e-6)
            rows, _ = super()._placed(torch.cat((dense[:, :4], scores, dense[:, stop:]), 1), placement)
            self._plain += rows

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        gt_boxes = batch["bboxes"].cpu()
        ends = gt_boxes[:, 2:4] if self.oriented else gt_boxes[:, 2:] - gt_boxes[:, :2]
        self._sides.append(ends.clamp(min=0).prod(1).sqrt().double().numpy())
        if self._predicted:
            self._pairs.append(_against_actual(self._predicted.popleft(), gt_boxes, self.overlap))
        if self._plain:
            rows = self._plain.popleft().cpu()
            boxes = torch.cat((rows[:, :4], rows[:, -1:]), 1) if self.oriented else rows[:, :4]
            if self.oriented:
                self._plain_pairs.append(similar_pairs(self.overlap(gt_boxes, boxes)))
            labels = torch.zeros_like(rows[:, 5]) if self.args.single_cls else rows[:, 5]
            kept = torch.cat((self.to_original(boxes, batch), rows[:, 4, None], labels[:, None]), 1)
            self._plain_rows.append(kept.numpy().astype(np.float32))
        return super()._process_batch(preds, batch)


class _DiagnosingPart(DiagnosingValidator):
    """`DiagnosingValidator` of a task with masks or keypoints; stands before the task's validator."""

    def init_metrics(self, model: Any) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._own_reach: list[Float32Array] = []  # an image each
        self._unlabelled = 0

    def get_stats(self) -> dict[str, Any]:
        """Return the metrics as upstream does; put the observations together first."""
        order = self.image_order()
        metrics = super().get_stats()
        assert self.observations is not None
        reach = np.concatenate([self._own_reach[i] for i in order]) if self._raw_outputs else None
        self.observations = replace(self.observations, own_reach=reach, unlabelled=self._unlabelled)
        return metrics

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        stat = super()._process_batch(preds, batch)
        labelled = self._compared(batch).cpu().numpy()
        samples = stat["score_similarity"]
        samples = samples[samples[:, divergence.OBJECT] != divergence.NO_OBJECT]
        reach = np.zeros(len(labelled), dtype=np.float32)
        rows = np.flatnonzero(labelled)[samples[:, divergence.OBJECT].astype(np.int64)]
        np.maximum.at(reach, rows, samples[:, divergence.IOU])
        self._own_reach.append(reach)
        self._unlabelled += int((~labelled).sum())
        return stat

    def _compared(self, batch: dict[str, Any]) -> Tensor:
        """Return (M,) which objects of an image can be compared by what the task adds."""
        return torch.ones(len(batch["cls"]), dtype=torch.bool)


class DiagnosingSegmentation(_DiagnosingPart, RecordingSegmentation):
    """`DiagnosingValidator` of segmentation."""


class DiagnosingPose(_DiagnosingPart, RecordingPose):
    """`DiagnosingValidator` of poses."""

    def _compared(self, batch: dict[str, Any]) -> Tensor:
        return labelled_poses(batch)


class DiagnosingOriented(DiagnosingValidator, RecordingOriented):
    """`DiagnosingValidator` of oriented boxes, which also keeps them as they lie."""

    def init_metrics(self, model: Any) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._turned: list[tuple[Tensor, Tensor]] = []  # objects and detections, an image each

    def get_stats(self) -> dict[str, Any]:
        """Return the metrics as upstream does; put the observations together first."""
        order = self.image_order()
        metrics = super().get_stats()
        assert self.observations is not None
        objects, detections = (torch.cat([self._turned[i][k] for i in order]).numpy() for k in (0, 1))
        candidates = super()._candidates_of_all(order)[:, :5]
        self.observations = replace(self.observations, turned=Turned(objects, detections, candidates))
        return metrics

    def _candidates_of_all(self, order: list[int]) -> Float32Array:
        best = torch.from_numpy(super()._candidates_of_all(order))
        return torch.cat((extent(best[:, :5]), best[:, 5:]), 1).numpy()

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        boxes = batch["bboxes"].cpu(), preds["bboxes"].cpu()
        self._turned.append((self.scaled(boxes[0], batch).float(), self.scaled(boxes[1], batch).float()))
        return super()._process_batch(preds, batch)


#: Task -> validator, of the tasks that are diagnosed.
DIAGNOSERS: dict[str, type[DiagnosingValidator]] = {
    "detect": DiagnosingValidator,
    "segment": DiagnosingSegmentation,
    "pose": DiagnosingPose,
    "obb": DiagnosingOriented,
}


def _against_actual(rows: Tensor, gt_boxes: Tensor, overlap: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """Return (n, 2) predicted and actual IoU of the boxes that overlap an object of any class.

    Args:
        rows: (N, 5) xyxy, predicted IoU; (N, 6) of oriented boxes.
        gt_boxes: (M, 4) or (M, 5).
        overlap: of such boxes.
    """
    if not len(rows) or not len(gt_boxes):
        return np.empty((0, 2), dtype=np.float32)
    actual = overlap(gt_boxes, rows[:, :-1]).amax(0)
    kept = actual > 0
    return torch.stack((rows[kept, -1], actual[kept]), 1).numpy().astype(np.float32)
