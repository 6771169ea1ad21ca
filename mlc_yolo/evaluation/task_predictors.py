"""Predictors of segmentation, pose and oriented boxes: Ultralytics' own over `MLCPredictor`.

What is done after NMS is done to boxes. Masks are cropped to the box that comes of it; the coefficients of a mask and
the keypoints stay those of the candidate that NMS kept.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.models.yolo.obb import OBBPredictor
from ultralytics.models.yolo.pose import PosePredictor
from ultralytics.models.yolo.segment import SegmentationPredictor

from mlc_yolo.evaluation.placement import Placement
from mlc_yolo.evaluation.predictor import MLCPredictor


class _OfTask(MLCPredictor):
    """Is made as `MLCPredictor` is; stands before a task's predictor, which takes upstream's arguments alone."""

    task: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `MLCPredictor` takes."""
        MLCPredictor.__init__(self, *args, **kwargs)
        self.args.task = self.task

    def _known(self, rows: Tensor, placement: Placement, image: int, anchors: Tensor) -> Tensor:
        return rows


class _StockResults(MLCPredictor):
    """Makes upstream's `Results`; stands behind a task's predictor."""

    def construct_result(self, pred: Tensor, img: Tensor, orig_img: np.ndarray, img_path: str) -> Results:
        """Map detections back to the original image as upstream does."""
        return DetectionPredictor.construct_result(self, pred, img, orig_img, img_path)


class MLCSegmentationPredictor(_OfTask, SegmentationPredictor, _StockResults):
    """`SegmentationPredictor` whose boxes may be voted on."""

    task = "segment"
    _raw: Any = None  # raw outputs of the current batch, which upstream does not hand on

    def postprocess(self, preds: Any, img: Tensor, orig_imgs: Any, **kwargs: Any) -> list[Any]:
        """Keep the raw outputs, then go on as upstream does."""
        self._raw = preds[1] if isinstance(preds[0], tuple) else None
        results: list[Any] = super().postprocess(preds, img, orig_imgs, **kwargs)
        return results

    def _placement(self, preds: Any) -> Placement:
        return Placement(self.model, (preds[0] if isinstance(preds, list | tuple) else preds, self._raw))


class MLCPosePredictor(_OfTask, PosePredictor, _StockResults):
    """`PosePredictor` whose boxes may be voted on."""

    task = "pose"


class MLCOrientedPredictor(_OfTask, OBBPredictor, _StockResults):
    """`OBBPredictor` whose boxes may be voted on."""

    task = "obb"


#: Task -> predictor.
PREDICTORS: dict[str, type[MLCPredictor]] = {
    "detect": MLCPredictor,
    "segment": MLCSegmentationPredictor,
    "pose": MLCPosePredictor,
    "obb": MLCOrientedPredictor,
}
