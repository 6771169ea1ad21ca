"""Otsu's threshold of many groups at once against brute force, scikit-image and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from mlc_yolo.assigners.otsu import segmented_otsu

from .references import otsu

# Multiples of 1/64 tie often and are exact; floats hardly ever tie.
GRID = st.integers(-64, 128).map(lambda i: i / 64)
FLOATS = st.floats(0, 1, width=32)
GROUPS = st.lists(st.one_of(st.lists(GRID, max_size=12), st.lists(FLOATS, max_size=12)), max_size=6)


def flat(groups: list[list[float]], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Join the groups in a random order."""
    values = np.array([value for group in groups for value in group], dtype=np.float32)
    owner = np.array([g for g, group in enumerate(groups) for _ in group], dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(values))
    return torch.from_numpy(values[order]), torch.from_numpy(owner[order])


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(groups=GROUPS, seed=st.integers(0, 99))
def test_every_group_equals_brute_force_over_all_cuts(groups: list[list[float]], seed: int) -> None:
    threshold, defined = segmented_otsu(*flat(groups, seed), len(groups))
    assert threshold.shape == defined.shape == (len(groups),) and threshold.dtype == torch.float64
    for g, group in enumerate(groups):
        expected = otsu(group)
        assert bool(defined[g]) == (expected is not None)
        if expected is None:
            assert threshold[g].isnan()
        else:
            assert threshold[g].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_the_split_is_scikit_images_on_a_fine_histogram(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(3, 200))
    # Two heaps of whole numbers: scikit-image gives every whole number a bin of its own.
    values = np.concatenate((rng.normal(300, 90, size), rng.normal(700, 60, size // 2 + 1))).round().astype(np.int64)
    threshold, defined = segmented_otsu(torch.from_numpy(values).float(), torch.zeros(len(values)).long(), 1)
    assert defined.item()
    np.testing.assert_array_equal(values > threshold.item(), values > threshold_otsu(values))


@settings(deadline=None, max_examples=100)
@given(groups=GROUPS, scale=st.integers(1, 50), shift=st.integers(-100, 100))
def test_an_affine_map_of_the_values_maps_the_threshold(groups: list[list[float]], scale: int, shift: int) -> None:
    groups = [[round(value * 64) / 64 for value in group] for group in groups]  # so that the map is exact
    values, owner = flat(groups)
    threshold, defined = segmented_otsu(values, owner, len(groups))
    moved, moved_defined = segmented_otsu(scale * values + shift, owner, len(groups))
    torch.testing.assert_close(moved_defined, defined)
    torch.testing.assert_close(moved, scale * threshold + shift, equal_nan=True)


@settings(deadline=None, max_examples=100)
@given(groups=GROUPS, seed=st.integers(0, 99))
def test_the_order_of_the_values_does_not_matter(groups: list[list[float]], seed: int) -> None:
    first, second = segmented_otsu(*flat(groups, 0), len(groups)), segmented_otsu(*flat(groups, seed), len(groups))
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_a_thousand_groups_at_once_equal_each_alone() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.random(rng.integers(0, 30)).tolist() for _ in range(1000)]
    # Wildly different scales side by side must not spoil each other's digits.
    groups = [[value * 10.0 ** (g % 7 - 3) for value in group] for g, group in enumerate(groups)]
    values, owner = flat(groups)
    threshold, defined = segmented_otsu(values, owner, 1000)
    for g in range(1000):
        alone, alone_defined = segmented_otsu(values[owner == g], torch.zeros_like(owner[owner == g]), 1)
        assert defined[g] == alone_defined[0]
        torch.testing.assert_close(threshold[g], alone[0], rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(values=st.lists(FLOATS, min_size=2, max_size=20).filter(lambda values: len(set(values)) > 1))
def test_both_sides_of_a_defined_threshold_hold_a_value(values: list[float]) -> None:
    threshold, defined = segmented_otsu(torch.tensor(values), torch.zeros(len(values)).long(), 1)
    assert defined.item() and min(values) <= threshold.item() <= max(values)
    assert any(v > threshold.item() for v in values)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1e-30, 1e30])
@pytest.mark.parametrize("count", [1, 2, 17])
def test_constant_and_single_values_have_no_threshold(value: float, count: int) -> None:
    threshold, defined = segmented_otsu(torch.full((count,), value), torch.zeros(count).long(), 1)
    assert not defined.item() and threshold.isnan().item()


def test_no_values_and_no_groups_give_empty_or_undefined_results() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    threshold, defined = segmented_otsu(torch.zeros(0), none, 0)
    assert threshold.shape == defined.shape == (0,)
    threshold, defined = segmented_otsu(torch.zeros(0), none, 3)
    assert threshold.isnan().all() and not defined.any()


def test_two_different_values_are_cut_in_the_middle() -> None:
    threshold, _ = segmented_otsu(torch.tensor([0.25, 0.75, 5.0, 1.0]), torch.tensor([0, 0, 1, 1]), 2)
    assert threshold.tolist() == [0.5, 3.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # After one value 1 * 2 * (0 - 1.5)^2 = 4.5; after two 2 * 1 * (.5 - 2)^2 = 4.5.
        ([0, 1, 2], 0.5),
        # After six values 6 * 3 * (7/6 - 23/3)^2 = 760.5; after eight 8 * 1 * (18/8 - 12)^2 = 760.5. The mean 30/9 is
        # not exact, so that only the tolerance keeps rounding from choosing.
        ([0, 0, 0, 1, 3, 3, 5, 6, 12], 4.0),
    ],
)
def test_the_lowest_of_equal_cuts_wins(values: list[float], expected: float) -> None:
    threshold, _ = segmented_otsu(torch.tensor(values).float(), torch.zeros(len(values)).long(), 1)
    assert threshold.item() == expected


def test_half_precision_values_are_cut_as_the_same_values_in_single() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0)).half()
    owner = torch.arange(50) % 5
    torch.testing.assert_close(segmented_otsu(values, owner, 5), segmented_otsu(values.float(), owner, 5))


def test_neighbouring_floats_are_still_two_classes() -> None:
    low = torch.tensor([0.5, 1.0, 0.3, 0.7])
    values = torch.stack((low, torch.nextafter(low, torch.tensor(2.0))), 1)
    group = torch.arange(4)[:, None].expand(4, 2)
    threshold, defined = segmented_otsu(values.flatten(), group.flatten(), 4)
    assert defined.all()
    assert ((values > threshold[:, None]) == torch.tensor([False, True])).all()
