"""Find programs in a model YAML: building a model, Ultralytics evaluates some entries and calls others by name.

1. `activation` is evaluated: it must be `nn.Name(literals)`.
2. Layers are called by name: each must be a class of layers, of torch.nn, torchvision.ops or Ultralytics.
3. The layer `TorchVision` fetches weights unless told not to: it must be a classifier without weights. Other models of
   torchvision fetch those of their backbones all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn
from ultralytics.nn import tasks

__all__ = ["program_in", "without_fetching"]

#: The layer that holds a model of torchvision: its row's arguments are its width, the model's name, the weights, ...
_TORCHVISION, _NAME, _WEIGHTS = "TorchVision", 1, 2
_PARTS = ("backbone", "head")


def program_in(config: Mapping[Any, Any]) -> str | None:
    """Describe what building a model would run or fetch.

    Args:
        config: the YAML's content, or any other mapping.

    Returns:
        The first such entry; None if there is none.
    """
    activation = config.get("activation")
    if activation and not _is_activation(activation):
        return f"a model YAML with activation: {str(activation)[:80]}"
    for part in _PARTS:
        rows = config.get(part)
        for row in rows if isinstance(rows, list | tuple) else ():
            name = row[2] if isinstance(row, list | tuple) and len(row) == 4 else row
            if not isinstance(name, str) or not _is_layer(name):
                return f"a model YAML with the layer {str(name)[:80]}"
            if name == _TORCHVISION and not _fetches_nothing(row[3]):
                return f"a model YAML with the layer {name}, for which weights are fetched: {str(row[3])[:80]}"
    return None


def without_fetching(config: dict[str, Any]) -> dict[str, Any]:
    """Return the YAML of a model that is built already, so that building it again fetches no weights.

    Args:
        config: the YAML's content; left as it is.
    """
    written = dict(config)
    for part in _PARTS:
        if isinstance(config.get(part), list):
            written[part] = [_row_without_fetching(row) for row in config[part]]
    return written


def _row_without_fetching(row: Any) -> Any:
    if row[2] != _TORCHVISION:
        return row
    return [*row[:3], [*row[3][:_WEIGHTS], None, *row[3][_WEIGHTS + 1 :]]]


def _fetches_nothing(arguments: Any) -> bool:
    if not isinstance(arguments, list | tuple) or len(arguments) <= _WEIGHTS:
        return False
    known = torchvision.models.list_models(module=torchvision.models)  # classifiers: they have no backbone's weights
    return arguments[_WEIGHTS] in (None, "None") and arguments[_NAME] in known


def _is_activation(text: Any) -> bool:
    try:
        call = ast.parse(str(text).strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            return False
        for value in (*call.args, *(keyword.value for keyword in call.keywords)):
            ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return False
    place, _, name = ast.unparse(call.func).rpartition(".")
    return place in {"nn", "torch.nn"} and _is_module(getattr(nn, name, None))


def _is_layer(name: str) -> bool:
    """Whether `parse_model` finds a class of layers under that name."""
    if "nn." in name:
        return _is_module(getattr(nn, name[3:], None))
    if "torchvision.ops." in name:
        return _is_module(getattr(torchvision.ops, name[16:], None))
    kind = vars(tasks).get(name)
    return _is_module(kind) and kind.__module__.startswith("ultralytics.nn.modules.")


def _is_module(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module)
