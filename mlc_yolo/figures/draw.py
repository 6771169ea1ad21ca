"""Figures 3, 4 and 5 of Mutual Guidance (Zhang et al., ACCV 2020), from any model and data set.

"amplification" is figure 3, "guidance" figure 4, "misaligned" figure 5; what each shows is told in `plots`. What is
drawn comes from where it is used: scores and boxes as the assigner sees them in training, detections and what went into
suppression from one and the same prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg, get_save_dir
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.patches import imread

from mlc_yolo.assigners import MutualGuidance
from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.evaluation.predictor import MLCPredictor
from mlc_yolo.figures.assignments import check_classes, check_count, check_request, open_split, scenes
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD, entries
from mlc_yolo.model import MLCYOLO
from mlc_yolo.options import specification as options
from mlc_yolo.plots.amplified_iou import Pairs, amplification_figure
from mlc_yolo.plots.guidance_stages import GuidedImage, guidance_figure
from mlc_yolo.plots.misaligned_pairs import ComparedImage, Found, Total, find_misaligned, misaligned_figure

CROWD = 3  # objects; images of more are drawn only where there are not enough of fewer
LEGIBLE = 10  # objects; figure 5 prefers images of no more, where the marks do not hide one another
MOST_SEARCHED = 500  # images among which those where two models differ most are looked for
LONGEST = 640  # px, the longer side of a photograph in a figure
OVERLAP = 0.5  # of suppression in figure 5, as in the paper


def draw_figure(
    kind: str,
    model: MLCYOLO | None = None,
    *,
    other: MLCYOLO | str | Path | None = None,
    data: str | Path | None = None,
    count: int = 4,
    **kwargs: Any,
) -> list[Path]:
    """Draw one of the paper's figures.

    Args:
        kind: "amplification" (figure 3), "guidance" (figure 4) or "misaligned" (figure 5).
        model: a detection model; "amplification" does without, and with one shows its own pairs beside the curves.
        other: the model to compare with, for "misaligned": a model, or what `MLCYOLO` loads.
        data: the data set; left out, the one the model was trained on, else the demo set.
        count: how many images. "guidance" and "amplification" take the first of the split, those of few objects before
            others; "misaligned" takes, from the first 500, those where most objects are lost by one of the two models
            alone, images of up to ten objects before others.
        **kwargs: upstream's `split` ("val" by default), `imgsz`, `device`, `project`, `name`, `exist_ok` and the like,
            for "misaligned" also those of predict (`conf`, 0.25 by default, and `iou`, 0.5); and the options of
            `cfg/mlc.yaml`, of which `mg_sigma` and `mg_prior_scale` act here, `resize` too, and `rescore` and `nms` in
            "misaligned".

    Returns:
        Paths of the PNG and the SVG file, in a run folder of their own.

    Raises:
        ValueError: an unknown kind (the nearest is named), a model that is missing or not asked for, a count below 1, a
            model of another task, data with more classes than a model, a split without objects, or end-to-end
            detections, which know no suppression.
        TypeError: an exported model, or an option of the wrong type.
        FileNotFoundError: no such model, data set or split.
        SyntaxError: an unknown argument.
    """
    if kind not in _KINDS:
        near = get_close_matches(str(kind), _KINDS, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"kind={kind!r} must be one of {', '.join(_KINDS)}.{hint}")
    if model is None and (kind != "amplification" or data is not None):
        raise ValueError(f"kind={kind} draws what a model predicts on data: give model=... too")
    if (other is not None) != (kind == "misaligned"):
        needs = "compares two models: give other=... too" if other is None else "is of one model: leave out other"
        raise ValueError(f"kind={kind} {needs}")
    check_count(count)
    ours, stock = options.split(kwargs)
    request = _Request(model, other, data, count, options.check(ours), stock)
    figure, args, told = _KINDS[kind](request)
    return _save(figure, get_save_dir(args, name=args.name or kind), kind, told)


@dataclass(frozen=True)
class _Request:
    model: Any
    other: Any
    data: str | Path | None
    count: int
    ours: dict[str, Any]
    stock: dict[str, Any]

    def option(self, name: str) -> Any:
        """Return one of our options: as given, else its default."""
        return self.ours.get(name, options.defaults()[name])


def _draw_amplification(request: _Request) -> tuple[Figure, Any, str]:
    guidance = MutualGuidance(sigma=request.option("mg_sigma"))  # refuses a sigma without meaning
    told = "Curves of amplified IoU over IoU, one per class score, for four values of sigma"
    if request.model is None:
        args = get_cfg(DEFAULT_CFG_DICT, {**request.stock, "mode": "val"})
        return amplification_figure(), args, f"{told}."
    check_request(request.model, request.count)
    split = open_split(request.model, request.data, request.stock, resize=request.option("resize"))
    chosen = split.with_objects(request.count, crowd=CROWD)
    ious, scores = [torch.zeros(0)], [torch.zeros(0)]
    for scene in scenes(request.model.model, split, chosen, prior_scale=request.option("mg_prior_scale")):
        iou = pairwise_iou(scene.targets.boxes[0], scene.priors.boxes)
        near = iou > 0
        ious.append(iou[near].cpu())
        scores.append(scene.predictions.scores[0].T[scene.targets.labels[0]][near].cpu())
    source = f"{_name(request.model)} on {len(chosen)} image{'s' * (len(chosen) != 1)}"
    pairs = Pairs(torch.cat(ious), torch.cat(scores), guidance.sigma, source)
    return amplification_figure(pairs), split.args, f"{told}, and {len(pairs.ious)} pairs of {source}."


def _draw_guidance(request: _Request) -> tuple[Figure, Any, str]:
    sigma = request.option("mg_sigma")
    guided, static = MutualGuidance(sigma=sigma), MutualGuidance(sigma=sigma, tasks="c2l")
    check_request(request.model, request.count)
    split = open_split(request.model, request.data, request.stock, resize=request.option("resize"))
    chosen = split.with_objects(request.count, crowd=CROWD)
    images = []
    for scene in scenes(request.model.model, split, chosen, prior_scale=request.option("mg_prior_scale")):
        inputs = (scene.predictions, scene.priors, scene.targets)
        both = guided(*inputs)
        images.append(
            GuidedImage(
                scene.image,
                scene.view,
                scene.targets.boxes[0],
                scene.priors.boxes,
                static=static(*inputs).classification.positive[0],
                l2c=both.classification.positive[0],
                c2l=both.localization.positive[0],
                source=scene.file.name,
            )
        )
    source = f"predictions of {_name(request.model)}"
    figure = guidance_figure(images, source=f"{source}  ·  prior boxes  ·  σ = {sigma:g}")
    files = ", ".join(each.source for each in images)
    return figure, split.args, f"Positive priors under static IoU, L2C and C2L by {source}, on {files}."


def _draw_misaligned(request: _Request) -> tuple[Figure, Any, str]:
    other = request.other if isinstance(request.other, MLCYOLO) else MLCYOLO(request.other)
    pair = (request.model, other)
    predict = {"iou": OVERLAP, **request.stock}
    for each in pair:
        check_request(each, request.count)
    split = open_split(request.model, request.data, request.stock, resize=request.option("resize"))
    check_classes(split.data, other.model.names)
    searched = split.with_objects(MOST_SEARCHED)
    labels = [split.dataset.labels[i] for i in searched]
    LOGGER.info(f"Looking for misaligned detections in {len(labels)} images...")
    found = [_find(each, labels, {**predict, **request.ours}) for each in pair]
    # Objects that one of the models loses and the other does not.
    differ = [len(set(_lost(a)) ^ set(_lost(b))) for a, b in zip(*found, strict=True)]
    crowded = [len(label["cls"]) > LEGIBLE for label in labels]
    order = sorted(range(len(searched)), key=lambda i: (differ[i] == 0, crowded[i], -differ[i]))
    drawn = order[: request.count]
    images = [_compared(labels[i], [each[i] for each in found]) for i in drawn]
    objects = sum(len(label["cls"]) for label in labels)
    names = _told_apart(*pair)
    totals = [
        Total(name, sum(len(f.misaligned) for f in each), objects) for name, each in zip(names, found, strict=True)
    ]
    kind = "" if any(crowded[i] for i in drawn) else f" with up to {LEGIBLE} objects"
    source = (
        f"{len(images)} of {len(searched)} images of '{split.args.split}': those{kind} on which the two differ most"
    )
    figure = misaligned_figure(images, totals, split.names, source=source)
    counts = " and ".join(f"{t.misaligned} of {t.objects} objects by {t.name}" for t in totals)
    return figure, split.args, f"Detections of {names[0]} and {names[1]}; lost to misalignment: {counts}."


_KINDS: dict[str, Callable[[_Request], tuple[Figure, Any, str]]] = {
    "amplification": _draw_amplification,
    "guidance": _draw_guidance,
    "misaligned": _draw_misaligned,
}


class _Recorder(MLCPredictor):
    """The predictor, which keeps what went into suppression and what came out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: list[tuple[Any, Tensor]] = []

    def postprocess(self, preds: Any, img: Tensor, orig_imgs: Any, **kwargs: Any) -> list[Any]:
        """Detect as ever, and keep the candidates in px of the original images."""
        if getattr(self.model, "end2end", False):
            raise ValueError(
                "an end-to-end head suppresses nothing, so that no box can be lost to suppression: end2end=False "
                "judges its one-to-many branch"
            )
        dense = preds[0] if isinstance(preds, list | tuple) else preds
        classes = len(self.model.names)
        threshold = min(SCORE_THRESHOLD, self.args.conf)
        # Before suppression, which turns its input's boxes round in place.
        candidates = [
            entries(xywh2xyxy(image[:, :4]), image[:, 4 : 4 + classes], threshold=threshold)
            for image in dense.float().transpose(1, 2).clone()
        ]
        results: list[Any] = super().postprocess(preds, img, orig_imgs, **kwargs)
        for rows, result in zip(candidates, results, strict=True):
            placed = self.construct_result(rows, img, result.orig_img, result.path)
            self.kept.append((result.boxes.data.cpu(), placed.boxes.data.cpu()))
        return results


