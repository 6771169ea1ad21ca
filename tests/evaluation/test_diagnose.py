"""Diagnosing real models through the real validator: every kind of head, exports, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.diagnose import diagnose
from mlc_yolo.evaluation.diagnosing import DiagnosingValidator
from mlc_yolo.evaluation.diagnosis import Diagnosis
from mlc_yolo.evaluation.recording import record
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD
from mlc_yolo.metrics.oracles import Repair
from mlc_yolo.metrics.reach import IOU

pytestmark = pytest.mark.filterwarnings("ignore:Exporting aten..index operator:UserWarning")

SETTINGS: dict[str, Any] = {"imgsz": 96, "batch": 2, "workers": 0, "device": "cpu", "verbose": False}
NAMES = {0: "square", 1: "disc", 2: "cross"}


@pytest.fixture
def checkpoint(iou_aware: Callable[..., DetectionModel], tmp_path: Path) -> Callable[[str], Path]:
    """A function: name -> checkpoint of an untrained IoU-aware model whose scores differ."""

    def make(name: str) -> Path:
        model = iou_aware(name, torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
        model.names, model.args = NAMES, {"task": "detect", "imgsz": 96}
        path = tmp_path / f"{name}.pt"
        torch.save({"model": model, "train_args": {}}, path)
        return path

    return make


def _run(model: MLCYOLO, data: Path, run_dir: Path, **changes: Any) -> Diagnosis:
    return diagnose(model, data=str(data), project=str(run_dir), **{**SETTINGS, **changes})


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_a_diagnosis_sees_what_a_validation_sees_and_the_channel_beside_it(
    name: str, checkpoint: Callable[[str], Path], tiny_data: Path, run_dir: Path
) -> None:
    path = checkpoint(name)
    diagnosis = _run(MLCYOLO(path), tiny_data, run_dir)
    records = record(MLCYOLO(path), data=str(tiny_data), project=str(run_dir), **SETTINGS)
    seen = diagnosis.seen
    for field in ("gt_boxes", "boxes", "scores", "labels", "image"):
        np.testing.assert_array_equal(getattr(seen.records, field), getattr(records, field))
    assert len(seen.sides) == len(records.gt_labels) == 10
    assert seen.candidates is not None
    # No kept box of a score that makes it a candidate sits better than its object's best candidate.
    reach, (own, iou) = seen.candidates[:, IOU], diagnosis.oracles.overlaps[0]
    candidate = records.scores[diagnosis.oracles.rows] > SCORE_THRESHOLD
    assert candidate.any()
    assert (iou[candidate] <= reach[own[candidate]] + 1e-5).all()
    assert diagnosis.predicted_iou is not None
    assert seen.without_rescoring is not None
    assert seen.without_rescoring.scores.mean() > records.scores.mean()


def test_without_rescoring_is_what_a_validation_with_rescore_false_sees(
    checkpoint: Callable[[str], Path], tiny_data: Path, run_dir: Path
) -> None:
    path = checkpoint("yolo11n")
    plain = _run(MLCYOLO(path), tiny_data, run_dir).seen.without_rescoring
    expected = record(MLCYOLO(path), data=str(tiny_data), project=str(run_dir), rescore=False, **SETTINGS)
    assert plain is not None
    assert len(plain.scores) == len(expected.scores)
    np.testing.assert_allclose(np.sort(plain.scores), np.sort(expected.scores), rtol=0, atol=1e-5)
    asked = _run(MLCYOLO(path), tiny_data, run_dir, rescore=False).seen.records
    np.testing.assert_array_equal(asked.scores, expected.scores)


def test_ported_detectors_and_stock_heads_are_diagnosed_without_a_channel(tiny_data: Path, run_dir: Path) -> None:
    for name in ("fcos-r18-fpn.yaml", "yolov8n.yaml"):
        torch.manual_seed(0)
        model = MLCYOLO(name)
        model.model.names = {**model.model.names, **NAMES}
        diagnosis = _run(model, tiny_data, run_dir, imgsz=64)
        assert diagnosis.seen.predicted is None
        assert diagnosis.curve_without_rescoring is None
        assert Repair.INSIDE in diagnosis.gains


def test_the_files_hold_the_diagnosis_and_no_bare_nan(
    checkpoint: Callable[[str], Path], tiny_data: Path, run_dir: Path
) -> None:
    diagnosis = _run(MLCYOLO(checkpoint("yolo11n")), tiny_data, run_dir, conf=0.4)
    assert diagnosis.folder == run_dir / "diagnose"

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in JSON")

    held = json.loads((diagnosis.folder / "diagnosis.json").read_text(), parse_constant=refuse)
    assert held["objects"] == 10
    assert held["deployed"]["threshold"] == 0.4
    assert [row["repair"] for row in held["repairs"]] == ["as it is", *(r.value for r in Repair), "all together"]
    lines = (diagnosis.folder / "diagnosis.csv").read_text().splitlines()
    assert len(lines) == 1 + len(held["repairs"])
    assert held["repairs"][-1]["AP"] == 100


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_an_export_is_diagnosed_as_its_checkpoint_is(
    format: str, checkpoint: Callable[[str], Path], tiny_data: Path, run_dir: Path
) -> None:
    path = checkpoint("yolo11n")
    native = _run(MLCYOLO(path), tiny_data, run_dir, rect=False, batch=1)
    exported = MLCYOLO(MLCYOLO(path).export(format=format, imgsz=96, device="cpu"), task="detect")
    diagnosis = _run(exported, tiny_data, run_dir, batch=1)
    assert diagnosis.seen.candidates is not None
    assert native.seen.candidates is not None
    np.testing.assert_allclose(diagnosis.seen.candidates[:, IOU], native.seen.candidates[:, IOU], rtol=0, atol=1e-3)
    assert diagnosis.ap.mean == pytest.approx(native.ap.mean, abs=0.5)
    assert diagnosis.seen.without_rescoring is None


def test_a_head_that_needs_no_nms_has_no_candidates_and_says_so(
    checkpoint: Callable[[str], Path], tiny_data: Path, run_dir: Path
) -> None:
    diagnosis = _run(MLCYOLO(checkpoint("yolo26n")), tiny_data, run_dir, nms=False)
    assert diagnosis.seen.candidates is None
    assert Repair.INSIDE not in diagnosis.gains


def test_what_cannot_be_diagnosed_is_refused_and_leaves_no_folder(
    checkpoint: Callable[[str], Path], own_data: Path, run_dir: Path
) -> None:
    with pytest.raises(ValueError, match="this is a segment model"):
        _run(MLCYOLO("yolo11n-seg.yaml"), own_data, run_dir)
    model = MLCYOLO(checkpoint("yolo11n"))
    for conf in (1.5, "high", True):
        with pytest.raises(ValueError, match="must be a score threshold from 0 to 1"):
            _run(model, own_data, run_dir, conf=conf)
    text = own_data.read_text()
    own_data.write_text(text.replace("disc", "ring"))
    with pytest.raises(ValueError, match=r"class 1 is 'ring' in .* and 'disc' to the model"):
        _run(model, own_data, run_dir)
    own_data.write_text(f"{text}  3: star\n")
    with pytest.raises(ValueError, match=r"class 3 is 'star' in .* and unknown to the model of 3"):
        _run(model, own_data, run_dir)
    own_data.write_text(text)
    for labels in (own_data.parent / "labels" / "val").glob("*.txt"):
        labels.write_text("")
    with pytest.raises(ValueError, match=r"none of the 4 images of .* has an object"):
        _run(model, own_data, run_dir)
    assert not (run_dir / "diagnose").exists()


def test_memory_does_not_grow_with_candidates(
    checkpoint: Callable[[str], Path], tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    after = DiagnosingValidator.get_stats

    def counted(self: DiagnosingValidator) -> dict[str, Any]:
        kept.extend(len(queue) for queue in (self._candidates, self._predicted, self._plain))
        return after(self)

    monkeypatch.setattr(DiagnosingValidator, "get_stats", counted)
    _run(MLCYOLO(checkpoint("yolo11n")), tiny_data, run_dir)
    assert kept == [0, 0, 0]
