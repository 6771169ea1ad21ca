"""Convert a model to half precision for a checkpoint: values too large become the largest half-precision number."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

__all__ = ["to_half"]

Model = TypeVar("Model", bound=nn.Module)


def to_half(model: Model) -> Model:
    """Cast a model to float16, in place, as Ultralytics casts the averaged weights when it saves them.

    Args:
        model: the model. Every floating tensor of its state becomes finite: above 65504 it is 65504, below -65504 it is
            -65504, and NaN becomes 0.

    Returns:
        The model.
    """
    model.half()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                torch.nan_to_num_(value)
    return model
