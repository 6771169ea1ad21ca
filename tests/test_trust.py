"""A checkpoint with a layer of the user's own goes through every mode with trust=True, and through none without."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import own_layer
import pytest
from comparing_here import run_here
from nets import SMALL

from mlc_yolo.cli import main
from mlc_yolo.compare import rehearsal
from mlc_yolo.compare import run as comparing

TINY = ["imgsz=64", "device=cpu", "workers=0"]
SHORT = ["epochs=1", "batch=8", "plots=False", *TINY]
ROW = "model: {model}\nepochs: 1\nimgsz: 64\nbatch: 8\nplots: false\n"


def _command(mode: str, gate: Path, data: Path, folder: Path) -> list[str]:
    """Words of a command that opens the checkpoint, with all that it needs."""
    model, sets, place = f"model={gate}", f"data={data}", f"project={folder / 'runs'}"
    row = folder / "row.yaml"
    row.write_text(ROW.format(model=gate))
    return {
        "train": ["train", model, sets, place, *SHORT],
        "pretrained": ["train", f"model={SMALL}", f"pretrained={gate}", sets, place, *SHORT],
        "val": ["val", model, sets, place, "plots=False", *TINY],
        "predict": ["predict", model, f"source={data.parent / 'images' / 'val'}", place, *TINY],
        "track": ["track", model, f"source={data.parent / 'images' / 'val'}", place, *TINY],
        "export": ["export", model, "format=torchscript", *TINY],
        "benchmark": ["benchmark", model, sets, "format=torchscript", *TINY],
        "tune": ["tune", model, sets, place, "iterations=1", *SHORT],
        "compare": ["compare", model, sets, place, "assigner=tal,mlc", "assigner_warmup=0", *SHORT],
        "reproduce": ["reproduce", f"row={row}", sets, place, f"results={folder / 'results.csv'}", *TINY],
        "assignments": ["assignments", model, sets, place, "count=1", "imgsz=64", "device=cpu"],
        "figure": ["figure", "misaligned", model, f"other={gate}", sets, place, "count=1", "imgsz=64", "device=cpu"],
    }[mode]


@pytest.fixture
def no_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do here what a comparison starts processes for; none of them knows which files are this one's own."""

    def refusals(trainings: Any) -> dict[str, str]:
        asked = {name: rehearsal._refusal(dict(options), str(tmp_path)) for name, options in trainings.items()}
        return {name: reason for name, reason in asked.items() if reason}

    monkeypatch.setattr(comparing, "refusals", refusals)
    run_here(monkeypatch)


MODES = (
    *("train", "pretrained", "val", "predict", "track", "export", "assignments", "figure", "reproduce"),
    *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("benchmark", "tune", "compare")),
)


@pytest.mark.slow
@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("mode", MODES)
def test_a_layer_of_ones_own_goes_through_with_permission_alone(
    mode: str, own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_layer.provide(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    command = _command(mode, own_layer.checkpoint(tmp_path), own_data, tmp_path)
    assert main(command) == 2
    assert f"holds {own_layer.MODULE}.Gate." in capsys.readouterr().err
    assert main([*command, "trust=True"]) == 0
    if mode == "compare":
        with open(tmp_path / "runs" / "compare" / "differences.csv", encoding="utf-8", newline="") as file:
            rows = {row["metric"]: row for row in csv.DictReader(file)}
        assert len(rows) == 10 and float(rows["latency"]["ratio"]) > 0
