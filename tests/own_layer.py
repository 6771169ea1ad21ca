"""A layer of a user's own: a module to import, a model YAML that names it, and a checkpoint that holds it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import yaml
from nets import SMALL
from ultralytics.nn import tasks

MODULE = "layers_of_a_user"
PLACE = 3
SOURCE = """
from torch import nn
from ultralytics.nn import tasks

class Gate(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()

def watch(*_):
    pass

tasks.Gate = Gate  # so that a model YAML may name it
"""


def provide(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the module importable, here and in processes that are started."""
    (folder / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[1]}")
    monkeypatch.setattr(tasks, "Gate", None, raising=False)  # put back as it was
    importlib.reload(importlib.import_module(MODULE))


def model_yaml(folder: Path) -> Path:
    """Write a small net whose layer `PLACE` is a `Gate`."""
    config = yaml.safe_load(Path(SMALL).read_text())
    config["backbone"][PLACE] = [-1, 1, "Gate", []]
    path = folder / "gate.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def checkpoint(folder: Path) -> Path:
    """Write a checkpoint of that model, as someone else would hand it over."""
    model = tasks.DetectionModel(str(model_yaml(folder)), nc=3, verbose=False)
    model.names = {0: "square", 1: "disc", 2: "cross"}
    path = folder / "gate.pt"
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 64}}, path)
    return path
