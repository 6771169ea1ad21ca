"""Random batches for the assigners: small grids, objects of every size, predictions that mean something.

All coordinates are multiples of 1/256 px, so that mirroring and shifting a scene is exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mlc_yolo.assigners import Predictions, Targets
from mlc_yolo.priors import Priors, grid_priors

STRIDES = (8, 16, 32)
NUM_CLASSES = 3
KINDS = ("mixed", "crowded", "tiny", "huge", "empty")
GRAIN = 256


@dataclass(frozen=True)
class Scene:
    """What an assigner is called with.

    Attributes:
        predictions: scores and boxes of the batch.
        priors: three levels of square priors.
        targets: objects of the batch; padding lies between them, filled with garbage.
        size: (H, W) px.
    """

    predictions: Predictions
    priors: Priors
    targets: Targets
    size: tuple[int, int]

    @property
    def inputs(self) -> tuple[Predictions, Priors, Targets]:
        return self.predictions, self.priors, self.targets


def quantise(values: np.ndarray) -> np.ndarray:
    return np.round(values * GRAIN) / GRAIN


@cache
def scene(seed: int, *, generic: bool = False) -> Scene:
    """Make a batch of one to three images; the same seed gives the same batch.

    Args:
        seed: also selects the kind of scene and the size of the priors.
        generic: move every prior a little, so that no two of them are alike to any object.
    """
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.choice((64, 96, 128), size=2))
    # Small priors leave objects that overlap none; with large ones small objects see many priors alike.
    prior_scale = (5.0, 2.5, 1.0, 0.5)[seed // len(KINDS) % 4]
    priors = grid_priors([(height // s, width // s) for s in STRIDES], STRIDES, scale=prior_scale)
    if generic:
        priors = _moved(priors, rng)
    kind = KINDS[seed % len(KINDS)]
    batch = int(rng.integers(1, 4))
    objects = [_boxes(rng, kind, height, width) for _ in range(batch)]
    slots = max(len(boxes) for boxes in objects) + int(rng.integers(0, 3))

    labels = np.full((batch, slots), 10**6, dtype=np.int64)
    boxes = rng.normal(0, 200, (batch, slots, 4))
    valid = np.zeros((batch, slots), dtype=bool)
    for b, found in enumerate(objects):
        used = np.sort(rng.permutation(slots)[: len(found)])
        labels[b, used] = rng.integers(0, NUM_CLASSES, len(found))
        boxes[b, used] = found
        valid[b, used] = True

    points = priors.points.numpy()
    predicted = np.stack([_predicted(rng, points, found, height, width) for found in objects])
    scores = rng.random((batch, len(points), NUM_CLASSES)) ** rng.choice((0.5, 1.0, 3.0))
    return Scene(
        Predictions(_tensor(scores), _tensor(predicted)),
        priors,
        Targets(torch.from_numpy(labels), _tensor(boxes), torch.from_numpy(valid)),
        (height, width),
    )


def with_nine_anchors_a_cell(batch: Scene) -> Scene:
    """Give every cell nine anchors, as RetinaNet does: three sizes of three shapes about one point.

    Each predicts the cell's box moved a little, with the cell's scores lowered a little, both exact in float32.
    """
    sizes = torch.tensor([[w, h] for scale in (0.5, 1.0, 1.5) for w, h in ((1.0, 1.0), (0.75, 1.25), (1.25, 0.75))])
    number = torch.arange(9.0)
    cell = torch.arange(len(batch.priors)).repeat_interleave(9)
    priors = batch.priors[cell]
    half = (priors.boxes[:, 2:] - priors.boxes[:, :2]) / 2 * sizes.repeat(len(batch.priors), 1)
    by = (number * 3 / GRAIN).repeat(len(batch.priors))[:, None]
    lowered = (1 - number / 32).repeat(len(batch.priors))[:, None]
    return replace(
        batch,
        predictions=Predictions(batch.predictions.scores[:, cell] * lowered, batch.predictions.boxes[:, cell] + by),
        priors=replace(priors, boxes=torch.cat((priors.points - half, priors.points + half), 1)),
    )


def single_image(batch: Scene, index: int) -> Scene:
    """Return one image of a batch as a batch of its own."""
    one = slice(index, index + 1)
    targets = batch.targets
    return replace(
        batch,
        predictions=Predictions(batch.predictions.scores[one], batch.predictions.boxes[one]),
        targets=Targets(targets.labels[one], targets.boxes[one], targets.valid[one], targets.kind),
    )


def mirrored(batch: Scene) -> Scene:
    """Flip left and right; anchors keep their numbers."""
    width = batch.size[1]

    def flip(boxes: Tensor) -> Tensor:
        return torch.stack((width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]), -1)

    priors = batch.priors
    points = torch.stack((width - priors.points[:, 0], priors.points[:, 1]), -1)
    return replace(
        batch,
        predictions=Predictions(batch.predictions.scores, flip(batch.predictions.boxes)),
        priors=replace(priors, points=points, boxes=flip(priors.boxes)),
        targets=replace(batch.targets, boxes=flip(batch.targets.boxes)),
    )


def shifted(batch: Scene, dx: float, dy: float) -> Scene:
    """Move everything by (dx, dy) px; anchors keep their numbers."""
    by = torch.tensor([dx, dy, dx, dy])
    priors = batch.priors
    return replace(
        batch,
        predictions=Predictions(batch.predictions.scores, batch.predictions.boxes + by),
        priors=replace(priors, points=priors.points + by[:2], boxes=priors.boxes + by),
        targets=replace(batch.targets, boxes=batch.targets.boxes + by),
    )


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _moved(priors: Priors, rng: np.random.Generator) -> Priors:
    reach = 0.2 * priors.strides.numpy()[:, None]
    points = quantise(priors.points.numpy() + rng.uniform(-1, 1, (len(priors), 2)) * reach)
    half = (priors.boxes[:, 2:] - priors.boxes[:, :2]).numpy() / 2
    half = quantise(half * rng.uniform(0.8, 1.25, half.shape))
    return replace(
        priors, points=_tensor(points), boxes=_tensor(np.concatenate((points - half, points + half), axis=1))
    )


def _boxes(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    count = {
        "mixed": int(rng.integers(0, 8)),
        "crowded": int(rng.integers(6, 13)),
        "tiny": int(rng.integers(1, 9)),
        "huge": int(rng.integers(1, 5)),
        "empty": int(rng.integers(0, 3)) * int(rng.integers(0, 2)),
    }[kind]
    size = np.array([width, height])
    if kind == "huge":
        sides = rng.uniform(0.6, 1.0, (count, 2)) * size
    elif kind == "tiny":
        sides = rng.uniform(1, 12, (count, 2))
    elif kind == "crowded":
        sides = rng.uniform(12, 50, (count, 2))
    else:
        sides = np.exp(rng.uniform(np.log(4), np.log(100), (count, 1)) + rng.normal(0, 0.4, (count, 2)))
    sides = np.minimum(sides, size * 0.98)
    spread = 0.3 if kind == "crowded" else 1.0
    corner = (size - sides) * (0.5 + spread * (rng.random((count, 2)) - 0.5))
    return quantise(np.concatenate((corner, corner + sides), axis=1))


def _predicted(
    rng: np.random.Generator, points: np.ndarray, objects: np.ndarray, height: int, width: int
) -> np.ndarray:
    """One box an anchor: mostly near an object about its point, else anywhere; a few without area."""
    half = np.exp(rng.uniform(np.log(2), np.log(40), (len(points), 2)))
    boxes = np.concatenate((points - half, points + half), axis=1)
    noise = rng.choice((0.03, 0.1, 0.3))
    for a, point in enumerate(points):
        around = [o for o in objects if (o[:2] < point).all() and (point < o[2:]).all()]
        if around and rng.random() < 0.85:
            chosen = around[rng.integers(len(around))]
            side = np.tile(chosen[2:] - chosen[:2], 2)
            boxes[a] = chosen + rng.normal(0, noise, 4) * side
    reversed_box = rng.random(len(points)) < 0.02
    boxes[reversed_box] = boxes[reversed_box][:, [2, 3, 0, 1]]
    return quantise(boxes)
