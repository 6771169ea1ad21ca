"""The factor that calibrates a checkpoint's standard deviations, kept in its model's marker.

A run that trains on from the checkpoint writes a marker of its own, without it: the factor is of these weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from mlc_yolo import whole_files
from mlc_yolo.checkpoints import safe_load, tensors_file
from mlc_yolo.checkpoints.marker import read_marker, write_marker

__all__ = ["sigma_scale", "store_sigma_scale"]

_FACT = "sigma_scale"


def sigma_scale(model: nn.Module) -> float:
    """Return the stored factor for a model's standard deviations; 1 if none is stored."""
    return float(read_marker(model).get(_FACT, 1.0))


def store_sigma_scale(file: Path, scale: float, *, trust: bool = False) -> None:
    """Write the factor into a checkpoint, in one step; everything else in it stays.

    Args:
        file: `.pt` or `.safetensors`.
        scale: above 0.
        trust: open the file whatever it holds.

    Raises:
        ValueError: `scale` is no positive number, or the file is refused.
        OSError: the file cannot be written; what was there is still there.
    """
    if not math.isfinite(scale) or scale <= 0:
        raise ValueError(f"expected a factor above 0 for {file}, got {scale}")
    if file.suffix == tensors_file.SUFFIX:
        model, checkpoint = tensors_file.load(file)
        _note(model, scale)
        tensors_file.save(file, model, checkpoint.get("train_args"))
        return
    safe_load.check(file, trust=trust)
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    for name in ("model", "ema"):
        if isinstance(checkpoint.get(name), nn.Module):
            _note(checkpoint[name], scale)
    whole_files.save(file, checkpoint)


def _note(model: nn.Module, scale: float) -> None:
    write_marker(model, **{**read_marker(model), _FACT: scale})
