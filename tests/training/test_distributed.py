"""A step of two gloo ranks sums to that of one process on the joined batch: losses, counts and gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import SMALL, enliven
from torch import Tensor
from two_ranks import on_two_ranks
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from mlc_yolo.assigners import Schedule, build_assigner
from mlc_yolo.detectors.config import complete
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.options import specification as options
from mlc_yolo.training.criteria import build_criterion
from mlc_yolo.training.detector_criterion import DetectorLoss

pytestmark = pytest.mark.usefixtures("narrow_backbones")

OBJECTS = torch.tensor([[0, 0, 0.3, 0.4, 0.4, 0.5], [0, 2, 0.7, 0.6, 0.3, 0.6], [1, 1, 0.5, 0.5, 0.9, 0.9]])


#: The assigner of a test is that of a YOLO, or a detector's: "kind assigner quality".
DETECTORS = ["retinanet mlc iou", "retinanet max_iou none", "fcos mlc iou", "fcos fcos centerness", "rpn mlc iou"]


#: A batch's objects, (N, 6) rows of Ultralytics' batch: image, class, then xywh in parts of the image.
SCENES = {
    "both": OBJECTS,
    "one rank empty": OBJECTS[:2],
    "fewer positives than ranks": torch.tensor([[0, 0, 0.3, 0.4, 0.04, 0.05]]),
    "both empty": OBJECTS[:0],
}


def _batches(assigner: str) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, images and objects of every batch; of three images, the second rank has the last one alone."""
    batches = []
    for count, (name, rows) in product((2, 3), SCENES.items()):
        images = torch.rand((count, 3, 64, 96), generator=torch.Generator().manual_seed(1))
        rows = torch.cat((rows[:, :1] * (count - 1), rows[:, 1:]), 1)
        if assigner.startswith("rpn"):
            rows[:, 1] = 0
        batches.append((f"{name}, {count} images", images, rows))
    return batches


def _step(model: Any, criterion: Any, images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What ranks must sum to: the losses, the positives of each task, and every parameter's gradient."""
    model.zero_grad()
    batch = {"img": images, "batch_idx": rows[:, 0], "cls": rows[:, 1:2], "bboxes": rows[:, 2:]}
    losses, items = criterion(model(images)[1], batch)
    losses.sum().backward()
    counts = torch.stack((items["pos_cls"], items["pos_loc"])) * len(images)
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 20
    return torch.cat((losses.detach(), counts, *gradients))


def _learner(assigner: str) -> tuple[Any, Any]:
    """A model and its criterion, the same at every call."""
    torch.manual_seed(0)
    return _detector(*assigner.split()) if assigner in DETECTORS else _yolo(assigner)


def _yolo(assigner: str) -> tuple[Any, Any]:
    model: Any = DetectionModel(SMALL, nc=3, verbose=False).eval()  # batch statistics are each rank's own
    model.args = DEFAULT_CFG
    add_iou_channel(model.model[-1])
    # A fresh net sees the same everywhere: rounding would decide between its anchors.
    enliven(model, torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(2)))
    main = build_assigner(assigner, options.settle(options.defaults()))
    return model, build_criterion(model, schedule=Schedule(main, main, 0), prior_scale=5.0, iou_gain=1.0)


def _detector(kind: str, assigner: str, quality: str) -> tuple[Any, Any]:
    config = {"detector": kind, "backbone": "resnet18", "width": 64, "nc": 1 if kind == "rpn" else 3}
    model = DetectorModel(complete({**config, "quality": quality}), verbose=False).eval()
    head: Any = model.head
    if kind == "rpn":  # ranks draw differently: let the sample be everything
        head.recipe = replace(head.recipe, sample=10**6)
    main = build_assigner(assigner, options.settle(options.defaults(), kind), own=head.own_assigner)
    return model, DetectorLoss(model, schedule=Schedule(main, main, 0), align_gain=0.5)


def _share(rank: int, assigner: str) -> Tensor:
    """A step on this rank's images of each batch: the first has one more than the second, as of a last batch."""
    learner = _learner(assigner)
    sums = []
    for _, images, rows in _batches(assigner):
        first = (len(images) + 1) // 2
        own = rows[(rows[:, 0] >= first) == bool(rank)].clone()
        own[:, 0] -= rank * first
        sums.append(_step(*learner, images[first:] if rank else images[:first], own))
    return torch.stack(sums)


@pytest.mark.slow
@pytest.mark.parametrize("assigner", ["fcos", "max_iou", "atss", "mutual_guidance", "mlc", *DETECTORS])
def test_two_ranks_equal_one_process(assigner: str, tmp_path: Path) -> None:
    shares = on_two_ranks(partial(_share, assigner=assigner), tmp_path)
    learner = _learner(assigner)
    batches = _batches(assigner)
    for (name, images, rows), *of_ranks in zip(batches, *shares, strict=True):
        expected = _step(*learner, images, rows)
        tolerance = 1e-4 * expected.abs().max().item()  # a forgotten all-reduce is off by half or more
        torch.testing.assert_close(
            sum(of_ranks), expected, rtol=1e-3, atol=tolerance, msg=lambda text, at=name: f"{at}: {text}"
        )
    assert len(batches) == 8
