"""Prediction: Ultralytics' own, with the NMS a head asks for."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils.ops import convert_torch2numpy_batch

from mlc_yolo.engine.postprocess import detections, extra_channels


class MLCPredictor(DetectionPredictor):
    """`DetectionPredictor` that knows IoU-guided NMS and NMS within pyramid levels."""

    def postprocess(self, preds: Any, img: Tensor, orig_imgs: Any, **kwargs: Any) -> list[Any]:
        """Turn the model's output into `Results`, an image each."""
        extras = extra_channels(self.model)
        if not extras:
            results: list[Any] = super().postprocess(preds, img, orig_imgs, **kwargs)
            return results
        found = detections(
            preds[0] if isinstance(preds, list | tuple) else preds,
            extras,
            confidence=self.args.conf,
            iou_threshold=kwargs.pop("iou", self.args.iou),
            max_det=self.args.max_det,
            agnostic=self.args.agnostic_nms,
            multi_label=False,
            classes=self.args.classes,
        )
        if not isinstance(orig_imgs, list):
            orig_imgs = convert_torch2numpy_batch(orig_imgs)[..., ::-1]
        return list(self.construct_results(found, img, orig_imgs))
