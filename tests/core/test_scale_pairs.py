"""Paired anchors have the same centre, the same distances in strides and the same relative priors at both scales."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch

from mlc_yolo.boxes import aligned_iou
from mlc_yolo.coding import decode_distance, encode_delta, encode_distance
from mlc_yolo.heads.anchor_based import RetinaNetDetect, RPNDetect
from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.heads.fcos import FCOSDetect
from mlc_yolo.heads.multibox import MultiBoxDetect
from mlc_yolo.losses.scale_pairs import ScalePairs, scale_pairs
from mlc_yolo.priors import grid_priors

Sizes = list[tuple[int, int]]

STRIDES = [(8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (8, 16, 32, 64, 128), (4, 8, 16, 32, 64), (16, 32)]
HEADS: dict[str, tuple[DenseDetect, int]] = {
    "fcos": (FCOSDetect(2, 32, quality="iou", follows="paper"), 1),
    "fcos as in torchvision": (FCOSDetect(2, 32, quality="none", follows="torchvision"), 1),
    "multibox": (MultiBoxDetect(2, [8] * 4, quality="none"), 6),
    "rpn": (RPNDetect(1, 8, quality="none", follows="paper"), 3),
    "retinanet": (RetinaNetDetect(2, 8, quality="none", follows="paper"), 9),
}
every_head = pytest.mark.parametrize("name", HEADS)


def cells(height: int, width: int, strides: Sequence[float]) -> Sizes:
    """Level sizes as convolutions of stride 2 give them: rounded up."""
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]


def shapes() -> Sizes:
    """Input sizes that are multiples of 64, some of them random."""
    draw = random.Random(0)
    return [(64, 64), (640, 640), (320, 448), (1344, 832)] + [
        (64 * draw.randint(1, 20), 64 * draw.randint(1, 20)) for _ in range(12)
    ]


def pair(shape: tuple[int, int], strides: Sequence[float], anchors_per_cell: int = 1) -> ScalePairs:
    height, width = shape
    full, half = cells(height, width, strides), cells(height // 2, width // 2, strides)
    return scale_pairs(full, half, strides, anchors_per_cell=anchors_per_cell)


def head_pairs(name: str, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Paired points and priors of a head: full scale, then half."""
    head, anchors_per_cell = HEADS[name]
    pairs = pair(shape, head.level_strides, anchors_per_cell)
    full, half = (
        head.priors([torch.zeros(1, 1, *size) for size in cells(*extent, head.level_strides)], scale=5.0)
        for extent in (shape, (shape[0] // 2, shape[1] // 2))
    )
    return full.points[pairs.full], full.boxes[pairs.full], half.points[pairs.half], half.boxes[pairs.half]


# By hand


def test_the_pairs_of_a_small_input_by_hand() -> None:
    # 128 x 64 px at strides 8, 16, 32: 16 x 8, 8 x 4, 4 x 2 cells; at half scale 8 x 4, 4 x 2, 2 x 1.
    # All but the first 128 anchors at full scale, all but the last 2 at half scale: 32 + 8.
    pairs = scale_pairs([(16, 8), (8, 4), (4, 2)], [(8, 4), (4, 2), (2, 1)], (8, 16, 32))
    assert pairs == ScalePairs(slice(128, 168), slice(0, 40)) and len(pairs) == 40
    with_nine = scale_pairs([(16, 8), (8, 4), (4, 2)], [(8, 4), (4, 2), (2, 1)], (8, 16, 32), anchors_per_cell=9)
    assert with_nine == ScalePairs(slice(9 * 128, 9 * 168), slice(0, 9 * 40))


# Laws


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_twice_a_partners_centre_and_stride_are_the_anchors_own(strides: tuple[int, ...]) -> None:
    for height, width in shapes():
        pairs = pair((height, width), strides)
        full = grid_priors(cells(height, width, strides), strides)
        half = grid_priors(cells(height // 2, width // 2, strides), strides)
        assert len(pairs) > 0
        assert torch.equal(full.points[pairs.full], 2 * half.points[pairs.half])
        assert torch.equal(full.boxes[pairs.full], 2 * half.boxes[pairs.half])
        assert torch.equal(full.strides[pairs.full], 2 * half.strides[pairs.half])
        assert torch.equal(full.levels[pairs.full], half.levels[pairs.half] + 1)


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_all_levels_but_one_are_paired_at_each_scale(strides: tuple[int, ...]) -> None:
    for height, width in shapes():
        pairs = pair((height, width), strides)
        full, half = cells(height, width, strides), cells(height // 2, width // 2, strides)
        assert pairs.full == slice(math.prod(full[0]), sum(map(math.prod, full)))
        assert pairs.half == slice(0, sum(map(math.prod, half[:-1])))


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_an_objects_distances_in_strides_are_the_same_at_both_scales(strides: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width in shapes():
        pairs = pair((height, width), strides)
        whole = grid_priors(cells(height, width, strides), strides)
        small = grid_priors(cells(height // 2, width // 2, strides), strides)
        corner = torch.rand(len(pairs), 2, generator=generator) * 500
        objects = torch.cat((corner, corner + 1 + torch.rand(len(pairs), 2, generator=generator) * 300), 1)
        distances = encode_distance(objects, whole.points[pairs.full]) / whole.strides[pairs.full, None]
        partners = encode_distance(objects / 2, small.points[pairs.half]) / small.strides[pairs.half, None]
        assert torch.equal(distances, partners)  # powers of two: not a bit is lost
        decoded = decode_distance(partners * small.strides[pairs.half, None], small.points[pairs.half])
        again = decode_distance(distances * whole.strides[pairs.full, None], whole.points[pairs.full])
        assert torch.equal(2 * decoded, again)


@every_head
@pytest.mark.parametrize("shape", [(256, 256), (640, 384)], ids=str)
def test_the_points_of_every_head_pair(name: str, shape: tuple[int, int]) -> None:
    points, _, half_points, _ = head_pairs(name, shape)
    assert len(points) > 0 and torch.equal(points, 2 * half_points)


@pytest.mark.parametrize("name", ["fcos", "fcos as in torchvision", "multibox"])
@pytest.mark.parametrize("shape", [(256, 256), (320, 320), (640, 384)], ids=str)
def test_priors_pair_exactly_and_so_do_deltas(name: str, shape: tuple[int, int]) -> None:
    _, boxes, _, half_boxes = head_pairs(name, shape)
    assert torch.equal(boxes, 2 * half_boxes)
    objects = boxes + torch.tensor([3.0, -2.0, 7.0, 5.0])
    assert torch.equal(encode_delta(objects, boxes), encode_delta(objects / 2, half_boxes))


@pytest.mark.parametrize("name", ["rpn", "retinanet"])
@pytest.mark.parametrize("shape", [(256, 256), (320, 320), (640, 384)], ids=str)
def test_anchors_that_torchvision_rounds_to_pixels_pair_within_two_of_them(name: str, shape: tuple[int, int]) -> None:
    _, boxes, _, half_boxes = head_pairs(name, shape)
    assert float((boxes - 2 * half_boxes).abs().max()) <= 2
    assert float(aligned_iou(boxes, 2 * half_boxes).min()) > 0.93


def test_features_of_a_halved_input_are_those_of_its_partners() -> None:
    # Pooling stands for a network: mean colour per cell. Halved by averaging, the image keeps it.
    image = torch.rand(1, 1, 128, 192, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strides = (8, 16, 32)

    def predict(pixels: torch.Tensor) -> tuple[torch.Tensor, Sizes]:
        maps = [torch.nn.functional.avg_pool2d(pixels, stride) for stride in strides]
        return torch.cat([m.flatten(1) for m in maps], 1), [(m.shape[2], m.shape[3]) for m in maps]

    full, sizes = predict(image)
    half, half_sizes = predict(torch.nn.functional.avg_pool2d(image, 2))
    pairs = scale_pairs(sizes, half_sizes, strides)
    torch.testing.assert_close(full[:, pairs.full], half[:, pairs.half], rtol=0, atol=1e-12)
    assert float((full[:, pairs.full] - half[:, pairs.half].flip(1)).abs().max()) > 0.05


# Wrong input


@pytest.mark.parametrize(
    ("shape", "half_shape"), [((100, 100), (50, 50)), ((100, 100), (52, 52)), ((128, 128), (64, 32))]
)
def test_what_was_not_halved_exactly_is_refused(shape: tuple[int, int], half_shape: tuple[int, int]) -> None:
    strides = (8, 16, 32)
    with pytest.raises(ValueError, match="multiples of 64 px and halve them exactly"):
        scale_pairs(cells(*shape, strides), cells(*half_shape, strides), strides)


def test_a_level_of_a_fixed_size_is_refused() -> None:
    # 64 px, the coarsest level pooled to one cell at either scale: 4 x 4 and 1 x 1 against 4 x 4 and 2 x 2.
    with pytest.raises(ValueError, match="do not pair"):
        scale_pairs([(8, 8), (4, 4), (1, 1)], [(4, 4), (2, 2), (1, 1)], (8, 16, 32))


def test_a_coarsest_level_that_does_not_tile_the_half_scale_is_no_obstacle() -> None:
    # 96 px: 12, 6, 3 cells and 6, 3, 2: the level that is rounded up has no partner.
    assert len(pair((96, 96), (8, 16, 32))) == 36 + 9


def test_the_same_input_twice_is_refused() -> None:
    sizes = cells(128, 128, (8, 16, 32))
    with pytest.raises(ValueError, match="do not pair"):
        scale_pairs(sizes, sizes, (8, 16, 32))


def test_strides_that_do_not_double_are_refused() -> None:
    with pytest.raises(ValueError, match=r"double from level to level, got \[8, 16, 64\]"):
        scale_pairs([(8, 8), (4, 4), (1, 1)], [(4, 4), (2, 2), (1, 1)], (8, 16, 64))


@pytest.mark.parametrize(("levels", "half_levels", "strides"), [(0, 0, 0), (1, 1, 1), (2, 1, 2), (2, 2, 1), (2, 2, 3)])
def test_too_few_levels_or_not_one_stride_each_are_refused(levels: int, half_levels: int, strides: int) -> None:
    with pytest.raises(ValueError, match="at least two levels"):
        scale_pairs([(8, 8), (4, 4)][:levels], [(4, 4), (2, 2)][:half_levels], (8, 16, 32)[:strides])
