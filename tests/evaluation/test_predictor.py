"""How a predictor resizes images is chosen per call and holds however it is made; what it cannot show, it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teaching import detector, saved

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.predictor import MLCPredictor

SIZE = 96


@pytest.mark.slow
def test_the_resize_of_a_call_survives_a_predictor_made_anew_and_ends_with_the_call(
    iou_aware: Any, tmp_path: Path
) -> None:
    model = iou_aware("yolo11n", torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    model.args = {"task": "detect", "imgsz": SIZE}
    torch.save({"model": model, "train_args": {}}, tmp_path / "model.pt")
    net = MLCYOLO(tmp_path / "model.pt")
    image = np.random.default_rng(0).integers(0, 256, (48, SIZE, 3), dtype=np.uint8)
    shapes: list[tuple[int, ...]] = []

    def predict(**options: Any) -> Any:
        net.predict(image, imgsz=SIZE, rect=False, verbose=False, **options)
        assert type(net.predictor) is MLCPredictor
        (resized,) = net.predictor.pre_transform([image])
        shapes.append(tuple(np.flatnonzero((resized != 114).any((1, 2)))[[0, -1]]))
        return net.predictor

    warped = predict(resize="warp")
    assert predict(resize="warp", conf=0.5) is warped, "a call alike keeps it, and with it a tracker's memory"
    again = predict(resize="warp", channels_last=False)  # applied when a model is set up: upstream makes it anew
    assert again is not warped and again.resize == "warp"
    assert predict().resize is None and predict(resize="letterbox").resize == "letterbox"
    assert shapes == [(0, 95)] * 3 + [(24, 71)] * 2


@pytest.mark.parametrize(("name", "warned"), [("yolov8", False), ("yolo26", True), ("retinanet", True)])
def test_bands_of_a_model_that_knows_none_are_said_to_be_missing(
    name: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = MLCYOLO(saved(detector(name), tmp_path / "net.pt"))
    images = [np.zeros((64, 64, 3), np.uint8)] * 2
    net.predict(images, imgsz=64, show_sigma=True, batch=1)
    assert caplog.text.count("show_sigma: no effect") == warned
