"""Records of a detector that does not exist, the same every time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlc_yolo.metrics.records import Records


def made_records(
    images: int = 40, num_classes: int = 3, seed: int = 0, *, noise: float = 0.12, noise_seed: int = 0, empty: int = 3
) -> Records:
    """Draw objects of all sizes, detections near them and some elsewhere.

    Coordinates are eighths of a pixel and scores 1024ths, so that they are not changed by being rounded as
    predictions.json has them, and some are equal.

    Args:
        images: how many; every `empty`-th has no object.
        num_classes: K.
        seed: of the objects.
        noise: standard deviation of a detection's corners, as a fraction of the object's side.
        noise_seed: of the detections.
        empty: see `images`.
    """
    rng = np.random.default_rng(seed)
    counts = np.where(np.arange(images) % empty == empty - 1, 0, rng.integers(1, 8, images))
    gt_image = np.repeat(np.arange(images), counts)
    gt_boxes = _boxes(rng, len(gt_image))
    gt_labels = rng.integers(num_classes, size=len(gt_image))

    rng = np.random.default_rng((seed, noise_seed))
    source = np.repeat(np.arange(len(gt_image)), rng.integers(0, 4, len(gt_image)))
    sides = gt_boxes[source, 2:] - gt_boxes[source, :2]
    near = gt_boxes[source] + rng.normal(0, noise, (len(source), 4)) * np.tile(sides, 2)
    far = _boxes(rng, 5 * images)
    near_labels = np.where(
        rng.random(len(source)) < 0.9, gt_labels[source], rng.integers(num_classes, size=len(source))
    )
    boxes = np.concatenate((near, far))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    image = np.concatenate((gt_image[source], np.repeat(np.arange(images), 5)))
    scores = np.concatenate((rng.beta(3, 2, len(near)), rng.beta(1, 6, len(far))))
    shuffled = rng.permutation(len(image))
    return Records(
        images=[f"{i:04}.jpg" for i in range(images)],
        sizes=np.full((images, 2), 400, dtype=np.int64),
        gt_image=gt_image.astype(np.int64),
        gt_boxes=gt_boxes.astype(np.float32),
        gt_labels=gt_labels.astype(np.int64),
        image=image[shuffled].astype(np.int64),
        boxes=(np.round(boxes * 8) / 8).astype(np.float32)[shuffled],
        scores=(np.round(scores * 1024) / 1024).astype(np.float32)[shuffled],
        labels=np.concatenate((near_labels, rng.integers(num_classes, size=len(far))))[shuffled].astype(np.int64),
        names={label: f"class {label}" for label in range(num_classes)},
    )


def records_of(objects: Sequence[Sequence[float]], detections: Sequence[Sequence[float]], classes: int = 2) -> Records:
    """Return the records of one image of 100 x 100 px.

    Args:
        objects: x1, y1, x2, y2, label of each.
        detections: x1, y1, x2, y2, score, label of each.
        classes: K.
    """
    gt, rows = np.array(objects, np.float32).reshape(-1, 5), np.array(detections, np.float32).reshape(-1, 6)
    return Records(
        images=["0.jpg"],
        sizes=np.array([[100, 100]]),
        gt_image=np.zeros(len(gt), dtype=np.int64),
        gt_boxes=gt[:, :4],
        gt_labels=gt[:, 4].astype(np.int64),
        image=np.zeros(len(rows), dtype=np.int64),
        boxes=rows[:, :4],
        scores=rows[:, 4],
        labels=rows[:, 5].astype(np.int64),
        names={i: str(i) for i in range(classes)},
    )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(np.log(8), np.log(200), (count, 2)))
    corners = rng.uniform(0, 200, (count, 2))
    return np.round(np.concatenate((corners, corners + sides), 1) * 8) / 8
