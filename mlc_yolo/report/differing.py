"""The images on which two variants differ most, with the detections of both drawn on the photograph.

An image's *quality* is twice the sum of the IoU of its correct detections, divided by its detections plus its objects:
1 where every object has one detection that fits it exactly, less for boxes that sit badly, for missed objects and for
false detections. (Panoptic quality, Kirillov et al., CVPR 2019, eq. 1, of boxes and without regard to class sizes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mlc_yolo.metrics.errors import NO_OBJECT, ImageErrors, Kind
from mlc_yolo.metrics.records import Records
from mlc_yolo.report.photographs import box_markup, caption_markup, photograph_of

#: Words for a detection's error, and for an object's.
WORDS = {
    Kind.LOCALIZATION: "badly placed",
    Kind.CLASS: "wrong class",
    Kind.BOTH: "wrong class, badly placed",
    Kind.DUPLICATE: "duplicate",
    Kind.BACKGROUND: "nothing there",
    Kind.MISSED: "missed",
}


@dataclass(frozen=True)
class Judged:
    """One run: what it found, and the verdict on each image."""

    records: Records
    images: Sequence[ImageErrors]


@dataclass(frozen=True)
class Panel:
    """One photograph with what one run found on it.

    Attributes:
        image: the photograph, as a data URI.
        alt: what is to be seen, in words.
        overlay: boxes and captions, as SVG in px of the original image.
        caption: what is below it.
        quality: of the image, in [0, 1].
        tall: whether it is higher than wide.
    """

    image: str
    alt: str
    overlay: Markup
    caption: str
    quality: float
    tall: bool


@dataclass(frozen=True)
class Differing:
    """An image on which two variants differ.

    Attributes:
        file: the image's name.
        difference: the other's quality minus the baseline's, averaged over pairs of runs.
        panels: of the baseline and of the other, of the pair of runs whose difference is nearest to the average.
    """

    file: str
    difference: float
    panels: tuple[Panel, Panel]


def quality(image: ImageErrors) -> float:
    """Return the image's quality, in [0, 1]; 1 where there is nothing to be found and nothing was."""
    total = len(image.detections) + len(image.objects)
    return 2 * float(image.iou.sum()) / total if total else 1.0


def differences(baseline: Sequence[Judged], other: Sequence[Judged]) -> NDArray[np.float64]:
    """Return the other's quality minus the baseline's, (pairs, images), of runs in pairs over the same images."""
    pairs = [
        [quality(b) - quality(a) for a, b in zip(first.images, second.images, strict=True)]
        for first, second in zip(baseline, other, strict=True)
    ]
    return np.array(pairs, dtype=np.float64).reshape(len(pairs), -1)


def most_differing(
    baseline: Sequence[Judged], other: Sequence[Judged], names: tuple[str, str], *, count: int
) -> tuple[list[Differing], list[Differing]]:
    """Return the images on which two variants differ most: those where the other is better, and where it is worse.

    Args:
        baseline: its runs.
        other: its runs, each over the same images as the baseline's run in the same place.
        names: of the baseline and of the other.
        count: how many of each at most, the largest difference first. Images that can no longer be read are passed
            over, as those without a difference are.

    Returns:
        Both lists.
    """
    by_pair = differences(baseline, other)
    mean = by_pair.mean(0)
    lists = []
    for sign in (1, -1):
        chosen: list[Differing] = []
        for i in np.argsort(-sign * mean, kind="stable"):
            if len(chosen) == count or sign * mean[i] <= 0:
                break
            path = baseline[0].records.images[i]
            photograph = photograph_of(path)
            if photograph:
                pair = int(np.abs(by_pair[:, i] - mean[i]).argmin())
                panels = [
                    _panel(runs[pair], int(i), name, photograph)
                    for runs, name in zip((baseline, other), names, strict=True)
                ]
                chosen.append(Differing(Path(path).name, float(mean[i]), (panels[0], panels[1])))
        lists.append(chosen)
    return lists[0], lists[1]


def _panel(run: Judged, i: int, name: str, photograph: str) -> Panel:
    """Return what one run found on image `i`."""
    records, image = run.records, run.images[i]
    height, width = (int(v) for v in records.sizes[i])
    correct = int((image.kind == Kind.CORRECT).sum())
    wrong = len(image.kind) - correct
    boxes, captions = [], []
    for row, missed in zip(image.objects, image.missed, strict=True):
        box, kind = records.gt_boxes[row], "missed" if missed else "object"
        boxes.append(box_markup(box, kind))
        if missed:
            captions.append((box, _name(records, records.gt_labels[row]), kind))
    for row, kind, taken, iou in zip(image.detections, image.kind, image.taken, image.iou, strict=True):
        box = records.boxes[row]
        if taken != NO_OBJECT:
            boxes.append(box_markup(box, "correct"))
            captions.append((box, f"{iou:.2f}", "correct"))
        else:
            boxes.append(box_markup(box, "wrong"))
            error = "" if kind == Kind.BACKGROUND else f": {WORDS[Kind(kind)]}"  # the photograph shows that
            captions.insert(0, (box, _name(records, records.labels[row]) + error, "wrong"))
    size = width / (26 if height > width else 32)  # the page shows tall photographs smaller
    parts = [*boxes, Markup(f'<g font-size="{size:.1f}">'), *caption_markup(captions, width, size), Markup("</g>")]
    overlay = Markup(f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{Markup("").join(parts)}</svg>')
    value = quality(image)
    errors = [
        f"{count} {WORDS[kind]}"
        for kind in WORDS
        if (count := int(image.missed.sum()) if kind == Kind.MISSED else int((image.kind == kind).sum()))
    ]
    summary = f"{correct} of {len(image.objects)} objects found"
    if correct:
        summary += f" with a mean IoU of {image.iou.sum() / correct:.2f}"
    caption = "; ".join([summary, f"{wrong} false detection{'s' * (wrong != 1)}" if wrong else "no false detection"])
    alt = f"{Path(records.images[i]).name} with the boxes of {name}: {', '.join([summary, *errors])}."
    return Panel(photograph, alt, overlay, f"{caption}; quality {value:.2f}", value, height > width)


def _name(records: Records, label: int) -> str:
    return records.names.get(int(label), f"class {label}")
