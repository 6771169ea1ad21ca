"""Inference of yolo11n with the IoU channel beside the stock head: torch, fused, and exported to ONNX. `make bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.heads.iou_aware import add_iou_channel

from .measuring import DEVICE, ON_GPU, Run, memory, show, timed

ROUNDS = 25
KINDS = ["stock", "IoU channel"]


def _model(kind: str) -> Any:
    torch.manual_seed(0)
    model = DetectionModel("yolo11n.yaml", nc=80, verbose=False)
    if kind != "stock":
        add_iou_channel(model.model[-1])
    return model.to(DEVICE).eval()


@pytest.mark.parametrize("size", [320, 640])
def test_inference_against_the_stock_head(size: int, capsys: pytest.CaptureFixture[str]) -> None:
    image = torch.rand(1, 3, size, size, device=DEVICE)

    def run(kind: str) -> Run:
        model = _model(kind).fuse(verbose=False)
        return torch.no_grad()(lambda: model(image))

    runs = {kind: run(kind) for kind in KINDS}
    timing = timed(runs, rounds=ROUNDS)
    memories = {kind: memory(r) for kind, r in runs.items()}
    show(capsys, f"yolo11n inference, fused, {size} px, batch 1", timing, memories)
    assert timing.ratios[KINDS[1]] < 1.5


@pytest.mark.skipif(ON_GPU, reason="times the CPU's runtime")
@pytest.mark.parametrize("size", [320, 640])
def test_onnx_latency_against_the_stock_head(size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    image = torch.rand(1, 3, size, size).numpy()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1

    def run(kind: str) -> Run:
        path = tmp_path / f"{kind.split()[0]}.pt"
        model = _model(kind)
        model.args = {"task": "detect", "imgsz": size}
        torch.save({"model": model, "train_args": {}}, path)
        exported = YOLO(path).export(format="onnx", imgsz=size, verbose=False)
        session = onnxruntime.InferenceSession(exported, settings, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"images": image})

    timing = timed({kind: run(kind) for kind in KINDS}, rounds=ROUNDS)
    show(capsys, f"yolo11n in onnxruntime, {size} px, batch 1", timing)
    assert timing.ratios[KINDS[1]] < 1.5
