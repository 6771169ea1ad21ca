"""Mutual Guidance's detectors as models: their YAMLs' keys, weights, losses, and a few steps of training."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlc_yolo.assigners import Role, Schedule, build_assigner
from mlc_yolo.detectors.config import complete, fill_empty, find_config
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.multibox import PYRAMIDS
from mlc_yolo.detectors.weights import start_from
from mlc_yolo.heads.multibox import MultiBoxDetect
from mlc_yolo.options import specification as options
from mlc_yolo.training.detector_criterion import DetectorLoss

from .lively import image

#: Image, class, centre and sides in fractions of the second size; the second image is empty.
OBJECTS = [[0, 0, 0.30, 0.40, 0.40, 0.50], [0, 2, 0.70, 0.60, 0.30, 0.60], [2, 1, 0.50, 0.50, 0.90, 0.90]]
SIZE = (96, 160)

pytestmark = pytest.mark.usefixtures("narrow_backbones")


def _config(kind: str, backbone: str = "resnet18", **keys: Any) -> dict[str, Any]:
    return complete({"detector": kind, "backbone": backbone, "width": 32, "nc": 3, "quality": "none", **keys})


@cache
def _model(kind: str, **keys: Any) -> DetectorModel:
    torch.manual_seed(0)
    return DetectorModel(_config(kind, **keys), verbose=False)


def _batch() -> dict[str, Tensor]:
    table = torch.tensor(OBJECTS)
    return {"batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:]}


def _criterion(model: DetectorModel, name: str) -> DetectorLoss:
    ours = options.settle({**options.defaults(), "assigner": name}, model.kind)
    assigner = build_assigner(name, ours, own=model.head.own_assigner)
    return DetectorLoss(model, schedule=Schedule(assigner, assigner, 0))


@pytest.mark.parametrize("kind", PYRAMIDS)
def test_levels_are_four_unless_said_otherwise(kind: str) -> None:
    for given, strides in (({}, [8, 16, 32, 64]), ({"levels": 5}, [8, 16, 32, 64, 128])):
        model = DetectorModel(_config(kind, **given), verbose=False)
        assert isinstance(model.head, MultiBoxDetect)
        assert model.head.stride.tolist() == strides
        again = DetectorModel(model.yaml, verbose=False)
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 2}, "levels=2 must be a whole number from 3 to 7"),
        ({"levels": 4.0}, "levels=4.0 must be a whole number"),
        ({"detector": "retinanet", "levels": 4}, "levels is for fssd, .*; a retinanet has five"),
        ({"detector": "retinanet", "backbone": "vgg16_bn"}, "backbone = 'vgg16_bn'; it must be one of resnet"),
        ({"backbone": "vgg16"}, "Did you mean 'vgg16_bn'"),
        ({"quality": "centerness"}, "quality = 'centerness'; it must be one of iou, none"),
        ({"detector": "fsd"}, "Did you mean 'fssd'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        complete({"detector": "fssd", "backbone": "resnet18", **changes})


@pytest.mark.parametrize(("side", "levels", "count"), [(320, 4, 12_750), (512, 5, 32_736)])
def test_a_model_predicts_for_each_of_the_papers_priors(side: int, levels: int, count: int) -> None:
    model = _model("fssd", levels=levels).eval()
    with torch.no_grad():
        raw = model(torch.zeros(1, 3, side, side))[1]
    assert raw["boxes"].shape == (1, count, 4) and raw["scores"].shape == (1, count, 3)
    assert len(model.head.priors(raw["feats"], scale=1.0)) == count


@pytest.mark.parametrize("name", ["fssd-r18", "retinanet-fssd-vgg16", "rfbnet-vgg16", "pafpn-r18"])
def test_pretrained_or_not_the_whole_backbone_trains_and_learns_its_norm(name: str) -> None:
    config = find_config(f"{name}.yaml")
    assert config is not None
    for pretrained in (False, True):
        settled = fill_empty(config, pretrained=pretrained)
        assert (settled["norm"], settled["trainable_stages"], settled["quality"]) == ("batch", 5, "none")
    assert DetectorModel(fill_empty(config, pretrained=True), verbose=False).frozen == []


def test_frozen_stages_of_a_vgg_are_its_first_blocks() -> None:
    model = DetectorModel(_config("fssd", "vgg16_bn", trainable_stages=3), verbose=False)
    frozen = [n for n, _ in model.named_parameters() if any(f"model.{part}." in n for part in model.frozen)]
    blocks = {int(name.split(".")[3]) for name in frozen}
    assert all(name.startswith("model.0.body.") for name in frozen)
    assert blocks == {0, 1, 3, 4, 7, 8, 10, 11}  # conv1_1 to conv2_2 and their normalisations


def test_a_vgg_starts_from_torchvisions_state_dict(tmp_path: Path) -> None:
    body: Any = DetectorModel(_config("rfbnet", "vgg16_bn"), verbose=False).get_submodule("model.0.body")
    state = {f"features.{name}": torch.rand_like(t.float()).to(t.dtype) for name, t in body.state_dict().items()}
    torch.save({**state, "classifier.0.weight": torch.rand(2, 2)}, tmp_path / "vgg16_bn.pth")
    model = start_from(_config("rfbnet", "vgg16_bn"), tmp_path / "vgg16_bn.pth")
    for name, tensor in model.get_submodule("model.0.body").state_dict().items():
        assert torch.equal(tensor, state[f"features.{name}"]), name
    with pytest.raises(ValueError, match="does not fit backbone=resnet18"):
        start_from(_config("fssd"), tmp_path / "vgg16_bn.pth")


@pytest.mark.slow
@pytest.mark.parametrize("kind", PYRAMIDS)
def test_fusing_folds_backbone_and_pyramid(kind: str) -> None:
    torch.manual_seed(0)
    model = DetectorModel(_config(kind), verbose=False)
    with torch.no_grad():
        model.train()
        for _ in range(20):
            model(image(*SIZE, count=2))
        model.eval()
        before = model(image(*SIZE))[1]
        fused = model.fuse(verbose=False)
        after = fused(image(*SIZE))[1]
    assert fused.is_fused()
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert float(before["scores"].std()) > 0.01
    torch.testing.assert_close(after["scores"], before["scores"], rtol=0, atol=1e-4)
    torch.testing.assert_close(after["boxes"], before["boxes"], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("assigner", ["max_iou", "mutual_guidance"])
def test_losses_equal_slow_ones(assigner: str) -> None:
    """Focal loss of gamma 1 over classification's positives; balanced L1 over four times localisation's."""
    model = _model("fssd").eval()
    generator = torch.Generator().manual_seed(0)
    feats = [torch.empty(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in (8, 16, 32, 64)]
    priors = model.head.priors(feats, scale=1.0)
    raw = {
        "boxes": torch.randn(3, len(priors), 4, generator=generator),
        "scores": torch.randn(3, len(priors), 3, generator=generator) * 2 - 1,
        "feats": feats,
    }
    criterion = _criterion(model, assigner)
    losses, items = criterion(raw, _batch())
    cls, loc = criterion._assign(raw, priors, criterion._targets(raw, _batch()))

    classes = boxes = 0.0
    for i in range(3):
        objects = [(int(row[1]), row[2:]) for row in OBJECTS if row[0] == i]
        for a in range(len(priors)):
            for k in range(3):
                positive = bool(cls.role[i, a] == Role.POSITIVE) and objects[int(cls.gt_index[i, a])][0] == k
                p = 1 / (1 + math.exp(-float(raw["scores"][i, a, k])))
                cost = -0.25 * (1 - p) * math.log(p) if positive else -0.75 * p * math.log(1 - p)
                classes += cost * bool(cls.role[i, a] != Role.IGNORED)
            if loc.role[i, a] == Role.POSITIVE:
                x, y, w, h = objects[int(loc.gt_index[i, a])][1]
                x0, y0, x1, y1 = priors.boxes[a].tolist()
                goal = [
                    (x * SIZE[1] - (x0 + x1) / 2) / (x1 - x0) / 0.1,
                    (y * SIZE[0] - (y0 + y1) / 2) / (y1 - y0) / 0.1,
                    math.log(w * SIZE[1] / (x1 - x0)) / 0.2,
                    math.log(h * SIZE[0] / (y1 - y0)) / 0.2,
                ]
                for error in (abs(float(d) - g) for d, g in zip(raw["boxes"][i, a], goal, strict=True)):
                    b, e = math.expm1(3), min(error, 0.11)
                    boxes += 0.5 / b * (b * e + 0.11) * math.log(b * e / 0.11 + 1) - 0.5 * e + 1.5 * (error - e)
    positives = [int((task.role == Role.POSITIVE).sum()) for task in (cls, loc)]
    assert min(positives) > 3
    assert losses.tolist() == pytest.approx([boxes / (4 * positives[1]), classes / positives[0]], rel=1e-4)
    assert items["pos_cls"].item() == pytest.approx(positives[0] / 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PYRAMIDS)
def test_a_few_steps_of_mutual_guidance_lower_the_loss(kind: str) -> None:
    torch.manual_seed(0)
    model = DetectorModel(_config(kind, quality="iou"), verbose=False).train()
    criterion, images = _criterion(model, "mutual_guidance"), image(*SIZE, count=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    history = []
    for _ in range(12):
        losses, _ = criterion(model(images), _batch())
        optimizer.zero_grad()
        losses.sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
        history.append(float(losses.detach().sum()))
    assert history[-1] < 0.8 * history[0]
