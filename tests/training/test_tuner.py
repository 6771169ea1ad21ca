"""What the tuner is handed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from nets import SMALL

from mlc_yolo import MLCYOLO, model
from mlc_yolo.data import resolve


def test_several_data_sets_are_tuned_for_together(
    tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    drawn = shutil.copy(tiny_data, run_dir / "drawn.yaml")  # in the place of the demo set

    class Tuner(model.MLCTuner):
        def __call__(self, iterations: int = 300, cleanup: bool = True) -> None:
            made.append(self)

    monkeypatch.setattr(model, "MLCTuner", Tuner)
    monkeypatch.setattr(resolve, "generated", lambda *given: drawn)
    MLCYOLO(SMALL).tune(data=[str(tiny_data), "demo.yaml"], assigner="mg", project=str(run_dir))
    (tuner,) = made
    first, second = tuner.args.data
    assert (first, second) == (str(tiny_data), str(drawn))
    assert tuner.args.assigner == "mutual_guidance" and "trust" not in vars(tuner.args)  # which stays the default
