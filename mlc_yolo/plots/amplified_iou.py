"""Amplified IoU against prior IoU, for several sigma and class scores.

After figure 3 of Mutual Guidance (Zhang et al., ACCV 2020): eq. 1 raises a prior's IoU with an object the more, the
higher the prior's score for the object's class. A model's own pairs of object and prior show how much of that it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from torch import Tensor

from mlc_yolo.assigners.mutual_guidance import amplified_iou
from mlc_yolo.plots.positives import GREY

SIGMAS = (1.5, 2.0, 2.5, 3.0)
SCORES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Colour of a class score. The scale's lightest tenth would be lost on white.
SCALE = ListedColormap(colormaps["viridis"].reversed()([0.1 + 0.9 * i / 255 for i in range(256)]), name="score")
POSITIVE = 0.5  # IoU that makes a prior positive under static matching
SIDE = 2.3  # in, of a small panel


@dataclass(frozen=True)
class Pairs:
    """What a model makes of pairs of object and prior.

    Attributes:
        ious: (N,) IoU of object and prior, in [0, 1].
        scores: (N,) the prior's score for the object's class, in [0, 1].
        sigma: of eq. 1, above 1.
        source: where they come from, for the panel's title.
    """

    ious: Tensor
    scores: Tensor
    sigma: float
    source: str


def amplification_figure(pairs: Pairs | None = None, *, sigmas: Sequence[float] = SIGMAS) -> Figure:
    """Draw eq. 1 as curves, a panel per sigma and a curve per class score, and a model's own pairs beside them.

    Args:
        pairs: drawn as points in a panel of their own; left out, there are the curves alone.
        sigmas: four values, each above 1.

    Returns:
        A figure of its own, unknown to pyplot. The gid of curves is "curve", of points "pairs".

    Raises:
        ValueError: not four values of sigma, or one at or below 1.
    """
    if len(sigmas) != 4 or not all(sigma > 1 for sigma in sigmas):
        raise ValueError(f"sigmas={tuple(sigmas)} must be four values above 1, or eq. 1 has no positive exponent")
    figure, grid = _layout(with_pairs=pairs is not None)
    first = None
    for i, sigma in enumerate(sigmas):
        row, column = divmod(i, 2)
        axes = first = figure.add_subplot(grid[row, column], sharex=first, sharey=first)
        _draw_curves(axes, sigma)
        axes.set_title(f"σ = {sigma:g}", fontsize=10, loc="left")
        axes.tick_params(labelbottom=row == 1, labelleft=column == 0)
        axes.set_xlabel("IoU with the prior" if row else "", fontsize=9)
        axes.set_ylabel("" if column else "amplified IoU", fontsize=9)
    if pairs is not None:
        _draw_pairs(figure.add_subplot(grid[:, 3]), pairs)
    scale = figure.colorbar(ScalarMappable(Normalize(0, 1), SCALE), cax=figure.add_subplot(grid[:, -1]))
    scale.set_label("score of the object's class, $p$", fontsize=9)
    scale.set_ticks(list(SCORES))
    scale.outline.set_visible(False)
    scale.ax.tick_params(labelsize=8, length=2)
    return figure


def _layout(*, with_pairs: bool) -> tuple[Figure, GridSpec]:
    """Return a figure with its headline, and columns: curves, curves[, gap, pairs], gap, colour scale."""
    large = 2 * SIDE + 0.5  # two small panels and what is between them
    widths = [SIDE, SIDE, *([0.3, large] if with_pairs else []), 0.13]
    gap, left, right, top, bottom = 0.3, 0.65, 0.75, 1.15, 0.55
    across, down = left + sum(widths) + gap * (len(widths) - 1) + right, top + large + bottom
    figure = Figure(figsize=(across, down), dpi=160)
    style: dict[str, Any] = {"ha": "left", "va": "top"}
    figure.text(
        left / across, 1 - 0.14 / down, "The surer the class, the more a prior's IoU counts", fontsize=13, **style
    )
    law = r"amplified IoU = IoU$^{\,(\sigma-p)\,/\,\sigma}$"
    figure.text(left / across, 1 - 0.47 / down, law, fontsize=10, color=GREY, **style)
    grid = GridSpec(
        2,
        len(widths),
        figure=figure,
        width_ratios=widths,
        left=left / across,
        right=1 - right / across,
        top=1 - top / down,
        bottom=bottom / down,
        wspace=gap * len(widths) / sum(widths),
        hspace=0.5 / SIDE,
    )
    return figure, grid


def _frame(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, length=2)
    axes.grid(color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)


def _draw_curves(axes: Axes, sigma: float) -> None:
    iou = torch.linspace(0, 1, 201)
    _frame(axes)
    for p in SCORES:
        amplified = amplified_iou(iou, torch.full_like(iou, p), sigma=sigma)
        axes.plot(iou.numpy(), amplified.numpy(), color=SCALE(p), lw=1.6, gid="curve", clip_on=False)


def _draw_pairs(axes: Axes, pairs: Pairs) -> None:
    """Draw the points, the surest last, between the curves of p = 0 and p = 1."""
    _frame(axes)
    order = pairs.scores.argsort()
    iou, score = pairs.ious[order].cpu().float(), pairs.scores[order].cpu().float()
    amplified = amplified_iou(iou, score, sigma=pairs.sigma)
    line = torch.linspace(0, 1, 201)
    for p in (0.0, 1.0):
        bound = amplified_iou(line, torch.full_like(line, p), sigma=pairs.sigma)
        axes.plot(line.numpy(), bound.numpy(), color="#b0b0b0", lw=1, zorder=1)
    axes.axhline(POSITIVE, color=GREY, lw=0.8, ls=":", zorder=1)
    # As vectors, tens of thousands of points would make the file slow to show.
    style: dict[str, Any] = {"cmap": SCALE, "vmin": 0, "vmax": 1, "linewidths": 0, "rasterized": True, "gid": "pairs"}
    axes.scatter(iou.numpy(), amplified.numpy(), c=score.numpy(), s=9, zorder=2, **style)
    before, after = int((iou >= POSITIVE).sum()), int((amplified >= POSITIVE).sum())
    axes.set_title(f"{pairs.source}, σ = {pairs.sigma:g}", fontsize=10, loc="left", pad=20)
    said = f"{len(iou):,} pairs of object and prior; {before:,} reach {POSITIVE:g} by themselves, {after:,} amplified"
    axes.annotate(said, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=8.5, color=GREY)
    axes.set_xlabel("IoU with the prior", fontsize=9)
    axes.set_ylabel("amplified IoU", fontsize=9, labelpad=0)
