"""Build the network that a training starts with: its layers, its marker and its first weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from mlc_yolo.checkpoints import model_yaml
from mlc_yolo.checkpoints.marker import load_stock_weights, wants_iou_channel, wants_warp, write_marker
from mlc_yolo.detectors.config import inherit
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.weights import is_torchvision, start_from
from mlc_yolo.heads.iou_aware import NEUTRAL_BIAS, PAPER_BIAS, add_iou_channel, has_room, rank_by_iou, set_rescore
from mlc_yolo.options.arguments import Arguments
from mlc_yolo.options.idle import without_own
from mlc_yolo.options.specification import changed

#: Options that train a YOLO's IoU channel, or use it.
_OF_CHANNEL = ("iou_training", "iou_gain", "iou_warmup", "rescore")


def build_yolo(
    cfg: str | dict[str, Any] | None,
    weights: nn.Module | None,
    arguments: Arguments,
    *,
    make: Callable[..., DetectionModel],
    name_classes: Callable[[nn.Module], Any],
    resuming: bool,
    verbose: bool,
) -> DetectionModel:
    """Return a YOLO for the data's classes; every tensor of a stock checkpoint is in place.

    Args:
        cfg: model YAML or its content.
        weights: model to take weights from.
        arguments: what was asked for.
        make: makes the network of a YAML for the data's classes; takes `verbose`.
        name_classes: upstream's, which names a model's classes so that weights move by name.
        resuming: whether the run goes on from `weights`: then everything is as in them.
        verbose: log the model's summary.

    Raises:
        ValueError: options or weights that this model cannot have.
    """
    if isinstance(weights, DetectorModel):
        raise ValueError(f"expected weights of a YOLO, got weights of a {weights.kind}: use its model YAML")
    ours = arguments.for_model(None).ours
    model = make(cfg, verbose=verbose)
    model.yaml = model_yaml.without_fetching(model.yaml)
    name_classes(model)
    layers: Any = model.model
    head = layers[-1]
    option = None if resuming and weights is not None else ours["iou_head"]
    wanted = wants_iou_channel(option, weights)
    if wanted and option is None and not has_room(head):
        wanted = False
        if verbose:
            LOGGER.info(f"{type(head).__name__} has no place for the weights' IoU channel: training without it")
    if wanted:
        add_iou_channel(head, bias=NEUTRAL_BIAS if ours["iou_training"] == "product" else PAPER_BIAS)
    elif verbose and (idle := changed(without_own(ours, None), *_OF_CHANNEL)):
        LOGGER.warning(f"{', '.join(idle)}: no effect without a predicted-IoU channel. Add one with iou_head=True")
    _set_ranking(model, ours)
    write_marker(model, iou_head=wanted, **_facts(ours, weights))
    if weights is not None:
        load_stock_weights(model, weights, verbose=verbose)
    return model


def build_detector(
    config: dict[str, Any],
    weights: nn.Module | None,
    arguments: Arguments,
    *,
    data: dict[str, Any],
    name_classes: Callable[[nn.Module], Any],
    pretrained: Any,
    verbose: bool,
) -> DetectorModel:
    """Return a ported detector for the data's classes.

    Args:
        config: content of its YAML.
        weights: model to take weights from.
        arguments: what was asked for.
        data: upstream's description of the data set.
        name_classes: upstream's, which names a model's classes so that weights move by name.
        pretrained: torchvision's weights to start from; anything else is passed over, as all is on resuming.
        verbose: log the model's summary.

    Raises:
        ValueError: options, data or weights that this detector cannot have.
    """
    ours = arguments.for_model(config["detector"]).ours
    if isinstance(weights, DetectorModel):
        config = inherit(config, weights.yaml)
    if ours["quality"] is not None:
        config = {**config, "quality": ours["quality"]}
    nc = data["nc"]
    if config["detector"] == "rpn" and nc != 1:
        raise ValueError(
            f"an RPN proposes objects of one class, but {data.get('yaml_file', 'the data')} has {nc}: "
            "train with single_cls=True, which merges them"
        )
    if weights is None and is_torchvision(pretrained):
        model = start_from(config, pretrained, nc=nc)
    else:
        model = DetectorModel(config, nc=nc, ch=data["channels"], verbose=verbose)
    name_classes(model)
    if weights is not None:
        model.load(weights, verbose=verbose)
    _set_ranking(model, ours)
    write_marker(model, **_facts(ours, weights))
    return model


def _facts(ours: Mapping[str, Any], weights: nn.Module | None) -> dict[str, bool | str]:
    """Return the marker of the model's checkpoint for this run, with a resize inherited from `weights`."""
    resize = {"resize": "warp"} if wants_warp(ours["resize"], weights) else {}
    return {"rescore": ours["rescore"], "nms_by": ours["nms_by"], **resize}


def _set_ranking(model: DetectionModel, ours: Mapping[str, Any]) -> None:
    """Set the ranking of the head's boxes, and refuse a ranking that it has no layer for."""
    layers: Any = model.model
    if ours["nms_by"] == "iou":
        rank_by_iou(layers[-1], True)
    set_rescore(model, ours["rescore"])
