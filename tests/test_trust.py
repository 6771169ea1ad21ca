"""A checkpoint with a layer of the user's own goes through every mode with trust=True, and through none without."""

from __future__ import annotations

from pathlib import Path

import own_layer
import pytest

from mlc_yolo.cli import main

SMALL = ["imgsz=64", "device=cpu", "workers=0"]
SHORT = ["epochs=1", "batch=8", "plots=False", *SMALL]
ROW = "model: {model}\nepochs: 1\nimgsz: 64\nbatch: 8\nplots: false\n"


def _command(mode: str, gate: Path, data: Path, folder: Path) -> list[str]:
    """Words of a command that opens the checkpoint, with all that it needs."""
    model, sets, place = f"model={gate}", f"data={data}", f"project={folder / 'runs'}"
    row = folder / "row.yaml"
    row.write_text(ROW.format(model=gate))
    return {
        "train": ["train", model, sets, place, *SHORT],
        "pretrained": ["train", "model=yolo11n.yaml", f"pretrained={gate}", sets, place, *SHORT],
        "val": ["val", model, sets, place, "plots=False", *SMALL],
        "predict": ["predict", model, f"source={data.parent / 'images' / 'val'}", place, *SMALL],
        "track": ["track", model, f"source={data.parent / 'images' / 'val'}", place, *SMALL],
        "export": ["export", model, "format=torchscript", *SMALL],
        "benchmark": ["benchmark", model, sets, "format=torchscript", *SMALL],
        "tune": ["tune", model, sets, place, "iterations=1", *SHORT],
        "compare": ["compare", model, sets, place, "assigner=tal,mlc", "assigner_warmup=0", *SHORT],
        "reproduce": ["reproduce", f"row={row}", sets, place, f"results={folder / 'results.csv'}", *SMALL],
        "assignments": ["assignments", model, sets, place, "count=1", "imgsz=64", "device=cpu"],
        "figure": ["figure", "misaligned", model, f"other={gate}", sets, place, "count=1", "imgsz=64", "device=cpu"],
    }[mode]


MODES = (
    *("train", "pretrained", "val", "predict", "track", "export", "assignments", "figure", "reproduce"),
    *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("benchmark", "tune", "compare")),
)


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
