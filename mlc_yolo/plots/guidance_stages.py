"""Which priors Mutual Guidance makes positive that static matching does not, and the reverse.

After figure 4 of Mutual Guidance (Zhang et al., ACCV 2020), in its colours: red for positives of static matching that
guidance drops, green for those it gains for classification (localize to classify), yellow for those it gains for
localisation (classify to localize). Line styles say the same, for readers who do not see the colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from mlc_yolo.plots.bands import displayed
from mlc_yolo.plots.positives import GREY

#: Groups of priors -> line style and meaning; later ones are drawn on top.
GROUPS: dict[str, tuple[dict[str, Any], str]] = {
    "kept": ({"edgecolor": "#6cc5ff", "linewidth": 0.8, "linestyle": "-"}, "positive, guided or not"),
    "lost": ({"edgecolor": "#ff3b30", "linewidth": 1.1, "linestyle": (0, (1, 1.2))}, "static positive, dropped"),
    "l2c": ({"edgecolor": "#3ddc68", "linewidth": 1.3, "linestyle": "-"}, "gained for classification (L2C)"),
    "c2l": ({"edgecolor": "#ffe03a", "linewidth": 1.3, "linestyle": (0, (5, 1.2))}, "gained for localisation (C2L)"),
}
COLUMNS = {
    "static": "Static IoU",
    "l2c": "Localize to classify (L2C)",
    "c2l": "Classify to localize (C2L)",
}
MOST = 12  # boxes of one group in a panel; more of them hide one another and the object
PANEL = 3.3  # in, the longer side of one panel


@dataclass(frozen=True)
class GuidedImage:
    """One image and its positives under the three matchings, on the same predictions.

    Attributes:
        image: (H, W, C) uint8, see `displayed`, in the frame of all boxes.
        view: the part to show, xyxy px, such as the image without its padding.
        gt_boxes: (M, 4) xyxy px.
        prior_boxes: (A, 4) xyxy px.
        static: (A,) bool, positive by the prior's IoU alone, for both tasks.
        l2c: (A,) bool, positive for classification, by the predicted boxes.
        c2l: (A,) bool, positive for localisation, by the predicted scores.
        source: where the image comes from.
    """

    image: NDArray[np.uint8]
    view: tuple[float, float, float, float]
    gt_boxes: Tensor
    prior_boxes: Tensor
    static: Tensor
    l2c: Tensor
    c2l: Tensor
    source: str


def guidance_figure(images: Sequence[GuidedImage], *, source: str = "") -> Figure:
    """Draw a row per image: its positive priors under static matching, L2C and C2L.

    Where a group has more than `MOST` priors, as many of them are drawn, taken evenly from the finest level to the
    coarsest, and the panel says so; the counts are always of all.

    Args:
        images: one or more.
        source: whose predictions these are, for the subtitle.

    Returns:
        A figure of its own, unknown to pyplot. The gid of boxes is a key of `GROUPS`, of objects "objects".

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("expected at least one image to draw")
    figure, panels = rows_of_panels([guided.view for guided in images], columns=len(COLUMNS), side=PANEL, head=1.15)
    headline(figure, "Who is positive: by the prior's IoU, or by what the other task predicts", source)
    for axes, title in zip(panels[0], COLUMNS.values(), strict=True):
        axes.annotate(title, (0, 1), (0, 18), xycoords="axes fraction", textcoords="offset points", fontsize=10.5)
    for row, guided in zip(panels, images, strict=True):
        for axes, column in zip(row, COLUMNS, strict=True):
            show_image(axes, guided.image, guided.view)
            _draw_priors(axes, guided, column)
            draw_objects(axes, guided.gt_boxes)
        row[0].set_ylabel(guided.source, fontsize=8, color=GREY)
    handles = [_sample(meaning, **style) for style, meaning in GROUPS.values()]
    legend(figure, [*handles, _sample("object", edgecolor=GREY, linewidth=1.6, linestyle="--")])
    return figure


