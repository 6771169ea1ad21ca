"""Exported detectors give PyTorch's boxes and scores, alone and through `MLCYOLO(exported)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectors.lively import lively_detector

from mlc_yolo import MLCYOLO

SIZE = 96
# Measured at most: 4e-6 in scores and 2e-3 px in boxes.
SCORE, PIXELS = 1e-4, 1e-2


def _image() -> torch.Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def _checkpoint(folder: Path, kind: str, quality: str) -> Path:
    model = lively_detector(kind, quality=quality, width=64, **({} if kind == "rpn" else {"nc": 3}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cls_logits" in name:
                parameter *= 0.2  # no score saturates: NMS could take either of two ones
    model.args = {"task": "detect", "imgsz": SIZE}
    path = folder / "model.pt"
    torch.save({"model": model, "train_args": {}}, path)
    return path


def _by_score(rows: np.ndarray) -> np.ndarray:
    """(4 + K, N) -> (N, 4 + K), best first: anchors of one score may leave in any order."""
    order = np.lexsort((*rows[:4].round(1), -rows[4:].max(0).round(5)))
    return rows[:, order].T


def _run(exported: Path) -> np.ndarray:
    if exported.suffix == ".torchscript":
        with torch.no_grad():
            found = torch.jit.load(str(exported))(_image())
        return (found[0] if isinstance(found, tuple) else found).numpy()[0]
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: _image().numpy()})[0]
    return np.asarray(found)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "quality", "format"),
    [
        ("retinanet", "iou", "onnx"),
        ("retinanet", "none", "torchscript"),
        ("fcos", "iou", "torchscript"),
        ("fcos", "centerness", "onnx"),
        ("fcos", "none", "onnx"),
        ("rpn", "iou", "onnx"),
        ("rpn", "none", "torchscript"),
    ],
)
def test_an_exported_detector_equals_pytorch(kind: str, quality: str, format: str, tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, kind, quality)
    exported = Path(MLCYOLO(path).export(format=format, imgsz=SIZE, verbose=False))
    net = MLCYOLO(path).model.eval()
    net.model[-1].export = True
    with torch.no_grad():
        expected = net(_image())[0].numpy()
    found = _run(exported)
    assert found.shape == expected.shape
    ours, theirs = _by_score(expected), _by_score(found)
    assert ours[:, 4:].max() > 0.1 and ours[:, 4:].std() > 0.01, "scores vary"
    np.testing.assert_allclose(theirs[:, 4:].max(1), ours[:, 4:].max(1), atol=SCORE)
    clear = np.abs(np.diff(ours[:, 4:].max(1), prepend=2)) > 2 * SCORE  # no anchor of a like score to be taken for
    clear[:-1] &= clear[1:]
    assert clear.sum() > 10
    np.testing.assert_allclose(theirs[clear], ours[clear], atol=PIXELS)

    chosen = {"imgsz": SIZE, "conf": 0.1, "max_det": 1000, "iou": 0.6, "verbose": False}
    wanted = MLCYOLO(path).predict(_image(), **chosen)[0].boxes
    got = MLCYOLO(exported, task="detect").predict(_image(), **chosen)[0].boxes
    if kind == "rpn":  # exports hand no level on: all proposals compete
        assert 0 < len(got) <= len(wanted)
        assert float(got.conf[0]) == pytest.approx(float(wanted.conf[0]), abs=SCORE)
        return
    assert len(got) == len(wanted) > 0
    np.testing.assert_allclose(got.conf.numpy(), wanted.conf.numpy(), atol=SCORE)
    np.testing.assert_allclose(got.xyxy.numpy(), wanted.xyxy.numpy(), atol=PIXELS)
    assert got.cls.tolist() == wanted.cls.tolist()


@pytest.mark.slow
def test_an_export_with_nms_inside_gives_the_same_detections(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = _checkpoint(tmp_path, "fcos", "iou")
    exported = MLCYOLO(path).export(format="onnx", imgsz=SIZE, nms=True, conf=0.1, iou=0.6, verbose=False)
    chosen = {"imgsz": SIZE, "conf": 0.1, "iou": 0.6, "verbose": False}
    wanted = MLCYOLO(path).predict(_image(), **chosen)[0].boxes
    got = MLCYOLO(exported, task="detect").predict(_image(), **chosen)[0].boxes
    assert len(got) == len(wanted) > 0
    np.testing.assert_allclose(got.conf.numpy(), wanted.conf.numpy(), atol=SCORE)