def _find(model: MLCYOLO, labels: Sequence[dict[str, Any]], predict: dict[str, Any]) -> list[Found]:
    """Predict on every image, as the model does for its user, and compare with the labels."""
    own = {"project", "name", "exist_ok", "save", "show", "mode"}
    predict = {key: value for key, value in predict.items() if key not in own}
    recorder = type("_ResizingRecorder", (_Recorder,), {"resize": predict.get("resize")})  # predict makes the instance
    model.predictor = None
    found = []
    for label in labels:
        model.predict(label["im_file"], predictor=recorder, save=False, verbose=False, **predict)
        detections, candidates = model.predictor.kept.pop()
        boxes = _gt_boxes(label)
        classes = torch.from_numpy(label["cls"]).long().flatten()
        lost = find_misaligned(detections, candidates, boxes, classes, iou_threshold=predict["iou"])
        found.append(Found(detections, candidates, lost))
    model.predictor = None
    return found


def _gt_boxes(label: dict[str, Any]) -> Tensor:
    """Return (M, 4) xyxy px of the original image, of upstream's label of one image."""
    height, width = label["shape"]
    boxes: Tensor = xywh2xyxy(torch.from_numpy(label["bboxes"]).float())
    return boxes * torch.tensor([width, height, width, height])


def _lost(found: Found) -> list[int]:
    objects: list[int] = found.misaligned.objects.tolist()
    return objects


