"""Draw assignments: a model's predictions on a data set's images, assigned by two assigners.

1. The first images that hold objects come from Ultralytics' data set, resized as in the model's validation, without
augmentation. 2. The model, in evaluation mode, gives the raw outputs its criterion would see; of an end-to-end head,
the one-to-many branch. 3. Both assigners decide on the same predictions. 4. `plots.assignments` draws them side by
side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg, get_save_dir
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import select_device

from mlc_yolo.assigners import Assigner, Predictions, Schedule, Targets, TaskAligned, build_assigner
from mlc_yolo.checkpoints.marker import wants_warp
from mlc_yolo.data.class_names import warn_of_other_names
from mlc_yolo.data.datasets import build
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.data.listing import printable
from mlc_yolo.data.resolve import open_data
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.faults import UsageError, begin_work
from mlc_yolo.model import MLCYOLO
from mlc_yolo.options import specification as options
from mlc_yolo.options.arguments import Arguments
from mlc_yolo.plots.positives import assignment_figure
from mlc_yolo.priors import Priors
from mlc_yolo.training.detector_criterion import DetectorLoss
from mlc_yolo.training.yolo_criterion import PerTaskLoss


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
    check_request(model, count)
    arguments = Arguments.of(kwargs)
    net = model.model
    kind, own = (net.kind, net.head.own_assigner) if isinstance(net, DetectorModel) else (None, None)
    ours = arguments.for_model(kind).ours
    pair = [
        (choice, build_assigner(choice, ours, own=own)) if isinstance(choice, str) else (type(choice).__name__, choice)
        for choice in assigner_pair(assigner, own=ours["assigner"])
    ]
    split = open_split(model, data, arguments.stock, resize=ours["resize"])
    chosen = split.with_objects(count)

    folder = get_save_dir(split.args, name=split.args.name or "assignments")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, scene in enumerate(scenes(net, split, chosen, prior_scale=ours["prior_scale"])):
        predictions, priors, targets = scene.predictions, scene.priors, scene.targets
        assignments = [(name, assign(predictions, priors, targets)) for name, assign in pair]
        figure = assignment_figure(
            scene.image,
            targets.boxes[0],
            targets.labels[0],
            split.names,
            priors=priors,
            boxes=predictions.boxes[0],
            assignments=assignments,
            view=scene.view,
            source=printable(scene.file.name),
        )
        paths.append(folder / f"{number}_{scene.file.stem}.png")
        figure.savefig(paths[-1])
        counts = (
            f"{name} {int(a.classification.positive.sum())} cls, {int(a.localization.positive.sum())} loc"
            for name, a in assignments
        )
        LOGGER.info(f"{printable(paths[-1].name)}: {len(targets.labels[0])} objects; positives: {'; '.join(counts)}")
    LOGGER.info(f"Assignments drawn to {colorstr('bold', folder)}")
    return paths


def assigner_pair(asked: str | Assigner | Iterable[str | Assigner], *, own: str = "tal") -> list[str | Assigner]:
    """Settle which two assigners are compared.

    Args:
        asked: as `draw_assignments` takes them.
        own: name of the model's own assigner.

    Returns:
        Two of them: canonical names, or the objects given.

    Raises:
        ValueError: an unknown name, or not two different assigners.

    Example:
        >>> assigner_pair("mg")
        ['tal', 'mutual_guidance']
    """
    if isinstance(asked, str):
        asked = [name.strip(" '\"") for name in asked.strip("[]() ").split(",")]
    chosen: list[str | Assigner] = [asked] if callable(asked) else list(asked)
    chosen = [
        options.validated({"assigner": choice})["assigner"] if isinstance(choice, str) else choice for choice in chosen
    ]
    if len(chosen) == 1:
        chosen = [own, *chosen]
    if len(chosen) != 2 or chosen[0] == chosen[1]:
        named = ",".join(choice if isinstance(choice, str) else type(choice).__name__ for choice in chosen)
        raise ValueError(f"assigner={named}: expected two different assigners to compare, such as assigner=tal,mlc")
    return chosen


def check_request(model: MLCYOLO, count: int) -> None:
    """Refuse a model or a count that cannot be drawn.

    Raises:
        ValueError: a model of another task, or a count below 1.
        TypeError: an exported model.
    """
    model._check_is_pytorch_model()
    if model.task != "detect":
        raise ValueError(f"expected a detection model; '{model.model_name}' is a {model.task} model")
    check_count(count)


def check_count(count: int) -> None:
    """Refuse a count that is no whole number of images, 1 or more."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count={count!r} must be a whole number of images, 1 or more")


