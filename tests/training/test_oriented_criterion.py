"""The criterion of oriented boxes: every assigner on heads with and without distributions, and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from nets import SMALL
from ultralytics.nn.tasks import OBBModel
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.loss import E2ELoss, v8OBBLoss
from ultralytics.utils.metrics import probiou

from mlc_yolo.assigners import Assignment, PointInBox, Predictions, Schedule, Targets, TaskAligned, yolo_assigner
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.options import specification as options
from mlc_yolo.priors import Priors
from mlc_yolo.training.criteria import build_criterion
from mlc_yolo.training.yolo_criterion import PerTaskE2ELoss

ASSIGNERS = ["tal", "max_iou", "fcos", "atss", "mutual_guidance", "mlc", "ddod"]


def _model(*, end2end: bool = False) -> Any:
    content = yaml.safe_load(Path(SMALL).read_text())
    newer = {"end2end": True, "reg_max": 1} if end2end else {}
    head = [[content["head"][-1][0], 1, "OBB26" if end2end else "OBB", ["nc", 1]]]
    torch.manual_seed(0)
    model = OBBModel({**content, **newer, "head": head}, nc=3, verbose=False)
    model.args = SimpleNamespace(**{**vars(DEFAULT_CFG), "angle": 2.5})  # by default 1, which shows nothing
    return model.train()


@pytest.fixture(scope="module")
def plain() -> Any:
    return _model()


def _batch(objects: int = 5) -> dict[str, torch.Tensor]:
    """Two images of 64 px; all objects lie in the first, the last of them 1 px thin."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.rand((objects, 5), generator=draw) * torch.tensor([0.6, 0.6, 0.4, 0.4, math.pi])
    rows += torch.tensor([0.2, 0.2, 0.1, 0.1, 0])
    if objects:
        rows[-1, 3] = 1 / 64
    return {
        "img": torch.rand((2, 3, 64, 64), generator=draw),
        "batch_idx": torch.zeros(objects),
        "cls": torch.arange(objects)[:, None] % 3.0,
        "bboxes": rows,
    }


def _criterion(model: Any, assigner: Any, *, by_product: bool = True) -> Any:
    return build_criterion(
        model, schedule=Schedule(assigner, assigner, 0, 0), prior_scale=5.0, iou_gain=1.0, by_product=by_product
    )


def _named(name: str, **changes: Any) -> Any:
    return yolo_assigner(name, options.settle({**options.defaults(), "assigner": name, **changes}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in ASSIGNERS),
        ("mutual_guidance", {"mg_rule": "2021"}),
        ("mlc", {"mlc_candidates": "inside"}),
        ("tal", {"box_weight": "score"}),
    ],
)
def test_every_assigner_trains_boxes_classes_and_angles(name: str, changes: dict[str, Any], plain: Any) -> None:
    batch = _batch()
    losses, items = _criterion(plain, _named(name, **changes))(plain(batch["img"]), batch)
    assert list(items) == ["box_loss", "cls_loss", "dfl_loss", "angle_loss", "pos_cls", "pos_loc"]
    assert all(items[n].isfinite() and items[n] > 0 for n in items)
    plain.zero_grad()
    losses.sum().backward()
    head = plain.model[-1]
    for branch in (head.cv2, head.cv3, head.cv4):
        assert any(layer[-1].weight.grad.abs().sum() > 0 for layer in branch)
    assert all(p.grad.isfinite().all() for p in plain.parameters() if p.grad is not None)


@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("name", ["tal", "mlc"])
def test_images_without_objects_teach_the_background_alone(name: str, end2end: bool, plain: Any) -> None:
    model, batch = _model(end2end=True) if end2end else plain, _batch(0)
    losses, items = _criterion(model, _named(name))(model(batch["img"]), batch)
    assert items["cls_loss"] > 0 and items["box_loss"] == items["angle_loss"] == items["pos_loc"] == 0
    losses.sum().backward()


