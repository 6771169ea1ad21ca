"""Detections of two models side by side, the misaligned ones marked.

After figure 5 of Mutual Guidance (Zhang et al., ACCV 2020). Section 3.3 calls a prediction misaligned that is good at
classification and poor at localisation, and blames suppression, which keeps the highest score, for preferring it to
better-placed boxes, at the cost of AP75. The paper marks them by eye; `find_misaligned` says what we count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.plots.guidance_stages import draw_objects, headline, legend, rectangle, rows_of_panels, show_image
from mlc_yolo.plots.positives import GREY

STRICT_IOU = 0.75  # of AP75, which misaligned detections cost most
DETECTION, WARNING, BETTER = "#56b4e9", "#ff5a36", "#ffe03a"
PANEL = 4.4  # in, the longer side of one panel


@dataclass(frozen=True)
class Misaligned:
    """The objects a model lost to misalignment, n of them.

    Attributes:
        objects: (n,) int64, which object.
        kept: (n,) int64, the misaligned detection.
        better: (n,) int64, the box suppressed for it.
        kept_ious: (n,) IoU of the detection with the object.
        better_ious: (n,) IoU of the suppressed box with the object.
    """

    objects: Tensor
    kept: Tensor
    better: Tensor
    kept_ious: Tensor
    better_ious: Tensor

    def __len__(self) -> int:
        """Return n."""
        return len(self.objects)


def find_misaligned(
    detections: Tensor,
    candidates: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    *,
    iou_threshold: float = 0.5,
    strict_iou: float = STRICT_IOU,
) -> Misaligned:
    """Find the detections that non-maximum suppression kept in place of a better-placed box.

    For each object: 1. Of the detections of its class, take the one that overlaps it most. It is of the right class,
    and must overlap no other object of that class more. 2. Its IoU with the object is below `strict_iou`, so that it
    counts as a miss at that threshold. 3. Among the boxes of the same class with no higher score that overlap this
    detection by more than `iou_threshold`, and so give way to it in suppression, the best-placed one reaches
    `strict_iou`. Such a detection is misaligned: the model had found the object's place, and dropped it.

    Args:
        detections: (D, 6) rows x1, y1, x2, y2, score, label: what suppression kept.
        candidates: (C, 6) such rows: what went into suppression, the kept ones included.
        gt_boxes: (M, 4) xyxy, in the same frame.
        gt_labels: (M,) int64.
        iou_threshold: of suppression.
        strict_iou: what separates a well-placed box from a poorly placed one.

    Returns:
        At most one detection per object, and one object per detection.

    Example:
        The object is 10 x 10. The surer box covers 60 % of it, the other 80 %; their IoU is 0.75:

        >>> rows = torch.tensor([[0.0, 0.0, 10.0, 6.0, 0.9, 0.0], [0.0, 0.0, 10.0, 8.0, 0.5, 0.0]])
        >>> lost = find_misaligned(rows[:1], rows, torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0]))
        >>> lost.better.tolist(), lost.kept_ious.tolist(), lost.better_ious.tolist()
        ([1], [0.6000000238418579], [0.800000011920929])
    """
    none = torch.zeros(0, dtype=torch.int64, device=gt_boxes.device)
    if not len(detections) or not len(candidates) or not len(gt_boxes):
        return Misaligned(none, none, none, none.float(), none.float())
    objects = torch.arange(len(gt_boxes), device=gt_boxes.device)
    iou = _of_class(pairwise_iou(gt_boxes, detections[:, :4]), gt_labels, detections)
    kept_iou, kept = iou.max(1)
    mine = (kept_iou > 0) & (iou.argmax(0)[kept] == objects)

    gives_way = pairwise_iou(detections[kept, :4], candidates[:, :4]) > iou_threshold
    gives_way &= candidates[:, 4] <= detections[kept, None, 4]
    reached = _of_class(pairwise_iou(gt_boxes, candidates[:, :4]), gt_labels, candidates).masked_fill(~gives_way, -1.0)
    better_iou, better = reached.max(1)
    lost = mine & (kept_iou < strict_iou) & (better_iou >= strict_iou)
    return Misaligned(objects[lost], kept[lost], better[lost], kept_iou[lost], better_iou[lost])


def _of_class(iou: Tensor, gt_labels: Tensor, rows: Tensor) -> Tensor:
    """Return (M, N) overlaps, -1 where the classes differ."""
    return iou.masked_fill(gt_labels[:, None] != rows[:, 5].long(), -1.0)


@dataclass(frozen=True)
class Detected:
    """What one model detected in one image.

    Attributes:
        detections: (D, 6) rows x1, y1, x2, y2, score, label.
        candidates: (C, 6) such rows, before suppression.
        misaligned: which of them are what.
    """

    detections: Tensor
    candidates: Tensor
    misaligned: Misaligned


@dataclass(frozen=True)
class ComparedImage:
    """One image and what each model found in it.

    Attributes:
        image: (H, W, C) uint8, see `displayed`, in the frame of all boxes.
        gt_boxes: (M, 4) xyxy px.
        models: what each of them found, in their order.
        source: where the image comes from.
    """

    image: NDArray[np.uint8]
    gt_boxes: Tensor
    models: Sequence[Detected]
    source: str


@dataclass(frozen=True)
class Total:
    """One model's count over all images looked at, drawn or not.

    Attributes:
        name: the model's.
        misaligned: objects lost to misalignment.
        objects: all of them.
    """

    name: str
    misaligned: int
    objects: int


def misaligned_figure(
    images: Sequence[ComparedImage], totals: Sequence[Total], names: Mapping[int, str], *, source: str = ""
) -> Figure:
    """Draw a row per image and a column per model: objects white and dashed, detections blue.

    A misaligned detection is red, with its class, score and IoU; the box suppressed for it is yellow and dashed, with
    its score and IoU.

    Args:
        images: one or more.
        totals: one for each model.
        names: class names by label.
        source: what was compared, for the subtitle.

    Returns:
        A figure of its own, unknown to pyplot. The gid of boxes is "objects", "detection", "misaligned" or "better".

    Raises:
        ValueError: no image, or not one `Detected` per model.
    """
    if not images or any(len(compared.models) != len(totals) for compared in images):
        numbers = [len(compared.models) for compared in images]
        raise ValueError(f"expected images with {len(totals)} findings each, got {numbers}")
    views = [(0.0, 0.0, float(compared.image.shape[1]), float(compared.image.shape[0])) for compared in images]
    figure, panels = rows_of_panels(views, columns=len(totals), side=PANEL, head=1.28)
    headline(figure, "Right class, poor place: what suppression kept, and the better box it dropped", source)
    for axes, total in zip(panels[0], totals, strict=True):
        style: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(total.name, (0, 1), (0, 31), fontsize=11, weight="bold", **style)
        share = f"in all images: {total.misaligned:,} of {total.objects:,} objects lost to misalignment"
        axes.annotate(share, (0, 1), (0, 18), fontsize=8.5, color=GREY, **style)
    for row, compared, view in zip(panels, images, views, strict=True):
        for axes, detected in zip(row, compared.models, strict=True):
            show_image(axes, compared.image, view)
            draw_objects(axes, compared.gt_boxes)
            _draw_detected(axes, detected, names)
            count = len(detected.detections)
            title = f"here: {count} detection{'s' * (count != 1)}, {len(detected.misaligned)} misaligned"
            axes.set_title(title, fontsize=8.5, loc="left", pad=4, color=GREY)
        row[0].set_ylabel(compared.source, fontsize=8, color=GREY)
    samples = (
        (DETECTION, 1.6, "-", "detection"),
        (WARNING, 2.4, "-", "misaligned detection"),
        (BETTER, 2.0, (0, (4, 1.5)), "better-placed box suppressed for it"),
        (GREY, 1.8, "--", "object"),
    )
    legend(figure, [Line2D([], [], color=c, lw=w, ls=s, label=label) for c, w, s, label in samples])
    return figure


def _draw_detected(axes: Axes, detected: Detected, names: Mapping[int, str]) -> None:
    lost = detected.misaligned
    marked = set(lost.kept.tolist())
    taken: list[tuple[float, float, float, float]] = []
    for i, box in enumerate(detected.detections[:, :4].cpu().tolist()):
        if i not in marked:
            axes.add_patch(rectangle(box, fill=False, edgecolor=DETECTION, linewidth=1, zorder=3, gid="detection"))
    for k, b, before, after in zip(
        lost.kept.tolist(), lost.better.tolist(), lost.kept_ious.tolist(), lost.better_ious.tolist(), strict=True
    ):
        kept, better = detected.detections[k].cpu().tolist(), detected.candidates[b].cpu().tolist()
        axes.add_patch(rectangle(kept[:4], fill=False, edgecolor=WARNING, linewidth=2, zorder=9, gid="misaligned"))
        style: dict[str, Any] = {"edgecolor": BETTER, "linewidth": 1.6, "linestyle": (0, (4, 1.5))}
        axes.add_patch(rectangle(better[:4], fill=False, zorder=10, gid="better", **style))
        _label(axes, taken, kept, f"{names[int(kept[5])]} {kept[4]:.2f}, IoU {_cut(before)}", WARNING, upper=True)
        _label(axes, taken, better, f"{better[4]:.2f}, IoU {_cut(after)}", BETTER, upper=False)


def _cut(iou: float) -> str:
    """Return two decimals, not rounded: 0.7496 is below the strict IoU and must not read 0.75."""
    return f"{math.floor(iou * 100) / 100:.2f}"


def _label(
    axes: Axes,
    taken: list[tuple[float, float, float, float]],
    row: Sequence[float],
    text: str,
    colour: str,
    *,
    upper: bool,
) -> None:
    """Write at a box's upper or lower edge, within the image, and as near as can be without covering a label taken."""
    (_, right), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    figure: Any = axes.figure
    across, down = axes.get_position().size * figure.get_size_inches()
    inch = max(right / across, bottom / down)  # in px: the image fills its panel one way
    width, height = (0.052 * len(text) + 0.04) * inch, 0.125 * inch  # of 6.5 pt, and some room
    x = min(max(row[0], 0), right - width)
    start = min(max(row[1] - height if upper else row[3], 0), bottom - height)
    steps = sorted(range(-12, 13), key=abs)
    spots = [(x, y, x + width, y + height) for y in (start + step * height for step in steps)]
    free = (s for s in spots if s[1] >= 0 and s[3] <= bottom and not any(_overlap(s, other) for other in taken))
    spot = next(free, spots[0])
    taken.append(spot)
    box = {"boxstyle": "square,pad=0.12", "facecolor": colour, "edgecolor": "none", "alpha": 0.9}
    middle = (spot[1] + spot[3]) / 2
    axes.text(x + 0.02 * inch, middle, text, fontsize=6.5, color="black", ha="left", va="center", bbox=box, zorder=12)


def _overlap(one: tuple[float, float, float, float], two: tuple[float, float, float, float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
