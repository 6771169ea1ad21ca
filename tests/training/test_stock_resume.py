"""A cut run of plain Ultralytics goes on as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from detector_runs import TINY, stop_after
from ultralytics import YOLO
from ultralytics.nn.modules.head import Detect

from mlc_yolo import MLCYOLO


@pytest.mark.slow
def test_a_cut_stock_run_resumes_as_the_stock_model_it_is(tiny_data: Path, run_dir: Path) -> None:
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        model.train(data=str(tiny_data), epochs=2, project=str(run_dir), name="cut", **TINY)
    resumed = MLCYOLO(run_dir / "cut" / "weights" / "last.pt")
    resumed.train(resume=True)
    assert resumed.trainer.epoch == 1 and type(resumed.model.model[-1]) is Detect
    assert YOLO(run_dir / "cut" / "weights" / "best.pt").model.model[-1].__class__ is Detect