@pytest.mark.parametrize("end2end", [False, True])
def test_stock_and_our_seam_give_upstreams_losses(end2end: bool, plain: Any) -> None:
    model, batch = _model(end2end=True) if end2end else plain, _batch()
    raw = model(batch["img"])
    upstream = E2ELoss(model, v8OBBLoss) if end2end else v8OBBLoss(model)
    expected, names = upstream(raw, batch)
    stock, items = _criterion(model, _named("tal"))(raw, batch)
    assert torch.equal(stock, expected) and all(torch.equal(items[name], names[name]) for name in names)
    called = _criterion(model, TaskAligned())
    assert isinstance(called, PerTaskE2ELoss) == end2end
    ours, counted = called(raw, batch)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)  # the thin object is left out by both
    assert 0 < items["pos_cls"] == items["pos_loc"]
    assert 0 < counted["pos_loc"] <= items["pos_loc"]


def test_under_autocast_assigners_see_boxes_in_single_precision(plain: Any) -> None:
    seen: list[tuple[Predictions, Priors, Targets]] = []

    def watching(*inputs: Any) -> Assignment:
        seen.append(inputs)
        return PointInBox()(*inputs)

    batch = _batch()
    raw = plain(batch["img"])
    halves = {name: part.bfloat16() if name != "feats" else part for name, part in raw.items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = _criterion(plain, watching)(halves, batch)
    (predictions, priors, targets), distances = seen[0], halves["boxes"].float()
    assert predictions.boxes.dtype == torch.float32 and priors.boxes.shape[1] == 5 and losses.isfinite().all()
    sides = distances.unflatten(1, (4, -1)).softmax(2).mul(torch.arange(16.0)[:, None]).sum(2)
    width = (sides[:, 0] + sides[:, 2]) * priors.strides
    torch.testing.assert_close(predictions.boxes[..., 2], width, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(predictions.boxes[..., 4], halves["angle"][:, 0].float())
    assert targets.valid.tolist()[0] == [True] * 4 + [False]  # the last is thinner than 2 px


def test_labels_of_upright_boxes_are_refused_with_what_is_expected(plain: Any) -> None:
    batch = {**_batch(), "bboxes": torch.zeros(0, 5)}  # as upstream's data set reads labels of upright boxes
    with pytest.raises(TypeError, match="four corners"):
        _criterion(plain, _named("mlc"))(plain(batch["img"]), batch)


@pytest.mark.parametrize("form", ["product", "positives"])
def test_a_channel_learns_the_probiou_of_positives_and_by_product_through_the_class_loss(form: str) -> None:
    model, batch, decided = _model(), _batch(), []
    add_iou_channel(model.model[-1], bias=0.0)

    def deciding(*inputs: Any) -> Assignment:
        decided.append((inputs, TaskAligned()(*inputs)))
        return decided[-1][1]

    raw = model(batch["img"])
    losses, items = _criterion(model, deciding, by_product=form == "product")(raw, batch)
    (predictions, _, targets), assignment = decided[0]
    where = assignment.localization.positive
    goals = targets.boxes[where.nonzero()[:, 0], assignment.localization.gt_index[where]]
    errors = raw["iou"][:, 0].sigmoid()[where] - probiou(predictions.boxes[where], goals)[:, 0]
    torch.testing.assert_close(items["iou_loss"], errors.square().mean().detach(), rtol=1e-4, atol=1e-6)
    assert len(losses) == 5 and where.sum() > 3
    without = {name: part for name, part in raw.items() if name != "iou"}
    of_classes = _criterion(model, deciding)(without, batch)[1]["cls_loss"]
    assert torch.equal(items["cls_loss"], of_classes) == (form == "positives")
    model.zero_grad()
    losses[1].backward()
    assert (model.model[-1].cv_iou[0].weight.grad.abs().sum() > 0) == (form == "product")
