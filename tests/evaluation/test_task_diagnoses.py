"""Diagnoses of segmentation, pose and oriented boxes: through the command, and the laws they share with detection's."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_records import made_records, records_of
from nets import enliven
from task_sets import HEADS, MODELS, write_lively, write_net, write_set
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo import MLCYOLO, cli
from mlc_yolo.checkpoints.marker import write_marker
from mlc_yolo.evaluation.diagnosis import Diagnosis, Observations
from mlc_yolo.evaluation.diagnosis_files import as_dict
from mlc_yolo.evaluation.recording import record
from mlc_yolo.evaluation.verdict import verdict
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD
from mlc_yolo.metrics.errors import iou_of_boxes
from mlc_yolo.metrics.oracles import Repair
from mlc_yolo.metrics.reach import IOU
from mlc_yolo.metrics.records import LEAST_SIMILARITY, Records
from mlc_yolo.metrics.weighted_ap import OWN_AP, WeightedAP
from mlc_yolo.oriented import extent, pairwise_probiou

SMALL: dict[str, Any] = {"imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "verbose": False}
PARTS = {"segment": "masks", "pose": "keypoints"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def _with_similarities(records: Records, task: str, change: Callable[[np.ndarray], np.ndarray] = np.array) -> Records:
    """The same records as those of another task, whose similarities are the IoU of boxes, changed as asked."""
    overlaps, rows = iou_of_boxes(records), np.arange(len(records.image))
    known = change(overlaps(rows, np.arange(len(records.gt_image))).astype(np.float32))
    known[records.image[:, None] != records.gt_image] = 0
    detection, other = np.nonzero(known >= LEAST_SIMILARITY)
    pairs = {"pair_detection": detection, "pair_object": other, "pair_similarity": known[detection, other]}
    return replace(records, task=task, **pairs)


def _seen(records: Records, **further: Any) -> Observations:
    sides = np.sqrt(np.prod(records.gt_boxes[:, 2:].astype(float) - records.gt_boxes[:, :2], axis=1))
    best = np.concatenate((records.gt_boxes, np.full((len(sides), 2), (0.5, 0.9))), 1).astype(np.float32)
    return Observations(records, best, sides, **further)


@pytest.mark.slow
@pytest.mark.parametrize("task", HEADS)
def test_the_command_diagnoses_every_task_by_its_own_measure_too(
    task: str, folder: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, data = write_lively(folder, task, 11), write_set(folder, task)
    words = {**SMALL, "model": model, "data": data, "project": run_dir, "report": True}
    assert cli.main(["diagnose", *(f"{name}={value}" for name, value in words.items())]) == 0
    place, said = run_dir / "diagnose", "\n".join(caplog.messages)
    held = json.loads((place / "diagnosis.json").read_text())
    records = record(MLCYOLO(model), data=str(data), project=str(run_dir), **SMALL)
    judged = {name: 100 * float(value[0]) for name, value in WeightedAP(records)().items()}
    assert held["AP"]["mean"] == pytest.approx(judged["obb_AP" if task == "obb" else "AP"], abs=1e-9)
    assert [row["repair"] for row in held["repairs"]] == ["as it is", *(r.value for r in Repair), "all together"]
    assert held["repairs"][-1]["AP"] == 100
    page = (place / "report.html").read_text()
    if task == "obb":
        assert held["own"] is None and "And to the" not in page
        assert set(re.findall(r'transform="rotate\(([-\d.]+) ', page)) - {"0.0"}, "boxes are drawn as they lie"
        assert "every overlap is probiou" in said and "its edges is not judged" in said
        return
    assert held["own"]["part"] == PARTS[task]
    assert held["own"]["AP"]["mean"] == pytest.approx(judged[OWN_AP[task]], abs=1e-9)
    assert held["own"]["repairs"][-1]["AP"] == 100
    difference = held["AP"]["mean"] - held["own"]["AP"]["mean"]
    assert held["own"]["behind_boxes"]["mean"] == pytest.approx(difference, abs=1e-9)
    with (place / f"diagnosis_{PARTS[task]}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["AP"]) for row in rows] == pytest.approx([row["AP"] for row in held["own"]["repairs"]])
    assert f"And to the {PARTS[task]}?" in page and f"Boxes or {PARTS[task]}" in page
    assert f"by {held['own']['by']}  " in said and f"- Ranking by {PARTS[task]}: at most" in said


@pytest.mark.slow
@pytest.mark.parametrize("task", PARTS)
def test_no_detection_is_more_similar_than_the_best_candidate(task: str, folder: Path, run_dir: Path) -> None:
    data = write_set(folder, task)
    diagnosis = MLCYOLO(write_lively(folder, task, 11)).diagnose(data=str(data), project=str(run_dir), **SMALL)
    records, reach = diagnosis.seen.records, diagnosis.seen.own_reach
    assert reach is not None and (reach >= 0).all() and reach.max() > LEAST_SIMILARITY
    known = records.similarities().toarray()
    known[records.labels[:, None] != records.gt_labels] = 0
    known[records.scores <= SCORE_THRESHOLD] = 0
    # A candidate belongs to the object that it is most similar to.
    best = known.argmax(1)
    rows = np.flatnonzero(known.max(1))
    # Upstream crops fewer than 50 masks at whole pixels of 16 x 16, and more of them by another rule.
    slack = 0.05 if task == "segment" else 1e-5
    assert len(rows) and (known[rows, best[rows]] <= reach[best[rows]] + slack).all()


@pytest.mark.slow
def test_oriented_boxes_are_kept_as_they_lie_and_judged_by_probiou_with_and_without_rescoring(
    folder: Path, tmp_path: Path, run_dir: Path
) -> None:
    torch.manual_seed(0)
    net = MODELS["obb"](yaml_model_load(write_net(tmp_path, "obb")), nc=2, verbose=False)
    add_iou_channel(net.model[-1])
    enliven(net, torch.rand(2, 3, 64, 64))
    net.names, net.task, net.args = {0: "a", 1: "b"}, "obb", {**DEFAULT_CFG_DICT, "task": "obb"}
    write_marker(net, iou_head=True)
    torch.save({"model": net, "train_args": {"task": "obb"}}, tmp_path / "channel.pt")
    where = {"data": str(write_set(folder, "obb")), "project": str(run_dir), **SMALL}
    diagnosis = MLCYOLO(tmp_path / "channel.pt").diagnose(**where)
    seen = diagnosis.seen
    records, turned, candidates = seen.records, seen.turned, seen.candidates
    assert turned is not None and candidates is not None
    objects, detections, best = (
        torch.from_numpy(rows) for rows in (turned.objects, turned.detections, turned.candidates)
    )
    np.testing.assert_allclose(extent(objects), records.gt_boxes, atol=1e-3)
    np.testing.assert_allclose(extent(detections), records.boxes, atol=1e-3)
    same = torch.from_numpy(records.image[:, None] == records.gt_image)
    expected = torch.where(same, pairwise_probiou(detections, objects), 0.0)
    known = records.similarities().toarray()
    np.testing.assert_allclose(known[known > 0], expected.numpy()[known > 0], atol=1e-3)
    there = candidates[:, IOU] > 0
    assert there.any()
    reached = pairwise_probiou(objects, best).diagonal().numpy()
    np.testing.assert_allclose(reached[there], candidates[there, IOU], atol=1e-3)
    np.testing.assert_allclose(seen.sides, np.sqrt(turned.objects[:, 2] * turned.objects[:, 3]), rtol=1e-3)

    assert seen.predicted is not None and len(seen.predicted) and diagnosis.predicted_iou is not None
    plain, asked = seen.without_rescoring, record(MLCYOLO(tmp_path / "channel.pt"), rescore=False, **where)
    assert plain is not None and plain.scores.mean() > records.scores.mean()
    np.testing.assert_allclose(np.sort(plain.scores), np.sort(asked.scores), rtol=0, atol=1e-5)
    mine, theirs = (np.sort(known.pair_similarity) for known in (plain, asked))
    assert len(mine) == len(theirs) > 5
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-3)
    assert diagnosis.curve_without_rescoring is not None


@pytest.mark.slow
def test_objects_without_labelled_keypoints_are_counted(folder: Path, tmp_path: Path, run_dir: Path) -> None:
    data = write_set(tmp_path, "pose")
    first = data.parent / "labels" / "0.txt"
    rows = [row.split() for row in first.read_text().splitlines()]
    first.write_text("".join(f"{' '.join([*row[:5], *['0'] * 6])}\n" for row in rows))
    diagnosis = MLCYOLO(write_lively(folder, "pose", 11)).diagnose(data=str(data), project=str(run_dir), **SMALL)
    assert diagnosis.seen.unlabelled == len(rows) == 2
    assert diagnosis.seen.own_reach is not None
    hidden = diagnosis.seen.own_reach[diagnosis.seen.records.gt_image == 0]
    assert len(hidden) == 2 and (hidden == 0).all() and diagnosis.seen.own_reach.max() > 0
    assert any("2 of 6 objects have no labelled keypoint" in sentence for sentence in verdict(diagnosis))


def test_by_the_iou_of_boxes_an_oriented_diagnosis_is_detection_s() -> None:
    records = made_records(images=20)
    turned = _with_similarities(records, "obb")
    expected, found = (as_dict(Diagnosis(_seen(seen))) for seen in (records, turned))
    assert found["repairs"][0]["AP"] > 5
    # Of the score as an estimate, similarities below 0.1 count as 0.
    for name in sorted(expected.keys() - {"verdict", "score_as_iou"}):
        np.testing.assert_equal(_rounded(found[name]), _rounded(expected[name]), err_msg=name)
    assert found["verdict"][1:] == expected["verdict"]


def _rounded(value: Any) -> Any:
    """Numbers to six digits, which float32 similarities allow."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 6) + 0.0 if isinstance(value, float) else value


