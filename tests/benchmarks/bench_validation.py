"""Our validation beside Ultralytics' on the demo set, interleaved in one process; the ratio last. `make bench`."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator

from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.engine.validator import MLCValidator


def test_validation_against_upstream(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    data, rounds = resolve_data("demo.yaml"), 5
    model = YOLO("yolo11n.yaml")
    for branch in model.model.model[-1].cv3:  # a fresh net says nothing; some thousand boxes should reach NMS
        torch.nn.init.constant_(branch[-1].bias, -3.5)
    times: dict[type, list[float]] = {DetectionValidator: [], MLCValidator: []}
    for i in range(rounds):
        for validator, spent in times.items():
            arguments = {
                "data": data,
                "imgsz": 320,
                "batch": 16,
                "plots": False,
                "project": str(run_dir),
                "name": f"{i}",
            }
            start = time.perf_counter()
            validator(args={**arguments, "mode": "val", "exist_ok": True, "verbose": False})(model=model.model)
            spent.append(time.perf_counter() - start)
    stock, ours = (statistics.median(spent) for spent in times.values())
    with capsys.disabled():
        print(f"\n60 images, 320 px, {rounds} rounds: stock {stock:.2f} s, ours {ours:.2f} s, ratio {ours / stock:.3f}")
    assert stock > 0
