"""Checkpoints of small untrained detectors, to teach others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectors.lively import lively_detector
from nets import BY_FAMILY, enliven
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from mlc_yolo.heads.iou_aware import add_iou_channel

NAMES = {0: "square", 1: "disc", 2: "cross"}


def smooth(count: int = 2, height: int = 64, width: int = 128, seed: int = 5) -> Tensor:
    """Smooth noise (count, 3, H, W) in [0, 1]."""
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def detector(name: str, names: dict[int, str] | None = None, *, iou_head: bool = False, seed: int = 0) -> Any:
    """A net whose predictions vary, of classes of these names; the same every time.

    Args:
        name: the family of a small YOLO's head, a larger YOLO's name, or the kind of a ported detector.
    """
    names = names or NAMES
    if not name.startswith("yolo"):
        model = lively_detector(name, quality="iou", nc=len(names))
    else:
        torch.manual_seed(seed)
        model = DetectionModel(BY_FAMILY.get(name, f"{name}.yaml"), nc=len(names), verbose=False).eval()
        if iou_head:
            add_iou_channel(model.model[-1])
        enliven(model, smooth())
    model.names, model.args = dict(names), DEFAULT_CFG
    return model


def saved(model: nn.Module, file: Path) -> str:
    """The path of a model's checkpoint."""
    torch.save({"model": model, "train_args": {}}, file)
    return str(file)
