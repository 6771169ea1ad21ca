"""Refusals of options that do not fit the model, the data or the run, raised before any file is written."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_file

from mlc_yolo.detectors.config import bundled, complete
from mlc_yolo.detectors.weights import is_torchvision, start_from
from mlc_yolo.heads.iou_aware import check_head
from mlc_yolo.options.arguments import Arguments
from mlc_yolo.options.specification import warmup_epochs, warmup_length


def refuse_for_detector(config: dict[str, Any], name: str, arguments: Arguments, *, has_weights: bool) -> None:
    """Refuse options and weights that do not fit a ported detector.

    Args:
        config: its YAML's content.
        name: the user's name of it.
        arguments: what was asked for.
        has_weights: whether the model comes from a checkpoint.

    Raises:
        ValueError: an option this detector cannot have, or weights it cannot start from.
    """
    quality, stock = arguments.ours["quality"], arguments.stock
    config = complete({**config, **({"quality": quality} if quality else {})}, name)
    if stock.get("cls_pw"):
        raise ValueError(f"cls_pw={stock['cls_pw']} is for YOLO, not for a {config['detector']}: leave it out")
    pretrained = stock.get("pretrained")
    if is_torchvision(pretrained) and not stock.get("resume"):
        if has_weights:
            raise ValueError(f"pretrained={pretrained} starts a model YAML, but this model has weights: leave it out")
        start_from(config, str(pretrained), verbose=False)


def refuse_for_yolo(model: nn.Module, name: str, arguments: Arguments) -> None:
    """Refuse options and weights that do not fit a YOLO.

    Args:
        model: the network.
        name: the user's name of it.
        arguments: what was asked for.

    Raises:
        ValueError: weights of ported detectors.
        TypeError: `iou_head=True` for a head that cannot carry the IoU channel.
    """
    pretrained = arguments.stock.get("pretrained")
    if is_torchvision(pretrained) and not arguments.stock.get("resume"):
        raise ValueError(
            f"pretrained={pretrained} holds torchvision weights. They fit {', '.join(bundled())}, not '{name}'"
        )
    if isinstance(model, DetectionModel) and arguments.ours["iou_head"]:
        layers: Any = model.model
        check_head(layers[-1])


def refuse_lengths(run: Any) -> None:
    """Refuse a warm-up, steps or a burn-in that are as long as the run.

    Args:
        run: arguments of the run as a namespace, ours included.

    Raises:
        ValueError: names the option and says how to correct it.
    """
    epochs = max(run.epochs, 1)
    warmup_epochs(run.assigner_warmup, run.assigner, run.epochs)
    if run.lr_steps and run.lr_steps[-1] >= run.epochs:
        raise ValueError(
            f"lr_steps={','.join(map(str, run.lr_steps))} must lie within the run of epochs={run.epochs}: "
            "the run ends before the last step. Give lr_steps=None for Ultralytics' schedule; "
            "mlc-yolo reproduce scales a row's steps with its epochs"
        )
    if warmup_length(run.iou_warmup, None, run.epochs) >= epochs:
        raise ValueError(
            f"iou_warmup={run.iou_warmup:g} must end before the run of epochs={run.epochs}: "
            "the run would not train the predicted IoU. Give a shorter one"
        )
    if learns_without_labels(vars(run)) and warmup_length(run.ssl_burn_in, None, run.epochs) >= epochs:
        raise ValueError(
            f"ssl_burn_in={run.ssl_burn_in:g} must end before the run of epochs={run.epochs}: "
            "the run would not use the images without labels. Give a shorter one"
        )


def refuse_devices(device: Any) -> None:
    """Refuse an assigner object on several devices: it would have to reach other processes.

    Args:
        device: the argument, as Ultralytics takes it.

    Raises:
        ValueError: it names several.
    """
    if len(re.findall(r"\d+", str(device))) > 1:
        raise ValueError("an assigner object works on one device only: choose one, such as device=0")


def refuse_channels(run: Any, channels: int) -> None:
    """Refuse images of other channels than the augmentation distorts.

    Args:
        run: arguments of the run as a namespace, ours included.
        channels: of the data's images.

    Raises:
        ValueError: names the option, the data and what it has.
    """
    if run.augmentation == "ssd" and channels != 3:
        raise ValueError(f"augmentation=ssd distorts colours: expected images of 3 channels, {run.data} has {channels}")
    if learns_without_labels(vars(run)) and channels not in (1, 3):
        raise ValueError(
            f"ssl={run.ssl} changes colours: expected images of 1 or 3 channels, {run.data} has {channels}"
        )


def learns_without_labels(ours: Mapping[str, Any]) -> bool:
    """Whether options ask for anything to be learned from images without labels."""
    return ours.get("ssl", "none") != "none" and ours.get("ssl_weight", 1) > 0


def refuse_other_learning(run: Any, learns: Container[str]) -> None:
    """Refuse to learn from anything beside labels in a trainer that cannot.

    Args:
        run: arguments of the run as a namespace, ours included.
        learns: the options, of `ssl` and `teacher`, that the trainer can follow.

    Raises:
        ValueError: names the option and who can.
    """
    if learns_without_labels(vars(run)) and "ssl" not in learns:
        raise ValueError(f"ssl={run.ssl} is learned by SemiTrainer: call MLCYOLO(...).train(ssl=...)")
    if run.teacher and "teacher" not in learns:
        raise ValueError(f"teacher={run.teacher} teaches a TaughtTrainer: call MLCYOLO(...).train(teacher=...)")


def refuse_finished(checkpoint: Mapping[str, Any], name: str) -> None:
    """Refuse `resume=True` for a model that upstream would silently train from the start, on other data.

    Args:
        checkpoint: what the model was loaded from; empty if from a YAML.
        name: the user's name of it.

    Raises:
        ValueError: says what can be resumed, and how to train further.
    """
    if checkpoint.get("epoch", -1) >= 0 and checkpoint.get("optimizer") is not None:
        return
    ended = "its training has ended" if checkpoint else "it is not a checkpoint"
    raise ValueError(
        f"resume=True: '{name}' cannot be resumed, {ended}. Give the last.pt of an interrupted run, such as "
        "model=runs/detect/train/weights/last.pt. To train a finished model further, leave resume out and give data= "
        "and epochs="
    )


def refuse_classes(sets: Iterable[str]) -> None:
    """Refuse data of several classes for a model of one class. Upstream refuses data that cannot be read.

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
                "merges them"
            )
