"""The options mlc-yolo adds to Ultralytics': read from cfg/mlc.yaml, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from mlc_yolo.resources import resource_dir
from mlc_yolo.suggestions import did_you_mean

_PORTED = {"mlc_candidates": "own", "mlc_alpha": 0.5, "iou_training": "positives"}
_MAX_IOU = {**_PORTED, "assigner": "max_iou", "assigner_base": "max_iou"}

#: What empty options mean, by detector; None is YOLO.
OWN: dict[str | None, dict[str, Any]] = {
    None: {
        **{"assigner": "tal", "assigner_base": "tal", "mlc_candidates": "tal", "mlc_alpha": 0.5},
        "iou_training": "product",
    },
    "retinanet": _MAX_IOU,
    "fcos": {**_PORTED, "assigner": "fcos", "assigner_base": "fcos", "mlc_alpha": 0.0},
    "rpn": {**_MAX_IOU, "mlc_alpha": 2.0},
    **dict.fromkeys(("fssd", "retinanet_fssd", "rfbnet", "pafpn"), _MAX_IOU),
}

#: Options that are whole epochs, or a fraction of the run below 1.
_LENGTHS = ("assigner_warmup", "iou_warmup", "ssl_burn_in", "ssl_ramp")

#: Value of `assigner` in files and logs when the user handed over an assigner object.
CUSTOM = "custom"


@cache
def specifications() -> dict[str, dict[str, Any]]:
    """Return cfg/mlc.yaml: option name -> {default, type or choices, minimum or above, help, source if any}."""
    with open(resource_dir("cfg") / "mlc.yaml", encoding="utf-8") as file:
        loaded: dict[str, dict[str, Any]] = yaml.safe_load(file)
    return loaded


def defaults() -> dict[str, Any]:
    """Return a new dict of every option's default."""
    return {name: spec["default"] for name, spec in specifications().items()}


def changed(ours: Mapping[str, Any], *starts: str) -> list[str]:
    """Return the options whose names begin so and that do not have their defaults.

    Args:
        ours: option values by name; other names may be among them.
        starts: beginnings of names, or whole ones.

    Example:
        >>> changed({"teacher_weight": 2.0, "teacher_temperature": defaults()["teacher_temperature"]}, "teacher_")
        ['teacher_weight']
    """
    return [name for name, usual in defaults().items() if name.startswith(starts) and ours.get(name, usual) != usual]


