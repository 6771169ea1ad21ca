"""Objects on their photographs: objects whose better box lost in NMS, and objects with a badly placed box."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mlc_yolo.evaluation.diagnosis import Diagnosis
from mlc_yolo.metrics.oracles import Fault
from mlc_yolo.metrics.reach import IOU, SCORE
from mlc_yolo.report.photographs import box_markup, caption_markup, photograph_of

MOST = 6
#: A better candidate is shown where it reaches this IoU and the kept box sits worse by this much.
GOOD_IOU, GAP = 0.6, 0.05
#: Of an object's surroundings, in multiples of its longer side; at least so many px.
AROUND, LEAST = 2.2, 64


@dataclass(frozen=True)
class Example:
    """One object on its photograph.

    Attributes:
        image: the part of the photograph around it, as a data URI.
        alt: what is to be seen, in words.
        overlay: boxes and captions, as SVG.
        caption: what is below it.
        tall: whether it is higher than wide.
    """

    image: str
    alt: str
    overlay: Markup
    caption: str
    tall: bool


class _Box(NamedTuple):
    """A box to draw: (4,) the upright one around it, and an oriented one as it lies, (5,)."""

    upright: NDArray[np.float32]
    turned: NDArray[np.float32] | None

    def drawn(self, corner: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is drawn, seen from the upper left corner (2,) of what is shown."""
        if self.turned is None:
            return self.upright - np.tile(corner, 2)
        return np.concatenate((self.turned[:2] - corner, self.turned[2:]))


def misranked(diagnosis: Diagnosis, *, count: int = MOST) -> list[Example]:
    """Return the objects whose kept box sits worst against the best candidate that lost, the largest gap first."""
    candidates = diagnosis.seen.candidates
    if candidates is None:
        return []
    kept, iou = _kept(diagnosis)
    gap = np.where(kept >= 0, candidates[:, IOU] - iou, 0.0)
    gap[candidates[:, IOU] < GOOD_IOU] = 0.0
    examples: list[Example | None] = []
    for row in np.argsort(-gap, kind="stable"):
        if len(examples) == count or gap[row] < GAP:
            break
        detection = diagnosis.oracles.rows[kept[row]]
        score = float(diagnosis.seen.records.scores[detection])
        boxes = [
            (_detection(diagnosis, detection), f"kept {iou[row]:.2f}", "wrong"),
            (
                _Box(candidates[row, :4], _turned(diagnosis, "candidates", row)),
                f"lost {candidates[row, IOU]:.2f}",
                "correct",
            ),
        ]
        caption = (
            f"kept: IoU {iou[row]:.2f}, score {score:.2f}; lost: IoU {candidates[row, IOU]:.2f}, "
            f"score {candidates[row, SCORE]:.2f}"
        )
        examples.append(_example(diagnosis, int(row), boxes, caption))
    return [example for example in examples if example]


def misplaced(diagnosis: Diagnosis, *, count: int = MOST) -> list[Example]:
    """Return the best-scored detections of the right class whose IoU with their object is below 0.5."""
    kind, target = diagnosis.oracles.faults()
    own_iou = diagnosis.oracles.overlaps[0][1]
    scores = diagnosis.seen.records.scores[diagnosis.oracles.rows]
    rows = np.flatnonzero(kind == Fault.LOCALIZATION.value)
    examples: list[Example | None] = []
    shown: set[int] = set()
    for row in rows[np.argsort(-scores[rows], kind="stable")]:
        if len(examples) == count:
            break
        if int(target[row]) not in shown:
            shown.add(int(target[row]))
            box = _detection(diagnosis, diagnosis.oracles.rows[row])
            said = f"IoU {own_iou[row]:.2f}, score {scores[row]:.2f}"
            examples.append(_example(diagnosis, int(target[row]), [(box, f"{own_iou[row]:.2f}", "wrong")], said))
    return [example for example in examples if example]


def _kept(diagnosis: Diagnosis) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (G,) the detection that took each object at IoU 0.5, or -1, and its IoU, or 0."""
    taken, iou = diagnosis.oracles.taken[:, 0], diagnosis.oracles.overlaps[0][1]
    takers = np.flatnonzero(taken >= 0)
    kept, kept_iou = np.full(len(diagnosis.seen.sides), -1), np.zeros(len(diagnosis.seen.sides))
    kept[taken[takers]], kept_iou[taken[takers]] = takers, iou[takers]
    return kept, kept_iou


def _turned(diagnosis: Diagnosis, part: str, row: int) -> NDArray[np.float32] | None:
    """Return an oriented box as it lies, (5,); None of other tasks."""
    turned = diagnosis.seen.turned
    return None if turned is None else getattr(turned, part)[row]


def _detection(diagnosis: Diagnosis, row: int) -> _Box:
    return _Box(diagnosis.seen.records.boxes[row], _turned(diagnosis, "detections", row))


def _example(diagnosis: Diagnosis, row: int, boxes: list[tuple[_Box, str, str]], caption: str) -> Example | None:
    """Return an object with boxes and their captions and classes; None where the photograph is gone."""
    records = diagnosis.seen.records
    image = int(records.gt_image[row])
    path, (height, width) = records.images[image], (int(v) for v in records.sizes[image])
    gt_box = _Box(records.gt_boxes[row], _turned(diagnosis, "objects", row))
    region = _around(gt_box.upright, width, height)
    photograph = photograph_of(path, region)
    if not photograph:
        return None
    corner = np.array(region[:2], dtype=np.float32)
    across, down = region[2] - region[0], region[3] - region[1]
    size = across / 18
    drawn = [
        box_markup(box.drawn(corner), style) for box, style in ((gt_box, "object"), *((b, s) for b, _, s in boxes))
    ]
    texts = caption_markup(
        [(box.upright - np.tile(corner, 2), text, style) for box, text, style in boxes], across, size
    )
    parts = [*drawn, Markup(f'<g font-size="{size:.1f}">'), *texts, Markup("</g>")]
    overlay = Markup(f'<svg viewBox="0 0 {across} {down}" aria-hidden="true">{Markup("").join(parts)}</svg>')
    name = records.names.get(int(records.gt_labels[row]), "")
    description = f"{name} in {Path(path).name}: {caption}"
    return Example(photograph, description, overlay, description, down > across)


def _around(box: NDArray[np.float32], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the part of an image around a box, within the image."""
    side = max(LEAST, AROUND * float(max(box[2] - box[0], box[3] - box[1])))
    centre = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
    low = [max(0, int(value - side / 2)) for value in centre]
    high = [min(limit, int(np.ceil(value + side / 2))) for value, limit in zip(centre, (width, height), strict=True)]
    return low[0], low[1], max(high[0], low[0] + 1), max(high[1], low[1] + 1)
