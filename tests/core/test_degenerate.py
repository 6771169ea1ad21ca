"""Ten thousand images of degenerate geometry for every assigner: no nan, and no positive that is no candidate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mlc_yolo.assigners import Predictions, Role, Targets
from mlc_yolo.boxes import box_area
from mlc_yolo.priors import Priors, grid_priors

from .references import VARIANTS, in_box, in_widened_box, touches_decoded, touches_prior
from .scenes import NUM_CLASSES

SIZE = 32
IMAGES, BATCH, SLOTS = 10_000, 500, 4
PRIORS = grid_priors([(SIZE // s, SIZE // s) for s in (8, 16, 32)], (8, 16, 32), scale=2.5)


def batches() -> Iterator[tuple[Predictions, Targets]]:
    """Objects and predicted boxes of every wrong kind, and scores at both ends of float32's sigmoid."""
    rng = np.random.default_rng(0)
    for _ in range(IMAGES // BATCH):
        boxes = np.stack([_boxes(rng, SLOTS) for _ in range(BATCH)])
        same = rng.random(BATCH) < 0.2  # all objects of an image are one box
        boxes[same] = boxes[same, :1]
        anchors = len(PRIORS)
        predicted = np.stack([_boxes(rng, anchors) for _ in range(BATCH)])
        exact = rng.random((BATCH, anchors)) < 0.2  # predicted exactly, so that qualities tie
        chosen = rng.integers(SLOTS, size=(BATCH, anchors))
        predicted = np.where(exact[..., None], np.take_along_axis(boxes, chosen[..., None], 1), predicted)
        logits = rng.choice([-1e30, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0, 1e30], (BATCH, anchors, NUM_CLASSES))
        scores = torch.from_numpy(logits.astype(np.float32)).sigmoid()
        yield (
            Predictions(scores, torch.from_numpy(predicted.astype(np.float32))),
            Targets(
                torch.from_numpy(rng.integers(0, NUM_CLASSES, (BATCH, SLOTS))),
                torch.from_numpy(boxes.astype(np.float32)),
                torch.from_numpy(rng.random((BATCH, SLOTS)) < 0.8),
            ),
        )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Points, lines, specks, boxes larger than float32 can square, outside the image, reversed, on cell borders."""
    kinds = rng.integers(8, size=count)
    centre = rng.uniform(0, SIZE, (count, 2))
    sides = rng.uniform(2, SIZE, (count, 2))
    sides[kinds == 1] = 0
    sides[kinds == 2, rng.integers(2)] = 0
    sides[kinds == 3] = 10.0 ** rng.uniform(-30, -3, ((kinds == 3).sum(), 2))
    sides[kinds == 4] = 10.0 ** rng.uniform(3, 30, ((kinds == 4).sum(), 2))
    centre[kinds == 5] += rng.choice([-1e6, -100, 100, 1e6], ((kinds == 5).sum(), 2))
    sides[kinds == 6] *= -1
    centre[kinds == 7], sides[kinds == 7] = np.round(centre[kinds == 7] / 8) * 8, 16
    return np.concatenate((centre - sides / 2, centre + sides / 2), 1)


SCENES = list(batches())


def overlap(objects: Tensor, others: Tensor) -> Tensor:
    """Whether two boxes share an area, row by row, in float64 and by comparison alone."""
    objects, others = objects.double(), others.double()
    shared = torch.minimum(objects[:, 2:], others[:, 2:]) > torch.maximum(objects[:, :2], others[:, :2])
    return shared.all(1) & (others[:, 2:] > others[:, :2]).all(1)


def candidates(rule: object, objects: Tensor, priors: Priors, decoded: Tensor, classification: bool) -> Tensor:
    """Which (object, anchor) rows may be positive, by the rule of `references.py`."""
    if rule is touches_prior or (rule is touches_decoded and not classification):
        return overlap(objects, priors.boxes)
    if rule is touches_decoded:
        return overlap(objects, decoded)
    assert rule in (in_box, in_widened_box)
    least = 16.0 if rule is in_widened_box else 0.0
    centre = (objects[:, :2] + objects[:, 2:]) / 2
    half = (objects[:, 2:] - objects[:, :2]).clamp(min=least) / 2
    slack = 1e-6 * objects.abs().amax(1, keepdim=True) * (half != 0)  # centre and half are rounded
    return ((priors.points - centre).abs() < half + slack).all(1)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_degenerate_geometry_yields_no_nan_and_no_positive_outside_its_candidates(name: str) -> None:
    variant = VARIANTS[name]
    positives = images = 0
    for predictions, targets in SCENES:
        assignment = variant.assigner(predictions, PRIORS, targets)
        images += len(targets.labels)
        for task, classification in ((assignment.classification, True), (assignment.localization, False)):
            assert task.weight.isfinite().all() and (task.weight >= 0).all()
            assert ((task.quality >= 0) & (task.quality <= 1)).all()  # false for nan
            assert ((task.gt_index >= 0) == task.positive).all()
            assert (task.weight[task.role == Role.IGNORED] == 0).all()
            image, anchor = task.positive.nonzero(as_tuple=True)
            slot = task.gt_index[image, anchor]
            objects = targets.boxes[image, slot]
            assert targets.valid[image, slot].all() and (box_area(objects) > 0).all()
            decoded = predictions.boxes[image, anchor]
            assert candidates(variant.candidate, objects, PRIORS[anchor], decoded, classification).all()
            positives += len(image)
    assert images == IMAGES and positives > 1000
