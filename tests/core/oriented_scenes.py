"""Scenes of oriented boxes, made of upright ones by turning every box about its centre."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mlc_yolo.assigners import Predictions, Targets
from mlc_yolo.box_kinds import ORIENTED

from .scenes import Scene, scene


def oriented_scene(seed: int, *, turned: bool = True) -> Scene:
    """Return a scene whose boxes are oriented, an image's about one way, no two priors alike to any object.

    Args:
        seed: as for `scene`.
        turned: False leaves every angle 0.
    """
    batch = scene(seed, generic=True)
    predictions, priors, targets = batch.inputs
    draw = torch.Generator().manual_seed(seed)
    way = torch.rand((len(targets.labels), 1, 1), generator=draw) * math.pi - math.pi / 4

    def turn(boxes: Tensor, spread: float) -> Tensor:
        angle = way + spread * torch.randn((*boxes.shape[:2], 1), generator=draw)
        return torch.cat((ORIENTED.of_upright(boxes)[..., :4], angle * turned), -1)

    return replace(
        batch,
        predictions=Predictions(predictions.scores, turn(predictions.boxes, 0.1)),
        priors=replace(priors, boxes=ORIENTED.of_upright(priors.boxes)),
        targets=Targets(targets.labels, turn(targets.boxes, 0.4), targets.valid, ORIENTED),
    )


def changed(batch: Scene, change: object) -> Scene:
    """Return a scene with `change` done to all its boxes."""
    assert callable(change)
    return replace(
        batch,
        predictions=replace(batch.predictions, boxes=change(batch.predictions.boxes)),
        priors=replace(batch.priors, boxes=change(batch.priors.boxes)),
        targets=replace(batch.targets, boxes=change(batch.targets.boxes)),
    )
