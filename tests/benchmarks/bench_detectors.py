"""RetinaNet and FCOS on a ResNet-50 beside torchvision's own: time in one process, interleaved, memory in several.

Both have frozen normalisation, three trainable stages and the same layers; detections are suppressed at both. Ratios
to torchvision come last. `make bench`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from ultralytics.utils.nms import non_max_suppression

from mlc_yolo.assigners import Schedule, build_assigner
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.engine import options
from mlc_yolo.engine.detector_criterion import DetectorLoss

SIZE, CLASSES, OBJECTS, TRAIN_BATCH, ROUNDS = 320, 80, 8, 2, 5
KINDS = ["retinanet", "fcos"]
Run = Callable[[], object]


def _torchvision(kind: str) -> Any:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return {"retinanet": RetinaNet, "fcos": FCOS}[kind](backbone, CLASSES, min_size=SIZE, max_size=SIZE)


def _ours(kind: str) -> DetectorModel:
    torch.manual_seed(0)
    config = {
        "detector": kind,
        "backbone": "resnet50",
        "nc": CLASSES,
        "quality": "centerness" if kind == "fcos" else "none",
        "follows": "torchvision",
        "norm": "frozen",
        "trainable_stages": 3,
    }
    model = DetectorModel(config, verbose=False)
    for name in model.frozen:
        model.get_submodule(f"model.{name}").requires_grad_(False)
    return model


def _objects() -> tuple[Tensor, Tensor]:
    """Boxes (OBJECTS, 4) xyxy px and labels of one image."""
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(OBJECTS, 2, generator=generator) * 200, torch.rand(OBJECTS, 2, generator=generator) * 100
    return torch.cat((corner, corner + side + 16), 1), torch.randint(CLASSES, (OBJECTS,), generator=generator)


def _train_torchvision(kind: str) -> Run:
    model, (boxes, labels) = _torchvision(kind).train(), _objects()
    images = list(torch.rand(TRAIN_BATCH, 3, SIZE, SIZE))

    def step() -> None:
        model.zero_grad()
        sum(model(images, [{"boxes": boxes, "labels": labels}] * TRAIN_BATCH).values()).backward()

    return step


def _train_ours(kind: str, *, mlc: bool) -> Run:
    model, (boxes, labels) = _ours(kind).train(), _objects()
    own = model.head.own_assigner
    assigner = build_assigner("mlc", options.settle({**options.defaults(), "assigner": "mlc"}, kind), own=own)
    criterion = DetectorLoss(model, schedule=Schedule(own, assigner, warmup=0 if mlc else 1))
    xywh = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / SIZE
    batch = {
        "batch_idx": torch.arange(TRAIN_BATCH).repeat_interleave(OBJECTS),
        "cls": labels.repeat(TRAIN_BATCH)[:, None].float(),
        "bboxes": xywh.repeat(TRAIN_BATCH, 1),
    }
    images = torch.rand(TRAIN_BATCH, 3, SIZE, SIZE)

    def step() -> None:
        model.zero_grad()
        criterion(model(images), batch)[0].sum().backward()

    return step


def _infer_torchvision(kind: str, batch: int) -> Run:
    model, images = _torchvision(kind).eval(), list(torch.rand(batch, 3, SIZE, SIZE))
    return torch.no_grad()(lambda: model(images))


def _infer_ours(kind: str, batch: int) -> Run:
    model, images = _ours(kind).eval().fuse(verbose=False), torch.rand(batch, 3, SIZE, SIZE)
    threshold, iou = {"retinanet": (0.05, 0.5), "fcos": (0.2, 0.6)}[kind]
    return torch.no_grad()(lambda: non_max_suppression(model(images)[0], threshold, iou, multi_label=True))


def _variants(kind: str) -> dict[str, dict[str, Callable[[], Run]]]:
    """What is timed together, by task and by name; torchvision's comes first."""
    return {
        f"train, batch {TRAIN_BATCH}": {
            "torchvision": lambda: _train_torchvision(kind),
            "ours": lambda: _train_ours(kind, mlc=False),
            "ours, mlc": lambda: _train_ours(kind, mlc=True),
        },
        **{
            f"infer, batch {batch}": {
                "torchvision": lambda batch=batch: _infer_torchvision(kind, batch),
                "ours": lambda batch=batch: _infer_ours(kind, batch),
            }
            for batch in (1, 4)
        },
    }


def _seconds(run: Run) -> float:
    """CPU time, which other processes disturb less; with one thread it is the wall's on an idle machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


@pytest.mark.parametrize("kind", KINDS)
def test_time_against_torchvision(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for task, builders in _variants(kind).items():
        runs = {name: build() for name, build in builders.items()}
        for run in runs.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                times[name].append(_seconds(run))
        _report(capsys, f"{kind} {task}", "ms", {name: 1000 * statistics.median(t) for name, t in times.items()})
        assert all(min(spent) > 0 for spent in times.values())


_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from bench_detectors import _high_water, _variants
torch.set_num_threads(1)
before = _high_water()
run = _variants(sys.argv[2])[sys.argv[3]][sys.argv[4]]()
for _ in range(3):
    run()
print("peak", _high_water() - before)
"""


def _high_water() -> float:
    """Return the most memory this process has held so far, in MiB; getrusage would count the parent's too."""
    return float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_against_torchvision(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for task, builders in _variants(kind).items():
        peaks = {}
        for name in builders:
            command = [sys.executable, "-c", _CHILD, str(Path(__file__).parent), kind, task, name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[name] = float(done.stdout.split("peak")[-1])
        _report(capsys, f"{kind} {task}", "MiB", peaks)
        assert all(peak > 0 for peak in peaks.values())


def _report(capsys: pytest.CaptureFixture[str], title: str, unit: str, values: dict[str, float]) -> None:
    with capsys.disabled():
        print(f"\n{title}, {SIZE} px, {torch.get_num_threads()} thread(s)")
        for name, value in values.items():
            print(f"  {name:<12}{value:9.1f} {unit:<4} ratio {value / values['torchvision']:.2f}")
