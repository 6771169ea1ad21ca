"""The geometry of oriented boxes: against Ultralytics and OpenCV, by hand, and the laws of an angle."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from ultralytics.utils.metrics import probiou
from ultralytics.utils.tal import dist2rbox

from mlc_yolo.box_kinds import ORIENTED, UPRIGHT
from mlc_yolo.oriented import aligned_probiou, aligned_touch, extent, from_sides, sides_from

COUNT = 400


def boxes(seed: int, count: int = COUNT) -> Tensor:
    """Boxes of 4 to 80 px about each other, with angles of more than one turn."""
    rng = np.random.default_rng(seed)
    parts = rng.uniform(0, 60, (count, 2)), rng.uniform(4, 80, (count, 2)), rng.uniform(-7, 7, (count, 1))
    return torch.from_numpy(np.concatenate(parts, 1)).float()


FIRST, SECOND = boxes(0), boxes(1)
POINTS = boxes(2)[:, :2]


def half_turn(rows: Tensor) -> Tensor:
    return rows + torch.tensor([0, 0, 0, 0, math.pi])


def swapped(rows: Tensor) -> Tensor:
    """The same box with its sides swapped, a quarter turn on."""
    return rows[..., [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])


def hellinger(first: Tensor, second: Tensor) -> float:
    """1 - the Hellinger distance of two Gaussians by their matrices, in float64."""

    def gaussian(row: Tensor) -> tuple[np.ndarray, np.ndarray]:
        x, y, w, h, r = row.double().tolist()
        turn = np.array([[math.cos(r), -math.sin(r)], [math.sin(r), math.cos(r)]])
        return np.array([x, y]), turn @ np.diag([w**2 / 12, h**2 / 12]) @ turn.T

    (mean1, cov1), (mean2, cov2) = gaussian(first), gaussian(second)
    between, apart = (cov1 + cov2) / 2, mean1 - mean2
    distance = apart @ np.linalg.inv(between) @ apart / 8
    distance += math.log(np.linalg.det(between) / math.sqrt(np.linalg.det(cov1) * np.linalg.det(cov2))) / 2
    return 1 - math.sqrt(1 - math.exp(-distance))


def test_probiou_is_that_of_the_gaussians_matrices_and_ultralytics() -> None:
    overlap = aligned_probiou(FIRST, SECOND)
    expected = torch.tensor([hellinger(a, b) for a, b in zip(FIRST, SECOND, strict=True)])
    assert overlap.min() < 0.1 and overlap.max() > 0.7
    torch.testing.assert_close(overlap, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(overlap, probiou(FIRST, SECOND)[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("same", [half_turn, swapped])
def test_a_box_described_another_way_is_the_same_box(same: Callable[[Tensor], Tensor]) -> None:
    for measure in (aligned_probiou, aligned_touch):
        for one, other in ((same(FIRST), SECOND), (FIRST, same(SECOND))):
            torch.testing.assert_close(measure(one, other), measure(FIRST, SECOND), rtol=0, atol=1e-4)
    torch.testing.assert_close(extent(same(FIRST)), extent(FIRST), rtol=0, atol=1e-3)
    ordered = (sides_from(POINTS, rows).sort(1).values for rows in (same(FIRST), FIRST))
    torch.testing.assert_close(*ordered, rtol=0, atol=1e-3)


def test_measures_are_symmetric_and_do_not_depend_on_where_or_which_way_a_pair_lies() -> None:
    torch.testing.assert_close(aligned_probiou(SECOND, FIRST), aligned_probiou(FIRST, SECOND), rtol=0, atol=1e-5)
    assert torch.equal(aligned_touch(SECOND, FIRST), aligned_touch(FIRST, SECOND))
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    moved = [torch.cat((b[:, :2] @ turn + 5, b[:, 2:4], b[:, 4:] + angle), 1) for b in (FIRST, SECOND)]
    torch.testing.assert_close(aligned_probiou(*moved), aligned_probiou(FIRST, SECOND), rtol=0, atol=1e-4)
    assert torch.equal(aligned_touch(*moved), aligned_touch(FIRST, SECOND))


def test_the_overlap_of_a_square_does_not_depend_on_its_angle() -> None:
    square = FIRST.clone()
    square[:, 3] = square[:, 2]
    upright = square * torch.tensor([1.0, 1, 1, 1, 0])
    torch.testing.assert_close(aligned_probiou(square, SECOND), aligned_probiou(upright, SECOND), rtol=0, atol=1e-4)


def _shared(first: Tensor, second: Tensor) -> float:
    """Area two boxes share, by OpenCV."""
    corners = [
        cv2.boxPoints(((float(x), float(y)), (float(w), float(h)), math.degrees(float(r))))
        for x, y, w, h, r in (first, second)
    ]
    return float(cv2.intersectConvexConvex(*corners)[0])


def test_boxes_touch_where_opencv_finds_an_area() -> None:
    second = SECOND.clone()
    second[: COUNT // 2, :2] += 70  # or few would be apart
    touch = aligned_touch(FIRST, second)
    area = torch.tensor([_shared(a, b) for a, b in zip(FIRST, second, strict=True)])
    clear = (area == 0) | (area > 0.01)
    assert clear.float().mean() > 0.98 and 40 < touch.sum() < COUNT - 40
    assert torch.equal(touch[clear], (area > 0)[clear])


def test_points_are_inside_where_opencv_says_so_and_an_extent_holds_every_corner() -> None:
    for box, point, sides, around in zip(FIRST, POINTS, sides_from(POINTS, FIRST), extent(FIRST), strict=True):
        x, y, w, h, r = box.tolist()
        corners = cv2.boxPoints(((x, y), (w, h), math.degrees(r)))
        depth = cv2.pointPolygonTest(corners, point.tolist(), measureDist=True)
        assert abs(depth) < 1e-3 or (depth > 0) == bool((sides > 0).all())
        np.testing.assert_allclose(around.numpy(), [*corners.min(0), *corners.max(0)], atol=1e-2)


def test_an_angle_of_zero_gives_the_numbers_of_an_upright_box() -> None:
    # 8 x 4 about (10, 10), from its point (12, 11): left 6, top 3, right 2, bottom 1.
    upright, point = torch.tensor([[6.0, 8.0, 14.0, 12.0]]), torch.tensor([[12.0, 11.0]])
    oriented = ORIENTED.of_upright(upright)
    assert oriented.tolist() == [[10.0, 10.0, 8.0, 4.0, 0.0]]
    for kind, rows in ((UPRIGHT, upright), (ORIENTED, oriented)):
        assert kind.sides_from(point, rows).tolist() == [[6.0, 3.0, 2.0, 1.0]]
        assert kind.extent(rows).tolist() == upright.tolist() and kind.centre(rows).tolist() == [[10.0, 10.0]]
        assert kind.area(rows).tolist() == [32.0]
        assert kind.area(kind.widened(rows, torch.tensor(6.0))).tolist() == [48.0]
        assert kind.area(kind.scaled(rows, torch.tensor([[2.0]]))).tolist() == [128.0]


def test_an_overlap_is_in_the_unit_interval_of_no_box_nan_and_boxes_too_large_to_square() -> None:
    odd = torch.stack((torch.zeros(5), torch.full((5,), 1e30), torch.full((5,), torch.nan)))
    rows = torch.cat((odd, boxes(3, 6)))
    overlap = aligned_probiou(rows.repeat_interleave(len(rows), 0), rows.repeat(len(rows), 1)).reshape(9, 9)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    assert (overlap[1:3] == 0).all() and (overlap[3:, :3] < 1e-4).all() and (overlap.diagonal()[3:] > 0.99).all()
    assert aligned_probiou(rows[:0], rows[:0]).shape == aligned_touch(rows[:0], rows[:0]).shape == (0,)
    assert not aligned_touch(rows[2:3], rows[3:4]).any()


def test_half_precision_boxes_are_measured_in_single_precision() -> None:
    first, second = (torch.cat((b[:, :4].round(), b[:, 4:]), 1).half() for b in (FIRST, SECOND))
    assert aligned_probiou(first, second).dtype == torch.float32
    assert torch.equal(aligned_probiou(first, second), aligned_probiou(first.float(), second.float()))


def test_boxes_come_from_their_sides_as_ultralytics_decodes_them_and_back() -> None:
    points = SECOND[:, :2] + 1.5
    sides = sides_from(points, FIRST)
    torch.testing.assert_close(from_sides(points, sides, FIRST[:, 4:]), FIRST, rtol=0, atol=1e-3)
    decoded = dist2rbox(sides, FIRST[:, 4:], points)
    torch.testing.assert_close(from_sides(points, sides, FIRST[:, 4:])[:, :4], decoded, rtol=0, atol=1e-4)


def test_the_gradient_of_probiou_is_finite_for_boxes_without_area_and_leads_to_the_other_box() -> None:
    rows = torch.tensor([[8.0, 8.0, 0.0, 4.0, 0.3], [8.0, 8.0, 1e-4, 60.0, 0.7], [8.0, 8.0, 12.0, 5.0, 0.4]])
    rows.requires_grad_()
    goal = torch.tensor([[8.0, 8.0, 10.0, 4.0, 0.1]])
    aligned_probiou(rows, goal.expand(3, 5)).sum().backward()
    assert rows.grad is not None and rows.grad.isfinite().all()
    assert (rows.grad[2, 2:] < 0).all()  # smaller, and turned back