def validated(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return values checked, with aliases resolved.

    Args:
        ours: our options by name, any subset.

    Returns:
        A new dict with the same names and canonical values.

    Raises:
        KeyError: a name that is not an option.
        ValueError: a value outside its domain; the message names the nearest valid one.
        TypeError: a value of the wrong type.
    """
    return {name: _checked(name, value) for name, value in ours.items()}


def settle(ours: Mapping[str, Any], detector: str | None = None) -> dict[str, Any]:
    """Fill empty options with the values they mean for a model.

    Args:
        ours: checked options.
        detector: kind of a ported detector; None is YOLO.

    Raises:
        ValueError: an option that is for models of the other kind; the message names the one that is meant.
    """
    filled = {**ours, **{name: value for name, value in OWN[detector].items() if ours.get(name) is None}}
    if detector is not None and filled.get("iou_head") is not None:
        raise ValueError(
            f"iou_head is for YOLO: choose what this {detector} predicts beside the boxes, such as "
            f"quality={'iou' if filled['iou_head'] else 'none'}"
        )
    if detector is not None and filled.get("iou_training") == "product":
        raise ValueError(f"iou_training=product is for YOLO, not for a {detector}: leave it out")
    if detector is None and filled.get("quality") is not None:
        raise ValueError(
            f"quality={filled['quality']} is for the ported detectors (FCOS and the like): a YOLO takes iou_head=True "
            "or iou_head=False"
        )
    if filled.get("mg_rule") == "2021" and filled.get("mg_tasks", "both") != "both":
        raise ValueError(f"mg_rule=2021 guides both tasks: leave mg_tasks={filled['mg_tasks']} out")
    if detector is None and filled.get("align_gain"):
        raise ValueError(f"align_gain={filled['align_gain']} is for the ported detectors, not for YOLO: leave it out")
    if detector is None and filled["mlc_candidates"] == "own":
        raise ValueError("mlc_candidates=own is for the ported detectors; a YOLO's own candidates are called tal")
    return filled


def warmup_epochs(warmup: float | None, assigner: str | None, epochs: int) -> int:
    """Return how many epochs train with `assigner_base`.

    Args:
        warmup: the option `assigner_warmup`: None, whole epochs (>= 1) or a fraction of the run (< 1).
        assigner: canonical name; None as warm-up means 0.4 of the run for "mlc" and none for the others.
        epochs: length of the run.

    Returns:
        Epochs in [0, epochs).

    Raises:
        ValueError: the warm-up leaves no epoch for `assigner`.
    """
    length = warmup_length(warmup, assigner, epochs)
    if length >= max(epochs, 1):
        raise ValueError(
            f"assigner_warmup={warmup:g} must end before the run of epochs={epochs}: "
            f"{repr(assigner) if assigner else 'the assigner'} would never train. "
            f"Give a shorter warm-up or more epochs; or a fraction below 1, such as assigner_warmup=0.4."
        )
    return length


def warmup_length(warmup: float | None, assigner: str | None, epochs: int) -> int:
    """Return the length as `warmup_epochs` does, unchecked: a run under way may turn out shorter than planned."""
    if warmup is None:
        warmup = 0.4 if assigner == "mlc" else 0
    return int(warmup) if warmup >= 1 else int(warmup * epochs + 1e-9)  # 0.29 * 100 is 28.999...


def _checked(name: str, value: Any) -> Any:
    spec = specifications().get(name)
    if spec is None:
        raise KeyError(f"'{name}' is not an option of mlc-yolo.{did_you_mean(name, specifications())}")
    if value is None and spec["default"] is None:
        return None
    if "choices" in spec:
        return _checked_choice(name, value, spec)
    if spec["type"] == "bool":
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r} ({type(value).__name__}) must be True or False.")
        return value
    if spec["type"] == "epochs":
        return _checked_epochs(name, value)
    if spec["type"] == "path":
        return _checked_paths(name, value)
    if isinstance(value, bool):  # of an option that once was a switch
        value = spec.get("aliases", {}).get(str(value).lower(), value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} ({type(value).__name__}) must be a number.")
    return _checked_number(name, value, spec)


def _checked_choice(name: str, value: Any, spec: dict[str, Any]) -> str:
    aliases: dict[str, str] = spec.get("aliases", {})
    choices: list[str] = spec["choices"]
    key = str(value).strip().lower()
    key = aliases.get(key, key)
    if key not in choices and (name, key) != ("assigner", CUSTOM):
        listed = ", ".join(choices)
        raise ValueError(f"{name}={value!r} must be one of {listed}.{did_you_mean(key, [*choices, *aliases])}")
    return key


def _checked_number(name: str, value: float, spec: dict[str, Any]) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{name}={value} must be a finite number.")
    if "minimum" in spec and value < spec["minimum"]:
        raise ValueError(f"{name}={value} must be {spec['minimum']} or more{_default(spec)}.")
    if "above" in spec and value <= spec["above"]:
        raise ValueError(f"{name}={value} must be above {spec['above']}{_default(spec)}.")
    if "maximum" in spec and value > spec["maximum"]:
        raise ValueError(f"{name}={value} must be {spec['maximum']} or less{_default(spec)}.")
    if name in _LENGTHS and value >= 1 and value != int(value):
        raise ValueError(f"{name}={value} must be whole epochs, or a fraction of the run below 1.")
    if name == "warmup_iters" and value != int(value):
        raise ValueError(f"{name}={value} must be a whole number of iterations.")
    return value


def _checked_epochs(name: str, value: Any) -> list[int]:
    """Accept 16, [16, 18], (16, 18) or "16,18"."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        epochs = [int(str(part)) for part in parts]
    except ValueError as error:
        raise TypeError(f"{name}={value!r} must be epochs, such as {name}=16,18") from error
    if not epochs or epochs != sorted(set(epochs)) or epochs[0] < 1:
        raise ValueError(f"{name}={value!r} must be rising epochs from 1 on, such as {name}=16,18")
    return epochs


def _checked_paths(name: str, value: Any) -> str | list[str]:
    """Accept a path, several in a list, or "one,other"; text as Ultralytics' files can hold it is returned."""
    if isinstance(value, int) and not isinstance(value, bool):  # a folder's name, as Ultralytics reads key=value
        value = str(value)
    if isinstance(value, str) and "," in value and not Path(value).exists():
        value = [part.strip() for part in value.split(",")]
    several = value if isinstance(value, list | tuple) else [value]
    if not several or not all(isinstance(path, str | PathLike) and str(path) for path in several):
        raise TypeError(f"{name}={value!r} must be a path, or a list of paths")
    paths = [str(path) for path in several]
    return paths if isinstance(value, list | tuple) else paths[0]


def _default(spec: dict[str, Any]) -> str:
    return "" if spec["default"] is None else f"; its default is {spec['default']}"
