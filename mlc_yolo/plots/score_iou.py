"""Score against IoU: where a detector's confidence and the quality of its boxes part."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

BINS = 50
#: Fewest boxes in a score bin that get a median drawn.
MIN_BOXES = 10
ORANGE = "#d55e00"  # vermilion of the Okabe-Ito palette, told from the blues by every kind of colour vision
BLUE = "#3b6fa0"
GREY = "#555555"
#: Light to middle blue: the darkest cell must leave the median readable on top of it.
DENSITY = LinearSegmentedColormap.from_list("density", ("#edf3fa", "#a9c8e6", "#5b93c7"))


def score_against_iou(
    scores: NDArray[np.floating],
    ious: NDArray[np.floating],
    *,
    spearman: float,
    spearman_pooled: float,
    threshold: float = 0.05,
) -> Figure:
    """Draw the density of boxes over score and IoU, with the median IoU at each score.

    A detector whose score tells good boxes from bad ones has a median that climbs from the lower left to the upper
    right.

    Args:
        scores: (N,) scores NMS ranks by, in [0, 1]; N may be 0.
        ious: (N,) IoU with the best object of the same class, in [0, 1].
        spearman: rho per object, averaged over objects; nan where undefined.
        spearman_pooled: rho over all boxes; nan where undefined.
        threshold: the score from which boxes are counted.

    Returns:
        A figure of its own, unknown to pyplot.
    """
    figure = Figure(figsize=(6.4, 6.4), dpi=130)
    grid = figure.add_gridspec(
        2,
        2,
        width_ratios=(6, 1),
        height_ratios=(1, 6),
        wspace=0.04,
        hspace=0.04,
        left=0.11,
        right=0.97,
        bottom=0.09,
        top=0.88,
    )
    main = figure.add_subplot(grid[1, 0])
    figure.suptitle("Does a higher score mean a better box?", x=0.11, y=0.975, ha="left", fontsize=13)
    rho = f"Spearman {_rho(spearman)} per object, {_rho(spearman_pooled)} pooled"
    figure.text(0.11, 0.915, f"{rho}  ·  {len(scores):,} boxes above {threshold:g}", color=GREY, fontsize=10)
    main.set(xlim=(0, 1), ylim=(0, 1))
    main.set(xlabel="score (what NMS ranks by)", ylabel="IoU with the best object of its class")
    main.spines[["top", "right"]].set_visible(False)
    if len(scores) == 0:
        reason = f"no box scored above {threshold:g}\nwhere an object of its class is"
        main.text(0.5, 0.5, f"Nothing to plot:\n{reason}", ha="center", va="center", color=GREY)
        return figure

    edges = np.linspace(0, 1, BINS + 1)
    density, _, _ = np.histogram2d(scores, ious, bins=(edges, edges))
    norm = LogNorm(vmin=1, vmax=max(density.max(), 10))
    main.pcolormesh(edges, edges, np.ma.masked_equal(density.T, 0), cmap=DENSITY, norm=norm)
    _draw_median(main, scores, ious)
    top, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 1])
    top.hist(scores, bins=list(edges), color=BLUE, alpha=0.65)
    right.hist(ious, bins=list(edges), color=BLUE, alpha=0.65, orientation="horizontal")
    top.set(xlim=(0, 1))
    right.set(ylim=(0, 1))
    for margin in (top, right):
        margin.axis("off")
    return figure


def _draw_median(axes: Axes, scores: NDArray[np.floating], ious: NDArray[np.floating]) -> None:
    """Draw the median and the quartiles of IoU in score bins of 0.05 that hold enough boxes."""
    edges = np.linspace(0, 1, 21)
    order = np.argsort(scores, kind="stable")
    groups = np.split(ious[order], np.searchsorted(scores[order], edges[1:-1]))
    quartiles = np.array([np.percentile(g, (25, 50, 75)) if len(g) >= MIN_BOXES else (np.nan,) * 3 for g in groups])
    if np.isnan(quartiles).all():
        return
    centres = (edges[1:] + edges[:-1]) / 2
    axes.plot(centres, quartiles[:, 1], "o-", color=ORANGE, ms=4, lw=2, label="median IoU at this score")
    axes.plot(centres, quartiles[:, 0], "--", color=ORANGE, lw=1.2, label="quartiles")
    axes.plot(centres, quartiles[:, 2], "--", color=ORANGE, lw=1.2)
    axes.legend(loc="lower right", framealpha=0.8, edgecolor="none")


def _rho(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.2f}"
