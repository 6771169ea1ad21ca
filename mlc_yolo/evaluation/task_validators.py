"""Validators of segmentation, pose and oriented boxes: Ultralytics' own over `MLCValidator`.

Score is compared with the IoU of boxes, of oriented boxes with their probiou, over what the model hands to NMS; of
poses also with the similarity of keypoints (OKS) that their AP goes by, of segments with the IoU of masks. Every number
of upstream's stays; the columns of divergence stand behind them.

Masks are made for an image's `MASK_ENTRIES` best entries alone, as upstream makes those of detections: a mask of a
thousand boxes would take longer than the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.utils.metrics import OBBMetrics, PoseMetrics, SegmentMetrics, kpt_iou, mask_iou
from ultralytics.utils.ops import xyxy2xywh

from mlc_yolo.evaluation.detection_metrics import MLCMetrics
from mlc_yolo.evaluation.divergence_rows import HEADER, DivergenceRows
from mlc_yolo.evaluation.placement import Placement
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.metrics.divergence import MAX_ENTRIES, SCORE_THRESHOLD, Divergence, divergence, entries, match

#: Entries of an image whose masks are made, best scores first.
MASK_ENTRIES = 300


class _SimilarityRows(DivergenceRows):
    """Boxes, what a task adds to them, and the divergence of both.

    Attributes:
        own_divergence: of score and the similarity that the task's AP goes by, in the last validation; None before.
    """

    letter: ClassVar[str]

    def __init__(self, names: dict[int, str] | None = None) -> None:
        """Start empty."""
        super().__init__(names)
        self.stats["score_similarity"] = []
        self.own_divergence: Divergence | None = None

    def process(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Compute every metric from the gathered statistics."""
        self.own_divergence = divergence(self.stats["score_similarity"], len(self.names))
        results: dict[str, np.ndarray] = super().process(*args, **kwargs)
        return results

    @property
    def keys(self) -> list[str]:
        """Names of `mean_results`, as in results.csv."""
        return [*super().keys, f"metrics/spearman({self.letter})", f"metrics/spearman_pooled({self.letter})"]

    def mean_results(self) -> list[float]:
        """Return the table's row "all"."""
        measured = self.own_divergence
        own = (measured.per_object, measured.pooled) if measured else (float("nan"), float("nan"))
        return [*super().mean_results(), *own]

    def class_result(self, i: int) -> tuple[float, ...]:
        """Return the row of the i-th class that has objects."""
        return (*super().class_result(i), *self._class_spearman(i, self.own_divergence))


class _MLCSegmentMetrics(MLCMetrics, _SimilarityRows, SegmentMetrics):
    """Boxes, masks and the divergence of both."""

    letter = "M"


class _MLCPoseMetrics(MLCMetrics, _SimilarityRows, PoseMetrics):
    """Boxes, keypoints and the divergence of both."""

    letter = "P"


class _MLCOrientedMetrics(MLCMetrics, OBBMetrics):
    """Oriented boxes and their divergence."""


