"""What is saved every epoch and at the end: finite, whole, and serialised once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detector_runs import TINY
from nets import SMALL
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unwrap_model

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints.half_precision import to_half
from mlc_yolo.training.exact_resume import RESUME, STUDENT
from mlc_yolo.training.trainer import MLCTrainer

LARGEST = 65504.0  # of half precision


def _train(callbacks: dict[str, Any], data: Path, run_dir: Path, **options: Any) -> Any:
    model = MLCYOLO(SMALL)
    for event, callback in callbacks.items():
        model.add_callback(event, callback)
    model.train(data=str(data), project=str(run_dir), name="run", **{**TINY, "val": False, **options})
    return model.trainer


def _states(trainer: Any) -> dict[str, dict[str, torch.Tensor]]:
    files = sorted(trainer.wdir.iterdir())
    assert [file.name for file in files] == ["best.pt", "best.safetensors", "last.pt", "last.safetensors"]
    return {file.name: MLCYOLO(file).model.state_dict() for file in files}


def test_half_precision_holds_its_largest_number_where_a_weight_is_larger() -> None:
    layer = nn.Linear(4, 1)
    layer.weight.data[0] = torch.tensor([1e5, -1e9, float("nan"), 0.5])
    assert to_half(layer).weight[0].tolist() == [LARGEST, -LARGEST, 0.0, 0.5]


@pytest.mark.slow
def test_a_weight_too_large_for_half_precision_is_saved_as_the_largest_it_has(tiny_data: Path, run_dir: Path) -> None:
    def inflate(trainer: Any) -> None:
        next(iter(trainer.ema.ema.parameters())).data[0] = 1e5

    trainer = _train({"on_train_epoch_end": inflate}, tiny_data, run_dir, epochs=1)
    for name, state in _states(trainer).items():
        assert all(value.isfinite().all() for value in state.values()), name
        assert next(iter(state.values()))[0].max() == LARGEST, name
    live = next(iter(trainer.ema.ema.parameters()))
    assert live.dtype == torch.float32 and live[0].max() == 1e5, "the average itself is left alone"


@pytest.mark.slow
def test_what_is_not_finite_comes_from_the_weights_or_is_made_finite(tiny_data: Path, run_dir: Path) -> None:
    trained: list[torch.Tensor] = []

    def poison(trainer: Any) -> None:
        averaged, weights = (list(model.parameters()) for model in (trainer.ema.ema, unwrap_model(trainer.model)))
        if trainer.epoch == 1:  # the last one, as a loss that is not finite ends a training
            averaged[0].data[0], weights[0].data[0] = float("inf"), float("nan")
            averaged[3].data[0] = float("nan")
        trained.append(weights[3].detach().clone())

    def not_the_best(trainer: Any) -> None:
        trainer.best_fitness = 2.0  # from the second epoch on upstream's own form is not wanted

    callbacks = {"on_train_epoch_end": poison, "on_fit_epoch_end": not_the_best}
    trainer = _train(callbacks, tiny_data, run_dir, epochs=2)
    for name, state in _states(trainer).items():
        assert all(value.isfinite().all() for value in state.values()), name
    saved = list(torch.load(trainer.last, weights_only=False)["model"].parameters())
    assert saved[3].equal(trained[-1].half())


@pytest.mark.slow
def test_weights_are_serialised_once_an_epoch_and_again_only_for_a_best_one(
    tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[list[int]] = []
    save = torch.save

    def counted(content: Any, file: Any, **more: Any) -> None:
        save(content, file, **more)
        sizes[-1].append(file.tell() if hasattr(file, "tell") else Path(file).stat().st_size)

    def keep(trainer: Any) -> None:
        trainer.best_fitness = 2.0

    monkeypatch.setattr(torch, "save", counted)
    callbacks = {"on_train_epoch_end": lambda trainer: sizes.append([]), "on_fit_epoch_end": keep}
    _train(callbacks, tiny_data, run_dir, epochs=3, save_period=2)
    large = [[size for size in epoch if size > 500_000] for epoch in sizes]
    assert [len(epoch) for epoch in large[:2]] == [2, 1], "best.pt and last.pt, then last.pt"
    assert large[0][1] == pytest.approx(large[1][0], rel=0.01)


@pytest.mark.slow
def test_what_is_between_two_best_epochs_holds_what_upstream_writes(tiny_data: Path, run_dir: Path) -> None:
    saved: list[dict[str, Any]] = []

    def keep(trainer: Any) -> None:
        saved.append(torch.load(trainer.last, weights_only=False))
        trainer.best_fitness = 2.0

    trainer = _train({"on_model_save": keep}, tiny_data, run_dir, epochs=2)
    best, other = saved
    assert best.keys() == other.keys() >= {STUDENT, RESUME, "train_args", "git", "scaler", "updates"}
    assert other["epoch"] == 1 and other["updates"] > best["updates"] > 0 and other["ema"].criterion is None
    assert other["optimizer"]["state"].keys() == best["optimizer"]["state"].keys() != set()
    average = trainer.ema.ema.state_dict()
    assert all(value.equal(average[name]) for name, value in other["ema"].state_dict().items())
    ended = torch.load(trainer.best, weights_only=False)
    assert ended["epoch"] == -1 and ended["train_results"]["epoch"] == [1, 2], "of the whole run, not until its best"


def test_a_checkpoint_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = MLCTrainer.__new__(MLCTrainer)
    trainer.last, trainer.best = tmp_path / "last.pt", tmp_path / "best.pt"
    trainer.model = nn.Linear(1, 1)
    trainer.ema = SimpleNamespace(ema=nn.Linear(1, 1), updates=1, enabled=True)
    trainer.optimizer, trainer.train_loader = torch.optim.SGD(trainer.model.parameters(), lr=1.0), ()
    trainer.best_fitness, trainer.fitness, trainer.save_period, trainer.accumulate = 1.0, 0.5, -1, 1

    def save(epoch: int, *, fails: bool) -> None:
        def upstream(self: DetectionTrainer) -> bool:
            self.last.write_bytes(b"half a file")
            if fails:
                raise OSError("disk full")
            torch.save({"epoch": epoch}, self.last)
            return True

        monkeypatch.setattr(DetectionTrainer, "save_model", upstream)
        assert trainer.save_model() is True

    save(1, fails=False)
    with pytest.raises(OSError, match="disk full; the one before is kept"):
        save(2, fails=True)
    assert torch.load(trainer.last, weights_only=False)["epoch"] == 1 and trainer.last == tmp_path / "last.pt"
    save(3, fails=False)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert torch.load(trainer.last, weights_only=False)["epoch"] == 3
