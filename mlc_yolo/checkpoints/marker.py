"""The marker by which a checkpoint records the IoU channel and the resize, and loading stock weights beneath it.

An IoU-aware checkpoint is a stock one with more tensors: the extra convolutions stand beside the stock layers. So
weights move both ways through Ultralytics' own `load`, which takes whatever agrees in name and shape.

Runs leave a marker in `model.yaml["mlc"]`, for instance `{"iou_head": False}`. Ultralytics keeps that dict when it
strips a checkpoint, and its parser passes over keys it does not know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from mlc_yolo.heads.iou_aware import has_iou_channel

__all__ = ["load_stock_weights", "read_marker", "wants_iou_channel", "wants_warp", "write_marker"]

_KEY = "mlc"
_IOU_TENSORS = "cv_iou."  # in the name of every tensor of the channel, on both branches


def read_marker(model: nn.Module) -> dict[str, Any]:
    """Return the marker of an earlier run in `model`; empty for a model that is not ours."""
    return dict((getattr(model, "yaml", None) or {}).get(_KEY) or {})


def write_marker(model: DetectionModel, **facts: bool | int | float | str | None) -> None:
    """Note `facts` in `model`, in place of what an earlier run noted.

    Args:
        model: the model; its `yaml` is replaced, not changed: Ultralytics builds a model from the very dict that the
            weights it is about to load still hold.
        facts: plain values only, so that restricted loading accepts them.
    """
    model.yaml = {**model.yaml, _KEY: facts}


def wants_iou_channel(option: bool | None, weights: nn.Module | None) -> bool:
    """Settle `iou_head` for a model about to be trained.

    Args:
        option: the option as given. True and False decide; None means "as in the checkpoint, else no".
        weights: the model the training starts from; None when it starts from scratch.

    Returns:
        `option` if given, else whether `weights` has the channel.
    """
    return option if option is not None else weights is not None and has_iou_channel(weights)


def wants_warp(option: str | None, model: nn.Module | None) -> bool:
    """Settle `resize`: whether images are stretched to the input instead of padded.

    Args:
        option: the option as given; None means "as in the checkpoint, else letterbox".
        model: the checkpoint's model; None when there is none.
    """
    if option is None and model is not None:
        option = read_marker(model).get("resize")
    return option == "warp"


def load_stock_weights(
    model: DetectionModel, weights: nn.Module | dict[str, Any], *, verbose: bool = True
) -> tuple[int, int]:
    """Load a checkpoint with Ultralytics' own `load`, and count what arrived.

    Classes are matched by name as upstream does. The channel is loaded where both sides have it, dropped where only
    `weights` does, and left as it is where only `model` does.

    Args:
        model: the model to fill, with its class names set.
        weights: a model, or a checkpoint dict with `ema` or `model`. As upstream does, it is cast to float32 in place.
        verbose: log the counts.

    Returns:
        The number of stock tensors of `weights` that `model` now holds value for value, and how many there are.
        Class layers of another width, or re-ordered by class name, are not among the former.
    """
    source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
    fresh = dict(model.state_dict())
    model.load(weights, verbose=verbose)
    wanted = source.state_dict()
    held = model.state_dict()
    stock = [name for name in wanted if _IOU_TENSORS not in name]
    loaded = sum(name in held and torch.equal(held[name].cpu(), wanted[name].cpu()) for name in stock)
    if verbose:
        new = sum(_IOU_TENSORS in name and name not in wanted for name in fresh)
        tail = f"; the {new} tensors of the IoU channel start fresh" if new else ""
        LOGGER.info(f"{loaded}/{len(stock)} stock tensors loaded{tail}")
    return loaded, len(stock)
