"""`min_iou` and `sort` on segmentation, pose and oriented boxes: masks and keypoints go with their detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from nets import enliven
from task_sets import HEADS, MODELS, write_checkpoint, write_lively, write_net, write_set
from ultralytics.nn.tasks import yaml_model_load

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints.marker import write_marker
from mlc_yolo.evaluation.task_validators import MLCOrientedValidator, MLCPoseValidator, MLCSegmentationValidator
from mlc_yolo.heads.iou_aware import add_iou_channel

VALIDATORS: dict[str, Any] = {
    "segment": MLCSegmentationValidator,
    "pose": MLCPoseValidator,
    "obb": MLCOrientedValidator,
}
QUIET: dict[str, Any] = {"imgsz": 128, "device": "cpu", "verbose": False, "conf": 0.05}
ASKED: tuple[dict[str, Any], ...] = ({"min_iou": 0.5}, {"sort": "iou"})


def _with_channel(folder: Path, task: str) -> Path:
    """Write a checkpoint whose predicted IoU differs from anchor to anchor."""
    torch.manual_seed(0)
    model = MODELS[task](yaml_model_load(write_net(folder, task)), nc=2, verbose=False)
    add_iou_channel(model.model[-1])
    enliven(model, torch.rand(2, 3, 64, 64))
    write_marker(model, iou_head=True)
    file = folder / f"aware-{task}.pt"
    write_checkpoint(model, task, file)
    return file


def _ious(model: MLCYOLO, image: np.ndarray, scores: torch.Tensor) -> torch.Tensor:
    """Predicted IoU of detections: of the anchor that has their score."""
    pixels = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        out, raw = model.model.eval()(pixels)
    dense = out[0] if isinstance(out, tuple) else out
    apart = (dense[0, 4:6].amax(0) - scores[:, None]).abs()
    assert (apart.amin(1) < 1e-5).all()
    quality: torch.Tensor = raw["iou"][0, 0].sigmoid()[apart.argmin(1)]
    return quality


@pytest.mark.slow
@pytest.mark.parametrize("task", HEADS)
def test_detections_of_a_task_are_chosen_and_ordered_by_predicted_iou_with_all_that_goes_along(
    task: str, tmp_path: Path, run_dir: Path
) -> None:
    data = write_set(tmp_path, task)
    image = cv2.resize(cv2.imread(str(data.parent / "images" / "2.png")), (128, 128))
    file = _with_channel(tmp_path, task)
    model = MLCYOLO(file)

    def predict(**asked: Any) -> tuple[torch.Tensor, torch.Tensor]:
        (result,) = model.predict(image, **asked, **QUIET)
        rows = (result.obb if task == "obb" else result.boxes).data
        more = {"segment": result.masks, "pose": result.keypoints, "obb": result.obb}[task].data
        return rows, more

    rows, more = predict()
    ious = _ious(MLCYOLO(file), image, rows[:, -2])
    middle = ious.sort().values[len(ious) // 2 - 1 : len(ious) // 2 + 1]
    assert len(rows) > 3 and middle[0] < middle[1]
    kept = ious > middle.mean()
    for expected, got in zip((rows[kept], more[kept]), predict(min_iou=float(middle.mean())), strict=True):
        assert torch.equal(expected, got)
    order = ious.argsort(descending=True)
    assert not torch.equal(order, torch.arange(len(order)))
    for expected, got in zip((rows[order], more[order]), predict(sort="iou"), strict=True):
        assert torch.equal(expected, got)

    def validate(**asked: Any) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        class Keeping(VALIDATORS[task]):  # type: ignore[misc]
            def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
                images: list[dict[str, torch.Tensor]] = super().postprocess(preds)
                seen.extend(image["conf"] for image in images)
                return images

        place = {"project": str(run_dir), "exist_ok": True, "plots": False, "workers": 0, **QUIET, "imgsz": 64}
        model.val(Keeping, data=str(data), **place, **asked)
        return seen

    plain, chosen, ordered = validate(), validate(min_iou=float(middle.mean())), validate(sort="iou")
    assert 0 < sum(map(len, chosen)) < sum(map(len, plain)) == sum(map(len, ordered))
    assert any((scores.diff() > 0).any() for scores in ordered)
    assert not any((scores.diff() > 0).any() for scores in plain)


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("asked", ASKED, ids=["min_iou", "sort"])
def test_a_choice_by_an_iou_that_a_task_model_does_not_predict_is_refused_before_any_file(
    task: str, asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, run_dir: Path
) -> None:
    folder = tmp_path_factory.getbasetemp()
    place = {"project": str(run_dir), "imgsz": 64, "device": "cpu"}
    model = MLCYOLO(write_lively(folder, task, 11))
    given: dict[str, Any] = {"source": np.zeros((64, 64, 3), np.uint8), "save": True, "save_txt": True}
    for method, what in ((model.predict, given), (model.val, {"data": str(write_set(folder, task))})):
        with pytest.raises(ValueError, match=f"{next(iter(asked))}=.*predicted IoU.*of this model"):
            method(**what, **asked, **place)
    assert not [path for path in run_dir.rglob("*") if path.is_file()]
