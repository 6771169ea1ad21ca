"""A validation that keeps its detections and objects as `Records`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.evaluation.validator import LOWEST_CONFIDENCE, MLCValidator
from mlc_yolo.metrics import divergence
from mlc_yolo.metrics.records import Records

Float32Array = NDArray[np.float32]
V = TypeVar("V", bound="RecordingValidator")


class RecordingValidator(MLCValidator):
    """`MLCValidator` that hands over its images, objects and detections.

    Attributes:
        records: of the last validation, images in the order of their names; None before it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `MLCValidator` takes."""
        super().__init__(*args, **kwargs)
        self.records: Records | None = None
        self._images: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        for name in ("coco_objects", "coco_detections"):  # gathered where they have a list
            self.metrics.stats.setdefault(name, [])

    def init_metrics(self, model: Any) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._images, self._sizes = [], []

    def image_order(self) -> list[int]:
        """Return the places of the images validated so far in the order of their names, which is the records'."""
        return sorted(range(len(self._images)), key=self._images.__getitem__)

    def _process_batch(self, preds: dict[str, Any], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        self._images.append(str(batch["im_file"]))
        height, width = batch["ori_shape"]
        self._sizes.append((int(height), int(width)))
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
        )
        metrics: dict[str, Any] = super().get_stats()
        return metrics


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
