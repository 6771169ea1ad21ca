"""From decoded outputs to detections: who is heard in NMS, and that every path asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors.lively import lively_detector
from nets import SMALL
from torchvision.ops import nms
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo import MLCYOLO
from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.evaluation.postprocess import detections, extra_channels
from mlc_yolo.heads.iou_aware import add_iou_channel

SIZE = 96
OPTIONS: dict[str, Any] = {
    "confidence": 0.1,
    "iou_threshold": 0.5,
    "max_det": 50,
    "agnostic": False,
    "multi_label": True,
}


def _row(x: float, score: float, *extras: float) -> list[float]:
    return [x, 50.0, 20.0, 20.0, score, *extras]  # boxes of 20 x 20 px; 2 px aside they overlap by 0.82


@pytest.mark.parametrize(
    ("extras", "rows", "kept"),
    [
        # the best-placed box stays and takes the score of the one it suppresses
        (("iou",), [_row(50, 0.9, 0.2), _row(52, 0.3, 0.8)], [(52, 0.9)]),
        (("iou",), [_row(50, 0.9, 0.8), _row(52, 0.3, 0.2)], [(50, 0.9)]),
        # levels do not compete
        (("level",), [_row(50, 0.9, 0), _row(52, 0.3, 1)], [(50, 0.9), (52, 0.3)]),
        (("level",), [_row(50, 0.9, 3), _row(52, 0.3, 3)], [(50, 0.9)]),
        (
            ("iou", "level"),
            [_row(50, 0.9, 0.2, 2), _row(52, 0.3, 0.8, 2), _row(51, 0.5, 0.1, 0)],
            [(52, 0.9), (51, 0.5)],
        ),
    ],
)
def test_extra_channels_rank_and_keep_apart(
    extras: tuple[str, ...], rows: list[list[float]], kept: list[tuple[float, float]]
) -> None:
    (found,) = detections(torch.tensor(rows).T[None], extras, **OPTIONS)
    centres = (found[:, 0] + found[:, 2]) / 2
    got = list(zip(centres.tolist(), found[:, 4].tolist(), strict=True))
    assert got == [pytest.approx(each) for each in kept]


def test_an_image_without_detections_and_an_empty_batch_have_none() -> None:
    nothing = torch.zeros(2, 6, 7)
    assert [tuple(x.shape) for x in detections(nothing, ("iou",), **OPTIONS)] == [(0, 6)] * 2
    assert detections(nothing[:0], ("iou",), **OPTIONS) == []


def _yolo(*, iou: bool) -> DetectionModel:
    model = DetectionModel(SMALL, nc=3, verbose=False).eval()
    if iou:
        add_iou_channel(model.model[-1])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in AutoBackend"])
def test_every_model_names_its_extra_channels(wrapped: bool) -> None:
    models = {
        "stock": (_yolo(iou=False), (), ()),
        "yolo": (_yolo(iou=True), (), ("iou",)),
        "retinanet": (lively_detector("retinanet", quality="iou", width=32), (), ("iou",)),
        "rpn": (lively_detector("rpn", quality="iou", width=32), ("level",), ("iou", "level")),
    }
    for name, (model, plain, by_iou) in models.items():
        for rank, expected in ((False, plain), (True, by_iou)):
            if name != "stock":
                model.model[-1].rank_by_iou = rank
            asked = AutoBackend(model, fuse=False, verbose=False) if wrapped else model
            assert extra_channels(asked) == expected, (name, rank)
            image = torch.rand(1, 3, SIZE, SIZE)
            with torch.no_grad():
                channels = asked(image)[0].shape[1]
            assert channels == 4 + (1 if name == "rpn" else len(model.names)) + len(expected)
        model.model[-1].export = True
        assert extra_channels(model) == ()


@pytest.fixture
def image() -> np.ndarray:
    """61 x 97 px: neither side fits a stride."""
    return np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)


def _checkpoint(model: Any, folder: Path) -> MLCYOLO:
    path = folder / "model.pt"
    model.args = {"task": "detect", "imgsz": SIZE}
    torch.save({"model": model, "train_args": {}}, path)
    return MLCYOLO(path)


def test_an_rpns_proposals_compete_within_levels_only(image: np.ndarray, tmp_path: Path) -> None:
    model = lively_detector("rpn", quality="iou", width=32)
    (result,) = _checkpoint(model, tmp_path).predict(image, imgsz=SIZE, conf=0.0, max_det=1000, iou=0.5, verbose=False)
    boxes, scores = result.boxes.xyxy, result.boxes.conf
    assert len(boxes) > 50 and (scores.diff() <= 0).all()
    assert (boxes.amin() >= 0) and boxes[:, 2].amax() <= 97 and boxes[:, 3].amax() <= 61
    together = pairwise_iou(boxes, boxes).fill_diagonal_(0)
    assert together.max() > 0.5, "boxes of different levels may overlap"

    batch = torch.rand(1, 3, 64, SIZE)
    with torch.no_grad():
        decoded = model(batch)[0]
    (found,) = detections(decoded, extra_channels(model), **{**OPTIONS, "max_det": 5000})
    expected = []
    for level in decoded[0, -1].unique():
        here = decoded[0][:, (decoded[0, -1] == level) & (decoded[0, 4] > OPTIONS["confidence"])]
        expected += here[4, nms(xywh2xyxy(here[:4].T).double(), here[4].double(), 0.5)].tolist()
    assert found[:, 4].tolist() == sorted(expected, reverse=True) and len(found) > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "fcos", "yolo11n"])
def test_predictions_by_predicted_iou_keep_the_best_placed_box(
    kind: str, image: np.ndarray, tmp_path: Path, iou_aware: Any
) -> None:
    if kind == "yolo11n":
        model = iou_aware(kind, torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    else:
        model = lively_detector(kind, quality="iou", width=64, nc=3)
    net = _checkpoint(model, tmp_path)
    chosen = {"imgsz": SIZE, "conf": 0.01, "verbose": False}
    standard, by_iou, again = (
        net.predict(image, nms_by=rank, **chosen)[0].boxes for rank in ("standard", "iou", "standard")
    )
    assert torch.equal(standard.data, again.data)  # the choice is for one call
    assert len(by_iou) > 0 and not (len(standard) == len(by_iou) and torch.equal(standard.data, by_iou.data))

    head = net.model.model[-1]
    head.rank_by_iou = True
    batch = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        decoded = net.model.eval()(batch)[0]
    (found,) = detections(decoded, ("iou",), **{**OPTIONS, "max_det": 3000})
    boxes, scores, ious = xywh2xyxy(decoded[0, :4].T), decoded[0, 4:7].T, decoded[0, 7]
    pairs = sorted(((scores > 0.1).nonzero()).tolist(), key=lambda pair: -ious[pair[0]].item())
    overlaps, owner = pairwise_iou(boxes, boxes), {}
    for anchor, label in pairs:  # IoU-Net, algorithm 1
        first = next((k for k in owner if k[1] == label and overlaps[k[0], anchor] > 0.5), (anchor, label))
        owner[first] = max(owner.get(first, 0.0), scores[anchor, label].item())
    assert len(found) == len(owner) > 10
    torch.testing.assert_close(found[:, 4], torch.tensor(sorted(owner.values(), reverse=True)))


@pytest.mark.slow
def test_results_keep_to_the_classes_asked_for(image: np.ndarray, tmp_path: Path) -> None:
    net = _checkpoint(lively_detector("retinanet", quality="iou", width=32, nc=3), tmp_path)
    chosen = {"imgsz": SIZE, "conf": 0.01, "verbose": False, "nms_by": "iou"}
    every, one, alone, none = (
        net.predict(image, classes=classes, **chosen)[0].boxes for classes in (None, [1], 1, [9])
    )
    assert set(every.cls.tolist()) == {0, 1, 2} and set(one.cls.tolist()) == {1}
    assert torch.equal(one.data, alone.data) and not len(none)
