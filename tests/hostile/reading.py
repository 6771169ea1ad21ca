"""Reads a folder of images and labels as a training and a validation would, and says what became of each file."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER

from mlc_yolo.assigners import MutualLabeling, Predictions, Targets, TaskAligned
from mlc_yolo.data.datasets import build
from mlc_yolo.priors import grid_priors

SIZE = 64
NAMES = {0: "a", 1: "b", 2: "c"}
#: How long one input may take; a search that goes in circles takes for ever.
PATIENCE = 30

_rng = np.random.default_rng(0)
PICTURE = cv2.GaussianBlur(_rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), (5, 5), 0)


def encoded(suffix: str, image: np.ndarray = PICTURE) -> bytes:
    return bytes(cv2.imencode(suffix, image)[1])


@dataclass(frozen=True)
class Found:
    """What a data set made of a folder.

    Attributes:
        samples: image name -> its sample.
        errors: image name -> why it could not be loaded.
        objects: image name -> (n, 5) class, cx, cy, w, h as read.
        said: everything in the log.
    """

    samples: dict[str, dict[str, Any]]
    errors: dict[str, str]
    objects: dict[str, np.ndarray]
    said: str


@contextmanager
def patience() -> Iterator[None]:
    """Fail instead of hanging; where the system has no such alarm, the test's own limit has to do."""

    def give_up(*_: Any) -> None:
        raise AssertionError(f"no end after {PATIENCE} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect what Ultralytics and we write to the log."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    try:
        yield said
    finally:
        LOGGER.removeHandler(handler)


def read(images: Path, mode: str) -> Found:
    """Build the data set, load every image and let two assigners work on what was loaded.

    Args:
        images: a folder named images, with one named labels beside it.
        mode: "train" or "val".

    Raises:
        RuntimeError: no image is usable.
        ValueError: as for `RuntimeError`, in a training.
    """
    data = {"names": NAMES, "nc": len(NAMES), "channels": 3}
    args = get_cfg(overrides={"imgsz": SIZE, "mosaic": 0.0, "translate": 0.0, "scale": 0.0, "workers": 0})
    with patience(), listening() as said:
        dataset = build(str(images), args, warp=False, data=data, batch=1, mode=mode)
        samples: dict[str, dict[str, Any]] = {}
        errors: dict[str, str] = {}
        for i, file in enumerate(dataset.im_files):
            try:
                samples[Path(file).name] = dataset[i]
            except ValueError as error:
                errors[Path(file).name] = str(error)
        objects = {
            Path(label["im_file"]).name: np.concatenate((label["cls"], label["bboxes"]), 1) for label in dataset.labels
        }
        if samples:
            assign(dataset.collate_fn(list(samples.values())))
    return Found(samples, errors, objects, "\n".join(said))


def assign(batch: dict[str, Any]) -> None:
    """Assign a batch by two assigners: whatever was read, nothing is nan and no box without area is trained."""
    images = len(batch["img"])
    priors = grid_priors([(SIZE // s, SIZE // s) for s in (8, 16, 32)], (8, 16, 32))
    rows = [torch.cat((batch["cls"], batch["bboxes"]), 1)[batch["batch_idx"] == i] for i in range(images)]
    most = max(map(len, rows), default=0)
    table = torch.zeros(images, most, 5)
    valid = torch.zeros(images, most, dtype=torch.bool)
    for i, found in enumerate(rows):
        table[i, : len(found)], valid[i, : len(found)] = found, True
    centre, half = table[..., 1:3] * SIZE, table[..., 3:] * SIZE / 2
    boxes = torch.cat((centre - half, centre + half), -1)
    scores = torch.full((images, len(priors), len(NAMES)), 0.3)
    predictions = Predictions(scores, priors.boxes.expand(images, -1, 4))
    for assigner in (TaskAligned(), MutualLabeling()):
        assignment = assigner(predictions, priors, Targets(table[..., 0], boxes, valid))
        for task in (assignment.classification, assignment.localization):
            assert task.weight.isfinite().all() and task.quality.isfinite().all()
            image, anchor = task.positive.nonzero(as_tuple=True)
            trained = boxes[image, task.gt_index[image, anchor]]
            assert (trained[:, 2:] > trained[:, :2]).all()