def _draw_priors(axes: Axes, guided: GuidedImage, column: str) -> None:
    static, now = guided.static, {"static": guided.static, "l2c": guided.l2c, "c2l": guided.c2l}[column]
    groups = {"kept": now & static, "lost": static & ~now}
    groups |= {column: now & ~static} if column != "static" else {}
    said = f"{int(now.sum())} positive"
    if column != "static":
        said += f":  +{int(groups[column].sum())}  \N{MINUS SIGN}{int(groups['lost'].sum())}"
    total = drawn = 0
    for order, (group, (style, _)) in enumerate(GROUPS.items(), start=2):
        index = groups.get(group, static.new_zeros(0)).nonzero().squeeze(1).cpu().numpy()
        shown = index[np.linspace(0, len(index) - 1, MOST).round().astype(int)] if len(index) > MOST else index
        total, drawn = total + len(index), drawn + len(shown)
        boxes = guided.prior_boxes[shown].cpu().tolist()
        axes.add_collection(
            PatchCollection([rectangle(box) for box in boxes], facecolors="none", zorder=order, gid=group, **style)
        )
    if drawn < total:
        said += f"  ·  {drawn} of {total} boxes drawn"
    axes.set_title(said, fontsize=8.5, loc="left", pad=4, color=GREY)


def rows_of_panels(
    views: Sequence[tuple[float, float, float, float]], *, columns: int, side: float, head: float
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure and its (len(views), columns) panels, with room for a headline, titles and a legend.

    Args:
        views: what each row shows, xyxy px; rows are as high as their images need.
        columns: panels in a row.
        side: longest side of a panel, in.
        head: what the headline and the columns' titles take, in.
    """
    sizes = [(right - left, bottom - top) for left, top, right, bottom in views]
    scales = [side / max(size) for size in sizes]
    width = max(scale * across for scale, (across, _) in zip(scales, sizes, strict=True))
    heights = [scale * down for scale, (_, down) in zip(scales, sizes, strict=True)]
    left, right, bottom, gap, title = 0.4, 0.15, 0.62, 0.1, 0.3
    across = max(left + columns * width + (columns - 1) * gap + right, 6.8)
    down = head + sum(heights) + title * (len(heights) - 1) + bottom
    figure = Figure(figsize=(across, down), dpi=160)
    panels = np.empty((len(heights), columns), dtype=object)
    y = down - head
    for row, height in enumerate(heights):
        y -= height
        for column in range(columns):
            place = (left + column * (width + gap)) / across, y / down, width / across, height / down
            panels[row, column] = figure.add_axes(place)
        y -= title
    return figure, panels


def headline(figure: Figure, title: str, subtitle: str) -> None:
    """Write both above the panels."""
    across, down = figure.get_size_inches()
    style: dict[str, Any] = {"ha": "left", "va": "top"}
    figure.text(0.4 / across, 1 - 0.12 / down, title, fontsize=13, **style)
    figure.text(0.4 / across, 1 - 0.42 / down, subtitle, fontsize=9, color=GREY, **style)


def show_image(axes: Axes, image: NDArray[np.uint8], view: tuple[float, float, float, float]) -> None:
    """Show a part of an image, darkened so that lines stand out."""
    left, top, right, bottom = view
    height, width = image.shape[:2]
    axes.imshow((displayed(image) * 0.75).astype(np.uint8), extent=(0, width, height, 0), interpolation="bilinear")
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], anchor="NW")
    axes.spines[:].set_visible(False)


def draw_objects(axes: Axes, boxes: Tensor) -> None:
    """Draw boxes (M, 4) white and dashed, dark beneath, so that they show on any ground."""
    for box in boxes.cpu().tolist():
        axes.add_patch(rectangle(box, fill=False, edgecolor="black", linewidth=2, alpha=0.4, zorder=7))
        axes.add_patch(
            rectangle(box, fill=False, edgecolor="white", linewidth=1.2, linestyle="--", zorder=8, gid="objects")
        )


def rectangle(box: Sequence[float], **style: Any) -> Rectangle:
    """Return the rectangle of an xyxy box."""
    left, top, right, bottom = box
    return Rectangle((left, top), right - left, bottom - top, **style)


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put the legend below the panels."""
    across, down = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": 8, "frameon": False, "handlelength": 2.6, "columnspacing": 1.4}
    columns = len(handles) if across > 9 else (len(handles) + 1) // 2
    figure.legend(handles=handles, ncols=columns, loc="lower left", bbox_to_anchor=(0.3 / across, 0.05 / down), **style)


def _sample(label: str, *, edgecolor: str, linewidth: float, linestyle: Any) -> Line2D:
    return Line2D([], [], color=edgecolor, lw=linewidth + 0.6, ls=linestyle, label=label)
