"""Comparisons of segmentation, pose and oriented boxes: what is recorded, judged and said."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing_here import run_here
from made_records import made_records
from task_sets import HEADS, write_lively, write_net, write_set
from ultralytics.utils.metrics import batch_probiou

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.compare import compare, rehearsal
from mlc_yolo.compare import run as module
from mlc_yolo.evaluation.recording import RECORDERS, record
from mlc_yolo.metrics.errors import judge
from mlc_yolo.metrics.oracles import Oracles
from mlc_yolo.metrics.records import LEAST_SIMILARITY, Records
from mlc_yolo.metrics.reliability import best_ious
from mlc_yolo.metrics.weighted_ap import OWN_AP, WeightedAP
from mlc_yolo.model import MLCYOLO
from mlc_yolo.report import write_report

TINY: dict[str, Any] = {
    **{"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "device": "cpu"},
    **{"optimizer": "SGD", "warmup_epochs": 0, "mosaic": 0.0},
}


def with_pairs(records: Records, task: str, factor: float = 1.0) -> Records:
    """Return records whose pairs are as similar as their boxes' IoU, times a factor."""
    iou = factor * pairwise_iou(torch.from_numpy(records.boxes), torch.from_numpy(records.gt_boxes)).numpy()
    iou[records.image[:, None] != records.gt_image] = 0
    detection, other = np.nonzero(iou >= LEAST_SIMILARITY)
    pairs = {"pair_detection": detection, "pair_object": other, "pair_similarity": iou[detection, other]}
    return replace(records, task=task, **pairs)


@pytest.mark.parametrize("task", OWN_AP)
def test_the_own_ap_of_a_similarity_that_is_the_iou_of_boxes_is_their_ap(task: str) -> None:
    records = with_pairs(made_records(), task)
    weights = np.random.default_rng(0).integers(0, 3, (len(records.images), 4)).astype(np.float64)
    values = WeightedAP(records)(weights)
    assert list(values)[:3] == [f"{OWN_AP[task]}{end}" for end in ("", "50", "75")]
    for end in ("", "50", "75"):
        np.testing.assert_allclose(values[f"{OWN_AP[task]}{end}"], values[f"AP{end}"], atol=1e-6)
    assert 0 < values["AP"][0] < 1
    less = WeightedAP(with_pairs(made_records(), task, factor=0.8))()
    assert less["AP"] == WeightedAP(records)()["AP"], "which boxes decide"
    assert 0 < less[OWN_AP[task]][0] < less["AP"][0]


def test_oriented_boxes_are_judged_by_their_similarity_throughout_and_others_by_their_boxes() -> None:
    plain = made_records()
    for task in OWN_AP:
        same, none = with_pairs(plain, task), with_pairs(plain, task, factor=0.0)
        assert Oracles(same)()["AP"][0] == pytest.approx(Oracles(plain)()["AP"][0], abs=1e-6)
        kinds = [np.concatenate([image.kind for image in judge(records)]) for records in (plain, same, none)]
        assert np.array_equal(kinds[0], kinds[1])
        known = best_ious(plain)
        np.testing.assert_allclose(
            best_ious(same), np.where(known >= LEAST_SIMILARITY, known, best_ious(same)), atol=1e-6
        )
        assert (Oracles(none)()["AP"][0] == 0) == (task == "obb")
        assert (best_ious(none).max() == 0) == (task == "obb")
        assert np.array_equal(kinds[0], kinds[2]) == (task != "obb")


def test_records_of_a_task_survive_their_file_and_pairs_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    records = with_pairs(made_records(), "segment")
    records.save(tmp_path / "records.npz")
    read = Records.load(tmp_path / "records.npz")
    assert read.task == "segment" and (read.similarities() != records.similarities()).nnz == 0
    made_records().save(tmp_path / "plain.npz")
    plain = Records.load(tmp_path / "plain.npz")
    assert plain.task == "detect" and plain.pair_object is None
    with pytest.raises(ValueError, match="no similarities"):
        plain.similarities()
    assert read.pair_object is not None
    with pytest.raises(ValueError, match="pair_object is"):
        replace(records, pair_object=read.pair_object[1:])
    other = records.with_detections(records.image, records.boxes, records.scores, records.labels)
    assert other.pair_similarity is None


def _oks(found: torch.Tensor, truth: torch.Tensor, box: torch.Tensor) -> float:
    """COCO's similarity of two keypoints: sigma 1/2, area 0.53 of the box."""
    area = float((box[2:] - box[:2]).prod()) * 0.53
    return float((-(found[:, :2] - truth[:, :2]).double().square().sum(1) / (2 * area)).exp().mean())


