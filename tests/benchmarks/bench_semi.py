"""A step with images without labels, and one with a frozen teacher, beside the supervised step: time and peak memory.

As many images without labels as with. The cost is (with - supervised) / supervised: the aim is at most 2.2 for two
student passes and a teacher's two. A frozen teacher of the student's size, on labelled images: at most 1.45 times the
time and 1.2 times the memory. `make bench`.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from mlc_yolo.assigners import STOCK, Schedule
from mlc_yolo.detectors.config import find_config
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.training.criteria import build_criterion
from mlc_yolo.training.detector_criterion import DetectorLoss
from mlc_yolo.training.semi_criterion import SemiLoss
from mlc_yolo.training.taught_criterion import TaughtLoss
from mlc_yolo.training.teachers import load_teachers
from mlc_yolo.training.view_teachers import RunningAverage

from .measuring import DEVICE, Run, memory, show, timed

SIZE, BATCH, OBJECTS, CLASSES, ROUNDS, AIM = 320, 4, 8, 20, 5, 2.2
TAUGHT_TIME = 1.45
KINDS = ["yolo11n", "retinanet-r18-fpn"]
MODES = ["supervised", "pseudo", "soft", "dense", "sed"]


def _net(kind: str) -> tuple[Any, Any]:
    """Return a model in training mode and its supervised criterion."""
    torch.manual_seed(0)
    config = find_config(f"{kind}.yaml")
    if config is not None:
        model: Any = DetectorModel({**config, "nc": CLASSES}, verbose=False).to(DEVICE).train()
        own = model.head.own_assigner
        return model, DetectorLoss(model, schedule=Schedule(own, own, 0))
    model = DetectionModel(f"{kind}.yaml", nc=CLASSES, verbose=False)
    model.args = DEFAULT_CFG
    add_iou_channel(model.model[-1])
    model.to(DEVICE).train()
    return model, build_criterion(model, schedule=Schedule(STOCK, STOCK, 0), prior_scale=5.0, iou_gain=1.0)


def _batch() -> dict[str, Any]:
    """A labelled batch."""
    centres = torch.rand(BATCH * OBJECTS, 2) * 0.5 + 0.25
    made = {
        "img": torch.rand(BATCH, 3, SIZE, SIZE),
        "batch_idx": torch.arange(BATCH).repeat_interleave(OBJECTS).float(),
        "cls": torch.randint(CLASSES, (BATCH * OBJECTS, 1)).float(),
        "bboxes": torch.cat((centres, torch.rand(BATCH * OBJECTS, 2) * 0.3 + 0.1), 1),
    }
    return {name: value.to(DEVICE) for name, value in made.items()}


def _step(kind: str, mode: str) -> Run:
    model, criterion = _net(kind)
    teacher = deepcopy(model).eval().requires_grad_(False)
    batch = _batch()
    if mode != "supervised":
        sed = mode == "sed"
        criterion = SemiLoss(
            criterion,
            mode=mode,
            student=lambda: model,
            teacher=RunningAverage(lambda: teacher, lambda: model),
            power=2 * (mode in {"sed", "dense"}),
            scale=sed,
        )
        criterion.gain = 1.0
        batch["unlabeled"] = {name: torch.rand(BATCH, 3, SIZE, SIZE, device=DEVICE) for name in ("weak", "strong")}

    def step() -> None:
        model.zero_grad()
        criterion(model(batch["img"]), batch)[0].sum().backward()

    return step


def _taught_step(kind: str, folder: Path) -> Run:
    """A supervised step with a frozen teacher of the same size."""
    model, criterion = _net(kind)
    file = folder / f"{kind}.pt"
    torch.save({"model": deepcopy(model).eval().cpu(), "train_args": {}}, file)
    teachers = load_teachers([str(file)], model, model.names, trust=False).to(torch.device(DEVICE))
    taught = TaughtLoss(criterion, teachers=lambda: teachers, weight=1.0, temperature=2.0)
    batch = _batch()

    def step() -> None:
        model.zero_grad()
        taught(model(batch["img"]), batch)[0].sum().backward()

    return step


@pytest.mark.parametrize("kind", KINDS)
def test_cost_of_a_frozen_teacher(kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    steps = {"supervised": _step(kind, "supervised"), "teacher": _taught_step(kind, tmp_path)}
    timing = timed(steps, rounds=ROUNDS)
    memories = {mode: memory(step) for mode, step in steps.items()}
    show(capsys, f"{kind} step, {SIZE} px, batch {BATCH}; aim: time {TAUGHT_TIME}, memory 1.2", timing, memories)
    assert 1 < timing.ratios["teacher"] <= 1.25 * TAUGHT_TIME


@pytest.mark.parametrize("kind", KINDS)
def test_cost_beside_beside_a_supervised_step(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    steps = {mode: _step(kind, mode) for mode in MODES}
    timing = timed(steps, rounds=ROUNDS)
    memories = {mode: memory(step) for mode, step in steps.items()}
    show(capsys, f"{kind} step, {SIZE} px, batch {BATCH} + {BATCH}; aim: time {1 + AIM}", timing, memories)
    assert all(timing.ratios[mode] > 1 for mode in MODES[1:])
    assert timing.ratios["sed"] - 1 <= 1.25 * AIM
