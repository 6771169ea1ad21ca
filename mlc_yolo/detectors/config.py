"""Model YAMLs of the ported detectors: looked up by name, read, checked and completed.

    detector: retinanet        # retinanet | fcos | rpn | fssd | retinanet_fssd | rfbnet | pafpn
    backbone: resnet50         # any torchvision ResNet; vgg16_bn for the last four
    nc: 80

The other keys and their defaults are in `DEFAULTS`. A YAML with a `detector` key is ours; any other is Ultralytics'.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from mlc_yolo.detectors.multibox import PYRAMIDS
from mlc_yolo.detectors.parts import BACKBONES
from mlc_yolo.detectors.vgg import VGG
from mlc_yolo.resources import resource_dir
from mlc_yolo.suggestions import did_you_mean

#: Qualities a detector's extra layer can predict.
QUALITIES = {
    "retinanet": ("iou", "none"),
    "fcos": ("iou", "centerness", "none"),
    "rpn": ("iou", "none"),
    **dict.fromkeys(PYRAMIDS, ("iou", "none")),
}

#: Optional keys. `norm` and `trainable_stages` left empty mean "frozen" and 3 on pretrained weights, "batch" and 5 from
#: scratch, as in torchvision. `width` is the pyramid's; RFBNet's first three levels have twice that. `levels` is for
#: the detectors that choose: 4, with strides 8 to 64, or more.
DEFAULTS: dict[str, Any] = {
    "nc": 80,
    "width": 256,
    "quality": None,
    "follows": "paper",
    "levels": None,
    "norm": None,
    "norm_eps": None,
    "trainable_stages": None,
}
#: What a detector takes over from the weights it starts from.
INHERITED = ("quality", "follows", "levels", "norm", "norm_eps", "trainable_stages")
_CHOICES = {"norm": (None, "frozen", "batch"), "follows": ("paper", "torchvision")}
#: What Ultralytics and checkpoints add.
_FOREIGN = {"mlc", "yaml_file", "scale", "channels", "task"}


def find_config(name: Any) -> dict[str, Any] | None:
    """Return the content of a detector's YAML, or None where the name is not one of ours.

    Args:
        name: a path, or the name of a file in `cfg/models`.

    Raises:
        ValueError: ours, but not as it should be.
    """
    path = Path(str(name))
    if path.suffix not in {".yaml", ".yml"}:
        return None
    for candidate in (path, resource_dir("cfg") / "models" / path.name):
        if candidate.is_file():
            with open(candidate, encoding="utf-8") as file:
                content = _parsed(file, candidate)
            if isinstance(content, dict) and "detector" in content:
                return {**complete(content, candidate), "yaml_file": str(candidate)}
    return None


def bundled() -> list[str]:
    """Return the names of the YAMLs that come with the package."""
    return sorted(path.name for path in (resource_dir("cfg") / "models").glob("*.yaml"))


def complete(content: Mapping[str, Any], source: Any = "model YAML") -> dict[str, Any]:
    """Check a YAML's content and fill in the defaults.

    Args:
        content: what the file holds.
        source: its name, for messages.

    Returns:
        A new dict with every key.

    Raises:
        ValueError: an unknown key, or a value outside its domain; the nearest known one is named.
    """
    known = {"detector", "backbone", *DEFAULTS, *_FOREIGN}
    for key in content:
        if key not in known:
            raise ValueError(
                f"{source}: '{key}' is not a key of a detector.{did_you_mean(key, sorted(known - _FOREIGN))}"
            )
    config = {**DEFAULTS, **content}
    _among(source, "detector", config.get("detector"), QUALITIES)
    chooses_levels = config["detector"] in PYRAMIDS
    if chooses_levels and config["levels"] is None:
        config["levels"] = 4
    if not chooses_levels and config["levels"] is not None:
        raise ValueError(f"{source}: levels is for {', '.join(PYRAMIDS)}; a {config['detector']} has five")
    _among(source, "backbone", config.get("backbone"), (*BACKBONES, VGG) if chooses_levels else BACKBONES)
    _among(source, "quality", config["quality"], (None, *QUALITIES[config["detector"]]))
    for key, choices in _CHOICES.items():
        _among(source, key, config[key], choices)
    numbers = {"nc": (1, 100_000), "width": (32, 4096), "levels": (3, 7), "trainable_stages": (0, 5)}
    for key, (low, high) in numbers.items():
        value = config[key]
        if value is None and DEFAULTS[key] is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{source}: {key}={value!r} must be a whole number from {low} to {high}")
    eps = config["norm_eps"]
    if eps is not None and (isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1):
        raise ValueError(f"{source}: norm_eps={eps!r} must be a number from 0 to below 1")
    least = 64 if config["detector"] == "fcos" else 32  # group norm needs two values, however small the map
    if config["width"] % 32 or config["width"] < least:
        raise ValueError(
            f"{source}: width={config['width']} must be a multiple of 32, the groups of FCOS' normalisation, "
            f"and {least} or more"
        )
    if config["detector"] == "rpn" and config["nc"] != 1:
        raise ValueError(
            f"{source}: an RPN proposes objects of one class, got nc={config['nc']}; "
            "set nc: 1 and train with single_cls=True"
        )
    return config


def fill_empty(config: Mapping[str, Any], *, pretrained: bool) -> dict[str, Any]:
    """Fill `norm`, `trainable_stages` and `quality` where they are left empty.

    Args:
        config: a complete configuration.
        pretrained: whether the backbone starts from trained weights.
    """
    return {
        **config,
        "quality": config["quality"] or "iou",
        "norm": config["norm"] or ("frozen" if pretrained else "batch"),
        "trainable_stages": config["trainable_stages"]
        if config["trainable_stages"] is not None
        else (3 if pretrained else 5),
    }


def _parsed(file: TextIO, path: Path) -> Any:
    try:
        return yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error


def inherit(config: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with what must be as in the weights' own, so that their boxes stay the same."""
    return {**config, **{key: source[key] for key in INHERITED if key in source}}


def _among(source: Any, key: str, value: Any, choices: Any) -> None:
    if value not in tuple(choices):  # a list is in no dict
        listed = ", ".join(str(c) for c in choices if c is not None)
        shown = "is missing" if value is None else f"= {value!r}"
        raise ValueError(f"{source}: {key} {shown}; it must be one of {listed}.{did_you_mean(value, choices)}")
