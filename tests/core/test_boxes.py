"""The IoU family against torchvision, Ultralytics, hand-made numbers and its laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_area as torchvision_area
from torchvision.ops import box_iou, complete_box_iou_loss
from ultralytics.utils.metrics import bbox_iou

from mlc_yolo.boxes import aligned_ciou, aligned_iou, box_area, pairwise_iou

COORDINATE = st.integers(-2000, 2000).map(lambda i: i / 8)
SIDE = st.integers(1, 2000).map(lambda i: i / 8)
BOX = st.tuples(COORDINATE, COORDINATE, SIDE, SIDE).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
ANY_BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE)
PAIRS = st.lists(st.tuples(BOX, BOX), max_size=12)


def tensors(pairs: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([a for a, _ in pairs]).reshape(-1, 4), torch.tensor([b for _, b in pairs]).reshape(-1, 4)


@settings(deadline=None, max_examples=100)
@given(PAIRS)
def test_iou_and_area_equal_torchvisions(pairs) -> None:
    first, second = tensors(pairs)
    expected = box_iou(first, second)
    torch.testing.assert_close(pairwise_iou(first, second), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(aligned_iou(first, second), expected.diagonal(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(box_area(first), torchvision_area(first))


@settings(deadline=None, max_examples=100)
@given(PAIRS)
def test_ciou_equals_ultralytics_and_torchvisions(pairs) -> None:
    first, second = tensors(pairs)
    ciou = aligned_ciou(first, second)
    torch.testing.assert_close(ciou, bbox_iou(first, second, xywh=False, CIoU=True)[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ciou, 1 - complete_box_iou_loss(first, second), rtol=0, atol=1e-5)
    assert ((ciou > -2) & (ciou <= 1 + 1e-6)).all()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(ANY_BOX, ANY_BOX), min_size=1, max_size=12))
def test_iou_is_symmetric_in_the_unit_interval_and_finite_for_any_corners(pairs) -> None:
    first, second = tensors(pairs)
    iou = pairwise_iou(first, second)
    assert ((iou >= 0) & (iou <= 1)).all()
    torch.testing.assert_close(iou.T, pairwise_iou(second, first), rtol=1e-6, atol=0)
    assert (box_area(first) >= 0).all()
    no_area = box_area(first) == 0
    assert (iou[no_area] == 0).all()


@settings(deadline=None, max_examples=100)
@given(PAIRS, st.integers(-50, 50), st.integers(-50, 50))
def test_moving_and_mirroring_both_boxes_keeps_their_iou(pairs, dx: int, dy: int) -> None:
    first, second = tensors(pairs)
    move = torch.tensor([dx, dy, dx, dy])

    def mirror(boxes: Tensor) -> Tensor:
        return torch.stack((-boxes[:, 2], boxes[:, 1], -boxes[:, 0], boxes[:, 3]), 1)

    for measure in (aligned_iou, aligned_ciou):
        expected = measure(first, second)
        torch.testing.assert_close(measure(first + move, second + move), expected, rtol=0, atol=0)
        torch.testing.assert_close(measure(mirror(first), mirror(second)), expected, rtol=0, atol=0)


def test_a_box_overlaps_itself_fully() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.3, 0.7], [-5.0, -5.0, 1000.0, 3.0], [0.0, 0.0, 1e-3, 1e-3]])
    torch.testing.assert_close(aligned_iou(boxes, boxes), torch.ones(3))
    torch.testing.assert_close(aligned_ciou(boxes[:2], boxes[:2]), torch.ones(2), rtol=0, atol=1e-5)


def test_iou_by_hand() -> None:
    # 4 x 4 and 4 x 2 shifted by 2: overlap 2 x 2 = 4, union 16 + 8 - 4 = 20.
    first, second = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 2, 6, 4]])
    torch.testing.assert_close(aligned_iou(first, second), torch.tensor([0.2]))
    # Enclosing 6 x 4: diagonal^2 52. Centres (2, 2) and (4, 3): distance^2 5. v = 4 / pi^2 (atan 2 - atan 1)^2.
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    expected = 0.2 - 5 / 52 - v * v / (1 - 0.2 + v)
    torch.testing.assert_close(aligned_ciou(first, second), torch.tensor([expected]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (3, 3, 9, 3), (5, 5, 5, 5), (9, 9, 3, 3), (9, 3, 3, 9)])
def test_a_box_without_area_overlaps_nothing_not_even_itself(box: tuple[float, ...]) -> None:
    empty, real = torch.tensor([box], dtype=torch.float32), torch.tensor([[0.0, 0, 10, 10]])
    assert box_area(empty).item() == 0
    assert aligned_iou(empty, empty).item() == pairwise_iou(empty, empty).item() == 0
    assert aligned_iou(empty, real).item() == pairwise_iou(real, empty).item() == 0


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (2, 0)])
def test_empty_sets_give_empty_results(rows: int, columns: int) -> None:
    assert pairwise_iou(torch.zeros(rows, 4), torch.zeros(columns, 4)).shape == (rows, columns)
    assert box_area(torch.zeros(0, 4)).shape == (0,)
    assert aligned_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    assert aligned_ciou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_every_type_is_computed_in_single_precision(dtype: torch.dtype) -> None:
    # The area 300 * 300 overflows half precision.
    boxes = torch.tensor([[0, 0, 300, 300], [100, 0, 300, 300]]).to(dtype)
    for result in (box_area(boxes), aligned_iou(boxes, boxes), aligned_ciou(boxes, boxes), pairwise_iou(boxes, boxes)):
        assert result.dtype == torch.float32 and result.isfinite().all()
    torch.testing.assert_close(box_area(boxes), torch.tensor([90_000.0, 60_000.0]))
    torch.testing.assert_close(pairwise_iou(boxes, boxes)[0, 1], torch.tensor(2 / 3))


def test_inputs_stay_as_they_were() -> None:
    first, second = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 2, 1, 4]])
    copies = first.clone(), second.clone()
    for measure in (pairwise_iou, aligned_iou, aligned_ciou):
        measure(first, second)
    box_area(second)
    assert torch.equal(first, copies[0]) and torch.equal(second, copies[1])
