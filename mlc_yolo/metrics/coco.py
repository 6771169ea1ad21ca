"""COCO's AP and AR by pycocotools, or by faster-coco-eval where it is installed, from plain arrays, for any data set.

Source: the COCO detection challenge's definition as `pycocotools.cocoeval` computes it: IoU 0.50:0.05:0.95, at most 100
detections per image, size classes by the object's area in pixels of the original image (small < 32^2 <= medium <=
96^2 < large). YOLO labels know neither crowds nor masks: no object is a crowd and an object's area is its box's.

faster-coco-eval (the extra `mlc_yolo[coco]`) is pycocotools' evaluation in C++ behind the same classes; sums in another
order may change a number's last digit.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.boxes import xywh

#: Names of the numbers, in pycocotools' order.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_evaluate(
    detections: Sequence[NDArray[np.floating]], objects: Sequence[NDArray[np.floating]], num_classes: int
) -> dict[str, float]:
    """Judge detections.

    Args:
        detections: per image (n, 6) rows x1, y1, x2, y2, score, label, in pixels of the original image.
        objects: per image (m, 5) rows x1, y1, x2, y2, label, in the same pixels.
        num_classes: K; labels are 0..K-1.

    Returns:
        `NAMES` -> value in [0, 1], or -1 as pycocotools says it where there is nothing to judge (no object of that
        size).

    Raises:
        ValueError: as many images with detections as with objects were expected.

    Example:
        >>> measured = coco_evaluate([np.array([[0., 0, 9, 88, 0.8, 0]])], [np.array([[0., 0, 9, 100, 0]])], 1)
        >>> round(measured["AP"], 6), measured["APl"]  # IoU 0.88: right at 0.50, 0.55 ... 0.85, wrong at 0.90 and 0.95
        (0.8, -1.0)
    """
    if len(detections) != len(objects):
        raise ValueError(
            f"Expected one array per image in both, got {len(detections)} of detections and {len(objects)} of objects."
        )
    truth = [_annotation(i, box, label) for i, rows in enumerate(objects) for *box, label in _by_size(rows)]
    # Rounded as Ultralytics rounds predictions.json, so that a file written by save_json=True gives the same numbers.
    detected = [
        _annotation(i, [round(v, 3) for v in box], label, score=round(score, 5))
        for i, rows in enumerate(detections)
        for *box, score, label in _by_size(rows)
    ]
    data_set, judging = _implementation()
    indexed = (_index(data_set(), rows, len(objects), num_classes) for rows in (truth, detected))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        judge = judging(*indexed, iouType="bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(NAMES, judge.stats.tolist(), strict=True))


def _implementation() -> tuple[Any, Any]:
    """Return the classes that hold a data set and that judge, `COCO` and `COCOeval`."""
    try:
        return import_module("faster_coco_eval").COCO, import_module("faster_coco_eval").COCOeval_faster
    except ModuleNotFoundError:
        return import_module("pycocotools.coco").COCO, import_module("pycocotools.cocoeval").COCOeval


def _by_size(rows: NDArray[np.floating]) -> list[list[float]]:
    """Return rows whose boxes are x, y, width, height."""
    resized: list[list[float]] = np.concatenate((xywh(rows), rows[:, 4:].astype(np.float64)), 1).tolist()
    return resized


def _annotation(image: int, bbox: list[float], label: float, **extra: float) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": 0,
        **extra,
    }


def _index(coco: Any, annotations: list[dict[str, Any]], num_images: int, num_classes: int) -> Any:
    """Put `annotations` into an empty COCO object; numbers them from 1, as id 0 means "no match" inside pycocotools."""
    coco.dataset = {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": k} for k in range(num_classes)],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco
