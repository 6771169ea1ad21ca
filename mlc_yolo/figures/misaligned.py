"""Figure 5 of Mutual Guidance: detections of two models, and the candidates of suppression in the same prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from ultralytics.utils import LOGGER
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.patches import imread

from mlc_yolo.data.listing import printable
from mlc_yolo.evaluation.predictor import MLCPredictor
from mlc_yolo.faults import UsageError
from mlc_yolo.figures.assignments import check_classes, check_request, open_split
from mlc_yolo.figures.request import Drawn, Request, name_of, origin
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD, entries
from mlc_yolo.model import MLCYOLO
from mlc_yolo.plots.bands import displayed
from mlc_yolo.plots.misaligned_pairs import ComparedImage, Detected, Total, find_misaligned, misaligned_figure

LEGIBLE = 10  # objects; images of no more are preferred, where the marks do not hide one another
MOST_SEARCHED = 500  # images among which those where two models differ most are looked for
LONGEST = 640  # px, the longer side of a photograph
OVERLAP = 0.5  # of suppression, as in the paper


def draw_misaligned(request: Request) -> Drawn:
    """Draw the images on which two models differ most, and count over all that were searched."""
    other = (
        request.other if isinstance(request.other, MLCYOLO) else MLCYOLO(request.other, trust=request.arguments.trust)
    )
    pair = (request.model, other)
    predict = {"iou": OVERLAP, **request.stock}
    for model in pair:
        check_request(model, request.count)
    split = open_split(request.model, request.data, request.stock, resize=request.option("resize"))
    check_classes(split.data, other.model.names)
    searched = split.with_objects(MOST_SEARCHED)
    labels = [split.dataset.labels[i] for i in searched]
    LOGGER.info(f"Looking for misaligned detections in {len(labels)} images...")
    detected = [_detect(model, labels, {**request.arguments.flat(), **predict}) for model in pair]
    # Objects that one of the models loses and the other does not.
    differ = [len(set(_lost(a)) ^ set(_lost(b))) for a, b in zip(*detected, strict=True)]
    crowded = [len(label["cls"]) > LEGIBLE for label in labels]
    order = sorted(range(len(searched)), key=lambda i: (differ[i] == 0, crowded[i], -differ[i]))
    drawn = order[: request.count]
    flag = split.dataset.cv2_flag
    images = [_compared(labels[i], [per_image[i] for per_image in detected], flag) for i in drawn]
    objects = sum(len(label["cls"]) for label in labels)
    names = _distinct_names(*pair)
    totals = [
        Total(name, sum(len(image.misaligned) for image in per_image), objects)
        for name, per_image in zip(names, detected, strict=True)
    ]
    kind = "" if any(crowded[i] for i in drawn) else f" with up to {LEGIBLE} objects"
    source = (
        f"{len(images)} of {len(searched)} images of '{split.args.split}': those{kind} on which the two differ most"
    )
    figure = misaligned_figure(images, totals, split.names, source=source)
    counts = " and ".join(f"{t.misaligned} of {t.objects} objects by {t.name}" for t in totals)
    description = f"Detections of {names[0]} and {names[1]}; lost to misalignment: {counts}."
    return Drawn(figure, split.args, description)


class _Recorder(MLCPredictor):
    """A predictor that keeps the candidates and the results of suppression."""

    asked: str | None = None  # how images are resized; upstream makes the instance, and of the class alone

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, resize=self.asked, **kwargs)
        self.kept: list[tuple[Any, Tensor]] = []

    def postprocess(self, preds: Any, img: Tensor, orig_imgs: Any, **kwargs: Any) -> list[Any]:
        """Detect as ever, and keep the candidates in px of the original images."""
        if getattr(self.model, "end2end", False):
            raise UsageError(
                "an end-to-end head has no NMS, so no box is lost to suppression: give end2end=False to use its "
                "one-to-many branch"
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


def _detect(model: MLCYOLO, labels: Sequence[dict[str, Any]], predict: dict[str, Any]) -> list[Detected]:
    """Predict on every image, as the model does for its user, and compare with the labels."""
    own = {"project", "name", "exist_ok", "save", "show", "mode"}
    predict = {key: value for key, value in predict.items() if key not in own}
    recorder = type("_ResizingRecorder", (_Recorder,), {"asked": predict.get("resize")})  # predict makes the instance
    model.predictor = None
    detected = []
    for label in labels:
        model.predict(label["im_file"], predictor=recorder, save=False, verbose=False, **predict)
        detections, candidates = model.predictor.kept.pop()
        boxes = _gt_boxes(label)
        classes = torch.from_numpy(label["cls"]).long().flatten()
        lost = find_misaligned(detections, candidates, boxes, classes, iou_threshold=predict["iou"])
        detected.append(Detected(detections, candidates, lost))
    model.predictor = None
    return detected


def _gt_boxes(label: dict[str, Any]) -> Tensor:
    """Return (M, 4) xyxy px of the original image, of upstream's label of one image."""
    height, width = label["shape"]
    boxes: Tensor = xywh2xyxy(torch.from_numpy(label["bboxes"]).float())
    return boxes * torch.tensor([width, height, width, height])


def _lost(detected: Detected) -> list[int]:
    objects: list[int] = detected.misaligned.objects.tolist()
    return objects


def _compared(label: dict[str, Any], detected: Sequence[Detected], flag: int) -> ComparedImage:
    """Return what is drawn of an image, shrunk to at most `LONGEST` px with everything on it.

    Args:
        label: upstream's, of one image.
        detected: what each model detected in it.
        flag: OpenCV's, by which the data set reads its images: three bands come as BGR, more in the file's order.
    """
    height, width = label["shape"]
    scale = min(1.0, LONGEST / max(height, width))
    photo: Any = imread(label["im_file"], flag)
    shown = displayed(photo[..., ::-1] if photo.shape[-1] == 3 else photo)
    size = (round(width * scale), round(height * scale))
    image: Any = cv2.resize(np.ascontiguousarray(shown), size, interpolation=cv2.INTER_AREA)
    smaller = [
        replace(model, detections=_scaled(model.detections, scale), candidates=_scaled(model.candidates, scale))
        for model in detected
    ]
    return ComparedImage(image, _scaled(_gt_boxes(label), scale), smaller, printable(Path(label["im_file"]).name))


def _scaled(rows: Tensor, scale: float) -> Tensor:
    return torch.cat((rows[:, :4] * scale, rows[:, 4:]), 1)


def _distinct_names(model: MLCYOLO, other: MLCYOLO) -> list[str]:
    """Return two models' names: the last parts of their paths that differ."""
    paths = [origin(either).with_suffix("").parts[::-1] for either in (model, other)]
    return next(([a, b] for a, b in zip(*paths, strict=False) if a != b), [name_of(model), name_of(other)])
