"""Steps of semi-supervised training with small nets whose predictions vary."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from detectors.lively import lively_detector
from nets import BY_FAMILY, enliven
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from mlc_yolo.assigners import Schedule, yolo_assigner
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.options import specification as options
from mlc_yolo.training.criteria import build_criterion
from mlc_yolo.training.detector_criterion import DetectorLoss
from mlc_yolo.training.semi_criterion import SemiLoss
from mlc_yolo.training.view_teachers import RunningAverage

LABELS = {
    "batch_idx": torch.tensor([0.0, 1.0]),
    "cls": torch.tensor([[0.0], [2.0]]),
    "bboxes": torch.tensor([[0.4, 0.5, 0.5, 0.4], [0.5, 0.6, 0.7, 0.6]]),
}


def photos(count: int = 2, seed: int = 1, height: int = 64, width: int = 128) -> Tensor:
    """Smooth noise (count, 3, H, W) in [0, 1]."""
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def net(name: str) -> Any:
    """An untrained small net with a predicted IoU whose predictions vary, the same every time.

    Args:
        name: the family of a YOLO's head, or the kind of a ported detector.
    """
    return deepcopy(_yolo(name)) if name in BY_FAMILY else lively_detector(name, quality="iou", nc=3)


@cache
def _yolo(name: str) -> Any:
    torch.manual_seed(0)
    model: Any = DetectionModel(BY_FAMILY[name], nc=3, verbose=False).eval()
    model.args = DEFAULT_CFG
    add_iou_channel(model.model[-1])
    enliven(model, photos(seed=5))
    if name == "yolo26":  # its distances have no bins that keep them positive
        with torch.no_grad():
            for branch in (model.model[-1].cv2, model.model[-1].one2one_cv2):
                for layers in branch:
                    layers[-1].bias += 6
    return model


def learner(name: str) -> Any:
    """That net in training mode, but normalising as in evaluation: it gives what its teacher gives."""
    model = net(name).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model


def supervised(model: Any, assigner: str = "tal") -> Any:
    if isinstance(model, DetectionModel) and not hasattr(model, "kind"):
        main = yolo_assigner(assigner, options.settle(options.defaults()))
        return build_criterion(model, schedule=Schedule(main, main, 0), prior_scale=5.0, iou_gain=1.0)
    own = model.head.own_assigner
    return DetectorLoss(model, schedule=Schedule(own, own, 0))


def semi(student: Any, teacher: Any, mode: str = "sed", **given: Any) -> SemiLoss:
    sed = mode == "sed"
    criterion = SemiLoss(
        supervised(student),
        **{
            "mode": mode,
            "student": lambda: student,
            "teacher": RunningAverage(lambda: teacher, lambda: student),
            "power": 2 * sed,
            "scale": sed,
            "threshold": 0.3,
            **given,
        },
    )
    criterion.gain = 1.0
    return criterion


def batch(views: Tensor | None = None, strong: Tensor | None = None) -> dict[str, Any]:
    labelled = {"img": photos(seed=3), **LABELS}
    if views is not None:
        labelled["unlabeled"] = {"weak": views, "strong": views if strong is None else strong}
    return labelled


def step(criterion: SemiLoss, model: Any, given: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    return criterion(model(given["img"]), given)
