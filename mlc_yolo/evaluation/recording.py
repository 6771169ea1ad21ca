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

from mlc_yolo.evaluation.task_validators import MLCOrientedValidator, MLCPoseValidator, MLCSegmentationValidator
from mlc_yolo.evaluation.validator import LOWEST_CONFIDENCE, MLCValidator
from mlc_yolo.metrics import divergence
from mlc_yolo.metrics.reach import best_placed
from mlc_yolo.metrics.records import LEAST_SIMILARITY, Records
from mlc_yolo.options.of_tasks import FOR_INFERENCE, FOR_TRAINING
from mlc_yolo.oriented import pairwise_probiou

Float32Array = NDArray[np.float32]
V = TypeVar("V", bound="RecordingValidator")


class RecordingValidator(MLCValidator):
    """`MLCValidator` that hands over its images, objects and detections.

    Attributes:
        records: of the last validation, images in the order of their names; None before it.
        best: an image each, in the order of validation, (M, 6) what `metrics.reach.best_placed` returns, boxes in
            pixels of the original image, (M, 7) of oriented ones; zeros where outputs before NMS are not to be had.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `MLCValidator` takes."""
        super().__init__(*args, **kwargs)
        self.records: Records | None = None
        self._images: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self.best: list[Float32Array] = []
        self._similarity: Tensor | None = None  # of the current image's objects and detections, (M, N)
        self._pairs_of_images: list[Float32Array] = []  # (P, 3) an image: detection, object, similarity
        for name in ("coco_objects", "coco_detections"):  # gathered where they have a list
            self.metrics.stats.setdefault(name, [])

    def init_metrics(self, model: Any) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._images, self._sizes, self.best, self._pairs_of_images = [], [], [], []

    def match_predictions(self, pred_classes: Tensor, true_classes: Tensor, iou: Tensor, *args: Any) -> Tensor:
        """Match as upstream does, and keep what it is matched by: last comes what the task's own AP goes by."""
        self._similarity = iou.detach()
        matched: Tensor = super().match_predictions(pred_classes, true_classes, iou, *args)
        return matched

    def image_order(self) -> list[int]:
        """Return the places of the images validated so far in the order of their names, which is the records'."""
        return sorted(range(len(self._images)), key=self._images.__getitem__)

    def _process_batch(self, preds: dict[str, Any], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        self._images.append(str(batch["im_file"]))
        height, width = batch["ori_shape"]
        self._sizes.append((int(height), int(width)))
        self.best.append(self._best_placed(batch).numpy().astype(np.float32))
        self._similarity = None
        stat = super()._process_batch(preds, batch)
        self._pairs_of_images.append(similar_pairs(self._similarity))
        return stat

    def _best_placed(self, batch: dict[str, Any]) -> Tensor:
        """Return what `best` has of an image."""
        gt_boxes, gt_labels = batch["bboxes"].cpu(), batch["cls"].cpu()
        if not self._raw_outputs:
            return torch.zeros(len(gt_boxes), gt_boxes.shape[1] + 2)
        if self.oriented:  # an image is not stretched, so that probiou is the same in its pixels
            best = best_placed(self._entries[0], gt_boxes, gt_labels, overlap=pairwise_probiou)
            return torch.cat((self.scaled(best[:, :5], batch), best[:, 5:]), 1)
        candidates = self._entries[0].clone()
        candidates[:, :4] = self.to_original(candidates[:, :4], batch)  # clipped to the image, as detections are
        return best_placed(candidates, self.to_original(gt_boxes, batch), gt_labels)

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
            reach=np.concatenate([self.best[i][:, -1] for i in order]) if self._raw_outputs and order else None,
            task=str(self.args.task),
            **self.merged_pairs(order, self._pairs_of_images, objects, detections),
        )
        metrics: dict[str, Any] = super().get_stats()
        return metrics

    def merged_pairs(
        self,
        order: Sequence[int],
        known: Sequence[Float32Array],
        objects: Sequence[Float32Array],
        detections: Sequence[Float32Array],
    ) -> dict[str, Any]:
        """Return the pairs of all images as `Records` has them; nothing for detection.

        Args:
            order: of the images, as `image_order` gives it.
            known: (P, 3) an image, in the order of validation, as `similar_pairs` returns them.
            objects: rows of an image each, in the records' order.
            detections: likewise.
        """
        if self.args.task == "detect":
            return {}
        firsts = [np.cumsum([0, *(len(rows) for rows in images)])[:-1] for images in (detections, objects)]
        pairs = [known[i] for i in order]
        shift = [np.repeat(first.astype(np.int64), [len(image) for image in pairs]) for first in firsts]
        merged = np.concatenate([np.empty((0, 3), dtype=np.float32), *pairs])
        detection, other = (merged[:, i].astype(np.int64) + shift[i] for i in (0, 1))
        return {"pair_detection": detection, "pair_object": other, "pair_similarity": merged[:, 2]}


