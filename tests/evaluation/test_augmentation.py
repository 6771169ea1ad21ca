"""Test-time augmentation: equal to upstream's where upstream has one, and to a loop written by hand elsewhere."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectors.lively import lively_detector
from nets import SMALL, SMALL_NETS
from torch import Tensor
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.augmentation import augmenting, predict_augmented
from mlc_yolo.evaluation.postprocess import detections, extra_channels
from mlc_yolo.heads.iou_aware import set_rescore

SIZE = 96
KINDS = ["yolo11n", "yolov8n", "yolo26n", "retinanet", "fcos", "rpn"]


@pytest.fixture
def build(iou_aware: Any) -> Any:
    """A function (kind) -> an untrained model of ours whose scores differ."""

    def make(kind: str) -> DetectionModel:
        if kind.startswith("yolo"):
            model = iou_aware(kind, torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
        else:
            model = lively_detector(kind, quality="iou", width=64, **({} if kind == "rpn" else {"nc": 3}))
        model.names = {0: "item"} if kind == "rpn" else {0: "square", 1: "disc", 2: "cross"}
        model.args = {"task": "detect", "imgsz": SIZE}
        return model.eval()

    return make


def images(count: int = 2, height: int = 64, width: int = SIZE) -> Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_hand(model: DetectionModel, batch: Tensor, *, whole: bool) -> Tensor:
    """Return the predictions (B, 4 + K + E, n) of three views, each made by hand.

    The views are predicted as a batch, because a convolution's rounding depends on the number of images, and what
    ported heads select depends on rounding.
    """
    count, _, height, width = batch.shape
    views = []
    for number, (scale, mirrored) in enumerate(((1.0, False), (0.83, True), (0.67, False))):
        view = torch.stack([batch[..., width - 1 - column] for column in range(width)], -1) if mirrored else batch
        if scale != 1:
            small = F.interpolate(view, (int(height * scale), int(width * scale)), mode="bilinear")
            sides = (-(-int(np.ceil(side * scale)) // 32) * 32 for side in (height, width))
            view = torch.full((count, 3, *sides), 0.447)
            view[:, :, : small.shape[2], : small.shape[3]] = small
        columns = model(view)[0].clone()
        columns[:, :4] /= scale
        if mirrored:
            columns[:, 0] = width - columns[:, 0]
        area = view.shape[2] * view.shape[3]
        if not whole and number == 0:
            columns = columns[..., : -(area // 32**2)]  # not the coarsest level
        if not whole and number == 2:
            columns = columns[..., area // 8**2 :]  # not the finest
        views.append(columns)
    return torch.cat(views, 2)


@pytest.mark.slow
@pytest.mark.parametrize("by_iou", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_view_is_predicted_as_a_loop_by_hand_does(kind: str, by_iou: bool, build: Any) -> None:
    model = build(kind)
    model.model[-1].rank_by_iou = by_iou
    with torch.no_grad():
        together, raw = predict_augmented(model, images())
    assert raw is None and len(together) == 2
    torch.testing.assert_close(together, by_hand(model, images(), whole=not kind.startswith("yolo")))
    assert together.shape[1] == 4 + len(model.names) + len(extra_channels(model))


@pytest.mark.parametrize("kind", ["yolo11n", "yolov8n", "yolo26n"])
def test_without_rescoring_the_predictions_are_those_of_the_stock_model(kind: str, build: Any) -> None:
    ours = build(kind)
    set_rescore(ours, False)
    stock = DetectionModel(SMALL_NETS[kind], nc=3, verbose=False).eval()
    stock.load_state_dict(ours.state_dict(), strict=False)
    with torch.no_grad():
        expected = stock.predict(images(), augment=True)[0]
        assert torch.equal(predict_augmented(ours, images())[0], expected)
        with augmenting(ours):
            assert torch.equal(ours.predict(images(), augment=True)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_come_from_every_view_and_the_model_is_left_as_it_was(
    kind: str, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ultralytics.nn.tasks.LOGGER.warning", said.append)
    model = build(kind)
    torch.save({"model": deepcopy(model), "train_args": {}}, tmp_path / "model.pt")
    net = MLCYOLO(tmp_path / "model.pt")
    batch = images(1)
    chosen = {"imgsz": (64, SIZE), "conf": 0.01, "verbose": False}
    (plain,), (augmented,) = (net.predict(batch, augment=augment, **chosen) for augment in (False, True))
    views = by_hand(net.predictor.model.model, batch, whole=not kind.startswith("yolo"))
    (expected,) = detections(
        views,
        extra_channels(model),
        confidence=0.01,
        iou_threshold=0.7,
        max_det=300,
        agnostic=False,
        multi_label=False,
    )
    clipped = expected.clone()
    clipped[:, 0:4:2], clipped[:, 1:4:2] = expected[:, 0:4:2].clamp(0, SIZE), expected[:, 1:4:2].clamp(0, 64)
    torch.testing.assert_close(augmented.boxes.data, clipped, rtol=1e-4, atol=1e-3)
    assert not torch.equal(plain.boxes.data, augmented.boxes.data)
    assert said == [] and "_predict_augment" not in vars(net.model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yolo11n", "fcos"])
def test_validation_measures_every_view_and_the_model_is_left_as_it_was(
    kind: str, build: Any, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ultralytics.nn.tasks.LOGGER.warning", said.append)
    torch.save({"model": build(kind), "train_args": {}}, run_dir / "model.pt")
    net = MLCYOLO(run_dir / "model.pt")
    place = {"data": tiny_data, "imgsz": SIZE, "conf": 0.01, "plots": False, "verbose": False, "project": str(run_dir)}
    plain, augmented, again = (net.val(augment=augment, **place).results_dict for augment in (False, True, False))
    assert augmented["metrics/spearman_pooled(B)"] != plain["metrics/spearman_pooled(B)"]
    np.testing.assert_equal(again, plain)
    assert said == [] and "_predict_augment" not in vars(net.model)


@pytest.mark.slow
def test_a_stock_models_validation_is_augmented_by_upstream_itself(tiny_data: Path, run_dir: Path) -> None:
    torch.manual_seed(0)
    model = DetectionModel(SMALL, nc=3, verbose=False)
    model.names, model.args = {0: "square", 1: "disc", 2: "cross"}, {"task": "detect", "imgsz": SIZE}
    torch.save({"model": model, "train_args": {}}, run_dir / "model.pt")
    place = {"data": str(tiny_data), "imgsz": SIZE, "conf": 0.0, "plots": False, "verbose": False}
    stock, ours = (
        net(run_dir / "model.pt").val(augment=True, project=str(run_dir), **place).results_dict
        for net in (YOLO, MLCYOLO)
    )
    assert {key: ours[key] for key in stock} == stock


@pytest.mark.slow
def test_a_model_that_needs_no_nms_predicts_once_and_says_so(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ultralytics.nn.tasks.LOGGER.warning", said.append)
    torch.save({"model": build("yolo26n"), "train_args": {}}, tmp_path / "model.pt")
    net = MLCYOLO(tmp_path / "model.pt")
    chosen = {"imgsz": (64, SIZE), "conf": 0.0, "nms": False, "verbose": False}
    (plain,), (augmented,) = (net.predict(images(1), augment=augment, **chosen) for augment in (False, True))
    assert torch.equal(plain.boxes.data, augmented.boxes.data) and len(plain.boxes)
    assert any("does not support 'augment=True'" in line for line in said)