def _compared(label: dict[str, Any], found: Sequence[Found]) -> ComparedImage:
    """Return what is drawn of an image, shrunk to at most `LONGEST` px with everything on it."""
    height, width = label["shape"]
    scale = min(1.0, LONGEST / max(height, width))
    photo: NDArray[np.uint8] = imread(label["im_file"])[..., ::-1]
    size = (round(width * scale), round(height * scale))
    image: Any = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    smaller = [
        replace(each, detections=_scaled(each.detections, scale), candidates=_scaled(each.candidates, scale))
        for each in found
    ]
    return ComparedImage(image, _scaled(_gt_boxes(label), scale), smaller, Path(label["im_file"]).name)


def _scaled(rows: Tensor, scale: float) -> Tensor:
    return torch.cat((rows[:, :4] * scale, rows[:, 4:]), 1)


def _origin(model: MLCYOLO) -> Path:
    """Return where a model comes from."""
    return Path(str(model.ckpt_path or model.model_name or model.overrides.get("model", "model")))


def _name(model: MLCYOLO) -> str:
    """Return what a reader knows a model by: "best.pt" says nothing, its run does."""
    path = _origin(model)
    return path.parent.parent.name if path.parent.name == "weights" else path.stem


def _told_apart(model: MLCYOLO, other: MLCYOLO) -> list[str]:
    """Return two models' names: the last parts of their paths that differ."""
    paths = [_origin(each).with_suffix("").parts[::-1] for each in (model, other)]
    return next(([a, b] for a, b in zip(*paths, strict=False) if a != b), [_name(model), _name(other)])


def _save(figure: Figure, folder: Path, kind: str, told: str) -> list[Path]:
    """Write a figure as PNG and SVG, its text as text, with a description for those who cannot see it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}.png", folder / f"{kind}.svg"]
    headline = figure.texts[0].get_text()
    metadata: dict[str, Any] = {"Title": headline, "Description": told}
    figure.savefig(paths[0], metadata=metadata)
    # The same command writes the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": kind}):
        figure.savefig(paths[1], metadata={**metadata, "Date": None})
    LOGGER.info(f"{told}\nFigure drawn to {colorstr('bold', folder)}")
    return paths
