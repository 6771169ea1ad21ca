"""Divergence of boxes in the validation of segmentation, pose and oriented boxes, beside upstream's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from task_sets import HEADS, write_lively, write_set
from ultralytics import YOLO
from ultralytics.utils.metrics import batch_probiou, box_iou
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.task_validators import MASK_ENTRIES, TASK_VALIDATORS

SMALL: dict[str, Any] = {"imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
SPEARMAN, POOLED = "metrics/spearman(B)", "metrics/spearman_pooled(B)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A function (task, family) -> checkpoint whose scores and boxes differ from anchor to anchor."""
    folder = tmp_path_factory.getbasetemp()

    def write(task: str, family: int) -> Path:
        return write_lively(folder, task, family)

    return write


def _watching(task: str, seen: list[tuple[Any, ...]]) -> type:
    """The task's validator, which notes each image's output before NMS, its objects and their classes."""

    class Watching(TASK_VALIDATORS[task]):  # type: ignore[misc]
        def postprocess(self, preds: Any) -> Any:
            dense = preds
            while isinstance(dense, list | tuple):
                dense = dense[0]
            self.images = [image.clone() for image in dense]
            if task == "segment":
                self.prototypes = list(preds[0][1].clone())
            return super().postprocess(preds)

        def _process_batch(self, preds: Any, batch: Any) -> Any:
            known = batch["keypoints"].clone() if task == "pose" else None
            if task == "segment":
                known = self.prototypes.pop(0), batch["masks"].clone()
            seen.append((self.images.pop(0), batch["bboxes"].clone(), batch["cls"].clone(), known))
            return super()._process_batch(preds, batch)

    return Watching


def _similarity(found: torch.Tensor, truth: torch.Tensor, box: torch.Tensor) -> float:
    """COCO's similarity of the set's two keypoints: exp(-distance^2 / (8 sigma^2 area)), sigma 1/2, area 0.53 * box."""
    area = float((box[2] - box[0]) * (box[3] - box[1])) * 0.53
    distances = (found.reshape(2, -1)[:, :2] - truth[:, :2]).double().square().sum(1)
    return float((-distances / (8 * 0.25 * area)).exp().mean())


def _mask_iou(row: torch.Tensor, prototypes: torch.Tensor, mask: torch.Tensor, *, final: bool) -> float:
    """IoU of an object's mask and an entry's: where its sum of prototypes is above 0, within its box."""
    box = (row[:4] if final else xywh2xyxy(row[None, :4])[0]) / 4
    made = (row[6:, None, None] * prototypes).sum(0) > 0
    y, x = (grid.float() for grid in torch.meshgrid(*map(torch.arange, made.shape), indexing="ij"))
    made &= (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    both, either = (made & mask.bool()).sum(), (made | mask.bool()).sum()
    return float(both / either) if either else 0.0


def _by_hand(seen: list[tuple[Any, ...]], task: str, *, final: bool) -> tuple[float, float]:
    """Mean Spearman per object, and pooled, one entry after the other."""
    pooled, per_object = [], []
    for output, objects, labels, known in seen:
        rows = [
            (score, label, row)
            for row in (output if final else output.T)
            for label, score in ([(int(row[5]), float(row[4]))] if final else enumerate(row[4:6].tolist()))
        ]
        if task == "masks":  # of which the best are made
            rows = sorted(rows, key=lambda row: -row[0])[:MASK_ENTRIES]
        candidates: dict[int, list[tuple[float, float]]] = {}
        for score, label, row in rows:
            mine = [m for m in range(len(objects)) if int(labels[m]) == label]
            if score <= 0.05 or not mine:
                continue
            if task == "keypoints":
                found = row[6:]
                overlap = torch.tensor([_similarity(found, known[m], objects[m]) for m in mine])
            elif task == "masks":
                prototypes, masks = known
                overlap = torch.tensor([_mask_iou(row, prototypes, masks[m], final=final) for m in mine])
            elif task == "obb":
                overlap = batch_probiou(objects[mine], torch.cat((row[:4], row[-1:]))[None])[:, 0].clamp(min=0)
            else:
                overlap = box_iou(objects[mine], row[None, :4] if final else xywh2xyxy(row[None, :4]))[:, 0]
            pooled.append((score, float(overlap.max())))
            if overlap.max() > 0:
                candidates.setdefault(mine[int(overlap.argmax())], []).append(pooled[-1])
        per_object += [spearmanr(c).statistic for c in candidates.values() if len(c) >= 5]
    return float(np.mean(per_object)), float(spearmanr(np.array(pooled)).statistic)


@pytest.mark.parametrize(("family", "options"), [(11, {}), (26, {"nms": False})])
@pytest.mark.parametrize("task", HEADS)
def test_divergence_of_boxes_is_what_one_box_after_the_other_gives(
    task: str,
    family: int,
    options: dict[str, Any],
    checkpoint: Callable[[str, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_set(tmp_path_factory.getbasetemp(), task)
    seen: list[tuple[Any, ...]] = []
    common = {**SMALL, **options, "data": str(data), "project": str(run_dir), "exist_ok": True}
    metrics = MLCYOLO(checkpoint(task, family)).val(_watching(task, seen), **common)
    assert len(seen) == 4 and "Spearman" in capsys.readouterr().out
    found = metrics.results_dict
    per_object, pooled = _by_hand(seen, task, final=bool(options))
    assert found[SPEARMAN] == pytest.approx(
        per_object, abs=1e-3, nan_ok=bool(options)
    )  # few final boxes meet an object
    assert found[POOLED] == pytest.approx(pooled, abs=1e-3) and abs(pooled) < 1
    if own := {"pose": ("keypoints", "P"), "segment": ("masks", "M")}.get(task):
        per_object, pooled = _by_hand(seen, own[0], final=bool(options))
        letter, nan_ok = own[1], bool(options) and task == "segment"
        assert found[f"metrics/spearman({letter})"] == pytest.approx(per_object, abs=1e-3, nan_ok=nan_ok)
        assert found[f"metrics/spearman_pooled({letter})"] == pytest.approx(pooled, abs=1e-3) and abs(pooled) < 1
    label = metrics.ap_class_index[0]
    expected = (metrics.divergence.per_object_by_class[label], metrics.divergence.pooled_by_class[label])
    row = metrics.class_result(0)
    np.testing.assert_equal(row[-4:-2] if own else row[-2:], expected)
    assert len(row) == len(metrics.keys)
    assert len(metrics.keys) == len(metrics.mean_results()) and "Spearman" in metrics.summary()[0]
    stock = YOLO(checkpoint(task, family)).val(**common).results_dict
    assert list(found)[: len(stock) - 1] == list(stock)[:-1]
    assert {name: found[name] for name in stock} == stock  # upstream's numbers are untouched


def test_objects_without_labelled_keypoints_are_not_compared_by_them(
    checkpoint: Callable[[str, int], Path], tmp_path: Path, run_dir: Path
) -> None:
    data = write_set(tmp_path, "pose")
    for file in (data.parent / "labels").glob("*.txt"):
        rows = [row.split() for row in file.read_text().splitlines()]
        hidden = [" ".join([*row[:5], *["0"] * 6]) for row in rows]
        file.write_text("".join(f"{row}\n" for row in hidden))
    common = {**SMALL, "data": str(data), "project": str(run_dir), "exist_ok": True}
    metrics = MLCYOLO(checkpoint("pose", 11)).val(**common)
    assert np.isnan(metrics.results_dict["metrics/spearman_pooled(P)"])
    assert np.isfinite(metrics.results_dict[POOLED])
