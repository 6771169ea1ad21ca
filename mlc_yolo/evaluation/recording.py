"""A validation that keeps its detections and objects as `Records`.

Of what the model gave before NMS it keeps one row per object, the best-placed candidate: memory does not grow with the
candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.utils import ops

from mlc_yolo.evaluation.validator import LOWEST_CONFIDENCE, MLCValidator
from mlc_yolo.metrics import divergence
from mlc_yolo.metrics.reach import IOU, best_placed
from mlc_yolo.metrics.records import Records

Float32Array = NDArray[np.float32]
V = TypeVar("V", bound="RecordingValidator")


class RecordingValidator(MLCValidator):
    """`MLCValidator` that hands over its images, objects and detections.

    Attributes:
        records: of the last validation, images in the order of their names; None before it.
        best: an image each, in the order of validation, (M, 6) what `metrics.reach.best_placed` returns, boxes in
            pixels of the original image; zeros where outputs before NMS are not to be had.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `MLCValidator` takes."""
        super().__init__(*args, **kwargs)
        self.records: Records | None = None
        self._images: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self.best: list[Float32Array] = []
        self._raw_outputs = True
        for name in ("coco_objects", "coco_detections"):  # gathered where they have a list
            self.metrics.stats.setdefault(name, [])

    def init_metrics(self, model: Any) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._images, self._sizes, self.best = [], [], []
        self._raw_outputs = True

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Note whether these outputs are from before NMS, then go on as a validation does."""
        dense: Tensor = preds[0] if isinstance(preds, list | tuple) else preds
        self._raw_outputs = not (self.end2end or dense.shape[-1] == 6)  # the test upstream's NMS applies: final boxes
        images: list[dict[str, Tensor]] = super().postprocess(preds)
        return images

    def image_order(self) -> list[int]:
        """Return the places of the images validated so far in the order of their names, which is the records'."""
        return sorted(range(len(self._images)), key=self._images.__getitem__)

    def _process_batch(self, preds: dict[str, Any], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        self._images.append(str(batch["im_file"]))
        height, width = batch["ori_shape"]
        self._sizes.append((int(height), int(width)))
        gt_boxes, gt_labels = batch["bboxes"].cpu(), batch["cls"].cpu()
        best = torch.zeros(len(gt_boxes), 6)
        if self._raw_outputs:  # clipped to the image, as detections are
            candidates = self._entries[0].clone()
            candidates[:, :4] = self.to_original(candidates[:, :4], batch)
            best = best_placed(candidates, self.to_original(gt_boxes, batch), gt_labels)
        self.best.append(best.numpy().astype(np.float32))
        return super()._process_batch(preds, batch)

    def get_stats(self) -> dict[str, Any]:
        """Return the metrics as upstream does; keep the boxes first, which upstream drops here."""
        stats = self.metrics.stats
        order = self.image_order()
        objects, detections, samples = (
            [stats[name][i] for i in order] for name in ("coco_objects", "coco_detections", "score_iou")
        )
        gt_boxes, (gt_labels,) = columns(objects, 1)
        boxes, (scores, labels) = columns(detections, 2)
        self.records = Records(
            images=[self._images[i] for i in order],
            sizes=np.array([self._sizes[i] for i in order], dtype=np.int64).reshape(-1, 2),
            gt_image=image_index(objects),
            gt_boxes=gt_boxes,
            gt_labels=gt_labels.astype(np.int64),
            image=image_index(detections),
            boxes=boxes,
            scores=scores,
            labels=labels.astype(np.int64),
            names={int(label): str(name) for label, name in self.names.items()},
            spearman=object_correlations(samples, [len(rows) for rows in objects]),
            reach=np.concatenate([self.best[i][:, IOU] for i in order]) if self._raw_outputs and order else None,
        )
        metrics: dict[str, Any] = super().get_stats()
        return metrics

    @staticmethod
    def to_original(boxes: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return boxes (n, 4) of the network's input in pixels of the original image."""
        return torch.as_tensor(
            ops.scale_boxes(batch["imgsz"], boxes.clone(), batch["ori_shape"], ratio_pad=batch["ratio_pad"])
        )


def listed(validator: type[V]) -> tuple[type[V], list[V]]:
    """Make the validators of a class known to whoever hands it to `MLCYOLO.val`, which returns metrics only.

    Args:
        validator: a class of validators.

    Returns:
        A class that does the same, and the list of its validators, in the order in which they are made.
    """
    made: list[V] = []

    class Listed(validator):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    return Listed, made


def refuse_other_tasks(model: Any) -> None:
    """Refuse an `MLCYOLO` that finds no boxes.

    Raises:
        ValueError: a model of another task.
    """
    if model.task != "detect":
        raise ValueError(f"records need a detection model, but '{model.model_name}' is a {model.task} model")


def record(model: Any, validator: type[RecordingValidator] = RecordingValidator, **arguments: Any) -> Records:
    """Validate a model and keep what it saw, down to the confidence AP is measured at.

    Args:
        model: an `MLCYOLO`.
        validator: class of what validates.
        **arguments: of `MLCYOLO.val`, or of the training it comes from, most of which do nothing here.

    Returns:
        The records.

    Raises:
        ValueError: a model of another task.
    """
    refuse_other_tasks(model)
    chosen, made = listed(validator)
    kept = {name: value for name, value in arguments.items() if name not in {"pretrained", "rect"}}
    model.val(chosen, **{**kept, "conf": LOWEST_CONFIDENCE, "plots": False, "coco_eval": False})
    records = made[0].records
    assert records is not None
    return records


def object_correlations(images: Sequence[Float32Array], objects: Sequence[int]) -> Float32Array:
    """Return the rank correlation of score and IoU over each object's candidates.

    Args:
        images: per image (n, 4) samples as `metrics.divergence.match` returns them.
        objects: how many objects each image has, G in all.

    Returns:
        (G,) in [-1, 1], nan where undefined; the mean of the others is `Divergence.per_object`.
    """
    first = np.cumsum([0, *objects])
    rows = [sample[sample[:, divergence.OBJECT] != divergence.NO_OBJECT].astype(np.float64) for sample in images]
    samples = np.concatenate([np.empty((0, 4)), *rows])
    index = samples[:, divergence.OBJECT].astype(np.int64) + np.repeat(first[:-1], [len(row) for row in rows])
    rho = divergence.segmented_spearman(samples[:, divergence.SCORE], samples[:, divergence.IOU], index, int(first[-1]))
    return rho.astype(np.float32)


def columns(rows: Sequence[Float32Array], extra: int) -> tuple[Float32Array, list[Float32Array]]:
    """Return the boxes (n, 4) of all images, and the `extra` columns after them."""
    merged = np.concatenate([np.empty((0, 4 + extra), dtype=np.float32), *rows])
    return merged[:, :4], [merged[:, 4 + i] for i in range(extra)]


def image_index(rows: Sequence[Float32Array]) -> NDArray[np.int64]:
    """Return the image of every row of all images."""
    return np.repeat(np.arange(len(rows)), [len(row) for row in rows])