class RecordingSegmentation(RecordingValidator, MLCSegmentationValidator):
    """`RecordingValidator` of segmentation; its similarity is the IoU of masks."""


class RecordingPose(RecordingValidator, MLCPoseValidator):
    """`RecordingValidator` of poses; its similarity is OKS."""


class RecordingOriented(RecordingValidator, MLCOrientedValidator):
    """`RecordingValidator` of oriented boxes; its similarity is probiou."""


#: Task -> validator, of the tasks that are recorded.
RECORDERS: dict[str, type[RecordingValidator]] = {
    "detect": RecordingValidator,
    "segment": RecordingSegmentation,
    "pose": RecordingPose,
    "obb": RecordingOriented,
}


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
    if model.task not in RECORDERS:
        raise ValueError(
            f"records need a model of {', '.join(RECORDERS)}, but '{model.model_name}' is a {model.task} model, which "
            "finds no boxes"
        )


def record(model: Any, validator: type[RecordingValidator] | None = None, **arguments: Any) -> Records:
    """Validate a model and keep what it saw, down to the confidence AP is measured at.

    Args:
        model: an `MLCYOLO`.
        validator: class of what validates; that of the model's task when left out.
        **arguments: of `MLCYOLO.val`, or of the training it comes from, most of which do nothing here.

    Returns:
        The records.

    Raises:
        ValueError: a model of another task.
    """
    refuse_other_tasks(model)
    chosen, made = listed(validator or RECORDERS[model.task])
    dropped = {"pretrained", "rect", "coco_eval"}
    if model.task != "detect":
        dropped |= FOR_TRAINING - FOR_INFERENCE
    kept = {name: value for name, value in arguments.items() if name not in dropped}
    model.val(chosen, **{**kept, "conf": LOWEST_CONFIDENCE, "plots": False})
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


def similar_pairs(similarity: Tensor | None) -> Float32Array:
    """Return detection, object and similarity (P, 3) of an image's pairs that are similar enough to be kept."""
    if similarity is None:
        return np.empty((0, 3), dtype=np.float32)
    known = similarity.cpu().float().T.numpy()
    detection, other = np.nonzero(known >= LEAST_SIMILARITY)
    return np.stack((detection, other, known[detection, other]), 1).astype(np.float32)


def columns(rows: Sequence[Float32Array], extra: int) -> tuple[Float32Array, list[Float32Array]]:
    """Return the boxes (n, 4) of all images, and the `extra` columns after them."""
    merged = np.concatenate([np.empty((0, 4 + extra), dtype=np.float32), *rows])
    return merged[:, :4], [merged[:, 4 + i] for i in range(extra)]


def image_index(rows: Sequence[Float32Array]) -> NDArray[np.int64]:
    """Return the image of every row of all images."""
    return np.repeat(np.arange(len(rows)), [len(row) for row in rows])
