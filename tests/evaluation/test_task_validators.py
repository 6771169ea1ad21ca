"""Divergence of boxes in the validation of segmentation, pose and oriented boxes, beside upstream's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import enliven
from scipy.stats import spearmanr
from task_sets import HEADS, write_net, write_set
from ultralytics import YOLO
from ultralytics.nn.tasks import OBBModel, PoseModel, SegmentationModel, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.metrics import batch_probiou, box_iou
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.task_validators import TASK_VALIDATORS

SMALL: dict[str, Any] = {"imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
MODELS: dict[str, Any] = {"segment": SegmentationModel, "pose": PoseModel, "obb": OBBModel}
SPEARMAN, POOLED = "metrics/spearman(B)", "metrics/spearman_pooled(B)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A function (task, family) -> checkpoint whose scores and boxes differ from anchor to anchor."""
    folder = tmp_path_factory.getbasetemp()

    @cache
    def write(task: str, family: int) -> Path:
        torch.manual_seed(0)
        model = MODELS[task](yaml_model_load(write_net(folder, task, family)), nc=2, verbose=False)
        enliven(model, torch.rand(2, 3, 64, 64))
        for layers in getattr(model.model[-1], "one2one_cv2", None) or ():
            layers[-1].bias.data += 2  # distances in strides, or few boxes would meet an object
        model.names, model.task, model.args = {0: "a", 1: "b"}, task, {**DEFAULT_CFG_DICT, "task": task}
        file = folder / f"lively{family}-{task}.pt"
        torch.save({"model": model, "train_args": {"task": task}}, file)
        return file

    return write


def _watching(task: str, seen: list[tuple[Any, ...]]) -> type:
    """The task's validator, which notes each image's output before NMS, its objects and their classes."""

    class Watching(TASK_VALIDATORS[task]):  # type: ignore[misc]
        def postprocess(self, preds: Any) -> Any:
            dense = preds
            while isinstance(dense, list | tuple):
                dense = dense[0]
            self.images = [image.clone() for image in dense]
            return super().postprocess(preds)

        def _process_batch(self, preds: Any, batch: Any) -> Any:
            keypoints = batch["keypoints"].clone() if task == "pose" else None
            seen.append((self.images.pop(0), batch["bboxes"].clone(), batch["cls"].clone(), keypoints))
            return super()._process_batch(preds, batch)

    return Watching


def _similarity(found: torch.Tensor, truth: torch.Tensor, box: torch.Tensor) -> float:
    """COCO's similarity of the set's two keypoints: exp(-distance^2 / (8 sigma^2 area)), sigma 1/2, area 0.53 * box."""
    area = float((box[2] - box[0]) * (box[3] - box[1])) * 0.53
    distances = (found.reshape(2, -1)[:, :2] - truth[:, :2]).double().square().sum(1)
    return float((-distances / (8 * 0.25 * area)).exp().mean())


def _by_hand(seen: list[tuple[Any, ...]], task: str, *, final: bool) -> tuple[float, float]:
    """Mean Spearman per object, and pooled, one entry after the other."""
    pooled, per_object = [], []
    for output, objects, labels, keypoints in seen:
        rows = [
            (score, label, row)
            for row in (output if final else output.T)
            for label, score in ([(int(row[5]), float(row[4]))] if final else enumerate(row[4:6].tolist()))
        ]
        candidates: dict[int, list[tuple[float, float]]] = {}
        for score, label, row in rows:
            mine = [m for m in range(len(objects)) if int(labels[m]) == label]
            if score <= 0.05 or not mine:
                continue
            if task == "keypoints":
                found = row[6:]
                overlap = torch.tensor([_similarity(found, keypoints[m], objects[m]) for m in mine])
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
    if task == "pose":
        per_object, pooled = _by_hand(seen, "keypoints", final=bool(options))
        assert found["metrics/spearman(P)"] == pytest.approx(per_object, abs=1e-3) and abs(per_object) < 1
        assert found["metrics/spearman_pooled(P)"] == pytest.approx(pooled, abs=1e-3)
    label = metrics.ap_class_index[0]
    expected = (metrics.divergence.per_object_by_class[label], metrics.divergence.pooled_by_class[label])
    row = metrics.class_result(0)
    np.testing.assert_equal(row[-4:-2] if task == "pose" else row[-2:], expected)
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
