"""How far a student agrees with its teacher on images without labels, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlc_yolo.plots.score_iou import BLUE, GREY, ORANGE

#: Column of results.csv -> (label, colour).
CURVES = {
    "train/agree_cls": ("class score: 1 − |difference|", ORANGE),
    "train/agree_iou": ("box: IoU", BLUE),
}


def agreement_figure(results: Mapping[str, Sequence[Any]]) -> Figure:
    """Draw the agreement of student and teacher over epochs.

    Args:
        results: columns of a run's results.csv: epoch, and train/agree_cls and train/agree_iou in [0, 1], which are 0
            while the run is still supervised and not drawn then. A column that is missing is not drawn.

    Returns:
        A figure of its own, unknown to pyplot.
    """
    figure = Figure(figsize=(6.4, 3.8), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("Do student and teacher see the same objects?", loc="left", fontsize=12)
    epochs = list(results.get("epoch", ()))
    for column, (label, colour) in CURVES.items():
        drawn = [(x, y) for x, y in zip(epochs, results.get(column, ()), strict=False) if y and isfinite(y)]
        if drawn:
            x, y = zip(*drawn, strict=True)
            axes.plot(
                x,
                y,
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1.8,
                clip_on=False,  # an agreement of 1 is whole too
                label=f"{label}, {y[-1]:.2f} at the end",
            )
    if axes.lines:
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    else:
        axes.text(0.5, 0.5, "supervised throughout", ha="center", color=GREY, transform=axes.transAxes)
    axes.set_ylim(0, 1)
    axes.set_xlabel("epoch", color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("agreement on the teacher's foreground", color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    return figure
