"""What a validation with `calibrate=True` stores: the factor that makes the standard deviations of boxes honest."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from ultralytics.utils import LOGGER

from mlc_yolo.checkpoints.marker import read_marker, write_marker
from mlc_yolo.checkpoints.sigma_scale import sigma_scale, store_sigma_scale
from mlc_yolo.faults import UsageError
from mlc_yolo.metrics.coverage import Coverage


def calibrate(model: nn.Module, file: Path, measured: Coverage | None, *, trust: bool) -> None:
    """Store the factor that calibrates the standard deviations of boxes, in a model and in its checkpoint.

    Args:
        model: as it was validated; what it stores already is multiplied.
        file: its checkpoint, `.pt` or `.safetensors`.
        measured: how many true edges lay within how many deviations; None of a head without distributions.
        trust: open the file whatever it holds.

    Raises:
        UsageError: the head predicts no distributions, or no detection matched an object.
        ValueError: the file is refused.
    """
    if measured is None or not measured.count:
        raise UsageError(
            "calibrate=True found no detection with standard deviations of its sides: it needs labelled data "
            "and a YOLO that predicts distributions (v8, 11, 12), without augment=True"
        )
    scale = sigma_scale(model) * measured.factor
    store_sigma_scale(file, scale, trust=trust)
    write_marker(model, **{**read_marker(model), "sigma_scale": scale})
    LOGGER.info(f"{file} now multiplies the standard deviations of its boxes by {scale:.3f}")
