"""A run and a diagnosis say how many steps the optimizer takes, and how to take more where they are few."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from detector_runs import train
from nets import SMALL

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.verdict import verdict
from mlc_yolo.options.optimizer_steps import count_steps, describe_steps


@pytest.mark.slow
def test_training_and_then_diagnosis_name_the_steps_that_the_optimizer_takes(
    tiny_data: Path, own_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[int] = []

    def listen(trainer: Any) -> None:
        trainer.optimizer.register_step_post_hook(lambda *_: taken.append(trainer.epoch))

    model = MLCYOLO(SMALL)
    model.add_callback("on_train_start", listen)
    with caplog.at_level("INFO"):
        train(model, tiny_data, run_dir / "run", epochs=3, batch=2, nbs=6, warmup_iters=5, val=False)
    line = f"optimizer: {len(taken)} steps in this run, 3 batches each (nbs=6, batch=2)"
    said = [record.message for record in caplog.records if record.message.startswith("optimizer:")]
    assert said[-1].startswith(line) and said[-1].endswith("nbs=2 takes 12 in the same time")
    assert sum(message.startswith(line) for message in said) == 1
    trained = MLCYOLO(run_dir / "run" / "weights" / "last.pt")
    there = {"imgsz": 64, "project": str(run_dir), "workers": 0}
    first, *_ = verdict(trained.diagnose(data=str(tiny_data), **there))
    assert first.startswith("Trained in few steps: about ") and "nbs=6). Try nbs=2 first, 12 in" in first
    assert "Trained in few steps" not in str(trained.diagnose(data=str(own_data), **there))


def _counted(batches: int, warmup: int, gathered: int) -> int:
    """Count as upstream's loop does, batch by batch."""
    steps, last = 0, -1
    now = gathered
    for batch in range(batches):
        if warmup and batch <= warmup:
            now = max(1, int(np.interp(batch, [0, warmup], [1, gathered]).round()))
        if batch - last >= now:
            steps, last = steps + 1, batch
    return steps


@pytest.mark.parametrize("gathered", [1, 2, 4, 7])
@pytest.mark.parametrize("warmup", [0, 1, 10, 100])
@pytest.mark.parametrize("batches", [1, 10, 50, 101, 400])
def test_steps_are_counted_as_one_by_one(batches: int, warmup: int, gathered: int) -> None:
    assert count_steps(batches, warmup, gathered) == _counted(batches, warmup, gathered)


def _trainer(*, batches: int = 20, epochs: int = 10, batch: int = 16, nbs: int = 64, time: float | None = None) -> Any:
    return SimpleNamespace(
        batch_size=batch,
        accumulate=max(round(nbs / batch), 1),
        epochs=epochs,
        train_loader=range(batches),
        args=SimpleNamespace(nbs=nbs, time=time),
        _get_warmup_iterations=lambda _: 0,
    )


def test_advice_is_for_short_runs_that_gather() -> None:
    short, long = describe_steps(_trainer()), describe_steps(_trainer(epochs=1000))
    assert short == (
        "optimizer: 50 steps in this run, 4 batches each (nbs=64, batch=16). "
        "So few train a detector badly: nbs=16 takes 200 in the same time"
    )
    assert long == "optimizer: 5000 steps in this run, 4 batches each (nbs=64, batch=16)"


@pytest.mark.parametrize("without", [{"nbs": 16}, {"batch": 64}, {"batch": 128}, {"nbs": 20}, {"time": 0.5}])
def test_nothing_is_said_where_every_batch_is_a_step_or_the_length_is_not_known(without: dict[str, Any]) -> None:
    assert describe_steps(_trainer(**without)) is None
