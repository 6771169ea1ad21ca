"""What the tuner is handed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlc_yolo import MLCYOLO, model


def test_several_data_sets_are_tuned_for_together(
    tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Tuner(model.MLCTuner):
        def __call__(self, iterations: int = 300, cleanup: bool = True) -> None:
            made.append(self)

    monkeypatch.setattr(model, "MLCTuner", Tuner)
    MLCYOLO("yolo11n.yaml").tune(data=[str(tiny_data), "demo.yaml"], assigner="mg", project=str(run_dir))
    (tuner,) = made
    first, second = tuner.args.data
    assert first == str(tiny_data) and Path(second).is_file() and Path(second).name == "data.yaml"
    assert tuner.args.assigner == "mutual_guidance" and "trust" not in vars(tuner.args)  # which stays the default
