"""Diagnosing real models through the real validator: every kind of head, exports, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectors.lively import image, lively_detector
from nets import SMALL_NETS
from own_labels import labelled_by, noise
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.diagnose import diagnose
from mlc_yolo.evaluation.diagnosing import DiagnosingValidator
from mlc_yolo.evaluation.diagnosis import Diagnosis
from mlc_yolo.evaluation.recording import record
from mlc_yolo.evaluation.verdict import verdict
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


def _opened(model: Any, folder: Path) -> MLCYOLO:
    model.names, model.args = NAMES, {"task": "detect", "imgsz": 96}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "train_args": {}}, folder / "ported.pt")
    return MLCYOLO(folder / "ported.pt")


def _run(model: MLCYOLO, data: Path, run_dir: Path, **changes: Any) -> Diagnosis:
    return diagnose(model, data=str(data), project=str(run_dir), **{**SETTINGS, **changes})


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_heads_without_a_predicted_iou_are_diagnosed_without_it(tiny_data: Path, run_dir: Path) -> None:
    stock = MLCYOLO(SMALL_NETS["yolov8n"])
    stock.model.names = {**stock.model.names, **NAMES}
    centred = lively_detector("fcos", quality="centerness", width=64, nc=3)
    for model in (stock, centred):
        opened = model if model is stock else _opened(centred, run_dir)
        diagnosis = _run(opened, tiny_data, run_dir, imgsz=64)
        assert diagnosis.seen.predicted is None
        assert diagnosis.curve_without_rescoring is None
        assert Repair.INSIDE in diagnosis.gains
        assert not any(sentence.startswith("Predicted IoU") for sentence in verdict(diagnosis))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_a_ported_detectors_predicted_iou_is_judged_box_by_box(kind: str, run_dir: Path, tmp_path: Path) -> None:
    path = _opened(lively_detector(kind, quality="iou", width=64, nc=3), run_dir).ckpt_path
    for kind_of_file in ("images", "labels"):
        (tmp_path / "data" / kind_of_file).mkdir(parents=True)
    for i, blobs in enumerate((255 * image(96, 96, 2)).byte().permute(0, 2, 3, 1).numpy()):
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{i}.png"), blobs)
        (tmp_path / "data" / "labels" / f"{i}.txt").write_text("0 0.3 0.3 0.4 0.4\n1 0.7 0.6 0.5 0.3\n")
    images, data = tmp_path / "data" / "images", tmp_path / "data.yaml"
    data.write_text(f"train: {images.as_posix()}\nval: {images.as_posix()}\nnames: [square, disc, cross]\n")
    diagnosis = _run(MLCYOLO(path), data, run_dir, rect=False)
    assert diagnosis.seen.predicted is not None and diagnosis.predicted_iou is not None
    predicted, actual = diagnosis.seen.predicted.T
    assert len(actual) > 20 and predicted.std() > 0.05 and actual.std() > 0.05
    chosen: dict[str, Any] = {"imgsz": 96, "rect": False, "conf": 0.04, "iou": 1.0, "max_det": 3000, "verbose": False}
    results = MLCYOLO(path).predict(str(images), **chosen)
    known = np.concatenate([result.boxes.iou.numpy() for result in results])
    assert (np.abs(predicted[:, None] - known).min(1) < 1e-4).all(), "each is what some box of these images predicts"
    assert diagnosis.curve_without_rescoring is None, "its candidates were chosen by the product"


@pytest.mark.slow
def test_deviations_of_edges_are_judged_as_a_validation_judges_them(
    checkpoint: Callable[[str], Path], run_dir: Path, tmp_path: Path
) -> None:
    path = checkpoint("yolov8n")
    data = labelled_by(MLCYOLO(path), tmp_path, noise(96))
    validated = MLCYOLO(path).val(data=str(data), project=str(run_dir), plots=False, rect=False, **SETTINGS).coverage
    diagnosis = _run(MLCYOLO(path), data, run_dir, rect=False)
    measured = diagnosis.coverage
    assert measured is not None and measured.count == validated.count > 10
    assert (measured.overall, measured.factor) == (validated.overall, validated.factor)
    np.testing.assert_array_equal(measured.by_side, validated.by_side)
    held = json.loads((diagnosis.folder / "diagnosis.json").read_text())
    parts = ["all", "left", "top", "right", "bottom", "small", "medium", "large"]
    assert [row["part"] for row in held["coverage"]] == parts
    assert held["coverage"][0]["within_one_sigma"] == measured.overall and held["sigma_factor"] == measured.factor
    lines = (diagnosis.folder / "coverage.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["part", *parts]
    said = next(sentence for sentence in verdict(diagnosis) if sentence.startswith("Edges: "))
    assert f"{100 * measured.overall:.0f} % of the true edges of {measured.count} detections" in said
    assert ("better than stated" in said) == (measured.factor < 0.9)
    assert ("calibrate=True" in said) == (abs(measured.factor - 1) > 0.1)
    assert any(sentence.startswith("Predicted IoU: ") for sentence in verdict(diagnosis))


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
    placed = format == "onnx"
    file = MLCYOLO(path).export(format=format, imgsz=96, device="cpu", placement=placed)
    exported = MLCYOLO(file, task="detect")
    diagnosis = _run(exported, tiny_data, run_dir, batch=1)
    assert diagnosis.seen.candidates is not None
    assert native.seen.candidates is not None
    np.testing.assert_allclose(diagnosis.seen.candidates[:, IOU], native.seen.candidates[:, IOU], rtol=0, atol=1e-3)
    assert diagnosis.ap.mean == pytest.approx(native.ap.mean, abs=0.5)
    assert diagnosis.seen.without_rescoring is None
    assert (diagnosis.seen.predicted is not None) == placed, "whose file says how well its boxes sit"
    if placed:
        np.testing.assert_allclose(diagnosis.seen.predicted, native.seen.predicted, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_head_that_needs_no_nms_has_no_candidates_and_says_so(
    checkpoint: Callable[[str], Path], tiny_data: Path, run_dir: Path
) -> None:
    diagnosis = _run(MLCYOLO(checkpoint("yolo26n")), tiny_data, run_dir, nms=False)
    assert diagnosis.seen.candidates is None
    assert Repair.INSIDE not in diagnosis.gains


@pytest.mark.slow
def test_what_cannot_be_diagnosed_is_refused_and_leaves_no_folder(
    checkpoint: Callable[[str], Path], own_data: Path, run_dir: Path
) -> None:
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
        kept.extend(len(queue) for queue in (self._entries, self._predicted, self._plain))
        return after(self)

    monkeypatch.setattr(DiagnosingValidator, "get_stats", counted)
    _run(MLCYOLO(checkpoint("yolo11n")), tiny_data, run_dir)
    assert kept == [0, 0, 0]