@dataclass(frozen=True)
class Split:
    """A split of a data set, opened for one model.

    Attributes:
        args: upstream's arguments, checked.
        data: upstream's description of the data set.
        dataset: upstream's data set of the split: letterboxed, or warped for a model that is; not augmented.
    """

    args: Any
    data: dict[str, Any]
    dataset: Any

    @property
    def names(self) -> dict[int, str]:
        """Class names by label."""
        names: dict[int, str] = self.data["names"]
        return names

    def with_objects(self, count: int | None = None, *, crowd: float = math.inf) -> list[int]:
        """Return which images hold objects, in order, those of more than `crowd` objects after the others.

        Args:
            count: how many images, from the first; all when left out.
            crowd: a number of objects.

        Returns:
            One index or more into the data set.

        Raises:
            ValueError: no image holds an object.
        """
        sizes = [len(label["cls"]) for label in self.dataset.labels]
        chosen = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: max(sizes[i], crowd))
        if not chosen:
            missing = f"no image of '{self.args.split}' holds an object, so none has positives"
            raise ValueError(f"{self.data['yaml_file']}: {missing}")
        return chosen[:count]


def open_split(
    model: MLCYOLO, data: str | Path | None, stock: Mapping[str, Any], *, resize: str | None = None
) -> Split:
    """Open the split a picture shall be of; the model goes to its device and into evaluation mode.

    Args:
        model: a detection model.
        data: as `draw_assignments` takes it.
        stock: upstream's arguments.
        resize: as the option of that name; left out, as in the checkpoint.

    Returns:
        The split.

    Raises:
        ValueError: data with more classes than the model.
        FileNotFoundError: no such data set or split.
        SyntaxError: an unknown argument.
    """
    args = get_cfg(DEFAULT_CFG_DICT, {"imgsz": 320, **model.overrides, **stock, "mode": "val", "rect": False})
    net = model.model
    net.to(select_device(args.device, verbose=False)).float().eval()
    stride = max(int(net.stride.max()), 32)
    args.imgsz = check_imgsz(args.imgsz, stride=stride, max_dim=1)
    provide_fonts()
    description = open_data(data or model.overrides.get("data"), split=args.split, fraction=args.fraction)
    if args.single_cls:
        description["names"], description["nc"] = {0: net.names[0]}, 1
    check_classes(description, net.names)
    source, warp = description[args.split], wants_warp(resize, net)
    dataset = build(source, args, warp=warp, data=description, batch=1, mode="val", stride=stride)
    return Split(args, description, dataset)


@dataclass(frozen=True)
class Scene:
    """One image as an assigner sees it in training.

    Attributes:
        image: (H, W, C) uint8, RGB where C is 3, at the input size.
        view: where the image lies in it, xyxy px.
        file: where it comes from.
        predictions: the model's, B = 1.
        priors: its A anchors.
        targets: the image's objects, B = 1.
    """

    image: NDArray[np.uint8]
    view: tuple[float, float, float, float]
    file: Path
    predictions: Predictions
    priors: Priors
    targets: Targets


def scenes(net: nn.Module, split: Split, chosen: Iterable[int], *, prior_scale: float) -> Iterator[Scene]:
    """Yield images of a split with the inputs that the model's criterion passes to an assigner.

    Args:
        net: the model that `split` was opened for.
        split: an opened split.
        chosen: which images.
        prior_scale: side of the square priors of point-based heads, in strides.

    Raises:
        ValueError: a fused end-to-end model.
    """
    # Only its geometry and targets are used: which assigner it schedules does not matter.
    tal = TaskAligned()
    loss: Any = DetectorLoss if isinstance(net, DetectorModel) else PerTaskLoss
    criterion = loss(net, schedule=Schedule(tal, tal, 0), prior_scale=prior_scale, iou_gain=0.0)
    begin_work()
    for index in chosen:
        batch = split.dataset.collate_fn([split.dataset[index]])
        yield Scene(
            np.ascontiguousarray(batch["img"][0].permute(1, 2, 0).numpy()),
            _without_padding(batch),
            Path(batch["im_file"][0]),
            *_assigner_inputs(net, criterion, batch),
        )


def check_classes(data: dict[str, Any], theirs: dict[int, str]) -> None:
    """Refuse labels the model has no score for; warn where the numbers mean other things."""
    if data["nc"] > len(theirs):
        raise ValueError(
            f"{data['yaml_file']} has {data['nc']} classes and the model {len(theirs)}: labels from {len(theirs)} on "
            "have no score. Use a model trained on these classes"
        )
    warn_of_other_names(data["names"], theirs, "Assigners that use scores see those of the wrong class")


@torch.no_grad()
def _assigner_inputs(
    net: nn.Module, criterion: PerTaskLoss | DetectorLoss, batch: dict[str, Any]
) -> tuple[Predictions, Priors, Targets]:
    """Return the inputs that the criterion passes to an assigner, for one image."""
    image = batch["img"].to(next(net.parameters()).device).float() / 255
    _, raw = net(image)
    raw = raw.get("one2many", raw)
    if not raw:
        raise UsageError("the model was fused, which removed its one-to-many branch: load the checkpoint again")
    return criterion.assigner_inputs(raw, batch)


def _without_padding(batch: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return where the image lies in its letterboxed square, xyxy px."""
    height, width = batch["ori_shape"][0]
    (scale_y, scale_x), (left, top) = batch["ratio_pad"][0]
    return left, top, left + width * scale_x, top + height * scale_y