def _by_hand(task: str, preds: dict[str, torch.Tensor], batch: dict[str, Any], mine: int, other: int) -> float:
    if task == "obb":
        return float(batch_probiou(batch["bboxes"][other, None], preds["bboxes"][mine, None])[0, 0])
    if task == "pose":
        return _oks(preds["keypoints"][mine], batch["keypoints"][other], batch["bboxes"][other])
    made, mask = preds["masks"][mine].bool(), batch["masks"][other].bool()
    return float((made & mask).sum() / (made | mask).sum())


@pytest.mark.slow
@pytest.mark.parametrize("task", HEADS)
def test_records_hold_the_similarity_of_every_detection_and_object(
    task: str, tmp_path_factory: pytest.TempPathFactory, run_dir: Path
) -> None:
    seen: list[tuple[Any, Any]] = []

    class Watching(RECORDERS[task]):  # type: ignore[misc]
        def _process_batch(self, preds: Any, batch: Any) -> Any:
            seen.append(({k: v.clone() for k, v in preds.items()}, dict(batch)))
            return super()._process_batch(preds, batch)

    folder = tmp_path_factory.getbasetemp()
    data = write_set(folder, task)
    place = {"data": str(data), "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "project": str(run_dir)}
    records = record(MLCYOLO(write_lively(folder, task, 11)), Watching, **place, verbose=False, max_det=30)
    seen.sort(key=lambda image: image[1]["im_file"])
    assert records.task == task and records.images == [batch["im_file"] for _, batch in seen]
    known = records.similarities().toarray()
    counts = [len(preds["cls"]) for preds, _ in seen]
    assert np.array_equal(records.image, np.repeat(np.arange(4), counts)) and len(records.gt_image) == 6
    expected = np.zeros_like(known)
    for image, (preds, batch) in enumerate(seen):
        firsts = int((records.image < image).sum()), int((records.gt_image < image).sum())
        for mine in range(len(preds["cls"])):
            for other in range(len(batch["cls"])):
                expected[firsts[0] + mine, firsts[1] + other] = _by_hand(task, preds, batch, mine, other)
    clear = np.abs(expected - LEAST_SIMILARITY) > 1e-4
    np.testing.assert_allclose(known[clear], np.where(expected >= LEAST_SIMILARITY, expected, 0)[clear], atol=1e-4)
    assert known.max() > LEAST_SIMILARITY
    assert (records.boxes[:, 2:] >= records.boxes[:, :2]).all() and records.reach is not None
    assert 0 < records.reach.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", HEADS)
def test_each_task_is_rehearsed_on_a_blank_image(
    task: str, tmp_path_factory: pytest.TempPathFactory, run_dir: Path
) -> None:
    folder = tmp_path_factory.getbasetemp()
    options = {**TINY, "model": write_net(folder, task), "data": str(write_set(folder, task)), "assigner": "mlc"}
    options["assigner_warmup"] = 0
    assert rehearsal._refusal(dict(options), str(run_dir)) is None
    said = rehearsal._refusal({**options, "resize": "warp"}, str(run_dir))
    assert said is not None and said.startswith("resize: ")


@pytest.mark.slow
def test_a_comparison_of_segmentation_shows_the_ap_of_masks_beside_that_of_boxes(
    tmp_path_factory: pytest.TempPathFactory, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "refusals", lambda trainings: {})  # another test rehearses
    run_here(monkeypatch)
    folder = tmp_path_factory.getbasetemp()
    given = {**TINY, "model": str(write_lively(folder, "segment", 11)), "data": str(write_set(folder, "segment"))}
    found = compare(**given, vote=[False, True], vote_iou=0.3, lr0=1e-9, project=run_dir)
    assert not found.failed, found.failed
    with open(found.folder / "runs.csv", encoding="utf-8", newline="") as file:
        (first, _) = csv.DictReader(file)
    assert list(first).index("mask_AP") < list(first).index("AP") and first["mask_AP75"] and first["APs"]
    metrics = [row["metric"] for row in found.differences]
    assert metrics[:4] == ["mask_AP", "mask_AP50", "mask_AP75", "AP"] and "latency" in metrics
    assert "mask AP50" in str(found)
    page = write_report(found, found.folder / "report.html").read_text(encoding="utf-8")
    assert "Mask AP 75" in page and ":</strong> Mask AP" in page
    plain, voted = (found.records(f"vote={vote},seed=0") for vote in (False, True))
    assert np.array_equal(plain.scores, voted.scores) and plain.task == "segment"
