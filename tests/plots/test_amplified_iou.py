"""The picture of eq. 1: its curves are the equation's, and a model's pairs lie where the equation puts them."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlc_yolo.plots.amplified_iou import SCORES, SIGMAS, Pairs, amplification_figure

#: 0.25^((2 - 1) / 2) = 0.5: this one is lifted over the threshold; 0.36^1 stays, 0.64 is above it by itself.
PAIRS = Pairs(torch.tensor([0.25, 0.36, 0.64]), torch.tensor([1.0, 0.0, 0.5]), 2.0, "net on 1 image")


def titled(figure: Figure, title: str) -> Axes:
    (found,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return found


def points(figure: Figure) -> Any:
    (found,) = [c for axes in figure.axes for c in axes.collections if c.get_gid() == "pairs"]
    return found


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_panel_per_sigma_has_a_curve_of_the_equation_per_class_score(sigma: float) -> None:
    curves = [line for line in titled(amplification_figure(), f"σ = {sigma:g}").lines if line.get_gid() == "curve"]
    assert len(curves) == len(SCORES)
    for p, curve in zip(SCORES, curves, strict=True):
        x, y = (np.asarray(values, dtype=float) for values in curve.get_data())
        assert (x[0], x[-1]) == (0, 1)
        np.testing.assert_allclose(y, x ** ((sigma - p) / sigma), atol=1e-6)


def test_curves_of_different_scores_have_different_colours() -> None:
    curves = titled(amplification_figure(), "σ = 2").lines
    assert len({tuple(curve.get_color()) for curve in curves}) == len(SCORES)


def test_pairs_lie_where_the_equation_puts_them_the_surest_on_top() -> None:
    drawn = points(amplification_figure(PAIRS))
    expected = [[0.36, 0.36], [0.64, 0.64**0.75], [0.25, 0.5]]  # in the order of their scores
    np.testing.assert_allclose(np.asarray(drawn.get_offsets()), expected, atol=1e-6)
    assert np.asarray(drawn.get_array()).tolist() == [0.0, 0.5, 1.0]


def test_the_panel_of_pairs_counts_those_lifted_over_the_threshold() -> None:
    axes = titled(amplification_figure(PAIRS), "net on 1 image, σ = 2")
    assert [text.get_text() for text in axes.texts] == [
        "3 pairs of object and prior; 1 reach 0.5 by themselves, 2 amplified"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [None, PAIRS, Pairs(torch.zeros(0), torch.zeros(0), 1.5, "nothing")])
def test_it_is_drawn_with_pairs_without_and_with_none_of_them(pairs: Pairs | None) -> None:
    figure = amplification_figure(pairs)
    figure.savefig(io.BytesIO())
    assert len(figure.axes) == len(SIGMAS) + 1 + (pairs is not None)  # and the colour scale
    assert plt.get_fignums() == []


def test_no_text_leaves_the_figure_or_touches_another() -> None:
    figure = amplification_figure(PAIRS)
    figure.savefig(io.BytesIO())
    labels = [t for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title)]
    boxes = [t.get_window_extent() for t in (*labels, *figure.texts) if t.get_visible() and t.get_text()]
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 for b in boxes)
    assert all(figure.bbox.y0 <= b.y0 and b.y1 <= figure.bbox.y1 for b in boxes)
    ticks = [t.get_window_extent() for axes in figure.axes[2:4] for t in axes.get_xticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(ticks) for b in ticks[:i])


@pytest.mark.parametrize("sigmas", [(1.0, 2, 2.5, 3), (2.0, 3.0)])
def test_sigma_without_meaning_is_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="four values above 1"):
        amplification_figure(sigmas=sigmas)
