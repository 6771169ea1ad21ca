"""Box coders: decode(encode(box)) is the box, and the codes are torchvision's and Ultralytics'."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from ultralytics.nn.modules.block import DFL
from ultralytics.utils.tal import bbox2dist, dist2bbox

from mlc_yolo.coding import decode_delta, decode_dfl, decode_distance, encode_delta, encode_dfl, encode_distance

SIDE = st.floats(1, 300, width=32)
CORNER = st.floats(-100, 600, width=32)
BOX = st.tuples(CORNER, CORNER, SIDE, SIDE).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
VARIANCES = st.sampled_from([(1.0, 1.0), (0.1, 0.2)])


@settings(deadline=None, max_examples=150)
@given(BOX, BOX, VARIANCES)
def test_a_box_survives_delta_coding(box, prior, variances) -> None:
    boxes, priors = torch.tensor([box]), torch.tensor([prior])
    deltas = encode_delta(boxes, priors, variances=variances)
    torch.testing.assert_close(decode_delta(deltas, priors, variances=variances), boxes, rtol=1e-5, atol=2e-3)


@settings(deadline=None, max_examples=100)
@given(BOX, BOX, VARIANCES)
def test_deltas_are_torchvisions(box, prior, variances) -> None:
    boxes, priors = torch.tensor([box]), torch.tensor([prior])
    centre, size = 1 / variances[0], 1 / variances[1]
    coder = BoxCoder((centre, centre, size, size))
    deltas = encode_delta(boxes, priors, variances=variances)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, priors), rtol=1e-4, atol=1e-3)
    moderate = deltas.clamp(-4, 4)  # torchvision clips what would grow a prior more than 62.5-fold
    decoded = decode_delta(moderate, priors, variances=variances)
    torch.testing.assert_close(decoded, coder.decode_single(moderate, priors), rtol=1e-4, atol=1e-2)


def test_the_prior_itself_has_no_delta_and_twice_its_size_has_log_two() -> None:
    prior = torch.tensor([10.0, 20.0, 30.0, 60.0])
    assert encode_delta(prior, prior).tolist() == [0, 0, 0, 0]
    # Twice as wide, moved right by half a width: centre 20 -> 30, which is 10 / 20 = .5 widths; SSD divides by .1, .2.
    box = torch.tensor([10.0, 20.0, 50.0, 60.0])
    expected = torch.tensor([5.0, 0.0, math.log(2) / 0.2, 0.0])
    torch.testing.assert_close(encode_delta(box, prior, variances=(0.1, 0.2)), expected)


@settings(deadline=None, max_examples=150)
@given(BOX, st.tuples(CORNER, CORNER))
def test_a_box_survives_distance_coding_from_any_point(box, point) -> None:
    boxes, points = torch.tensor([box]), torch.tensor([point])
    distances = encode_distance(boxes, points)
    torch.testing.assert_close(decode_distance(distances, points), boxes, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(decode_distance(distances, points), dist2bbox(distances, points, xywh=False))
    torch.testing.assert_close(distances.clamp(0, 15 - 0.01), bbox2dist(points, boxes, 15))


def test_a_distance_is_negative_where_the_point_is_outside_that_side() -> None:
    distances = encode_distance(torch.tensor([0.0, 0.0, 10.0, 10.0]), torch.tensor([12.0, 5.0]))
    assert distances.tolist() == [12, 5, -2, 5]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.floats(-3, 20, width=32), min_size=4, max_size=4), st.integers(2, 17))
def test_dfl_is_a_distribution_over_two_neighbours_with_the_distance_as_mean(values: list[float], reg_max: int) -> None:
    distances = torch.tensor([values])
    distribution = encode_dfl(distances, reg_max=reg_max)
    assert distribution.shape == (1, 4, reg_max)
    torch.testing.assert_close(distribution.sum(-1), torch.ones(1, 4))
    assert ((distribution >= 0) & (distribution <= 1)).all() and ((distribution > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(decode_dfl(distribution), distances.clamp(0, reg_max - 1), rtol=0, atol=1e-5)


def test_the_mean_bin_is_what_ultralytics_dfl_layer_computes() -> None:
    logits = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0))
    expected = DFL(16)(logits)  # (B, 4, A)
    distribution = logits.view(2, 4, 16, 5).softmax(2).permute(0, 3, 1, 2)  # (B, A, 4, R)
    torch.testing.assert_close(decode_dfl(distribution), expected.permute(0, 2, 1))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_no_boxes_give_no_codes(shape: tuple[int, ...]) -> None:
    boxes = torch.zeros(shape)
    assert encode_delta(boxes, boxes).shape == decode_delta(boxes, boxes).shape == shape
    assert encode_distance(boxes, boxes[..., :2]).shape == decode_distance(boxes, boxes[..., :2]).shape == shape
    assert encode_dfl(boxes, reg_max=16).shape == (*shape, 16)
    assert decode_dfl(encode_dfl(boxes, reg_max=16)).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_codes_are_single_precision_whatever_comes_in(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0]], dtype=dtype)
    codes = [
        encode_delta(boxes, boxes),
        decode_delta(torch.zeros_like(boxes), boxes),
        encode_distance(boxes, boxes[:, :2]),
        decode_distance(boxes, boxes[:, :2]),
        encode_dfl(boxes / 8, reg_max=16),
        decode_dfl(encode_dfl(boxes / 8, reg_max=16).to(dtype)),
    ]
    assert all(code.dtype == torch.float32 for code in codes)


def test_delta_decoding_is_differentiable() -> None:
    prior = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    deltas = torch.zeros(1, 4, requires_grad=True)
    decode_delta(deltas, prior).sum().backward()
    # d(x1 + x2) / d dx = 2 * width; the size terms cancel.
    torch.testing.assert_close(deltas.grad, torch.tensor([[80.0, 80.0, 0.0, 0.0]]))
