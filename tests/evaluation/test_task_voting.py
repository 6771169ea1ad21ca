"""Voting on the boxes of segmentation, pose and oriented boxes: masks and keypoints stay the kept candidate's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from task_sets import HEADS, write_lively, write_set
from ultralytics import YOLO
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.task_predictors import PREDICTORS
from mlc_yolo.voting import distance_variances, vote, vote_oriented

QUIET: dict[str, Any] = {"imgsz": 256, "device": "cpu", "verbose": False, "conf": 0.3, "max_det": 1000}


def _expected(model: MLCYOLO, image: np.ndarray, task: str) -> torch.Tensor:
    """The boxes that candidates above the score vote for, of upstream's NMS: best class alone, as in prediction."""
    pixels = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        out, raw = model.model.eval()(pixels)
    dense = (out[0] if task == "segment" else out).clone()
    kept = non_max_suppression(dense.clone(), 0.3, 0.7, nc=2, max_det=1000, max_time_img=100, rotated=task == "obb")[0]
    score, label = dense[0, 4:6].max(0)
    near = score > 0.3
    rows = dense[0, :, near].T
    candidates, options = (score[near], label[near]), {"iou_threshold": 0.3, "sigma": 0.025}
    if task == "obb":
        boxes = torch.cat((kept[:, :4], kept[:, -1:]), 1)
        return vote_oriented(
            boxes, kept[:, 5].long(), torch.cat((rows[:, :4], rows[:, -1:]), 1), *candidates, **options
        )
    strides = model.model.model[-1].strides.flatten()[near, None]
    variances = distance_variances(raw["boxes"][0][:, near].T) * strides.square()
    return vote(kept[:, :4], kept[:, 5].long(), xywh2xyxy(rows[:, :4]), *candidates, **options, variances=variances)


@pytest.mark.slow
@pytest.mark.parametrize("task", HEADS)
def test_boxes_are_voted_on_and_what_goes_along_stays(
    task: str, tmp_path_factory: pytest.TempPathFactory, run_dir: Path
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_set(folder, task)
    image = cv2.resize(cv2.imread(str(folder / f"tasks-{task}" / "images" / "2.png")), (256, 256))
    file = write_lively(folder, task, 11)
    model = MLCYOLO(file)
    (plain,) = model.predict(image, **QUIET)
    (stock,) = YOLO(file).predict(image, **QUIET)
    part = "obb" if task == "obb" else "boxes"
    assert torch.equal(getattr(plain, part).data, getattr(stock, part).data), "without a vote it is upstream's"
    (voted,) = model.predict(image, vote=True, vote_iou=0.3, vote_sigma=0.025, **QUIET)
    assert isinstance(model.predictor, PREDICTORS[task])
    before, after = (getattr(result, part) for result in (plain, voted))
    expected = _expected(MLCYOLO(file), image, task)
    if task == "segment":
        assert len(after) and 0 < len(voted.masks) == len(after)
        for box, mask in zip(after.xyxy, voted.masks.data, strict=True):
            y, x = mask.nonzero(as_tuple=True)
            assert x.min() >= box[0] - 1 and x.max() <= box[2] and y.min() >= box[1] - 1 and y.max() <= box[3]
    else:
        assert len(before) == len(after) == len(expected) > 3
        assert torch.equal(before.conf, after.conf) and torch.equal(before.cls, after.cls)
        boxes = after.xywhr if task == "obb" else after.xyxy
        limits = expected if task == "obb" else expected.clamp(0, 256)
        np.testing.assert_allclose(boxes[:, :4].numpy(), limits[:, :4].numpy(), atol=1e-3)
        first = before.xywhr if task == "obb" else before.xyxy
        assert (first - boxes).abs().max() > 0.1
    if task == "pose":
        assert torch.equal(plain.keypoints.data, voted.keypoints.data)
    for result in (plain, voted):
        assert type(result).__name__ == "Results"


@pytest.mark.slow
@pytest.mark.parametrize("task", HEADS)
def test_a_vote_without_nms_or_by_a_class_of_ones_own_is_refused_before_any_file(
    task: str, tmp_path_factory: pytest.TempPathFactory, run_dir: Path
) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = write_set(folder, task)
    place = {"project": str(run_dir), "imgsz": 64, "device": "cpu"}
    model = MLCYOLO(write_lively(folder, task, 26))
    for method, given in ((model.predict, {"source": np.zeros((64, 64, 3), np.uint8)}), (model.val, {"data": data})):
        with pytest.raises(ValueError, match="this model has no NMS"):
            method(**given, vote=True, nms=False, **place)
    with pytest.raises(ValueError, match="show_sigma: only for detection"):
        model.predict(np.zeros((64, 64, 3), np.uint8), show_sigma=True)
    assert not [path for path in run_dir.rglob("*") if path.is_file()]
