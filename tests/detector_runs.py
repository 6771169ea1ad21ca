"""Short trainings of small detectors, for the tests of training and evaluation."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mlc_yolo import MLCYOLO

TINY: dict[str, Any] = {
    "imgsz": 64,
    "batch": 8,
    "nbs": 8,
    "seed": 0,
    "optimizer": "SGD",
    "lr0": 0.002,
    "warmup_epochs": 0,
    "plots": False,
}

#: Detectors and what their quality layers may predict.
QUALITIES = [
    ("retinanet", "iou"),
    ("retinanet", "none"),
    ("fcos", "iou"),
    ("fcos", "centerness"),
    ("fcos", "none"),
    ("rpn", "iou"),
    ("rpn", "none"),
]
KINDS = ["retinanet", "fcos", "rpn"]


def detector_yaml(folder: Path, kind: str, **keys: Any) -> Path:
    """Write the YAML of a small detector. FCOS normalises groups of channels: one alone would have no deviation."""
    small = {
        "detector": kind,
        "backbone": "resnet18",
        "width": 64 if kind == "fcos" else 32,
        "nc": 1 if kind == "rpn" else 3,
    }
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump({**small, **keys}))
    return path


def train(model: MLCYOLO | str | Path, data: Path, run: Path, **options: Any) -> MLCYOLO:
    """Train for an epoch unless told otherwise, in the folder `run`; an RPN takes all classes for one."""
    model = model if isinstance(model, MLCYOLO) else MLCYOLO(model)
    single = {"single_cls": True} if getattr(model.model, "kind", None) == "rpn" else {}
    place = {"data": str(data), "project": str(run.parent), "name": run.name}
    model.train(**{**TINY, "epochs": 1, **single, **place, **options})
    return model


def rows(run: Path) -> list[dict[str, float]]:
    """Read results.csv."""
    with open(run / "results.csv", encoding="utf-8") as file:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def stop_after(epoch: int) -> Callable[[Any], None]:
    """A callback for `on_model_save` that ends a training as Ctrl-C does, once `epoch` epochs are saved."""

    def stop(trainer: Any) -> None:
        if trainer.epoch + 1 == epoch:
            raise KeyboardInterrupt

    return stop
