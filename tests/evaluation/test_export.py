"""IoU-aware models through the ordinary exporter: the factor is inside the exported graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo.checkpoints.stock_export import export_stock
from mlc_yolo.heads.iou_aware import set_rescore

# Early 8.4 releases index by two tensors when they pick the best anchors.
pytestmark = pytest.mark.filterwarnings("ignore:Exporting aten..index operator:UserWarning")

SIZE = 96
# Measured at most: 5e-6 in scores and 8e-4 px in boxes. The bounds leave room for other runtimes and processors.
SCORE, PIXELS = 1e-4, 1e-2


@pytest.fixture(params=[("yolov8n", False), ("yolo11n", False), ("yolo26n", False), ("yolo26n", True)], ids=str)
def case(request: pytest.FixtureRequest, iou_aware: Callable[..., DetectionModel], tmp_path: Path) -> tuple[Path, bool]:
    """A checkpoint with non-trivial class and IoU scores, and whether it is used end-to-end (no NMS)."""
    name, end2end = request.param
    model = iou_aware(name, _image())
    model.args = {"task": "detect", "imgsz": SIZE}
    path = tmp_path / f"{name}.pt"
    torch.save({"model": model, "train_args": {}}, path)
    return path, end2end


def _image() -> torch.Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def _reference(path: Path, end2end: bool, rescore: bool = True, rounded: bool = False) -> np.ndarray:
    """Predictions of the PyTorch model; end-to-end (1, N, 6) by falling score, else (1, 4 + K, A).

    With `rounded`, its weights are taken through half precision first, as in a saved file.
    """
    model = YOLO(path).model.eval()
    if rounded:
        model.half().float()
    model.end2end = end2end
    set_rescore(model, rescore)
    with torch.no_grad():
        predictions: np.ndarray = model(_image())[0].numpy()
    return predictions


def _export(path: Path, end2end: bool, format: str) -> Path:
    model = YOLO(path)
    model.model.end2end = end2end
    return Path(model.export(format=format, imgsz=SIZE, verbose=False, **_branch(end2end)))


def _branch(end2end: bool) -> dict[str, bool]:
    """The option that chooses the NMS-free branch; early 8.4 releases have one named after it."""
    if "end2end" in DEFAULT_CFG_DICT:
        return {"end2end": end2end}
    return {"nms": False} if end2end else {}


def _assert_equal(exported: np.ndarray, path: Path, end2end: bool) -> None:
    expected, without = _reference(path, end2end), _reference(path, end2end, rescore=False)
    assert exported.shape == expected.shape
    scores, boxes = ((..., 4), (..., slice(4))) if end2end else ((0, slice(4, None)), (0, slice(4)))
    assert np.abs(exported[scores] - expected[scores]).max() < SCORE
    assert np.abs(exported[boxes] - expected[boxes]).max() < PIXELS
    assert np.abs(exported[scores] - without[scores]).max() > 100 * SCORE, "the test would pass without the factor"


@pytest.mark.slow
def test_onnx_equals_pytorch_to_1e_4_in_onnxruntime_and_plain_ultralytics(case: tuple[Path, bool]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path, end2end = case
    exported = _export(path, end2end, "onnx")
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    _assert_equal(session.run(None, {session.get_inputs()[0].name: _image().numpy()})[0], path, end2end)
    _assert_same_detections(exported, path, end2end)


@pytest.mark.slow
def test_torchscript_equals_pytorch_to_1e_4_alone_and_in_plain_ultralytics(case: tuple[Path, bool]) -> None:
    path, end2end = case
    exported = _export(path, end2end, "torchscript")
    with torch.no_grad():
        outputs = torch.jit.load(str(exported))(_image())
    _assert_equal((outputs[0] if isinstance(outputs, tuple) else outputs).numpy(), path, end2end)
    _assert_same_detections(exported, path, end2end)


@pytest.mark.slow
def test_the_stock_rewrite_exports_to_the_same_onnx_predictions(case: tuple[Path, bool]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path, end2end = case
    stock = export_stock(path, path.with_name("stock.pt"))
    exported = _export(stock, end2end, "onnx")
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: _image().numpy()})[0]
    expected = _reference(path, end2end, rounded=True)
    scores = (..., 4) if end2end else (0, slice(4, None))
    assert found.shape == expected.shape
    assert np.abs(found[scores] - expected[scores]).max() < SCORE


def _assert_same_detections(exported: Path, path: Path, end2end: bool) -> None:
    """Compare what a user gets from `predict`, NMS included, with what the PyTorch checkpoint gives."""
    options = {"imgsz": SIZE, "conf": 0.05, "verbose": False, "save": False}
    original = YOLO(path)
    original.model.end2end = end2end
    expected = original.predict(_image(), **options, **_branch(end2end))[0].boxes
    found = YOLO(exported, task="detect").predict(_image(), **options)[0].boxes
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.conf.numpy(), expected.conf.numpy(), atol=SCORE)
