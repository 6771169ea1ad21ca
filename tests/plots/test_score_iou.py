"""The picture of score against IoU, empty and sparse cases included."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from mlc_yolo.plots.score_iou import score_against_iou


def texts(figure: Figure) -> str:
    found = [t.get_text() for t in figure.texts] + [t.get_text() for axes in figure.axes for t in axes.texts]
    return "\n".join(found)


def draw(count: int, spearman: float = 0.432, pooled: float = -0.1) -> Figure:
    rng = np.random.default_rng(0)
    scores, ious = rng.uniform(0.05, 1, (2, count)).astype(np.float32)
    figure = score_against_iou(scores, ious, spearman=spearman, spearman_pooled=pooled)
    figure.savefig(io.BytesIO(), format="png")
    return figure


def test_the_title_gives_both_coefficients_and_the_number_of_boxes() -> None:
    assert "Spearman 0.43 per object, -0.10 pooled  ·  3,000 boxes above 0.05" in texts(draw(3000))


def test_the_median_lies_where_the_boxes_are() -> None:
    scores = np.linspace(0.06, 0.999, 4000)
    axes = score_against_iou(scores, scores, spearman=1, spearman_pooled=1).axes[0]
    x, y = axes.lines[0].get_data()
    filled = ~np.isnan(np.asarray(y, dtype=float))
    assert filled.sum() == 19  # bins of 0.05 from 0.05 on
    np.testing.assert_allclose(np.asarray(y)[filled], np.asarray(x)[filled], atol=0.01)


def test_nothing_to_plot_says_so() -> None:
    found = texts(draw(0, np.nan, np.nan))
    assert "Nothing to plot" in found
    assert "undefined per object, undefined pooled" in found


@pytest.mark.parametrize("count", [1, 7])
def test_few_boxes_are_drawn_without_a_median(count: int) -> None:
    axes = draw(count, np.nan).axes
    assert len(axes) == 3
    assert len(axes[0].lines) == 0


def test_pyplot_does_not_know_the_figure() -> None:
    before = plt.get_fignums()
    draw(50)
    assert plt.get_fignums() == before
