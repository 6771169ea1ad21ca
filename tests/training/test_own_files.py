"""A run's own files are no stranger's: with layers or hooks of the user's own it ends, validates and resumes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import own_layer
import pytest
import torch
from detector_runs import TINY, stop_after
from nets import SMALL
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints import own_files, safe_load
from mlc_yolo.checkpoints.foreign_names import foreign_names
from mlc_yolo.checkpoints.safe_load import RefusedCheckpoint


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model YAML with a layer of the user's own."""
    own_layer.provide(tmp_path, monkeypatch)
    return own_layer.model_yaml(tmp_path)


def _arguments(tiny_data: Path, run_dir: Path, **more: Any) -> dict[str, Any]:
    return {**TINY, "data": str(tiny_data), "project": str(run_dir), "name": "run", "epochs": 1, **more}


def _opens_elsewhere(file: Path) -> bool:
    code = "import sys; from mlc_yolo.checkpoints.safe_load import check; check(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_a_layer_of_ones_own_is_announced_trains_and_is_validated(
    gate: Path, tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    epochs: list[str] = []
    model = MLCYOLO(gate)
    model.add_callback("on_train_batch_start", lambda trainer: epochs.append(caplog.text))
    model.train(**_arguments(tiny_data, run_dir))
    assert f"will hold {own_layer.MODULE}.Gate" in epochs[0], "before the first batch"
    assert model.val(data=str(tiny_data), imgsz=64, plots=False, project=str(run_dir)).box.map >= 0
    best = run_dir / "run" / "weights" / "best.pt"
    MLCYOLO(best)
    assert not _opens_elsewhere(best), "to other processes it is a file like any other"


@pytest.mark.slow
def test_a_forward_hook_of_ones_own_is_announced_and_the_run_ends(
    gate: Path, tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = importlib.import_module(own_layer.MODULE).watch
    model = MLCYOLO(SMALL)
    model.add_callback(
        "on_train_start", lambda trainer: trainer.ema.ema.model[own_layer.PLACE].register_forward_hook(watch)
    )
    model.train(**_arguments(tiny_data, run_dir))
    assert f"will hold {own_layer.MODULE}.watch," in caplog.text
    model.val(data=str(tiny_data), imgsz=64, plots=False, project=str(run_dir))


@pytest.mark.slow
def test_nothing_is_announced_of_a_model_without(
    tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    MLCYOLO(SMALL).train(**_arguments(tiny_data, run_dir))
    assert "trust=True" not in caplog.text
    monkeypatch.setattr(own_files, "_own", {})  # as in another process
    safe_load.check(run_dir / "run" / "weights" / "best.pt")


@pytest.mark.slow
def test_a_run_is_resumed_in_its_own_process_without_permission(gate: Path, tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(gate)
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        model.train(**_arguments(tiny_data, run_dir, epochs=2))
    resumed = MLCYOLO(run_dir / "run" / "weights" / "last.pt")
    resumed.train(resume=True)
    assert resumed.trainer.epoch == 1


class OwnModel(DetectionModel):
    """A model class of a user's own."""


class OwnTrainer(DetectionTrainer):
    """Upstream's trainer with it, as Ultralytics' guide on custom trainers has it."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> OwnModel:
        return OwnModel(cfg, nc=self.data["nc"], verbose=False)


@pytest.mark.slow
def test_a_model_in_memory_is_validated_without_permission_whatever_its_class(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL)
    model.train(OwnTrainer, **_arguments(tiny_data, run_dir))
    assert type(model.model) is OwnModel
    model.val(data=str(tiny_data), imgsz=64, plots=False, project=str(run_dir))
    with pytest.raises(RefusedCheckpoint, match="OwnModel"):
        MLCYOLO(run_dir / "run" / "weights" / "best.pt")


def test_a_file_that_was_changed_or_exchanged_is_nobodys_own(tmp_path: Path) -> None:
    file, other = tmp_path / "last.pt", tmp_path / "other.pt"
    file.write_bytes(b"one")
    own_files.remember(file)
    assert own_files.is_own(file) and not own_files.is_own(other)
    file.write_bytes(b"longer")
    assert not own_files.is_own(file)
    own_files.remember(file)
    other.write_bytes(b"longer")
    other.replace(file)
    assert not own_files.is_own(file)
    file.unlink()
    assert not own_files.is_own(file)


@pytest.mark.slow
def test_the_best_weights_beside_a_resumed_run_are_a_strangers_until_the_run_writes_them(
    gate: Path, tiny_data: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MLCYOLO(SMALL)
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        model.train(**_arguments(tiny_data, run_dir, epochs=2))
    weights = run_dir / "run" / "weights"
    monkeypatch.setattr(own_files, "_own", {})  # another process, which has the run from someone
    (weights / "best.pt").write_bytes(own_layer.checkpoint(tmp_path).read_bytes())
    resumed = MLCYOLO(weights / "last.pt")
    resumed.add_callback("on_train_start", lambda trainer: setattr(trainer, "best_fitness", 2.0))  # best.pt stays
    with pytest.raises(RefusedCheckpoint, match="Gate"):
        resumed.train(resume=True)


def test_foreign_names_are_those_that_opening_refuses(gate: Path, tmp_path: Path) -> None:
    file = own_layer.checkpoint(tmp_path)
    model = torch.load(file, weights_only=False)["model"]
    assert foreign_names(model) == [f"{own_layer.MODULE}.Gate"]
    model.criterion = importlib.import_module(own_layer.MODULE).Gate()
    model.model[own_layer.PLACE] = torch.nn.Identity()
    assert foreign_names(model, without=model.criterion) == []
    with pytest.raises(RefusedCheckpoint, match=rf"holds {own_layer.MODULE}\.Gate\."):
        safe_load.check(file)