@pytest.mark.parametrize("task", PARTS)
def test_masks_and_keypoints_as_similar_as_their_boxes_are_diagnosed_as_boxes_are(task: str) -> None:
    records = _with_similarities(made_records(images=20), task)
    diagnosis = Diagnosis(_seen(records, own_reach=np.full(len(records.gt_labels), 0.9, np.float32)))
    own = diagnosis.own
    assert own is not None and diagnosis.own_behind is not None
    assert own.ap.mean == pytest.approx(diagnosis.ap.mean, abs=1e-6) and own.ap.mean > 5
    for repair, gain in diagnosis.gains.items():
        assert own.gains[repair].gain.mean == pytest.approx(gain.gain.mean, abs=1e-6)
    assert diagnosis.own_behind.mean == pytest.approx(0, abs=1e-6)
    assert all(row.own_ap == pytest.approx(row.ap, abs=1e-6) for row in diagnosis.classes)
    without = Diagnosis(_seen(records)).own
    assert without is not None and Repair.INSIDE not in without.gains


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda x: x * 0.8, "are the limit. What helps"), (np.sqrt, "the boxes are the limit, not the")],
)
@pytest.mark.parametrize("task", PARTS)
def test_the_verdict_says_whether_boxes_or_what_lies_in_them_is_the_limit(
    task: str, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    diagnosis = Diagnosis(_seen(_with_similarities(made_records(images=40), task, change)))
    first = verdict(diagnosis)[0]
    assert first.startswith(f"Boxes or {PARTS[task]}: AP is {diagnosis.own.ap.mean:.1f}") and words in first
    assert f"{diagnosis.ap.mean:.1f} [" in first and diagnosis.own_behind.shown


@pytest.mark.parametrize("task", HEADS)
def test_perfect_detections_have_nothing_to_mend(task: str) -> None:
    boxes = [(0, 0, 20, 20), (40, 0, 60, 30)]
    records = records_of([(*box, 0) for box in boxes], [(*box, 0.9, 0) for box in boxes])
    diagnosis = Diagnosis(_seen(_with_similarities(records, task)))
    for measured in (diagnosis, diagnosis.own) if diagnosis.own else (diagnosis,):
        assert measured.ap.mean == pytest.approx(100)
        assert all(gain.gain.mean == pytest.approx(0) for gain in measured.gains.values())


def test_a_model_that_finds_no_boxes_is_refused(run_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"'yolo11n-cls.yaml' is a classify model, which finds no boxes"):
        MLCYOLO("yolo11n-cls.yaml").diagnose(data="mnist", project=str(run_dir))
    assert not list(run_dir.iterdir())
