"""RetinaNet and FCOS on a ResNet-50 beside torchvision's own: time and peak memory.

Both have frozen normalisation, three trainable stages and the same layers; detections are suppressed at both. Ratios
to torchvision come last. `make bench`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from ultralytics.utils.nms import non_max_suppression

from mlc_yolo.assigners import Schedule, build_assigner
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.options import specification as options
from mlc_yolo.training.detector_criterion import DetectorLoss

from .measuring import DEVICE, Run, memory, show, timed

SIZE, CLASSES, OBJECTS, TRAIN_BATCH, ROUNDS = 320, 80, 8, 2, 5
KINDS = ["retinanet", "fcos"]


def _torchvision(kind: str) -> Any:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return {"retinanet": RetinaNet, "fcos": FCOS}[kind](backbone, CLASSES, min_size=SIZE, max_size=SIZE).to(DEVICE)


def _ours(kind: str) -> DetectorModel:
    torch.manual_seed(0)
    config = {
        "detector": kind,
        "backbone": "resnet50",
        "nc": CLASSES,
        "quality": "centerness" if kind == "fcos" else "none",
        "follows": "torchvision",
        "norm": "frozen",
        "trainable_stages": 3,
    }
    model = DetectorModel(config, verbose=False)
    for name in model.frozen:
        model.get_submodule(f"model.{name}").requires_grad_(False)
    return model.to(DEVICE)


def _objects() -> tuple[Tensor, Tensor]:
    """Boxes (OBJECTS, 4) xyxy px and labels of one image."""
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(OBJECTS, 2, generator=generator) * 200, torch.rand(OBJECTS, 2, generator=generator) * 100
    labels = torch.randint(CLASSES, (OBJECTS,), generator=generator)
    return torch.cat((corner, corner + side + 16), 1).to(DEVICE), labels.to(DEVICE)


def _train_torchvision(kind: str) -> Run:
    model, (boxes, labels) = _torchvision(kind).train(), _objects()
    images = list(torch.rand(TRAIN_BATCH, 3, SIZE, SIZE, device=DEVICE))

    def step() -> None:
        model.zero_grad()
        sum(model(images, [{"boxes": boxes, "labels": labels}] * TRAIN_BATCH).values()).backward()

    return step


def _train_ours(kind: str, *, mlc: bool) -> Run:
    model, (boxes, labels) = _ours(kind).train(), _objects()
    own = model.head.own_assigner
    assigner = build_assigner("mlc", options.settle({**options.defaults(), "assigner": "mlc"}, kind), own=own)
    criterion = DetectorLoss(model, schedule=Schedule(own, assigner, warmup=0 if mlc else 1))
    xywh = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / SIZE
    batch = {
        "batch_idx": torch.arange(TRAIN_BATCH, device=DEVICE).repeat_interleave(OBJECTS),
        "cls": labels.repeat(TRAIN_BATCH)[:, None].float(),
        "bboxes": xywh.repeat(TRAIN_BATCH, 1),
    }
    images = torch.rand(TRAIN_BATCH, 3, SIZE, SIZE, device=DEVICE)

    def step() -> None:
        model.zero_grad()
        criterion(model(images), batch)[0].sum().backward()

    return step


def _train_layers(kind: str) -> Run:
    """The floor of a step: the layers forwards and backwards, without assignment and losses."""
    model, images = _ours(kind).train(), torch.rand(TRAIN_BATCH, 3, SIZE, SIZE, device=DEVICE)

    def step() -> None:
        model.zero_grad()
        outputs = [value for value in model(images).values() if isinstance(value, torch.Tensor)]
        torch.stack([value.mean() for value in outputs]).sum().backward()

    return step


def _infer_torchvision(kind: str, batch: int) -> Run:
    model, images = _torchvision(kind).eval(), list(torch.rand(batch, 3, SIZE, SIZE, device=DEVICE))
    return torch.no_grad()(lambda: model(images))


def _infer_ours(kind: str, batch: int) -> Run:
    model, images = _ours(kind).eval().fuse(verbose=False), torch.rand(batch, 3, SIZE, SIZE, device=DEVICE)
    threshold, iou = {"retinanet": (0.05, 0.5), "fcos": (0.2, 0.6)}[kind]
    return torch.no_grad()(lambda: non_max_suppression(model(images)[0], threshold, iou, multi_label=True))


def _infer_layers(kind: str, batch: int) -> Run:
    """The floor of inference: the layers and the decoding, without suppression."""
    model, images = _ours(kind).eval().fuse(verbose=False), torch.rand(batch, 3, SIZE, SIZE, device=DEVICE)
    return torch.no_grad()(lambda: model(images))


def _variants(kind: str) -> dict[str, dict[str, Callable[[], Run]]]:
    """What is timed together, by task and by name; torchvision's comes first."""
    return {
        f"train, batch {TRAIN_BATCH}": {
            "torchvision": lambda: _train_torchvision(kind),
            "ours": lambda: _train_ours(kind, mlc=False),
            "ours, mlc": lambda: _train_ours(kind, mlc=True),
            "floor: our layers": lambda: _train_layers(kind),
        },
        **{
            f"infer, batch {batch}": {
                "torchvision": lambda batch=batch: _infer_torchvision(kind, batch),
                "ours": lambda batch=batch: _infer_ours(kind, batch),
                "floor: our layers": lambda batch=batch: _infer_layers(kind, batch),
            }
            for batch in (1, 4)
        },
    }


@pytest.mark.parametrize("kind", KINDS)
def test_detectors_against_torchvision(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for task, builders in _variants(kind).items():
        runs = {name: build() for name, build in builders.items()}
        timing = timed(runs, rounds=ROUNDS)
        memories = {name: memory(run) for name, run in runs.items()}
        show(capsys, f"{kind} on ResNet-50, {task}, {SIZE} px", timing, memories)
        assert all(ratio < 1.5 for ratio in timing.ratios.values())
