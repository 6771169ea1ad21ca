"""A diagnosis beside a plain validation of the same images, and what it remembers of many. `make bench`."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlc_yolo import MLCYOLO
from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.evaluation.diagnose import diagnose
from mlc_yolo.evaluation.diagnosis import Diagnosis, Observations
from mlc_yolo.evaluation.diagnosis_files import as_text
from mlc_yolo.metrics.records import Records

from .measuring import DEVICE, MIB, show, timed


@pytest.mark.parametrize("imgsz", [320, 640])
def test_diagnosis_against_validation(imgsz: int, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = MLCYOLO("yolo11n.yaml")
    for branch in model.model.model[-1].cv3:  # a fresh net says nothing; some thousand boxes should reach NMS
        torch.nn.init.constant_(branch[-1].bias, -3.5)
    data = resolve_data("demo.yaml")
    names = dict(enumerate(("dot", "ring", "cross", "bars", "triangle")))
    model.model.names = {**model.model.names, **names}
    arguments: dict[str, Any] = {"data": data, "imgsz": imgsz, "batch": 16, "workers": 0, "device": str(DEVICE)}
    arguments |= {"verbose": False, "project": str(run_dir), "exist_ok": True}
    runs = {
        "validation": lambda: model.val(plots=False, **arguments),
        "diagnosis": lambda: diagnose(model, remedies=False, **arguments),
    }
    timing = timed(runs, rounds=3)
    show(capsys, f"diagnosis with a fresh yolo11n, 60 images, {imgsz} px", timing)
    assert timing.ratios["diagnosis"] < 1.3


def test_what_5000_images_with_300_detections_take(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    images, objects, detections = 5000, 7, 300
    corner, side = rng.uniform(0, 500, (images * objects, 2)), rng.uniform(8, 120, (images * objects, 2))
    gt_boxes = np.hstack((corner, corner + side)).astype(np.float32)
    gt_image = np.repeat(np.arange(images), objects)
    image = np.repeat(np.arange(images), detections)
    near = image * objects + rng.integers(objects, size=len(image))
    boxes = gt_boxes[near] + rng.normal(0, 15, (len(image), 4)).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    gt_labels = rng.integers(80, size=len(gt_boxes))
    labels = np.where(rng.random(len(image)) < 0.7, gt_labels[near], rng.integers(80, size=len(image)))
    records = Records(
        images=[f"{i:05}.jpg" for i in range(images)],
        sizes=np.full((images, 2), 640),
        gt_image=gt_image,
        gt_boxes=gt_boxes,
        gt_labels=gt_labels,
        image=image,
        boxes=boxes,
        scores=rng.beta(1, 8, len(image)).astype(np.float32),
        labels=labels,
        names={i: str(i) for i in range(80)},
    )
    best = np.concatenate((gt_boxes, np.full((len(gt_boxes), 2), 0.9)), 1).astype(np.float32)
    tracemalloc.start()
    as_text(Diagnosis(Observations(records, best, np.sqrt(np.prod(side, axis=1)))))
    peak = tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()
    with capsys.disabled():
        print(f"\ndiagnosis of {images} images with {detections} detections each: {peak:.0f} MiB at most")
    assert peak < 8192
