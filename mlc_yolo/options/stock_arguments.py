"""Check the types of Ultralytics' arguments that it does not check itself: it would ignore a wrong one, or crash.

It checks most numbers and switches itself, and lets nan pass. What is below it takes as it comes: `classes=cat` drops
every label without a word, `freeze=backbone` freezes nothing, `cache=rma` caches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral
from os import PathLike
from typing import Any

from torch import nn


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _is_path(value: Any) -> bool:
    # Whole numbers too: a folder's name, as Ultralytics reads key=value.
    return (isinstance(value, str | PathLike) and bool(str(value))) or _is_whole(value)


def _is_several(value: Any, test: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(test, value))


#: Modes of `torch.compile`.
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

#: argument -> test of a value, and what is expected.
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "project": (_is_path, "a folder"),
    "name": (_is_path, "a folder's name"),
    "batch": (
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and (v == -1 or v > 0),
        "images per step, above 0; -1 or a fraction of the GPU's memory for AutoBatch",
    ),
    "cache": (lambda v: isinstance(v, bool) or v in ("ram", "disk"), "True, False, ram or disk"),
    "compile": (lambda v: isinstance(v, bool) or v in COMPILE, f"True, False or one of {', '.join(COMPILE)}"),
    "classes": (lambda v: _is_whole(v) or _is_several(v, _is_whole), "class numbers, such as classes=[0,2]"),
    "freeze": (
        lambda v: _is_whole(v) or _is_several(v, lambda entry: _is_whole(entry) or isinstance(entry, str)),
        "a number of layers, or a list of layers such as freeze=[0,1]",
    ),
    "pretrained": (lambda v: isinstance(v, bool | nn.Module) or _is_path(v), "True, False or a checkpoint"),
    "resume": (lambda v: isinstance(v, bool) or _is_path(v), "True, False or a checkpoint"),
    "distill_model": (lambda v: isinstance(v, str | PathLike | nn.Module), "a model"),
    "nms": (lambda v: isinstance(v, bool), "True or False; what NMS ranks by is nms_by=iou"),
    "augment": (lambda v: isinstance(v, bool), "True or False; SSD's augmentation of training is augmentation=ssd"),
    "time": (lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v > 0, "hours, above 0"),
}


def check_stock(stock: Mapping[str, Any]) -> None:
    """Check the arguments whose types Ultralytics does not check.

    Args:
        stock: arguments by name; None is always allowed, other names are not looked at.

    Raises:
        TypeError: a value of the wrong kind; says what is expected.
        ValueError: a number that is not finite.
    """
    for name, value in stock.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number.")
    for name, (test, expected) in _EXPECTED.items():
        value = stock.get(name)
        if value is not None and not test(value):
            text = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
            raise TypeError(f"{name}={text} ({type(value).__name__}) must be {expected}.")
