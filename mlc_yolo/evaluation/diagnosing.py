"""A validation that also keeps the data of a diagnosis: candidates before NMS, and the effect of rescoring.

Everything is taken from the outputs of the one pass that a validation makes. Of an image it keeps a row per object and
the detections: memory does not grow with the candidates.
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
from mlc_yolo.evaluation.postprocess import detections, native
from mlc_yolo.evaluation.recording import RecordingValidator, columns, image_index
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD, entries
from mlc_yolo.metrics.reach import best_placed

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
        self._candidates: deque[Tensor | None] = deque()  # of the current batch, an image each
        self._predicted: deque[Tensor] = deque()
        self._plain: deque[Tensor] = deque()
        self._best: list[np.ndarray] = []  # an image each, of all
        self._sides: list[np.ndarray] = []
        self._pairs: list[np.ndarray] = []
        self._plain_rows: list[np.ndarray] = []
        self._raw_outputs, self._rescores = True, False

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
        for kept in (self._candidates, self._predicted, self._plain):
            kept.clear()
        self._best, self._sides, self._pairs, self._plain_rows = [], [], [], []
        self._raw_outputs = True
        self._rescores = any(getattr(module, "rescore", False) for module in native(model).modules())

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Keep candidates and predicted IoUs of the batch, then go on as a validation does."""
        dense: Tensor = preds[0] if isinstance(preds, list | tuple) else preds
        if self.end2end or dense.shape[-1] == 6:  # the test upstream's NMS applies: final boxes
            self._raw_outputs = False
            self._candidates.extend([None] * len(dense))
        else:
            stop = dense.shape[1] - len(self._extras)
            for image in dense:
                rows = entries(ops.xywh2xyxy(image[:4].T), image[4:stop].T)
                if self.args.single_cls:
                    rows[:, 5] = 0
                self._candidates.append(rows.cpu())
        predicted = self._predicted_iou(preds, dense)
        if predicted is not None:
            self._keep_predicted(dense, predicted)
        return super().postprocess(preds)

    def get_stats(self) -> dict[str, Any]:
        """Return the metrics as upstream does; put the observations together first."""
        order = self.image_order()
        metrics: dict[str, Any] = super().get_stats()
        records = self.records
        assert records is not None
        best, sides = (np.concatenate([kept[i] for i in order]) for kept in (self._best, self._sides))
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

    def _predicted_iou(self, preds: Any, dense: Tensor) -> Tensor | None:
        """Return the predicted IoU (B, A) of a YOLO head's boxes; None where there is no channel or no raw output."""
        raw = preds[1] if isinstance(preds, list | tuple) and len(preds) > 1 else None
        if isinstance(raw, dict):
            raw = raw.get("one2many", raw)
        if not isinstance(raw, dict) or "iou" not in raw or raw["iou"].shape[-1] != dense.shape[-1]:
            return None
        predicted: Tensor = raw["iou"][:, 0].float().sigmoid()
        return predicted

    def _keep_predicted(self, dense: Tensor, predicted: Tensor) -> None:
        """Keep the predicted IoU of an image's best boxes, and its detections ranked by the class score alone."""
        stop = dense.shape[1] - len(self._extras)
        for image, ious in zip(dense, predicted, strict=True):
            score, anchor = image[4:stop].amax(0).topk(min(MOST_PREDICTED, dense.shape[-1]))
            anchor = anchor[score > SCORE_THRESHOLD]
            boxes = ops.xywh2xyxy(image[:4, anchor].T).float()
            self._predicted.append(torch.cat((boxes, ious[anchor, None]), 1).cpu())
        if self._rescores and not self._extras:
            plain = torch.cat((dense[:, :4], dense[:, 4:] / predicted[:, None].clamp(min=1e-6)), 1)
            self._plain += detections(
                plain,
                (),
                confidence=self.args.conf,
                iou_threshold=self.args.iou,
                max_det=self.args.max_det,
                agnostic=self.args.single_cls or self.args.agnostic_nms,
                multi_label=True,
            )

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        gt_boxes, gt_labels = batch["bboxes"].cpu(), batch["cls"].cpu()
        candidates = self._candidates.popleft()
        best = torch.zeros(len(gt_boxes), 6)
        if candidates is not None:  # clipped to the image, as detections are
            candidates[:, :4] = self._to_original(candidates[:, :4], batch)
            best = best_placed(candidates, self._to_original(gt_boxes, batch), gt_labels)
        self._best.append(best.numpy().astype(np.float32))
        self._sides.append((gt_boxes[:, 2:] - gt_boxes[:, :2]).clamp(min=0).prod(1).sqrt().double().numpy())
        if self._predicted:
            self._pairs.append(_against_actual(self._predicted.popleft(), gt_boxes))
        if self._plain:
            rows = self._plain.popleft()
            boxes = self._to_original(rows[:, :4].cpu(), batch)
            labels = torch.zeros_like(rows[:, 5]) if self.args.single_cls else rows[:, 5]
            kept = torch.cat((boxes, rows[:, 4, None].cpu(), labels[:, None].cpu()), 1)
            self._plain_rows.append(kept.numpy().astype(np.float32))
        return super()._process_batch(preds, batch)

    @staticmethod
    def _to_original(boxes: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return boxes (n, 4) of the network's input in pixels of the original image."""
        return torch.as_tensor(
            ops.scale_boxes(batch["imgsz"], boxes.clone(), batch["ori_shape"], ratio_pad=batch["ratio_pad"])
        )


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