class _OfTask(MLCValidator):
    """Is made as `MLCValidator` is; stands before a task's validator, which takes upstream's arguments alone."""

    task: ClassVar[str]
    kind: ClassVar[type[MLCMetrics]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `MLCValidator` takes."""
        MLCValidator.__init__(self, *args, **kwargs)  # all that the constructors passed over do is done here
        self.args.task = self.task
        self.metrics = self.kind()


class _WithSimilarity(MLCValidator):
    """Also compares scores with the similarity that a task's AP goes by; stands behind a task's validator."""

    most_entries: ClassVar[int] = MAX_ENTRIES
    _candidates: deque[Tensor]  # of the current batch, an image each: E values, score, label

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._candidates = deque()

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Keep the values that NMS is about to choose from, then apply it."""
        dense: Tensor = preds[0] if isinstance(preds, list | tuple) else preds
        self._candidates.extend(self._image_values(image) for image in dense)
        images: list[dict[str, Tensor]] = super().postprocess(preds)
        return images

    def _image_values(self, prediction: Tensor) -> Tensor:
        """Return what goes along with the boxes of one image's entries, then score and label: (N, E + 2)."""
        if self._is_final(prediction):
            rows = prediction[prediction[:, 4] > SCORE_THRESHOLD][: self.most_entries].float()  # best first
            image = torch.cat((self._final_values(rows), rows[:, 4:6]), 1)
        else:
            image = entries(self._dense_values(prediction), self._dense_scores(prediction), limit=self.most_entries)
        if self.args.single_cls:
            image[:, -1] = 0
        return image

    def _final_values(self, rows: Tensor) -> Tensor:
        return rows[:, 6:]

    def _dense_values(self, prediction: Tensor) -> Tensor:
        return prediction[4 + self.nc :].T

    def _similarities(
        self, objects: Tensor, labels: Tensor, similarity: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, np.ndarray]:
        return {"score_similarity": match(self._candidates.popleft(), objects, labels, overlap=similarity)}


class MLCSegmentationValidator(_OfTask, SegmentationValidator, _WithSimilarity):
    """`SegmentationValidator` that also measures the divergence of boxes and of masks."""

    task, kind, most_entries = "segment", _MLCSegmentMetrics, MASK_ENTRIES
    _raw: Any = None  # raw outputs of the current batch, which upstream does not hand on
    _prototypes: deque[Tensor]  # of the current batch, an image each

    def get_desc(self) -> str:
        """Return the table's header."""
        return str(super().get_desc()) + HEADER + ("%11s" * 2) % ("Mask(Sp.", "(pooled)")

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Keep the prototypes of masks, then go on as upstream does."""
        whole = isinstance(preds[0], tuple)
        self._raw = preds[1] if whole else None
        self._prototypes = deque(preds[0][1] if whole else preds[1])
        images: list[dict[str, Tensor]] = super().postprocess(preds)
        return images

    def _placement(self, preds: Any) -> Placement:
        return Placement(self._model, (preds[0], self._raw))

    def _final_values(self, rows: Tensor) -> Tensor:
        return torch.cat((rows[:, :4], rows[:, 6:]), 1)

    def _dense_values(self, prediction: Tensor) -> Tensor:
        return torch.cat((self._dense_boxes(prediction), prediction[4 + self.nc :].T), 1)

    def _own_statistics(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        prototypes, masks = self._prototypes.popleft(), batch["masks"]

        def similarity(objects: Tensor, rows: Tensor) -> Tensor:
            shape = tuple(4 * side for side in prototypes.shape[1:])  # as upstream's validator has it
            made = self.process(prototypes, rows[:, 4:], rows[:, :4], shape=shape)
            ious: Tensor = mask_iou(objects, made.flatten(1).float())
            return ious

        mine = self._similarities(masks.flatten(1).float(), batch["cls"], similarity)
        return {**super()._own_statistics(preds, batch), **mine}


class MLCPoseValidator(_OfTask, PoseValidator, _WithSimilarity):
    """`PoseValidator` that also measures the divergence of boxes and of keypoints."""

    task, kind = "pose", _MLCPoseMetrics

    def get_desc(self) -> str:
        """Return the table's header."""
        return str(super().get_desc()) + HEADER + ("%11s" * 2) % ("Pose(Sp.", "(pooled)")

    def _own_statistics(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        labelled = labelled_poses(batch)  # of other objects no similarity is known
        truth = batch["keypoints"][labelled]
        areas = xyxy2xywh(batch["bboxes"][labelled])[:, 2:].prod(1) * 0.53  # as upstream's AP has it

        def similarity(objects: Tensor, rows: Tensor) -> Tensor:
            poses = objects.reshape(-1, *truth.shape[1:]), rows.reshape(len(rows), *self.kpt_shape)
            oks: Tensor = kpt_iou(*poses, sigma=self.sigma, area=areas)
            return oks

        mine = self._similarities(truth.flatten(1), batch["cls"][labelled], similarity)
        return {**super()._own_statistics(preds, batch), **mine}


class MLCOrientedValidator(_OfTask, OBBValidator, MLCValidator):
    """`OBBValidator` that also measures divergence, of score and probiou."""

    task, kind, oriented = "obb", _MLCOrientedMetrics, True

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        return {**super()._process_batch(preds, batch), **self._own_statistics(preds, batch)}


def labelled_poses(batch: dict[str, Any]) -> Tensor:
    """Return (M,) bool, which of an image's objects have a labelled keypoint."""
    labelled: Tensor = (batch["keypoints"][..., 2] != 0).any(1)
    return labelled


#: Task -> validator, of the tasks beside detection.
TASK_VALIDATORS: dict[str, type[MLCValidator]] = {
    "segment": MLCSegmentationValidator,
    "pose": MLCPoseValidator,
    "obb": MLCOrientedValidator,
}
