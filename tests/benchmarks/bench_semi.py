"""A step with images without labels beside the supervised step: time in one process, interleaved, memory in several.

As many images without labels as with. The cost is (with - supervised) / supervised: the aim is at most 2.2 for two
student passes and a teacher's two. `make bench`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from mlc_yolo.assigners import Schedule, build_assigner
from mlc_yolo.detectors.config import find_config
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.engine import options
from mlc_yolo.engine.criterion import build_criterion
from mlc_yolo.engine.detector_criterion import DetectorLoss
from mlc_yolo.engine.distillation import SemiLoss
from mlc_yolo.heads.iou_aware import add_iou_channel

SIZE, BATCH, OBJECTS, CLASSES, ROUNDS, AIM = 320, 4, 8, 20, 5, 2.2
KINDS = ["yolo11n", "retinanet-r18-fpn"]
MODES = ["supervised", "pseudo", "soft", "sed"]


def _net(kind: str) -> tuple[Any, Any]:
    """Return a model in training mode and its supervised criterion."""
    torch.manual_seed(0)
    config = find_config(f"{kind}.yaml")
    if config is not None:
        model: Any = DetectorModel({**config, "nc": CLASSES}, verbose=False).train()
        own = model.head.own_assigner
        return model, DetectorLoss(model, schedule=Schedule(own, own, 0))
    model = DetectionModel(f"{kind}.yaml", nc=CLASSES, verbose=False).train()
    model.args = DEFAULT_CFG
    add_iou_channel(model.model[-1])
    tal = build_assigner("tal", options.settle(options.defaults()))
    return model, build_criterion(model, schedule=Schedule(tal, tal, 0), prior_scale=5.0, iou_gain=1.0)


def _step(kind: str, mode: str) -> Callable[[], object]:
    model, criterion = _net(kind)
    teacher = deepcopy(model).eval().requires_grad_(False)
    centres = torch.rand(BATCH * OBJECTS, 2) * 0.5 + 0.25
    batch = {
        "img": torch.rand(BATCH, 3, SIZE, SIZE),
        "batch_idx": torch.arange(BATCH).repeat_interleave(OBJECTS).float(),
        "cls": torch.randint(CLASSES, (BATCH * OBJECTS, 1)).float(),
        "bboxes": torch.cat((centres, torch.rand(BATCH * OBJECTS, 2) * 0.3 + 0.1), 1),
    }
    if mode != "supervised":
        sed = mode == "sed"
        criterion = SemiLoss(
            criterion, mode=mode, student=lambda: model, teacher=lambda: teacher, reweigh=sed, scale=sed
        )
        criterion.gain = 1.0
        batch["unlabeled"] = {"weak": torch.rand(BATCH, 3, SIZE, SIZE), "strong": torch.rand(BATCH, 3, SIZE, SIZE)}

    def step() -> None:
        model.zero_grad()
        criterion(model(batch["img"]), batch)[0].sum().backward()

    return step


def _seconds(step: Callable[[], object]) -> float:
    """CPU time, which other processes disturb less; with one thread it is the wall's on an idle machine."""
    start = time.process_time()
    step()
    return time.process_time() - start


@pytest.mark.parametrize("kind", KINDS)
def test_time_against_a_supervised_step(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    steps = {mode: _step(kind, mode) for mode in MODES}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(ROUNDS):
        for mode, step in steps.items():
            times[mode].append(_seconds(step))
    medians = {mode: 1000 * statistics.median(spent) for mode, spent in times.items()}
    _report(capsys, f"{kind} step, batch {BATCH} + {BATCH}", "ms", medians)
    assert all(medians["supervised"] < medians[mode] for mode in MODES[1:])
    assert (medians["sed"] - medians["supervised"]) / medians["supervised"] <= 1.25 * AIM


_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from bench_semi import _high_water, _step
torch.set_num_threads(1)
before = _high_water()
step = _step(*sys.argv[2:])
for _ in range(3):
    step()
print("peak", _high_water() - before)
"""


def _high_water() -> float:
    """Return the most memory this process has held so far, in MiB; getrusage would count the parent's too."""
    return float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_against_a_supervised_step(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = {}
    for mode in MODES:
        command = [sys.executable, "-c", _CHILD, str(Path(__file__).parent), kind, mode]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[mode] = float(done.stdout.split("peak")[-1])
    _report(capsys, f"{kind} step, batch {BATCH} + {BATCH}", "MiB", peaks)
    assert all(peak > 0 for peak in peaks.values())


def _report(capsys: pytest.CaptureFixture[str], title: str, unit: str, values: dict[str, float]) -> None:
    base = values["supervised"]
    with capsys.disabled():
        print(f"\n{title}, {SIZE} px, {torch.get_num_threads()} thread(s); aim of time: cost at most {AIM}")
        for name, value in values.items():
            print(f"  {name:<12}{value:9.1f} {unit:<4} cost {(value - base) / base:.2f}")
