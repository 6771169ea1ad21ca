"""The picture of what guidance changes: each prior in its group, counts of all, at most so many boxes of a group."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure

from mlc_yolo.plots.guidance_stages import COLUMNS, GROUPS, MOST, GuidedImage, guidance_figure
from mlc_yolo.priors import grid_priors

PRIORS = grid_priors([(8, 12)], [8.0]).boxes
GT = torch.tensor([[8.0, 24, 40, 56], [50, 2, 90, 60]])


def mask(*anchors: int) -> torch.Tensor:
    found = torch.zeros(len(PRIORS), dtype=torch.bool)
    found[list(anchors)] = True
    return found


def guided(**changes: Any) -> GuidedImage:
    """1 and 2 stay under L2C, which drops 3 and gains 7; C2L drops all three and gains 8, 9 and 10."""
    fields: dict[str, Any] = {
        "image": np.full((64, 96, 3), 200, dtype=np.uint8),
        "view": (0.0, 0.0, 96.0, 64.0),
        "gt_boxes": GT,
        "prior_boxes": PRIORS,
        "static": mask(1, 2, 3),
        "l2c": mask(1, 2, 7),
        "c2l": mask(8, 9, 10),
        "source": "cat.jpg",
    }
    return GuidedImage(**fields | changes)


def group(axes: Axes, name: str) -> list[list[float]]:
    (found,) = [c for c in axes.collections if isinstance(c, PatchCollection) and c.get_gid() == name]
    extents = [path.get_extents() for path in found.get_paths()]
    return [[e.x0, e.y0, e.x1, e.y1] for e in extents]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_every_prior_is_drawn_in_its_group() -> None:
    figure = guidance_figure([guided()])
    expected = [
        {"kept": [1, 2, 3], "lost": [], "l2c": [], "c2l": []},
        {"kept": [1, 2], "lost": [3], "l2c": [7], "c2l": []},
        {"kept": [], "lost": [1, 2, 3], "l2c": [], "c2l": [8, 9, 10]},
    ]
    for axes, groups in zip(figure.axes, expected, strict=True):
        for name, anchors in groups.items():
            assert group(axes, name) == PRIORS[anchors].tolist(), name


def test_titles_name_the_matching_and_count_what_it_changes() -> None:
    figure = guidance_figure([guided(), guided()], source="predictions of net")
    assert titles(figure)[3:] == ["3 positive", "3 positive:  +1  −1", "3 positive:  +3  −3"]
    heads = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert heads == [[title] for title in COLUMNS.values()] + [[]] * 3
    assert [axes.get_ylabel() for axes in figure.axes] == ["cat.jpg", "", ""] * 2
    assert figure.texts[1].get_text() == "predictions of net"


def test_where_there_are_too_many_boxes_the_title_says_how_many_are_drawn() -> None:
    many = mask(*range(3 * MOST))
    axes = guidance_figure([guided(static=many, l2c=many)]).axes
    drawn = group(axes[1], "kept")
    assert len(drawn) == MOST
    assert (drawn[0], drawn[-1]) == (PRIORS[0].tolist(), PRIORS[3 * MOST - 1].tolist())
    assert axes[1].get_title(loc="left") == f"{3 * MOST} positive:  +0  −0  ·  {MOST} of {3 * MOST} boxes drawn"


def test_groups_differ_in_line_style_as_well_as_in_colour() -> None:
    beside = [("kept", "lost"), ("lost", "l2c"), ("lost", "c2l"), ("l2c", "c2l")]
    for one, two in beside:
        assert GROUPS[one][0]["linestyle"] != GROUPS[two][0]["linestyle"]
        assert GROUPS[one][0]["edgecolor"] != GROUPS[two][0]["edgecolor"]
    (legend,) = guidance_figure([guided()]).legends
    assert [text.get_text() for text in legend.get_texts()] == [meaning for _, meaning in GROUPS.values()] + ["object"]


def test_objects_are_white_and_dashed_in_every_panel() -> None:
    for axes in guidance_figure([guided()]).axes:
        found = [patch for patch in axes.patches if patch.get_gid() == "objects"]
        assert [patch.get_xy() for patch in found] == [(8.0, 24.0), (50.0, 2.0)]
        assert {patch.get_linestyle() for patch in found} == {"--"}


@pytest.mark.slow
def test_only_the_view_is_shown_in_its_own_proportions() -> None:
    tall = guided(view=(10.0, 0.0, 40.0, 60.0))
    figure = guidance_figure([tall, guided()])
    figure.savefig(io.BytesIO())
    for axes in figure.axes[:3]:
        assert (axes.get_xlim(), axes.get_ylim()) == ((10.0, 40.0), (60.0, 0.0))
        extent = axes.get_window_extent()
        assert extent.height / extent.width == pytest.approx(2, rel=0.01)


def test_images_without_objects_or_positives_are_drawn_too() -> None:
    empty = guided(gt_boxes=GT[:0], static=mask(), l2c=mask(), c2l=mask())
    figure = guidance_figure([empty])
    figure.savefig(io.BytesIO())
    assert titles(figure) == ["0 positive", "0 positive:  +0  −0", "0 positive:  +0  −0"]
    assert plt.get_fignums() == []


def test_the_image_stays_as_it_was() -> None:
    each = guided()
    guidance_figure([each]).savefig(io.BytesIO())
    assert (each.image == 200).all()


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        guidance_figure([])
