"""COCO's numbers for 5,000 images of 100 detections: ours beside pycocotools on the same rows. `make bench`."""

from __future__ import annotations

import contextlib
import io
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mlc_yolo.metrics.coco import NAMES, coco_evaluate

from .measuring import milliseconds

IMAGES, CLASSES, OBJECTS, DETECTIONS = 5000, 80, 7, 100


def _made() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Detections scattered about objects, six in ten of the right class."""
    rng = np.random.default_rng(0)
    detections, objects = [], []
    for _ in range(IMAGES):
        corner, side = rng.random((OBJECTS, 2)) * 400, 8 + rng.random((OBJECTS, 2)) * 200
        boxes, labels = np.hstack((corner, corner + side)), rng.integers(CLASSES, size=(OBJECTS, 1))
        objects.append(np.hstack((boxes, labels)))
        which = rng.integers(OBJECTS, size=DETECTIONS)
        right = rng.random((DETECTIONS, 1)) < 0.6
        guess = np.where(right, labels[which], rng.integers(CLASSES, size=(DETECTIONS, 1)))
        near = boxes[which] + rng.normal(0, 15, (DETECTIONS, 4))
        detections.append(np.hstack((near, rng.random((DETECTIONS, 1)), guess)))
    return detections, objects


def _by_pycocotools(detections: list[np.ndarray], objects: list[np.ndarray]) -> dict[str, float]:
    """What pycocotools makes of the same rows, rounded as Ultralytics rounds them."""
    truth, found = (
        [
            {"image_id": i, "category_id": int(row[-1]), "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]]}
            | ({"score": round(row[4], 5)} if len(row) == 6 else {})
            for i, rows in enumerate(images)
            for row in rows.tolist()
        ]
        for images in (objects, detections)
    )
    for row in found:
        row["bbox"] = [round(value, 3) for value in row["bbox"]]
    for number, row in enumerate(truth, start=1):
        row.update(id=number, iscrowd=0, area=row["bbox"][2] * row["bbox"][3])
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(IMAGES)],
            "categories": [{"id": k} for k in range(CLASSES)],
            "annotations": truth,
        }
        api.createIndex()
        judge = COCOeval(api, api.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(NAMES, judge.stats.tolist(), strict=True))


def test_coco_numbers_of_five_thousand_images(capsys: pytest.CaptureFixture[str]) -> None:
    made, results = _made(), {}

    def run(name: str, judge: Any) -> float:
        return milliseconds(lambda: results.update({name: judge()})) / 1000

    slow = run("pycocotools", lambda: _by_pycocotools(*made))
    ours = run("ours", lambda: coco_evaluate(*made, CLASSES))
    by = "faster-coco-eval" if find_spec("faster_coco_eval") else "pycocotools: faster-coco-eval is not installed"
    with capsys.disabled():
        print(f"\nCOCO evaluation, {IMAGES} images x {DETECTIONS} detections; once each")
        print(f"  pycocotools {slow:9.1f} s\n  ours {ours:16.1f} s   ratio {ours / slow:.2f}, by {by}")
    assert results["ours"] == pytest.approx(results["pycocotools"], rel=0, abs=1e-12)
