"""Test-time augmentation for heads that Ultralytics' own leaves out.

Ultralytics augments models whose head is of the exact class `Detect`; others it predicts once, with a warning. Every
head of ours is a subclass. The procedure is the same:

1. Predict the image as it is, at 0.83 of its size and mirrored, and at 0.67 of its size.
2. Bring the boxes back to the image.
3. For YOLO heads, leave out the coarsest level at full size and the finest at the smallest: these see objects that the
   other sizes see better. A ported head has chosen its best pairs of every level already, all of which stay.
4. NMS chooses among all of them.

A model that needs no NMS predicts once, as upstream's do: nothing would choose among its sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import scale_img

from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.iou_aware import has_iou_channel

#: The size of each view, in sizes of the image, and the axis it is mirrored along: 3 is left to right.
VIEWS = ((1.0, None), (0.83, 3), (0.67, None))


def predict_augmented(model: DetectionModel, images: Tensor) -> tuple[Tensor, None]:
    """Predict every view of a batch.

    Args:
        model: in evaluation; its head needs NMS.
        images: (B, 3, H, W), sides that are multiples of the coarsest stride.

    Returns:
        (B, 4 + K + E, the sum of the views' anchors): xywh in px of `images`, class scores, extra channels. And None,
        where a model has its raw predictions.
    """
    grid, size = int(model.stride.max()), images.shape[2:]
    views = []
    for scale, axis in VIEWS:
        view = scale_img(images.flip(axis) if axis else images, scale, gs=grid)
        views.append(model._descale_pred(model.predict(view)[0], axis, scale, size))
    if not isinstance(model, DetectorModel):
        views = model._clip_augmented(views)
    return torch.cat(views, -1), None


@contextmanager
def augmenting(model: nn.Module) -> Iterator[None]:
    """Let a model of ours take `augment=True`, as long as the context lasts.

    Upstream asks for the exact class of the head in the model's own method and leaves no hook. Checkpoints hold
    Ultralytics' class of model, so that a subclass would not reach it: an attribute of this one object stands before
    the method, and is gone before anybody saves it.

    Args:
        model: any; one that upstream augments itself, cannot be augmented or is no PyTorch model is left as it is.
    """
    ours: Any = model
    if not isinstance(model, DetectorModel) and not (isinstance(model, DetectionModel) and has_iou_channel(model)):
        yield
    elif getattr(model, "end2end", False):
        yield  # upstream says that it does not
    else:
        ours.__dict__["_predict_augment"] = partial(predict_augmented, model)
        try:
            yield
        finally:
            del ours.__dict__["_predict_augment"]
