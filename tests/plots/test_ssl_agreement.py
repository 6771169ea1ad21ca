"""The picture of how far student and teacher agree, empty and broken columns included."""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from mlc_yolo.plots.ssl_agreement import agreement_figure

RUN: dict[str, list[Any]] = {
    "epoch": [1, 2, 3, 4],
    "train/agree_cls": [0.0, 0.5, 0.7, 0.9],
    "train/agree_iou": [0.0, 0.2, 0.4, 0.6],
}


def draw(results: dict[str, list[Any]]) -> Figure:
    figure = agreement_figure(results)
    figure.savefig(io.BytesIO(), format="png")
    return figure


def legend(figure: Figure) -> list[str]:
    found = figure.axes[0].get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def test_epochs_of_the_burn_in_are_not_drawn() -> None:
    lines = draw(RUN).axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[2, 3, 4], [2, 3, 4]]
    assert list(lines[0].get_ydata()) == [0.5, 0.7, 0.9] and list(lines[1].get_ydata()) == [0.2, 0.4, 0.6]


def test_the_legend_says_where_it_ends() -> None:
    words = legend(draw(RUN))
    assert [text.split(", ")[-1] for text in words] == ["0.90 at the end", "0.60 at the end"]


def test_a_single_epoch_can_be_seen() -> None:
    (line, _) = draw({name: values[:2] for name, values in RUN.items()}).axes[0].lines
    assert line.get_marker() == "o" and list(line.get_xdata()) == [2]


@pytest.mark.parametrize(
    "results",
    [{}, {"epoch": [1, 2]}, {name: values[:1] for name, values in RUN.items()}, {**RUN, "epoch": []}],
    ids=["no results", "no columns", "burn-in alone", "no epochs"],
)
def test_a_run_without_any_says_so(results: dict[str, list[Any]]) -> None:
    figure = draw(results)
    assert [text.get_text() for text in figure.axes[0].texts] == ["supervised throughout"] and not legend(figure)


@pytest.mark.parametrize("broken", [None, float("nan")])
def test_an_epoch_without_a_value_is_left_out(broken: Any) -> None:
    figure = draw({**RUN, "train/agree_iou": [0.0, 0.2, 0.3, broken]})
    assert list(figure.axes[0].lines[1].get_xdata()) == [2, 3]
    assert legend(figure)[1].endswith("0.30 at the end")


def test_it_is_a_figure_of_its_own_and_agreement_lies_between_0_and_1() -> None:
    before = plt.get_fignums()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = draw(RUN).axes[0]
    assert plt.get_fignums() == before and axes.get_ylim() == (0, 1)
    assert np.isfinite(axes.get_xlim()).all()


@pytest.mark.parametrize("epochs", [2, 3, 5, 100])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    columns = ("train/agree_cls", "train/agree_iou")
    axes = draw({"epoch": list(range(1, epochs + 1)), **dict.fromkeys(columns, [0.5] * epochs)}).axes[0]
    assert all(tick == round(tick) for tick in axes.get_xticks())
