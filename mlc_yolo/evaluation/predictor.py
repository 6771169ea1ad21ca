"""Prediction: Ultralytics' own, with the NMS a head asks for and the resize the model was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils.ops import convert_torch2numpy_batch, scale_boxes

from mlc_yolo.checkpoints import safe_load
from mlc_yolo.checkpoints.marker import wants_warp
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.evaluation.postprocess import detections, extra_channels, native


class MLCPredictor(DetectionPredictor):
    """`DetectionPredictor` that knows IoU-guided NMS, NMS within pyramid levels, and images warped to the input.

    Attributes:
        resize: "warp", "letterbox" or None: as in the checkpoint, else letterbox.
        warp: whether images are stretched to the input size; settled by `setup_model`.
    """

    resize: str | None = None
    warp = False

    def setup_model(self, model: Any, verbose: bool = True) -> None:
        """Set the model up as upstream does, and read from it how images are resized.

        Raises:
            ValueError: a checkpoint, given by its path, is not data alone.
        """
        provide_fonts()
        given = model or self.args.model
        if isinstance(given, str | Path):
            safe_load.check(given)
        super().setup_model(model, verbose)
        self.warp = wants_warp(self.resize, native(self.model))

    def pre_transform(self, im: list[np.ndarray]) -> list[np.ndarray]:
        """Bring (H, W, 3) uint8 images to the input size."""
        if not self.warp:
            padded: list[np.ndarray] = super().pre_transform(im)
            return padded
        stretch = LetterBox(self.imgsz, scale_fill=True)
        return [stretch(image=image) for image in im]

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

    def construct_result(self, pred: Tensor, img: Tensor, orig_img: np.ndarray, img_path: str) -> Results:
        """Map (n, 6) detections back to the original image, each axis by its own gain if the image was warped."""
        if not self.warp:
            return super().construct_result(pred, img, orig_img, img_path)
        size, original = img.shape[2:], orig_img.shape
        gains = size[0] / original[0], size[1] / original[1]
        pred[:, :4] = scale_boxes(size, pred[:, :4], original, ratio_pad=(gains, (0, 0)))
        return Results(orig_img, path=img_path, names=self.model.names, boxes=pred[:, :6])


class WarpPredictor(MLCPredictor):
    """`MLCPredictor` that warps whatever the checkpoint says, and exported models too."""

    resize = "warp"


class LetterboxPredictor(MLCPredictor):
    """`MLCPredictor` that pads whatever the checkpoint says."""

    resize = "letterbox"
