"""The picture of two assignments shows every positive once, in its group, and says so when there is none."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mlc_yolo.assigners import Assignment, Role, TaskAssignment
from mlc_yolo.assigners.assignment import all_negative
from mlc_yolo.plots.positives import GROUPS, MANY, MAX_NAMED, assignment_figure
from mlc_yolo.priors import Priors, grid_priors

IMAGE = np.zeros((64, 96, 3), dtype=np.uint8)
PRIORS = grid_priors([(8, 12), (4, 6)], [8.0, 16.0])
A = len(PRIORS)
NAMES = {0: "cat", 1: "dog"}
BOXES, LABELS = torch.tensor([[8.0, 24, 40, 56], [50, 2, 90, 60]]), torch.tensor([0, 1])


def task(positive: list[int], ignored: list[int] = (), *, quality: float = 1.0, weight: float = 1.0) -> TaskAssignment:
    empty = all_negative(1, A, torch.device("cpu"))
    empty.gt_index[0, positive] = 0
    empty.role[0, positive], empty.role[0, ignored] = int(Role.POSITIVE), int(Role.IGNORED)
    empty.quality[0, positive], empty.weight[0, positive], empty.weight[0, ignored] = quality, weight, 0.0
    return empty


# Anchors 3 and 4 are positive for both tasks; 5, 6, 7 for classification alone, 8 for localisation alone.
MIXED = Assignment(task([3, 4, 5, 6, 7], [20]), task([3, 4, 8], [5, 6]))
SAME = Assignment(task([1, 2]), task([1, 2]))
NOBODY = Assignment(all_negative(1, A, torch.device("cpu")), all_negative(1, A, torch.device("cpu")))


def draw(*assignments: Assignment, **changes: Any) -> Figure:
    arguments: dict[str, Any] = {"image": IMAGE, "gt_boxes": BOXES, "gt_labels": LABELS, "names": NAMES}
    arguments |= {"priors": PRIORS, "boxes": PRIORS.boxes} | changes
    return assignment_figure(**arguments, assignments=[(f"a{i}", a) for i, a in enumerate(assignments)])


def panel(figure: Figure, row: int, column: int) -> Axes:
    """Axes are created row by row."""
    return figure.axes[row * (len(figure.axes) // 2) + column]


def points(axes: Axes, group: str) -> list[list[float]]:
    (found,) = [c for c in axes.collections if isinstance(c, PathCollection) and c.get_gid() == group]
    return np.asarray(found.get_offsets()).tolist()


def outlines(axes: Axes, group: str) -> PolyCollection:
    (found,) = [c for c in axes.collections if isinstance(c, PolyCollection) and c.get_gid() == group]
    return found


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_every_positive_is_drawn_once_in_its_group_at_its_anchor_point() -> None:
    figure = draw(SAME, MIXED)
    expected = {
        (0, 0): {"both": [1, 2], "only": [], "ignored": []},
        (1, 0): {"both": [1, 2], "only": [], "ignored": []},
        (0, 1): {"both": [3, 4], "only": [5, 6, 7], "ignored": [20]},
        (1, 1): {"both": [3, 4], "only": [8], "ignored": [5, 6]},
    }
    for place, groups in expected.items():
        for group, anchors in groups.items():
            assert points(panel(figure, *place), group) == PRIORS.points[anchors].tolist(), (place, group)


def test_every_positive_shows_the_box_it_predicts_in_the_colour_of_its_group() -> None:
    axes = panel(draw(SAME, MIXED), 0, 1)
    for group, anchors in (("both", [3, 4]), ("only", [5, 6, 7])):
        found = outlines(axes, f"{group} boxes")
        extents = [path.get_extents() for path in found.get_paths()]
        corners = [[e.x0, e.y0, e.x1, e.y1] for e in extents]
        assert corners == PRIORS.boxes[anchors].tolist()
        assert np.allclose(np.asarray(found.get_edgecolor())[:, :3], to_rgb(GROUPS[group][0]))


def test_rows_are_tasks_columns_are_assigners_and_titles_count() -> None:
    figure = draw(SAME, MIXED)
    assert [panel(figure, row, 0).get_ylabel() for row in (0, 1)] == ["classification", "localization"]
    assert [texts(panel(figure, 0, column))[0] for column in (0, 1)] == ["a0", "a1"]
    titles = [[panel(figure, row, column).get_title(loc="left") for column in (0, 1)] for row in (0, 1)]
    assert titles == [
        ["2 positive", "5 positive, 3 for this task only; 1 ignored"],
        ["2 positive", "3 positive, 1 for this task only; 2 ignored"],
    ]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} >= {meaning for _, _, meaning in GROUPS.values()}


def test_a_better_positive_is_a_larger_dot_with_a_more_opaque_box() -> None:
    low, high = (Assignment(t, t) for t in (task([1], quality=0.1), task([1], quality=0.9)))
    figure = draw(low, high)
    sizes, opacities = [], []
    for column in (0, 1):
        axes = panel(figure, 0, column)
        (dots,) = [c for c in axes.collections if isinstance(c, PathCollection) and c.get_gid() == "both"]
        sizes.append(float(dots.get_sizes()[0]))
        opacities.append(float(np.asarray(outlines(axes, "both boxes").get_edgecolor())[0, 3]))
    assert sizes[0] < sizes[1]
    assert opacities == pytest.approx([0.15 + 0.75 * 0.1, 0.15 + 0.75 * 0.9])


def test_boxes_fade_with_weight_and_in_a_crowd() -> None:
    crowd = list(range(4 * MANY)) if 4 * MANY <= A else list(range(A))
    light, many = task([1], weight=0.2), task(crowd)
    figure = draw(Assignment(light, light), Assignment(many, many))
    alphas = [np.asarray(outlines(panel(figure, 1, c), "both boxes").get_edgecolor())[:, 3] for c in (0, 1)]
    assert alphas[0] == pytest.approx([0.15 + 0.75 * 0.2])
    assert alphas[1] == pytest.approx(0.9 * (MANY / len(crowd)) ** 0.5)


def test_objects_are_dashed_boxes_with_their_names() -> None:
    axes = panel(draw(SAME), 1, 0)
    found = outlines(axes, "objects")
    assert [path.get_extents().x0 for path in found.get_paths()] == BOXES[:, 0].tolist()
    assert found.get_linestyle()[0][1] is not None  # a dash pattern
    assert {"cat", "dog"} <= set(texts(axes))


def test_names_are_left_out_where_objects_crowd() -> None:
    boxes = BOXES[:1].repeat(MAX_NAMED + 1, 1)
    axes = panel(draw(SAME, gt_boxes=boxes, gt_labels=torch.zeros(len(boxes), dtype=torch.int64)), 1, 0)
    assert len(outlines(axes, "objects").get_paths()) == MAX_NAMED + 1
    assert texts(axes) == []


@pytest.mark.parametrize(("objects", "said"), [(0, "no objects:\nevery anchor learns background"), (2, "no anchor is")])
def test_a_panel_without_positives_says_why(objects: int, said: str) -> None:
    figure = draw(NOBODY, NOBODY, gt_boxes=BOXES[:objects], gt_labels=LABELS[:objects])
    for axes in figure.axes:
        assert any(text.startswith(said) for text in texts(axes))
        assert axes.get_title(loc="left") == "0 positive"
    figure.savefig(io.BytesIO())


def test_no_anchors_at_all_is_a_picture_too() -> None:
    none = Priors(torch.zeros(0, 2), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    empty = all_negative(1, 0, torch.device("cpu"))
    figure = draw(Assignment(empty, empty), priors=none, boxes=none.boxes)
    assert points(panel(figure, 0, 0), "both") == []
    figure.savefig(io.BytesIO())


def test_only_the_view_is_shown() -> None:
    figure = draw(SAME, view=(10.0, 20.0, 90.0, 60.0))
    for axes in figure.axes:
        assert (axes.get_xlim(), axes.get_ylim()) == ((10.0, 90.0), (60.0, 20.0))


def test_the_subtitle_names_the_source_and_counts_objects() -> None:
    def lines(**changes: Any) -> list[str]:
        return [text.get_text() for text in draw(SAME, MIXED, **changes).texts]

    assert lines(source="cat.jpg")[0] == "Who learns what: a0 against a1"
    assert lines(source="cat.jpg")[1].startswith("cat.jpg  ·  2 objects  ·  ")
    assert lines(gt_boxes=BOXES[:1], gt_labels=LABELS[:1])[1].startswith("1 object  ·  ")


def test_the_figure_is_unknown_to_pyplot_and_its_inputs_stay_as_they_were() -> None:
    before = [tensor.clone() for tensor in (BOXES, PRIORS.boxes, MIXED.classification.role)]
    draw(SAME, MIXED).savefig(io.BytesIO())
    assert plt.get_fignums() == []
    after = (BOXES, PRIORS.boxes, MIXED.classification.role)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gt_labels": LABELS[:1]}, "expected gt_boxes"),
        ({"boxes": PRIORS.boxes[:-1]}, "expected one image's assignment"),
        ({"priors": grid_priors([(2, 2)], [8.0])}, "with A = 4 priors"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(SAME, **changes)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw()
