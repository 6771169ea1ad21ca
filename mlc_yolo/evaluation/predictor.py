"""Prediction: Ultralytics' own, with the NMS a head asks for, what is done after it, and the resize of the training."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import DEFAULT_CFG, LOGGER
from ultralytics.utils.ops import convert_torch2numpy_batch, scale_boxes

from mlc_yolo.checkpoints import safe_load
from mlc_yolo.checkpoints.marker import wants_warp
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.evaluation.augmentation import augmenting
from mlc_yolo.evaluation.placed_results import PlacedResults
from mlc_yolo.evaluation.placement import Placement, Placing, placed_detections
from mlc_yolo.evaluation.postprocess import extra_channels, native
from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.options.specification import defaults


class MLCPredictor(DetectionPredictor):
    """`DetectionPredictor` that knows IoU-guided NMS, NMS within pyramid levels, and images warped to the input.

    Attributes:
        resize: "warp", "letterbox" or None: as in the checkpoint, else letterbox.
        trust: whether a checkpoint given by its path is opened whatever it holds.
        placing: what is done after NMS.
        show_sigma: whether saved pictures show how sure the sides of boxes are.
        warp: whether images are stretched to the input size; set by `setup_model`.
    """

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
        *,
        resize: str | None = None,
        trust: bool = False,
        placing: Placing | None = None,
        show_sigma: bool = False,
    ) -> None:
        """Take upstream's arguments, how images are resized whatever the checkpoint says, and what follows NMS."""
        super().__init__(cfg, overrides, _callbacks)
        self.resize, self.trust = resize, trust
        self.placing = placing or Placing.of(defaults())
        self.show_sigma = show_sigma
        self.warp = False

    def setup_model(self, model: Any, verbose: bool = True) -> None:
        """Set the model up as upstream does, and read from it how images are resized.

        Raises:
            ValueError: a checkpoint, given by its path, is not data alone, or the model's outputs do not allow what is
                to follow NMS.
        """
        provide_fonts()
        source = model or self.args.model
        if isinstance(source, str | Path):
            safe_load.check(source, trust=self.trust)
        super().setup_model(model, verbose)
        self.placing.check(self.model, augment=bool(self.args.augment))
        self.warp = wants_warp(self.resize, native(self.model))

    def pre_transform(self, im: list[np.ndarray]) -> list[np.ndarray]:
        """Bring (H, W, 3) uint8 images to the input size."""
        if not self.warp:
            padded: list[np.ndarray] = super().pre_transform(im)
            return padded
        stretch = LetterBox(self.imgsz, scale_fill=True)
        return [stretch(image=image) for image in im]

    def inference(self, im: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the model on a batch (B, 3, H, W), augmented where `augment` asks for it."""
        with augmenting(native(self.model)) if self.args.augment and self.args.task == "detect" else nullcontext():
            return super().inference(im, *args, **kwargs)

    def postprocess(self, preds: Any, img: Tensor, orig_imgs: Any, **kwargs: Any) -> list[Any]:
        """Turn the model's output into `Results`, an image each."""
        self.placing.check(self.model, augment=bool(self.args.augment))  # a predictor lives on with other arguments
        placement = self._placement(preds)
        if self.show_sigma and not placement.knows_sides:
            self.show_sigma = False
            LOGGER.warning("show_sigma: no effect, as this model does not say how sure the sides of its boxes are")
        rows, anchors = placed_detections(
            placement.dense,
            extra_channels(self.model),
            self.placing,
            placement,
            confidence=self.args.conf,
            iou_threshold=kwargs.pop("iou", self.args.iou),  # a tracker may look again, with another
            max_det=self.args.max_det,
            agnostic=self.args.agnostic_nms,
            multi_label=False,
            classes=self.args.classes,
            end2end=getattr(self.model, "end2end", False),
            num_classes=0 if self.args.task == "detect" else len(self.model.names),
            rotated=self.args.task == "obb",
        )
        if not isinstance(orig_imgs, list):
            orig_imgs = convert_torch2numpy_batch(orig_imgs)[..., ::-1]
        levels = getattr(self, "_feats", None)  # what the head read, where a tracker compares appearances
        features = None if levels is None else self.get_obj_feats(levels, self._cells(rows, anchors, levels))
        known = [self._known(row, placement, i, anchors[i]) for i, row in enumerate(rows)]
        results = list(self.construct_results(known, img, orig_imgs, **kwargs))
        for result, feature in zip(results, features or (), strict=False):
            result.feats = feature
        return results

    def _placement(self, preds: Any) -> Placement:
        """Return what a batch's outputs say about its boxes."""
        return Placement(self.model, preds)

    def _known(self, rows: Tensor, placement: Placement, image: int, anchors: Tensor) -> Tensor:
        """Return an image's detections with what `construct_result` takes beside them."""
        return torch.cat((rows, placement.columns(image, anchors)), 1)

    def _cells(self, rows: list[Tensor], anchors: list[Tensor], levels: list[Tensor]) -> list[Tensor]:
        """Return the cell, over all levels, whose features describe a detection: B int64 tensors (n,).

        A YOLO head has an anchor a cell. A ported one has several and hands on the best of them, so that its anchors
        say nothing of cells: there it is the finest level's cell under the box's centre.
        """
        net: Any = native(self.model)
        head = net.model[-1]
        if not isinstance(head, DenseDetect):
            return anchors
        height, width = levels[0].shape[2:]
        cells = []
        for boxes in rows:
            x, y = ((boxes[:, side] + boxes[:, side + 2]) / 2 / head.level_strides[0] for side in (0, 1))
            cells.append(y.long().clamp(0, height - 1) * width + x.long().clamp(0, width - 1))
        return cells

    def construct_result(self, pred: Tensor, img: Tensor, orig_img: np.ndarray, img_path: str) -> Results:
        """Map detections back to the original image, each axis by its own gain if the image was warped.

        Args:
            pred: (n, 6) xyxy px of the input, score, class; or (n, 11), with predicted IoU and standard deviations.
            img: (B, 3, H, W) the input.
            orig_img: (H, W, 3) the image.
            img_path: where it comes from.
        """
        size, original = img.shape[2:], orig_img.shape
        gains = size[0] / original[0], size[1] / original[1]
        if not self.warp:
            gains = min(gains), min(gains)
        ratio_pad = (gains, (0, 0)) if self.warp else None
        pred[:, :4] = scale_boxes(size, pred[:, :4], original, ratio_pad=ratio_pad)
        placement = None
        if pred.shape[1] > 6:
            placement = pred[:, 6:] / pred.new_tensor((1, *gains[::-1], *gains[::-1]))
        result = PlacedResults(orig_img, img_path, self.model.names, pred[:, :6], placement=placement)
        result.show_sigma = self.show_sigma
        return result
