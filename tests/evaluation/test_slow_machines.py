"""Detections are the same however slow the machine is: Ultralytics' NMS gives up after two seconds, ours does not."""

from __future__ import annotations

import itertools
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectors.lively import lively_detector
from torch import Tensor
from ultralytics.utils.nms import non_max_suppression

from mlc_yolo import MLCYOLO
from mlc_yolo.evaluation.postprocess import detections, detections_with_anchors

OPTIONS: dict[str, Any] = {
    "confidence": 0.1,
    "iou_threshold": 0.5,
    "max_det": 50,
    "agnostic": False,
    "multi_label": True,
}


@pytest.fixture
def hours_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an hour pass whenever Ultralytics' NMS looks at the clock."""
    hours = itertools.count(0, 3600)
    monkeypatch.setattr("ultralytics.utils.nms.time", SimpleNamespace(time=lambda: float(next(hours))))


def dense(images: int = 3, anchors: int = 60, classes: int = 3, *, reach: float = 40) -> Tensor:
    """Heaps of boxes, (B, 4 + K, A)."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand((images, 4, anchors), generator=generator) * reach + 20
    return torch.cat((boxes, torch.rand((images, classes, anchors), generator=generator)), 1)


def final(images: int = 3, rows: int = 40) -> Tensor:
    """What a model without NMS hands over, (B, N, 6): the best score first."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((images, rows, 2), generator=generator) * 40
    scores = torch.rand((images, rows, 1), generator=generator).sort(1, descending=True).values
    labels = torch.randint(3, (images, rows, 1), generator=generator).float()
    return torch.cat((corners, corners + 20, scores, labels), 2)


def upstream(prediction: Any, chosen: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Ultralytics' own answer, with all the time it wants."""
    return non_max_suppression(
        prediction,
        chosen["confidence"],
        chosen["iou_threshold"],
        chosen.get("classes"),
        chosen["agnostic"],
        chosen["multi_label"],
        max_det=chosen["max_det"],
        max_time_img=inf,
        end2end=chosen.get("end2end", False),
        return_idxs=True,
    )


CASES: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "every class of an anchor": (dense(), {}),
    "the best class only": (dense(), {"multi_label": False}),
    "classes compete": (dense(), {"agnostic": True}),
    "some classes": (dense(), {"classes": [0, 2]}),
    "one class of an anchor's best": (dense(), {"classes": 1, "multi_label": False}),
    "one class": (dense(classes=1), {}),
    "few detections": (dense(), {"max_det": 3}),
    "nothing is sure enough": (dense(), {"confidence": 1.0}),
    "more pairs than enter NMS": (dense(1, 12_000, reach=600), {"max_det": 300}),
    "boxes beyond the offset of classes": (dense(reach=20_000), {}),
    "no anchor": (dense(anchors=0), {}),
    "final boxes": (final(), {}),
    "final boxes of some classes": (final(), {"classes": [1], "max_det": 5}),
    "final boxes with a channel more": (torch.cat((final(), final()[..., :1]), 2), {"end2end": True}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("hours_pass")
@pytest.mark.parametrize("name", CASES)
def test_detections_are_ultralytics_bit_for_bit_while_hours_pass(name: str) -> None:
    prediction, changes = CASES[name]
    chosen = {**OPTIONS, **changes}
    rows, anchors = detections_with_anchors((prediction.clone(), None), (), **chosen)
    expected_rows, expected_anchors = upstream(prediction.clone(), chosen)
    for ours, theirs in zip((*rows, *anchors), (*expected_rows, *expected_anchors), strict=True):
        assert torch.equal(ours, theirs.reshape(ours.shape))
    assert any(map(len, rows)) == (name not in {"nothing is sure enough", "no anchor"})


@pytest.mark.usefixtures("hours_pass")
def test_ultralytics_own_call_loses_what_ours_keeps() -> None:
    lost = non_max_suppression(dense(), 0.1, 0.5, multi_label=True, max_det=50)
    kept = detections(dense(), (), **OPTIONS)
    assert [len(rows) > 0 for rows in lost] == [True, False, False]
    assert all(len(rows) for rows in kept) and torch.equal(lost[0], kept[0])


@pytest.mark.parametrize("extras", [("iou",), ("level",), ("iou", "level")])
def test_with_extra_channels_the_anchors_are_those_whose_boxes_were_kept(extras: tuple[str, ...]) -> None:
    columns = {"iou": torch.rand(2, 1, 60), "level": torch.randint(3, (2, 1, 60)).float()}
    prediction = torch.cat((dense(2), *(columns[name] for name in extras)), 1)
    rows, anchors = detections_with_anchors(prediction, extras, **OPTIONS)
    for image, kept, anchor in zip(prediction, rows, anchors, strict=True):
        centres, sizes = image[:2, anchor].T, image[2:4, anchor].T
        torch.testing.assert_close(kept[:, :4], torch.cat((centres - sizes / 2, centres + sizes / 2), 1))
        assert len(anchor) == len(kept) > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yolo11n", "yolo11n by IoU", "fcos"])
def test_validation_and_prediction_are_the_same_while_hours_pass(
    kind: str, tiny_data: Path, run_dir: Path, iou_aware: Any, request: pytest.FixtureRequest
) -> None:
    if kind == "fcos":
        model = lively_detector(kind, quality="iou", width=64, nc=3)
    else:
        model = iou_aware("yolo11n", torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    model.names, model.args = {0: "square", 1: "disc", 2: "cross"}, {"task": "detect", "imgsz": 64}
    torch.save({"model": model, "train_args": {}}, run_dir / "model.pt")
    net = MLCYOLO(run_dir / "model.pt")
    options = {"imgsz": 64, "batch": 4, "conf": 0.01, "verbose": False, "project": str(run_dir)}
    options |= {"nms_by": "iou"} if "IoU" in kind else {}
    photos = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))

    def everything() -> tuple[list[Tensor], dict[str, float]]:
        results = net.predict(photos, **options)
        return [result.boxes.data for result in results], net.val(data=tiny_data, plots=False, **options).results_dict

    boxes, numbers = everything()
    request.getfixturevalue("hours_pass")
    later_boxes, later_numbers = everything()
    assert all(len(image) for image in boxes)
    assert all(torch.equal(before, after) for before, after in zip(boxes, later_boxes, strict=True))
    np.testing.assert_equal(later_numbers, numbers)
