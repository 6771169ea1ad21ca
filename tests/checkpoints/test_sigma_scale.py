"""The factor of a calibration is kept in checkpoints of both kinds, and nothing else in them changes."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from mlc_yolo.checkpoints import safe_load, tensors_file
from mlc_yolo.checkpoints.marker import read_marker
from mlc_yolo.checkpoints.sigma_scale import sigma_scale, store_sigma_scale


@pytest.fixture
def model(iou_aware: Any) -> Any:
    made = iou_aware("yolo11n", torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    made.args = {"task": "detect", "imgsz": 96}
    return made


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", tensors_file.SUFFIX])
def test_a_stored_factor_comes_back_and_replaces_the_one_before(model: Any, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"model{suffix}"
    checkpoint = {"model": model, "ema": None, "train_args": {"imgsz": 96}, "epoch": 7}
    if suffix == ".pt":
        torch.save(checkpoint, file)
    else:
        tensors_file.save(file, model, checkpoint["train_args"])
    load: Any = safe_load.load_checkpoint if suffix == ".pt" else tensors_file.load
    assert sigma_scale(load(file)[0]) == 1
    for scale in (0.5, 1.25):
        store_sigma_scale(file, scale)
        again, content = load(file)
        assert sigma_scale(again) == scale
        assert read_marker(again) == {**read_marker(model), "sigma_scale": scale}, "what else was noted stays"
        assert content["train_args"]["imgsz"] == 96
        state = model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert sigma_scale(model) == 1 and [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.slow
def test_ultralytics_opens_a_stock_checkpoint_that_holds_a_factor(tmp_path: Path) -> None:
    plain = YOLO("yolov8n.yaml")
    plain.save(tmp_path / "plain.pt")
    store_sigma_scale(tmp_path / "plain.pt", 2.0)
    assert sigma_scale(YOLO(tmp_path / "plain.pt").model) == 2


@pytest.mark.parametrize("scale", [0.0, -1.0, nan, inf])
def test_a_factor_that_is_none_is_refused(scale: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="above 0"):
        store_sigma_scale(tmp_path / "missing.pt", scale)
