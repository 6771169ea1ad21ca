"""A whole training step of yolo11n with assigner=mlc and the IoU channel beside the stock step. `make bench`.

A step is Ultralytics' own: forward, loss, backward, clipping, SGD, averaging of weights, of models and criteria as the
trainers set them up. On a GPU also with AMP and a compiled model, and with host synchronisations counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.torch_utils import ModelEMA

from mlc_yolo.assigners import Schedule, build_assigner
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.options import specification as options
from mlc_yolo.training.criteria import build_criterion

from .measuring import DEVICE, ON_GPU, Run, memory, show, synchronizations, timed

CLASSES = 80
KINDS = ["stock", "mlc + iou_head"]


def _model(kind: str) -> Any:
    torch.manual_seed(0)
    model = DetectionModel("yolo11n.yaml", nc=CLASSES, verbose=False)
    model.args = DEFAULT_CFG
    if kind != "stock":
        add_iou_channel(model.model[-1])
    return model.to(DEVICE).train()


def _criterion(kind: str, model: Any) -> Any:
    if kind == "stock":
        return model.init_criterion()
    chosen = options.settle({**options.defaults(), "assigner": "mlc"})
    mlc = build_assigner("mlc", chosen)
    return build_criterion(model, schedule=Schedule(mlc, mlc, 0), prior_scale=5.0, iou_gain=chosen["iou_gain"])


def _batch(size: int, batch: int, objects: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = batch * objects
    made = {
        "img": torch.rand(batch, 3, size, size, generator=generator),
        "batch_idx": torch.arange(batch).repeat_interleave(objects).float(),
        "cls": torch.randint(CLASSES, (count, 1), generator=generator).float(),
        "bboxes": torch.cat(
            (
                torch.rand(count, 2, generator=generator) * 0.6 + 0.2,
                torch.rand(count, 2, generator=generator) * 0.3 + 0.05,
            ),
            1,
        ),
    }
    return {name: value.to(DEVICE) for name, value in made.items()}


def _step(
    kind: str,
    *,
    size: int,
    batch: int,
    objects: int = 20,
    amp: torch.dtype | None = None,
    compiled: bool = False,
) -> Callable[[], torch.Tensor]:
    """Return a step that trains a model of its own and gives its loss."""
    model, data = _model(kind), _batch(size, batch, objects)
    criterion, average = _criterion(kind, model), ModelEMA(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=amp is torch.float16)
    forward = torch.compile(model, fullgraph=True) if compiled else model

    def step() -> torch.Tensor:
        with torch.autocast(DEVICE.type, amp, enabled=amp is not None):
            loss = criterion(forward(data["img"]), data)[0].sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        average.update(model)
        return loss.detach()

    return step


@pytest.mark.parametrize(("size", "batch"), [(320, 4), (640, 2)])
def test_a_training_step_against_the_stock_one(size: int, batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {kind: _step(kind, size=size, batch=batch) for kind in KINDS}
    timing = timed(runs, rounds=7)
    memories = {kind: memory(run) for kind, run in runs.items()}
    show(capsys, f"yolo11n training step, {size} px, batch {batch}, 20 objects an image", timing, memories)
    with capsys.disabled():
        print("  host synchronisations per step:", {kind: synchronizations(run) for kind, run in runs.items()})
    assert timing.ratios[KINDS[1]] < 1.5


def test_the_loss_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """What of the step is ours to make faster: the criterion and its backward, on outputs made once."""

    def run(kind: str) -> Run:
        model, data = _model(kind), _batch(640, 2, 20)
        criterion, outputs = _criterion(kind, model), model(data["img"])
        for name, value in outputs.items():
            if isinstance(value, torch.Tensor):
                outputs[name] = value.detach().requires_grad_()
        return lambda: criterion(outputs, data)[0].sum().backward()

    runs = {kind: run(kind) for kind in KINDS}
    timing = timed(runs, rounds=7)
    memories = {kind: memory(run) for kind, run in runs.items()}
    show(capsys, "the loss of that step alone, 640 px, batch 2", timing, memories)
    assert timing.milliseconds[KINDS[1]] > 0


@pytest.mark.skipif(not ON_GPU, reason="not run: no GPU asked for (MLC_BENCH_DEVICE=cuda)")
@pytest.mark.parametrize("batch", [16, 64, 128])
def test_throughput_on_a_gpu(batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {kind: _step(kind, size=640, batch=batch, amp=torch.float16) for kind in KINDS}
    timing = timed(runs, rounds=20)
    memories = {kind: memory(run) for kind, run in runs.items()}
    show(capsys, f"yolo11n training step, 640 px, batch {batch}, 20 objects an image, fp16", timing, memories)
    counts = {kind: synchronizations(run) for kind, run in runs.items()}
    with capsys.disabled():
        print("  host synchronisations per step:", counts)
        print(
            "  images per second:", {kind: round(1000 * batch / spent) for kind, spent in timing.milliseconds.items()}
        )
    assert counts[KINDS[1]] <= counts["stock"]


@pytest.mark.skipif(not ON_GPU, reason="not run: no GPU asked for (MLC_BENCH_DEVICE=cuda)")
def test_memory_with_three_hundred_objects_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {kind: _step(kind, size=640, batch=16, objects=300, amp=torch.float16) for kind in KINDS}
    memories = {kind: memory(run) for kind, run in runs.items()}
    show(capsys, "yolo11n training step, 640 px, batch 16, 300 objects an image, fp16", memories=memories)
    assert memories[KINDS[1]].peak <= 1.02 * memories["stock"].peak


@pytest.mark.skipif(not ON_GPU, reason="not run: no GPU asked for (MLC_BENCH_DEVICE=cuda)")
@pytest.mark.parametrize("amp", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_amp_and_compilation_give_the_same_first_loss(
    amp: torch.dtype, compiled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    full = _step(KINDS[1], size=640, batch=16)()
    loss = _step(KINDS[1], size=640, batch=16, amp=amp, compiled=compiled)()  # fullgraph: a graph break would raise
    with capsys.disabled():
        print(f"\nfirst loss, {amp}, compiled={compiled}: {loss:.4f}, float32 eager {full:.4f}")
    assert torch.isclose(loss.float(), full, rtol=0.02)
