"""Our validation, divergence metrics included, beside Ultralytics' on the demo set. `make bench`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator

from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.evaluation.validator import MLCValidator

from .measuring import DEVICE, Run, show, timed


def test_validation_against_upstream(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    data = resolve_data("demo.yaml")
    model = YOLO("yolo11n.yaml")
    for branch in model.model.model[-1].cv3:  # a fresh net says nothing; some thousand boxes should reach NMS
        torch.nn.init.constant_(branch[-1].bias, -3.5)

    def run(validator: type[DetectionValidator]) -> Run:
        arguments = {
            "data": data,
            "imgsz": 320,
            "batch": 16,
            "plots": False,
            "project": str(run_dir),
            "name": validator.__name__,
            "mode": "val",
            "exist_ok": True,
            "verbose": False,
            "device": str(DEVICE),
        }
        return lambda: validator(args=arguments)(model=model.model)

    timing = timed({"stock": run(DetectionValidator), "ours": run(MLCValidator)}, rounds=5)
    show(capsys, "validation with a fresh yolo11n, 60 images, 320 px", timing)
    assert timing.ratios["ours"] < 1.5
