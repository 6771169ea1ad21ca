"""Pictures of who learns what: a model's own predictions on a data set's images, assigned by two assigners.

1. The first images that hold objects come from Ultralytics' data set, letterboxed, without augmentation. 2. The model,
in evaluation mode, gives the raw outputs its criterion would see; of an end-to-end head, the one-to-many branch.
3. Both assigners decide on the same predictions. 4. `plots.assignments` draws them side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg, get_save_dir
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import select_device

from mlc_yolo.assigners import Assigner, Predictions, Schedule, Targets, TaskAligned, build_assigner
from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.engine import options
from mlc_yolo.engine.criterion import PerTaskLoss
from mlc_yolo.engine.detector_criterion import DetectorLoss
from mlc_yolo.plots.assignments import assignment_figure
from mlc_yolo.priors import Priors

if TYPE_CHECKING:
    from mlc_yolo.engine.model import MLCYOLO


def draw_assignments(
    model: MLCYOLO,
    *,
    data: str | Path | None = None,
    assigner: str | Assigner | Iterable[str | Assigner] = "mlc",
    count: int = 4,
    **kwargs: Any,
) -> list[Path]:
    """Draw, for a few images, the anchors each task trains as positive under two assigners.

    Args:
        model: a detection model; moved to `device` and put in evaluation mode.
        data: the data set; left out, the one the model was trained on, else the demo set.
        assigner: two assigners, by name ("tal,mlc" works too) or as objects; one alone is compared with the model's
            own, which is "tal" for YOLO.
        count: how many images: the first of the split that hold objects.
        **kwargs: upstream's `split` ("val" by default), `imgsz` (the checkpoint's by default, 320 for a model that has
            none), `device`, `project`, `name`, `exist_ok` and the like, and the options of `cfg/mlc.yaml`, which set up
            assigners given by name.

    Returns:
        Paths of the PNG files, one per image, in a run folder of their own.

    Raises:
        ValueError: an unknown assigner (the nearest is named), not two of them, a count below 1, a model of another
            task, data with more classes than the model, a split without objects, or a fused end-to-end model.
        TypeError: an exported model, or an option of the wrong type.
        FileNotFoundError: no such data set or split.
        SyntaxError: an unknown argument.
    """
    model._check_is_pytorch_model()
    if model.task != "detect":
        raise ValueError(f"assignments are those of detection models; '{model.model_name}' is a {model.task} model")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count={count!r} must be a whole number of images, 1 or more")
    ours, stock = options.split(kwargs)
    net = model.model
    kind, own = (net.kind, net.head.own_assigner) if isinstance(net, DetectorModel) else (None, None)
    ours = options.settle({**options.defaults(), **options.check(ours)}, kind)
    pair = [
        (each, build_assigner(each, ours, own=own)) if isinstance(each, str) else (type(each).__name__, each)
        for each in assigner_pair(assigner, own=ours["assigner"])
    ]
    args = get_cfg(DEFAULT_CFG_DICT, {"imgsz": 320, **model.overrides, **stock, "mode": "val", "rect": False})

    net = net.to(select_device(args.device, verbose=False)).float().eval()
    stride = max(int(net.stride.max()), 32)
    args.imgsz = check_imgsz(args.imgsz, stride=stride, max_dim=1)
    found = check_det_dataset(resolve_data(data or model.overrides.get("data")), split=args.split)
    if args.single_cls:
        found["names"], found["nc"] = {0: net.names[0]}, 1
    _check_classes(found, net.names)
    dataset = build_yolo_dataset(args, found[args.split], batch=1, data=found, mode="val", stride=stride)
    chosen = [i for i, label in enumerate(dataset.labels) if len(label["cls"])][:count]
    if not chosen:
        raise ValueError(f"{found['yaml_file']}: no image of '{args.split}' holds an object, so none has positives")

    # Only its geometry and targets are used: which assigner it schedules does not matter.
    tal = TaskAligned()
    build = DetectorLoss if isinstance(net, DetectorModel) else PerTaskLoss
    criterion = build(net, schedule=Schedule(tal, tal, 0), prior_scale=ours["mg_prior_scale"], iou_gain=0.0)
    folder = get_save_dir(args, name=args.name or "assignments")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, index in enumerate(chosen):
        batch = dataset.collate_fn([dataset[index]])
        predictions, priors, targets = _assigner_inputs(net, criterion, batch)
        assignments = [(name, assign(predictions, priors, targets)) for name, assign in pair]
        file = Path(batch["im_file"][0])
        figure = assignment_figure(
            np.ascontiguousarray(batch["img"][0].permute(1, 2, 0).numpy()),
            targets.boxes[0],
            targets.labels[0],
            found["names"],
            priors=priors,
            boxes=predictions.boxes[0],
            assignments=assignments,
            view=_without_padding(batch),
            source=file.name,
        )
        paths.append(folder / f"{number}_{file.stem}.png")
        figure.savefig(paths[-1])
        counts = (
            f"{name} {int(a.classification.positive.sum())} cls, {int(a.localization.positive.sum())} loc"
            for name, a in assignments
        )
        LOGGER.info(f"{paths[-1].name}: {len(targets.labels[0])} objects; positives: {'; '.join(counts)}")
    LOGGER.info(f"Assignments drawn to {colorstr('bold', folder)}")
    return paths


def assigner_pair(given: str | Assigner | Iterable[str | Assigner], *, own: str = "tal") -> list[str | Assigner]:
    """Settle which two assigners are compared.

    Args:
        given: as `draw_assignments` takes them.
        own: name of the model's own assigner.

    Returns:
        Two of them: canonical names, or the objects given.

    Raises:
        ValueError: an unknown name, or not two different assigners.

    Example:
        >>> assigner_pair("mg")
        ['tal', 'mutual_guidance']
    """
    if isinstance(given, str):
        given = [name.strip(" '\"") for name in given.strip("[]() ").split(",")]
    chosen: list[str | Assigner] = [given] if callable(given) else list(given)
    chosen = [options.check({"assigner": each})["assigner"] if isinstance(each, str) else each for each in chosen]
    if len(chosen) == 1:
        chosen = [own, *chosen]
    if len(chosen) != 2 or chosen[0] == chosen[1]:
        named = ",".join(each if isinstance(each, str) else type(each).__name__ for each in chosen)
        raise ValueError(f"assigner={named}: expected two different assigners to compare, such as assigner=tal,mlc")
    return chosen


def _check_classes(data: dict[str, Any], theirs: dict[int, str]) -> None:
    """Refuse labels the model has no score for; warn where the numbers mean other things."""
    if data["nc"] > len(theirs):
        raise ValueError(
            f"{data['yaml_file']} has {data['nc']} classes and the model {len(theirs)}: labels from {len(theirs)} on "
            "have no score. Take a model trained on these classes"
        )
    if other := [label for label, name in data["names"].items() if theirs[label] != name]:
        LOGGER.warning(
            f"the model's classes are not the data's, e.g. {other[0]} is '{theirs[other[0]]}' to the model and "
            f"'{data['names'][other[0]]}' in the data: assigners that use scores see those of the wrong class"
        )


@torch.no_grad()
def _assigner_inputs(
    net: nn.Module, criterion: PerTaskLoss | DetectorLoss, batch: dict[str, Any]
) -> tuple[Predictions, Priors, Targets]:
    """Return what the criterion hands to an assigner, for one image."""
    image = batch["img"].to(next(net.parameters()).device).float() / 255
    _, raw = net(image)
    raw = raw.get("one2many", raw)
    if not raw:
        raise ValueError("the one-to-many branch is gone: the model was fused. Load the checkpoint anew")
    return criterion.assigner_inputs(raw, batch)


def _without_padding(batch: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return where the image lies in its letterboxed square, xyxy px."""
    height, width = batch["ori_shape"][0]
    (scale_y, scale_x), (left, top) = batch["ratio_pad"][0]
    return left, top, left + width * scale_x, top + height * scale_y
