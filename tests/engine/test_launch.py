"""Ultralytics' launch of several processes, by its own generated command and file, trains as our options say."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from gloo_trainer import GlooTrainer
from ultralytics.utils import YAML

COMMON = {"epochs": 3, "imgsz": 64, "batch": 8, "nbs": 8, "workers": 0, "device": "cpu", "plots": False, "amp": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ours", "criterion", "assigner"),
    [
        ("yolo11n.yaml", {"assigner": "mlc", "assigner_warmup": 1}, "PerTaskLoss", "MutualLabeling"),
        ("yolo26n.yaml", {"assigner": "mutual_guidance", "ssl": "sed", "ssl_burn_in": 1}, "SemiLoss", "MutualGuidance"),
    ],
)
def test_the_generated_command_and_file_carry_options_and_criterion(
    model: str, ours: dict[str, Any], criterion: str, assigner: str, tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    if "ssl" in ours:
        photos = tmp_path / "photos"
        photos.mkdir()
        rng = np.random.default_rng(1)
        for i in range(8):
            cv2.imwrite(str(photos / f"{i}.png"), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        ours = {**ours, "unlabeled": [str(photos)]}
    run = run_dir / "run"
    place = {"model": model, "data": str(tiny_data), "project": str(run_dir), "name": "run", "exist_ok": True}
    GlooTrainer(overrides={**COMMON, **place, **ours}).train()

    arguments = YAML.load(run / "args.yaml")
    assert {name: arguments[name] for name in ours} == ours
    ranks = [torch.load(run / f"rank{rank}.seen") for rank in (0, 1)]
    assert [seen["batch"] for seen in ranks] == [4, 4]
    assert {seen["criterion"] for seen in ranks} == {criterion} and {seen["assigner"] for seen in ranks} == {assigner}
    trained = [name for name in ranks[0]["weights"] if not name.endswith(("running_mean", "running_var"))]
    assert any("cv_iou" in name for name in trained)
    for name in trained:  # a rank's running statistics are its own
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), name
    with open(run / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and float(rows[-1]["train/pos_cls"]) > 0 and float(rows[-1]["train/iou_loss"]) > 0
    if "ssl" in ours:
        assert float(rows[0]["train/agree_cls"]) == 0 < float(rows[-1]["train/agree_cls"])
