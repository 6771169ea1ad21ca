"""A validation that also keeps the data of a diagnosis: predicted IoUs, edges and the effect of rescoring.

Everything is taken from the outputs of the one pass that a validation makes. Of an image it keeps a row per object, the
detections, and of predicted IoUs the best boxes' alone: memory does not grow with the candidates.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.utils import ops

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.evaluation.diagnosis import Observations
from mlc_yolo.evaluation.placement import Placement, placed_detections
from mlc_yolo.evaluation.postprocess import native
from mlc_yolo.evaluation.recording import RecordingValidator, columns, image_index
from mlc_yolo.heads.iou_aware import IoUAwareDetect
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD

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
        self._sides, self._pairs, self._plain_rows = [], [], []
        modules = native(model).modules()
        self._rescores = any(isinstance(module, IoUAwareDetect) and module.rescore for module in modules)

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Keep predicted IoUs of the batch, then go on as a validation does."""
        placement = Placement(self._model, preds)
        if placement.predicted is not None:
            self._keep_predicted(placement, placement.predicted)
        return super().postprocess(preds)

    def get_stats(self) -> dict[str, Any]:
        """Return the metrics as upstream does; put the observations together first."""
        order = self.image_order()
        metrics: dict[str, Any] = super().get_stats()
        records = self.records
        assert records is not None
        best, sides = (np.concatenate([kept[i] for i in order]) for kept in (self.best, self._sides))
        plain = None
        if self._plain_rows:
            rows = [self._plain_rows[i] for i in order]
            boxes, (scores, labels) = columns(rows, 2)
            plain = records.with_detections(image_index(rows), boxes, scores, labels.astype(np.int64))
        self.observations = Observations(
            records,
            best if self._raw_outputs else None,
            sides,
            without_rescoring=plain,
            predicted=np.concatenate(self._pairs) if self._pairs else None,
            edges=torch.cat(self._edges).double().numpy() if self._edges else None,
        )
        return metrics

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
        stop = dense.shape[1] - len(self._extras)
        for image, ious in zip(dense, predicted, strict=True):
            score, anchor = image[4:stop].amax(0).topk(min(MOST_PREDICTED, dense.shape[-1]))
            anchor = anchor[score > SCORE_THRESHOLD]
            boxes = ops.xywh2xyxy(image[:4, anchor].T).float()
            self._predicted.append(torch.cat((boxes, ious[anchor, None]), 1).cpu())
        if self._rescores and not self._extras:
            plain = torch.cat((dense[:, :4], dense[:, 4:] / predicted[:, None].clamp(min=1e-6)), 1)
            rows, _ = placed_detections(
                plain,
                (),
                self._placing,
                placement,
                confidence=self.args.conf,
                iou_threshold=self.args.iou,
                max_det=self.args.max_det,
                agnostic=self.args.single_cls or self.args.agnostic_nms,
                multi_label=True,
            )
            self._plain += rows

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        gt_boxes = batch["bboxes"].cpu()
        self._sides.append((gt_boxes[:, 2:] - gt_boxes[:, :2]).clamp(min=0).prod(1).sqrt().double().numpy())
        if self._predicted:
            self._pairs.append(_against_actual(self._predicted.popleft(), gt_boxes))
        if self._plain:
            rows = self._plain.popleft()
            boxes = self.to_original(rows[:, :4].cpu(), batch)
            labels = torch.zeros_like(rows[:, 5]) if self.args.single_cls else rows[:, 5]
            kept = torch.cat((boxes, rows[:, 4, None].cpu(), labels[:, None].cpu()), 1)
            self._plain_rows.append(kept.numpy().astype(np.float32))
        return super()._process_batch(preds, batch)


def _against_actual(rows: Tensor, gt_boxes: Tensor) -> np.ndarray:
    """Return (n, 2) predicted and actual IoU of the boxes that overlap an object of any class.

    Args:
        rows: (N, 5) xyxy, predicted IoU.
        gt_boxes: (M, 4).
    """
    if not len(rows) or not len(gt_boxes):
        return np.empty((0, 2), dtype=np.float32)
    actual = pairwise_iou(gt_boxes, rows[:, :4]).amax(0)
    kept = actual > 0
    return torch.stack((rows[kept, 4], actual[kept]), 1).numpy().astype(np.float32)
