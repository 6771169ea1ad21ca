"""Exported files that say how well their boxes sit: the channels, who reads them, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectors.lively import lively_detector
from nets import SMALL_NETS, enliven
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints.marker import read_marker, write_marker
from mlc_yolo.evaluation.placement import Placement

pytestmark = pytest.mark.filterwarnings("ignore:Exporting aten..index operator:UserWarning")

SIZE = 96
# As in test_export: measured at most 5e-6 in scores and 8e-4 px in boxes.
SCORE, PIXELS = 1e-4, 1e-2
SIGMAS = ["sigma_left", "sigma_top", "sigma_right", "sigma_bottom"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_placement.py"


@pytest.fixture
def opened(iou_aware: Any, tmp_path: Path) -> Any:
    """A function: kind -> `MLCYOLO` of a checkpoint with lively outputs."""

    def make(kind: str) -> MLCYOLO:
        model: Any
        if kind == "fcos":
            model = lively_detector(kind, quality="iou", width=64, nc=3)
        elif kind == "yolov8n":
            torch.manual_seed(0)
            model = DetectionModel(SMALL_NETS["yolov8n"], nc=3, verbose=False).eval()
            enliven(model, batch())
            write_marker(model, **{**read_marker(model), "sigma_scale": 0.5})
        else:
            model = iou_aware(kind, batch())
        model.args = {"task": "detect", "imgsz": SIZE}
        model.names = {0: "square", 1: "disc", 2: "cross"}
        torch.save({"model": model, "train_args": {}}, tmp_path / "model.pt")
        return MLCYOLO(tmp_path / "model.pt")

    return make


def batch() -> Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)


def outputs(file: Path) -> tuple[list[str], np.ndarray]:
    """Return the names of the channels of an exported file, none without the entry, and its output."""
    if file.suffix == ".torchscript":
        with zipfile.ZipFile(file) as archive:
            (entry,) = (name for name in archive.namelist() if name.endswith("extra/config.txt"))
            metadata = json.loads(archive.read(entry))
        with torch.no_grad():
            found = torch.jit.load(str(file))(batch()).numpy()
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        (found,) = session.run(None, {session.get_inputs()[0].name: batch().numpy()})
    return metadata["placement"].split(",") if "placement" in metadata else [], found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "format", "channels"),
    [
        ("yolov8n", "onnx", SIGMAS),
        ("yolo11n", "torchscript", ["iou", *SIGMAS]),
        ("yolo26n", "onnx", ["iou"]),
        ("fcos", "torchscript", ["iou"]),
    ],
)
def test_the_channels_are_what_the_pytorch_model_knows_of_each_box(
    kind: str, format: str, channels: list[str], opened: Any
) -> None:
    net = opened(kind)
    names, found = outputs(Path(net.export(format=format, imgsz=SIZE, placement=True)))
    assert names == channels and type(net.model.model[-1]).__name__ not in {"PlacedDetect", "PlacedIoUAwareDetect"}
    net.model.eval().end2end = False
    with torch.no_grad():
        dense, raw = net.model(batch())
    placement = Placement(net.model, (dense, raw))
    known = placement.columns(0, torch.arange(dense.shape[-1])).numpy().T
    known = known[[["iou", *SIGMAS].index(name) for name in channels]]
    assert found.shape == (1, 7 + len(channels), dense.shape[-1])
    assert np.isfinite(known).all() and known.std(1).min() > 0.01
    np.testing.assert_allclose(found[0, 4:7], dense[0, 4:], atol=SCORE)
    np.testing.assert_allclose(found[0, :4], dense[0, :4], atol=PIXELS)
    np.testing.assert_allclose(found[0, 7:], known, atol=PIXELS if len(channels) > 1 else SCORE)
    if kind == "yolo11n":
        names, plain = outputs(Path(net.export(format=format, imgsz=SIZE)))
        assert names == [] and plain.shape[1] == 7, "without the flag, also after it, the file is as ever"
        np.testing.assert_array_equal(plain[0], found[0, :7])


@pytest.mark.slow
def test_a_file_of_any_size_has_the_strides_of_that_size(opened: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = opened("yolo11n")
    file = net.export(format="onnx", imgsz=SIZE, placement=True, dynamic=True)
    larger = torch.rand(2, 3, 64, 160, generator=torch.Generator().manual_seed(1))
    (found,) = onnxruntime.InferenceSession(file).run(None, {"images": larger.numpy()})
    with torch.no_grad():
        dense, raw = net.model.eval()(larger)
    placement = Placement(net.model, (dense, raw))
    for i in range(2):
        known = placement.columns(i, torch.arange(dense.shape[-1])).numpy().T
        np.testing.assert_allclose(found[i, 7:], known, atol=PIXELS)


@pytest.mark.slow
def test_our_predictions_and_validations_read_the_file_as_they_read_its_checkpoint(
    opened: Any, tiny_data: Path
) -> None:
    pytest.importorskip("onnxruntime")
    net = opened("yolo11n")
    exported = MLCYOLO(net.export(format="onnx", imgsz=SIZE, placement=True), task="detect")
    settings: dict[str, Any] = {"imgsz": SIZE, "conf": 0.1, "verbose": False, "rect": False}
    for asked in ({}, {"min_iou": 0.6, "sort": "iou"}, {"vote": True, "vote_iou": 0.3}):
        boxes, same = (model.predict(photograph(), **settings, **asked)[0].boxes for model in (exported, net))
        assert len(boxes) == len(same) > 5
        torch.testing.assert_close(boxes.data, same.data, rtol=0, atol=PIXELS)
        torch.testing.assert_close(boxes.iou, same.iou, rtol=0, atol=SCORE)
        torch.testing.assert_close(boxes.sigma, same.sigma, rtol=0, atol=PIXELS)
    chosen: dict[str, Any] = {**settings, "data": tiny_data, "batch": 1, "plots": False, "workers": 0}
    ours, theirs = exported.val(**chosen), net.val(**chosen)
    assert ours.box.map == pytest.approx(theirs.box.map, abs=1e-3)
    assert ours.spearman == pytest.approx(theirs.spearman, abs=1e-3)
    assert ours.coverage.count == theirs.coverage.count


@pytest.mark.slow
def test_the_example_says_how_well_boxes_sit_with_onnxruntime_alone(opened: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = opened("yolo11n").export(format="onnx", imgsz=SIZE, placement=True)
    cv2.imwrite(str(tmp_path / "photo.png"), photograph())
    command = [sys.executable, str(EXAMPLE), file, str(tmp_path / "photo.png")]
    said, *lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == f"detections with a score of 0.25 or more: {len(lines)}"
    assert len(lines) > 3
    assert all(line.split()[0] in {"square", "disc", "cross"} and ": iou 0." in line for line in lines)
    assert all(f", {name} " in line for name in SIGMAS for line in lines)
    shown = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith(("import", '"'))]
    assert len(shown) < 17, "an example is read at a glance"


@pytest.mark.slow
def test_what_cannot_say_how_boxes_sit_is_refused_before_any_file_is_made(opened: Any, tmp_path: Path) -> None:
    net = opened("yolo11n")
    before = sorted(tmp_path.iterdir())
    for asked, reason in (
        ({"format": "openvino"}, "for format=onnx and format=torchscript, not for format=openvino"),
        ({"format": "stock"}, "not for format=stock"),
        ({"format": "onnx", "nms": True}, "nms=True exports final detections: leave nms out"),
        ({"format": "onnx", "nms": False}, "nms=False exports final detections"),
        ({"format": "onnx", "quantize": 8}, "not tried with quantize=8"),
    ):
        with pytest.raises(ValueError, match=reason):
            net.export(**asked, imgsz=SIZE, placement=True)
    with pytest.raises(TypeError, match="must be True or False"):
        net.export(format="onnx", placement="yes")
    for plain in (MLCYOLO(SMALL_NETS["yolo26n"]), MLCYOLO("fcos-r18-fpn.yaml")):
        plain.model.model[-1].quality = "centerness"
        with pytest.raises(ValueError, match="neither: there is no placement to export"):
            plain.export(format="onnx", imgsz=SIZE, placement=True)
    with pytest.raises(ValueError, match="this is a segment model"):
        MLCYOLO("yolo11n-seg.yaml").export(format="onnx", imgsz=SIZE, placement=True)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_an_end_to_end_output_is_refused_however_it_was_chosen(opened: Any, tmp_path: Path) -> None:
    from mlc_yolo.evaluation.placed_export import noting

    net = opened("yolo26n")

    class Exporter:
        model, output_shape, metadata = net.model, (1, 300, 7), dict[str, str]()

    with pytest.raises(ValueError, match="final detections"):
        noting(net.model)(Exporter)
    assert Exporter.metadata == {}
    net.model.end2end = True
    net.model.fuse(verbose=False)
    with pytest.raises(ValueError, match="fused to its NMS-free branch"):
        net.export(format="onnx", imgsz=SIZE, placement=True)
