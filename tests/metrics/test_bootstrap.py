"""The intervals: what they are built from, and that they hold the truth as often as they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_records import made_records

from mlc_yolo.metrics.bootstrap import Difference, difference, draw_images, paired_differences
from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.weighted_ap import NAMES, WeightedAP


def _values(records: Records, resamples: int = 300, seed: int = 0) -> dict[str, np.ndarray]:
    drawn = draw_images(len(records.images), resamples=resamples, seed=seed)
    return WeightedAP(records)(np.concatenate((np.ones((len(drawn), 1)), drawn), 1))


def test_every_draw_has_as_many_images_as_there_are() -> None:
    drawn = draw_images(50, resamples=200)
    assert drawn.shape == (50, 200)
    assert (drawn.sum(0) == 50).all() and (drawn >= 0).all()
    assert drawn.var(0).mean() == pytest.approx(1, abs=0.1)  # of a binomial of mean 1: 1 - 1/50


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    assert np.array_equal(draw_images(30, resamples=9, seed=4), draw_images(30, resamples=9, seed=4))
    assert not np.array_equal(draw_images(30, resamples=9, seed=4), draw_images(30, resamples=9, seed=5))


def test_the_same_seed_gives_the_same_interval() -> None:
    base, variant = made_records(noise_seed=1), made_records(noise_seed=2)
    first, again = (paired_differences([_values(base)], [_values(variant)])["AP"] for _ in range(2))
    other = paired_differences([_values(base, seed=1)], [_values(variant, seed=1)])["AP"]
    assert first == again
    assert other.mean == first.mean and other.low != first.low


def test_a_model_does_not_differ_from_itself() -> None:
    values = _values(replace(made_records(), spearman=None))
    found = paired_differences([values, values], [values, values])
    assert set(found) == set(NAMES)
    assert found["AP"] == Difference(0.0, 0.0, 0.0, 0.0, 2)
    assert found["AP"].verdict == "no difference shown"
    assert found["spearman"].verdict == "nothing to judge"


def test_better_placed_boxes_are_found_to_be_better_and_worse_ones_worse() -> None:
    worse = [_values(made_records(images=90, noise=0.14, noise_seed=s), 100) for s in range(3)]
    better = [_values(made_records(images=90, noise=0.09, noise_seed=10 + s), 100) for s in range(3)]
    found = paired_differences(worse, better)["AP75"]
    assert found.verdict == "higher" and found.low > 0 and found.seeds == 3
    turned = paired_differences(better, worse)["AP75"]
    assert turned.verdict == "lower"
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_pairing_makes_the_interval_narrower_than_the_runs_own_spread() -> None:
    base, variant = (_values(made_records(images=60, noise_seed=0, noise=noise)) for noise in (0.12, 0.125))
    found = paired_differences([base], [variant])["AP"]
    alone = 1.96 * math.hypot(base["AP"][1:].std(), variant["AP"][1:].std())
    assert (found.high - found.low) / 2 < 0.8 * alone


def test_one_seed_has_no_spread_and_its_interval_is_that_of_the_images() -> None:
    draws = np.array([[1.0, 3.0] * 200])
    found = difference(np.array([2.0]), draws)
    assert math.isnan(found.sd)
    assert (found.low, found.high) == pytest.approx((2 - 1.959964, 2 + 1.959964))


def test_seeds_alone_give_students_interval() -> None:
    # No variance over images: mean 2, sd 1, 3 seeds, t(2; 0.975) = 4.302653.
    differences = np.array([1.0, 2.0, 3.0])
    found = difference(differences, np.repeat(differences[:, None], 50, axis=1))
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.verdict == "no difference shown"


def test_draws_without_anything_to_judge_are_left_out() -> None:
    draws = np.array([[1.0, 3.0] * 100 + [math.nan] * 50])
    assert difference(np.array([2.0]), draws) == difference(np.array([2.0]), draws[:, :200])
    assert difference(np.array([math.nan]), draws).verdict == "nothing to judge"


@pytest.mark.parametrize("shape", [(0, 5), (3, 5)])
def test_shapes_that_disagree_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        difference(np.zeros(min(shape[0], 2)), np.zeros(shape))


#: Standard deviations of a difference: by the image, by the seed, and by both; seeds first.
SPREADS = [
    (1, 1.0, 0.0, 0.0),
    (2, 1.0, 0.0, 0.0),  # every seed alike
    (2, 1.0, 0.0, 2.0),  # seeds err on images of their own, and are equal over many images
    (2, 0.5, 0.3, 0.5),
    (2, 0.1, 0.5, 0.1),  # seeds differ far more than images do
    (3, 1.0, 0.15, 1.0),
    (3, 0.1, 0.3, 0.1),
    (5, 1.0, 0.1, 3.0),
    (5, 0.5, 0.3, 0.5),
]


def _simulated(seeds: int, of_images: float, of_seeds: float, of_both: float, *, trials: int) -> Iterator[Any]:
    """Differences and their draws, means over 60 images of 0.5, the image's own, the seed's own, and both's."""
    rng = np.random.default_rng(seeds)
    drawn = draw_images(60, resamples=200) / 60
    for _ in range(trials):
        values = 0.5 + rng.normal(0, of_images, 60) + rng.normal(0, of_seeds, (seeds, 1))
        values = values + rng.normal(0, of_both, (seeds, 60))
        yield values.mean(1), values @ drawn


@pytest.mark.parametrize(("seeds", "of_images", "of_seeds", "of_both"), SPREADS)
def test_95_percent_intervals_hold_the_truth_that_often_however_the_seeds_differ(
    seeds: int, of_images: float, of_seeds: float, of_both: float
) -> None:
    intervals = [difference(*made) for made in _simulated(seeds, of_images, of_seeds, of_both, trials=500)]
    assert np.mean([interval.low <= 0.5 <= interval.high for interval in intervals]) > 0.925


@pytest.mark.parametrize("seeds", [2, 3])
def test_resampling_two_or_three_seeds_would_hold_the_truth_far_less_often(seeds: int) -> None:
    # Why seeds are not resampled as images are: draws of two values have half their variance, with a normal quantile.
    rng = np.random.default_rng(0)
    held = []
    for differences, resampled in _simulated(seeds, 0.1, 0.5, 0.1, trials=500):
        chosen = rng.integers(seeds, size=(seeds, resampled.shape[1]))
        low, high = np.quantile(np.take_along_axis(resampled, chosen, 0).mean(0), (0.025, 0.975))
        assert low <= differences.mean() <= high
        held.append(low <= 0.5 <= high)
    assert np.mean(held) < 0.85


def test_an_interval_of_few_seeds_is_never_narrower_than_that_of_the_images() -> None:
    draws = np.array([[1.0, 3.0] * 200])
    alone = difference(np.array([2.0]), draws)
    equal = difference(np.array([2.0, 2.0]), draws.repeat(2, 0))
    apart = difference(np.array([1.8, 2.2]), draws.repeat(2, 0))
    assert (equal.low, equal.high) == pytest.approx((alone.low, alone.high))
    assert apart.high - apart.low > 1.5 * (alone.high - alone.low)


def test_one_seed_allows_no_verdict_on_the_options() -> None:
    draws = np.array([[1.9, 2.1] * 200])
    for sign in (1, -1):
        one = difference(np.array([2.0 * sign]), draws * sign)
        assert one.shown and one.verdict == "these two weights differ; take more seeds"
    assert difference(np.array([0.01]), draws - 2).verdict == "no difference shown; take more seeds"
    assert difference(np.array([2.0, 2.0]), draws.repeat(2, 0)).verdict == "higher"
