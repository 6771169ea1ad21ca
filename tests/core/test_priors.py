"""Anchor points and square priors: order, geometry, and agreement with Ultralytics' own anchor points."""

from __future__ import annotations

import pytest
import torch
from ultralytics.utils.tal import make_anchors

from mlc_yolo.priors import grid_priors, square_priors

SIZES, STRIDES = [(8, 12), (4, 6), (2, 3)], [8, 16, 32]


def test_points_and_strides_are_ultralytics_own_in_its_order() -> None:
    features = [torch.zeros(1, 1, *size) for size in SIZES]
    points, strides = make_anchors(features, torch.tensor(STRIDES, dtype=torch.float32), 0.5)
    priors = grid_priors(SIZES, STRIDES)
    torch.testing.assert_close(priors.points, points * strides)
    torch.testing.assert_close(priors.strides, strides[:, 0])


def test_every_level_has_its_cells_row_by_row_and_finest_first() -> None:
    priors = grid_priors(SIZES, STRIDES)
    assert len(priors) == 96 + 24 + 6
    assert priors.levels.tolist() == [0] * 96 + [1] * 24 + [2] * 6
    assert priors.levels.dtype == torch.int64
    assert priors.points[:3].tolist() == [[4, 4], [12, 4], [20, 4]]
    assert priors.points[12].tolist() == [4, 12]
    assert priors.points[96].tolist() == [8, 8] and priors.points[-1].tolist() == [80, 48]


@pytest.mark.parametrize("scale", [0.5, 1.0, 5.0])
def test_priors_are_squares_of_scale_strides_about_their_points(scale: float) -> None:
    priors = grid_priors(SIZES, STRIDES, scale=scale)
    sides = priors.boxes[:, 2:] - priors.boxes[:, :2]
    torch.testing.assert_close(sides, (priors.strides * scale)[:, None].expand(-1, 2))
    torch.testing.assert_close((priors.boxes[:, 2:] + priors.boxes[:, :2]) / 2, priors.points)


def test_priors_of_scale_one_tile_the_image() -> None:
    priors = grid_priors([(3, 2)], [16], scale=1)
    assert priors.boxes[:, :2].amin(0).tolist() == [0, 0] and priors.boxes[:, 2:].amax(0).tolist() == [32, 48]
    assert ((priors.boxes[:, 2:] - priors.boxes[:, :2]).prod(1).sum() == 32 * 48).item()


def test_half_precision_points_give_single_precision_priors() -> None:
    priors = square_priors(torch.tensor([[4.0, 4.0]]).half(), torch.tensor([8.0]).half(), torch.tensor([0]))
    assert priors.points.dtype == priors.boxes.dtype == priors.strides.dtype == torch.float32
    assert priors.boxes.tolist() == [[-16, -16, 24, 24]]


def test_an_empty_level_adds_nothing() -> None:
    assert len(grid_priors([(2, 2), (0, 0)], [8, 16])) == 4
    none = square_priors(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert len(none) == 0 and none.boxes.shape == (0, 4)


def test_a_level_without_a_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        grid_priors([(2, 2), (1, 1)], [8])
