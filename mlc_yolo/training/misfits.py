"""What a model cannot be trained with, refused before any file is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_file

from mlc_yolo.detectors.config import bundled, complete
from mlc_yolo.detectors.weights import is_torchvision, start_from
from mlc_yolo.heads.iou_aware import check_head
from mlc_yolo.options import specification as options


def refuse_for_detector(
    config: dict[str, Any], name: str, ours: dict[str, Any], stock: dict[str, Any], *, has_weights: bool
) -> None:
    """Refuse what a ported detector cannot have.

    Args:
        config: its YAML's content.
        name: the user's name of it.
        ours: options of `cfg/mlc.yaml`.
        stock: upstream's arguments.
        has_weights: whether the model comes from a checkpoint.

    Raises:
        ValueError: an option this detector cannot have, or weights it cannot start from.
    """
    quality = options.wanted_quality(ours)
    config = complete({**config, **({"quality": quality} if quality else {})}, name)
    options.settle({**options.defaults(), **ours}, config["detector"])
    if stock.get("cls_pw"):
        raise ValueError(f"cls_pw={stock['cls_pw']} weighs YOLO's classes, not those of a {config['detector']}")
    pretrained = stock.get("pretrained")
    if is_torchvision(pretrained) and not stock.get("resume"):
        if has_weights:
            raise ValueError(f"pretrained={pretrained} starts a model YAML; this model has weights already")
        start_from(config, str(pretrained), verbose=False)


def refuse_for_yolo(model: nn.Module, name: str, ours: dict[str, Any], stock: dict[str, Any]) -> None:
    """Refuse what a YOLO cannot have.

    Args:
        model: the network.
        name: the user's name of it.
        ours: options of `cfg/mlc.yaml`.
        stock: upstream's arguments.

    Raises:
        ValueError: an option or weights of ported detectors.
        TypeError: a head that cannot carry the IoU channel.
    """
    pretrained = stock.get("pretrained")
    if is_torchvision(pretrained) and not stock.get("resume"):
        raise ValueError(
            f"pretrained={pretrained} holds torchvision weights, for {', '.join(bundled())}; '{name}' is none of them"
        )
    options.settle({**options.defaults(), **ours})
    quality = options.wanted_quality(ours)
    if quality == "centerness" or ours.get("align_gain"):
        what = "quality=centerness is for FCOS" if quality == "centerness" else "align_gain is for ported detectors"
        raise ValueError(f"{what}; '{name}' is none: leave it out")
    if isinstance(model, DetectionModel) and quality != "none":
        layers: Any = model.model
        check_head(layers[-1])


def refuse_finished(checkpoint: Mapping[str, Any], name: str) -> None:
    """Refuse to resume what upstream would start anew, with other data.

    Args:
        checkpoint: what the model was loaded from; empty if from a YAML.
        name: the user's name of it.

    Raises:
        ValueError: says what can be resumed, and how to train further.
    """
    if checkpoint.get("epoch", -1) >= 0 and checkpoint.get("optimizer") is not None:
        return
    ended = "the training it is from has ended" if checkpoint else "it is no checkpoint"
    raise ValueError(
        f"resume=True: '{name}' cannot be resumed, {ended}. Give the last.pt of an interrupted run, such as "
        "model=runs/detect/train/weights/last.pt. To train a finished model further leave resume out, and say data= "
        "and epochs="
    )


def refuse_classes(sets: Iterable[str]) -> None:
    """Refuse data of several classes for a model of one; what cannot be read is upstream's to refuse.

    Args:
        sets: data YAMLs.

    Raises:
        ValueError: names the set and its number of classes.
    """
    for data in sets:
        path = check_file(data, download=False, hard=False)
        names = YAML.load(path).get("names") if path and Path(path).is_file() else None
        if names is not None and len(names) > 1:
            raise ValueError(
                f"an RPN proposes objects of one class, but {data} has {len(names)}: train with single_cls=True, which "
                "takes them for one"
            )
