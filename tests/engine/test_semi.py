"""Real short trainings with images without labels: every head and mode, resuming, checkpoints, what is refused."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from detector_runs import TINY, detector_yaml, rows, stop_after, train
from ultralytics import YOLO

from mlc_yolo import MLCYOLO
from mlc_yolo.engine import semi
from mlc_yolo.engine.distillation import ITEMS, SemiLoss
from mlc_yolo.engine.semi import STUDENT, SemiTrainer, unlabeled_source
from mlc_yolo.heads.iou_aware import IoUAwareDetect

#: The installed program, not `python -m`: upstream treats programs by their name.
PROGRAM = Path(sys.executable).with_name("mlc-yolo")
#: One supervised epoch of two steps, then two with images without labels.
SEMI: dict[str, Any] = {"epochs": 3, "batch": 4, "nbs": 4, "ssl_burn_in": 1, "ssl_ramp": 1}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images without labels, of sizes that fit nothing, one of them grey; the folder's name has a space."""
    folder = tmp_path_factory.mktemp("no labels") / "my photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(7):
        image = rng.integers(0, 256, (97 + 3 * i, 131 - 5 * i, 3), dtype=np.uint8)
        cv2.rectangle(image, (20, 30), (60 + i, 70), (0, 40 * i, 255), -1)
        cv2.imwrite(str(folder / f"{i}.png"), image if i else image[..., 0])
    return folder


def semi_train(model: MLCYOLO | str | Path, data: Path, photos: Any, run: Path, **options: Any) -> MLCYOLO:
    several = isinstance(photos, list)
    source = [str(each) for each in photos] if several else None if photos is None else str(photos)
    return train(model, data, run, **{**SEMI, "ssl": "sed", "unlabeled": source, **options})


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What is learned ------------------------------------------------------------------------------------------------------

HEADS = [
    ("yolov8n.yaml", {"assigner": "mlc"}),
    ("yolo11n.yaml", {"iou_head": True}),
    ("yolo11n.yaml", {"iou_head": False, "assigner": "max_iou"}),
    ("yolo12n.yaml", {"assigner": "mutual_guidance"}),
    ("yolo26n.yaml", {"iou_head": True, "assigner": "atss"}),
    ("yolo26n.yaml", {"iou_head": False}),
    ("retinanet", {"assigner": "mlc"}),
    ("fcos", {"quality": "centerness"}),
    ("fcos", {"quality": "iou", "assigner": "mlc"}),
    ("rpn", {"quality": "none"}),
    ("retinanet_fssd", {"assigner": "mutual_guidance"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pseudo", "soft", "sed"])
@pytest.mark.parametrize(("model", "options"), HEADS, ids=lambda each: each if isinstance(each, str) else "-".join(each))
def test_every_head_learns_from_images_without_labels(
    mode: str, model: str, options: dict[str, Any], tiny_data: Path, photos: Path, run_dir: Path
) -> None:
    source = model if model.endswith(".yaml") else detector_yaml(run_dir, model)
    run = run_dir / "run"
    net = MLCYOLO(source)
    steps: list[dict[str, float]] = []
    net.add_callback("on_train_batch_end", lambda t: steps.append({n: float(v) for n, v in t.loss_items.items()}))
    trained = semi_train(net, tiny_data, photos, run, ssl=mode, ssl_threshold=1e-4, **options)
    table = rows(run)
    assert len(table) == 3 and len(steps) == 6
    for row in table:
        assert all(math.isfinite(row[name]) for name in row if name.startswith(("train/", "val/", "lr/")))
        assert not any(name.removeprefix("val/") in ITEMS for name in row)
    assert not any(step[name] for step in steps[:2] for name in ITEMS)
    expected = {"ssl_cls", "ssl_scale"} if mode == "sed" else {"ssl_cls"}
    for step in steps[2:]:
        assert {name for name in ("ssl_cls", "ssl_scale") if step[name]} == expected
        assert 0 < step["agree_cls"] <= 1 and 0 <= step["agree_iou"] <= 1
    assert trained.trainer.ema.updates == 6
    assert isinstance(trained.trainer.model.criterion, SemiLoss)
    best = MLCYOLO(run / "weights" / "best.pt")
    assert len(best.predict(torch.rand(1, 3, 64, 64), verbose=False)) == 1
