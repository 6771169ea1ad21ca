"""Who learns what: the anchors each task trains as positive, under several assigners side by side.

After figure 4 of Mutual Guidance (Zhang et al., ACCV 2020), which shows prior boxes; here, where the priors may be mere
points, each positive shows its anchor point and the box it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from mlc_yolo.assigners import Assignment, Role, TaskAssignment
from mlc_yolo.plots.bands import displayed
from mlc_yolo.priors import Priors

#: Groups of anchors -> colour, marker, meaning. Told apart by every kind of colour vision, and by shape.
GROUPS = {
    "both": ("#56b4e9", "o", "positive for both tasks"),
    "only": ("#ff9f1c", "D", "positive for this task only"),
    "ignored": ("#e8e8e8", "x", "ignored"),
}
GREY = "#555555"
PANEL = 4.6  # in, the longer side of one panel
MAX_NAMED = 12  # with more objects than this their names would hide what is to be seen
MANY = 60  # positives; with more of them, the boxes they predict are drawn fainter
_OUTLINE: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=2.2, foreground="black", alpha=0.6)]


def assignment_figure(
    image: NDArray[np.uint8],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    names: Mapping[int, str],
    *,
    priors: Priors,
    boxes: Tensor,
    assignments: Sequence[tuple[str, Assignment]],
    view: tuple[float, float, float, float] | None = None,
    source: str = "",
) -> Figure:
    """Draw one row per task and one column per assigner.

    Each panel shows the objects (white, dashed), the anchor points its task trains as positive, and the boxes these
    anchors predict. Blue anchors are positive for both tasks, orange ones for the panel's task alone; crosses take no
    part in its loss. A dot's area grows with the positive's quality, and its box gets more opaque with quality times
    weight. Dots of coarse levels are drawn larger, as there is more room between them.

    Args:
        image: (H, W, C) uint8, see `displayed`, in the frame of all boxes.
        gt_boxes: (M, 4) xyxy px; M may be 0.
        gt_labels: (M,) int64, keys of `names`.
        names: class names by label.
        priors: A anchors.
        boxes: (A, 4) predicted boxes, xyxy px.
        assignments: name and assignment, shaped (1, A), of each assigner.
        view: the part to show, xyxy px, such as the image without its padding; all of it when left out.
        source: where the image comes from, for the subtitle.

    Returns:
        A figure of its own, unknown to pyplot. Its artists' gid says what they show: "objects", a key of `GROUPS`, or
        "both boxes" and "only boxes".

    Raises:
        ValueError: shapes that do not belong together, or no assignment.
    """
    _check_shapes(gt_boxes, gt_labels, priors, boxes, assignments)
    left, top, right, bottom = view or (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    scale = PANEL / max(right - left, bottom - top)
    figure, grid = _layout(scale * (right - left), scale * (bottom - top), columns=len(assignments))
    count = f"{len(gt_boxes)} object" + "s" * (len(gt_boxes) != 1)
    subtitle = [source] * bool(source) + [count, "anchors trained as positive, larger the better their target"]
    _text(figure, 0.1, "Who learns what: " + " against ".join(name for name, _ in assignments), fontsize=13)
    _text(figure, 0.37, "  ·  ".join(subtitle), fontsize=9, color=GREY)
    _draw_legend(figure)

    # Between 4 and 8 points, and within the grid's spacing where that lets them be seen.
    diameters = (72 * scale * priors.strides * 0.8).clamp(4.0, 8.0)
    for panels, (name, assignment) in zip(grid.T, assignments, strict=True):
        header = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 11, "weight": "bold"}
        panels[0].annotate(name, (0, 1), (0, 19), **header)
        tasks = (assignment.classification, assignment.localization)
        for axes, task, other in zip(panels, tasks, tasks[::-1], strict=True):
            axes.imshow(displayed(image), interpolation="bilinear", alpha=0.8)
            axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], facecolor="black")
            axes.spines[:].set_visible(False)
            groups = _groups(task, other)
            axes.set_title(_counted(groups), fontsize=9, loc="left", pad=4)
            _draw_objects(axes, gt_boxes, gt_labels, names)
            _draw_anchors(axes, groups, task, priors.points, boxes, diameters)
            if not task.positive.any():
                reason = "no anchor is positive" if len(gt_boxes) else "no objects:\nevery anchor learns background"
                middle: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center", "fontsize": 11}
                axes.text(0.5, 0.5, reason, color="white", path_effects=_OUTLINE, zorder=7, **middle)
    for axes, row in zip(grid[:, 0], ("classification", "localization"), strict=True):
        axes.set_ylabel(row, fontsize=11)
    return figure


def _check_shapes(
    gt_boxes: Tensor,
    gt_labels: Tensor,
    priors: Priors,
    boxes: Tensor,
    assignments: Sequence[tuple[str, Assignment]],
) -> None:
    if not assignments:
        raise ValueError("expected at least one (name, assignment) to draw")
    if gt_labels.ndim != 1 or gt_boxes.shape != (len(gt_labels), 4):
        shapes = f"{tuple(gt_boxes.shape)} and {tuple(gt_labels.shape)}"
        raise ValueError(f"expected gt_boxes (M, 4) and gt_labels (M,), got {shapes}")
    anchors = len(priors)
    for name, assignment in assignments:
        shape = tuple(assignment.classification.role.shape)
        if shape != (1, anchors) or boxes.shape != (anchors, 4):
            raise ValueError(
                f"expected one image's assignment (1, A) and boxes (A, 4) with A = {anchors} priors, got {shape} from "
                f"'{name}' and {tuple(boxes.shape)}"
            )


def _layout(width: float, height: float, *, columns: int) -> tuple[Figure, NDArray[Any]]:
    """Return a figure and its (2, columns) panels of width x height inches, with room for titles around them."""
    across = max(columns * (width + 0.12) + 0.43, 6.8)
    down = 2 * (height + 0.34) + 1.18
    figure = Figure(figsize=(across, down), dpi=130)
    figure.subplots_adjust(
        left=0.45 / across,
        right=1 - 0.1 / across,
        top=1 - 1.12 / down,
        bottom=0.4 / down,
        wspace=0.12 / width,
        hspace=0.34 / height,
    )
    return figure, figure.subplots(2, columns, squeeze=False)


def _text(figure: Figure, depth: float, text: str, **style: Any) -> None:
    """Write a line `depth` inches below the upper edge."""
    across, down = figure.get_size_inches()
    figure.text(0.45 / across, 1 - depth / down, text, ha="left", va="top", **style)


def _groups(task: TaskAssignment, other: TaskAssignment) -> dict[str, Tensor]:
    """Return the anchors (A,) bool of every group, as one task sees them."""
    positive, ignored = task.positive[0], task.role[0] == Role.IGNORED
    return {"both": positive & other.positive[0], "only": positive & ~other.positive[0], "ignored": ignored}


def _counted(groups: Mapping[str, Tensor]) -> str:
    both, only, ignored = (int(groups[group].sum()) for group in ("both", "only", "ignored"))
    text = f"{both + only} positive"
    if only:
        text += f", {only} for this task only"
    return text + (f"; {ignored} ignored" if ignored else "")


def _draw_objects(axes: Axes, boxes: Tensor, labels: Tensor, names: Mapping[int, str]) -> None:
    """Draw them above the predicted boxes, which may lie on them exactly, and below the points."""
    outlines = _outlines(boxes, edgecolors="white", linewidths=1.5, linestyles="--", zorder=3.5, gid="objects")
    outlines.set_path_effects(_OUTLINE)
    axes.add_collection(outlines)
    if len(boxes) > MAX_NAMED:
        return
    style: dict[str, Any] = {"color": "white", "fontsize": 7.5, "path_effects": _OUTLINE, "clip_on": True, "zorder": 7}
    for (x, y, _, _), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        above = y - axes.get_ylim()[1] > 12  # px, a line of text
        axes.text(x, y - 2 if above else y + 2, names[label], va="bottom" if above else "top", **style)


def _draw_anchors(
    axes: Axes, groups: Mapping[str, Tensor], task: TaskAssignment, points: Tensor, boxes: Tensor, diameters: Tensor
) -> None:
    """Draw boxes below all points, and ignored anchors below the positive ones."""
    quality, weight = task.quality[0], task.weight[0]
    crowd = (MANY / task.positive.sum().clamp(min=MANY)).sqrt()
    for order, group in enumerate(("ignored", "only", "both"), start=4):
        mask, (colour, marker, _) = groups[group], GROUPS[group]
        x, y = points[mask].cpu().numpy().T
        area = diameters[mask].cpu().numpy() ** 2
        style: dict[str, Any] = {"c": colour, "marker": marker, "zorder": order, "gid": group}
        if group == "ignored":
            axes.scatter(x, y, s=0.3 * area, linewidths=0.9, **style).set_path_effects(_OUTLINE)
            continue
        alpha = ((0.15 + 0.75 * quality * weight).clamp(max=0.9) * crowd)[mask].cpu().numpy()
        edges = np.column_stack((np.tile(to_rgb(colour), (len(alpha), 1)), alpha))
        axes.add_collection(_outlines(boxes[mask], edgecolors=edges, linewidths=0.9, zorder=3, gid=f"{group} boxes"))
        # Diamonds look larger than discs of the same nominal size.
        size = area * (0.15 + 0.85 * quality[mask].cpu().numpy()) * (0.7 if marker == "D" else 1)
        axes.scatter(x, y, s=size, edgecolors="black", linewidths=0.5, **style)


def _draw_legend(figure: Figure) -> None:
    point: dict[str, Any] = {"ls": "none", "ms": 6, "mew": 0.6}
    handles = [
        Line2D([], [], color=colour, marker=marker, mec="#888888" if marker == "x" else "black", label=meaning, **point)
        for colour, marker, meaning in GROUPS.values()
    ]
    handles.append(Line2D([], [], color=GREY, ls="--", lw=1.4, label="object"))
    handles.append(Line2D([], [], color=GROUPS["both"][0], lw=1.2, label="predicted box"))
    across, down = figure.get_size_inches()
    style: dict[str, Any] = {"ncols": 5, "fontsize": 8, "frameon": False, "handletextpad": 0.4, "columnspacing": 1.2}
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.3 / across, 0.02 / down), **style)


def _outlines(boxes: Tensor, **style: Any) -> PolyCollection:
    """Return the outlines of boxes (N, 4) xyxy."""
    x1, y1, x2, y2 = boxes.detach().cpu().float().unbind(-1)
    corners: Any = torch.stack((x1, y1, x2, y1, x2, y2, x1, y2), -1).view(-1, 4, 2).numpy()
    return PolyCollection(corners, facecolors="none", **style)
