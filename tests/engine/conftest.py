"""IoU-aware models whose scores are worth comparing, without training one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import enliven
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.engine.checkpoint import write_marker
from mlc_yolo.heads.iou_aware import add_iou_channel


@pytest.fixture
def iou_aware() -> Callable[..., DetectionModel]:
    """A function (name, image, num_classes=3) -> untrained IoU-aware model, the same every time."""

    def make(name: str, image: torch.Tensor, num_classes: int = 3) -> DetectionModel:
        torch.manual_seed(0)
        model = DetectionModel(f"{name}.yaml", nc=num_classes, verbose=False).eval()
        add_iou_channel(model.model[-1])
        enliven(model, image)
        write_marker(model, iou_head=True)
        return model

    return make
