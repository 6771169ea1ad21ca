"""Spearman against scipy, by hand and by its laws; samples against a loop written from the definition."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlc_yolo.metrics import divergence as module
from mlc_yolo.metrics.divergence import (
    IOU,
    LABEL,
    NO_OBJECT,
    OBJECT,
    SCORE,
    divergence,
    entries,
    match,
    merge,
    segmented_spearman,
    spearman,
)


def reference(x: np.ndarray, y: np.ndarray, minimum: int) -> float:
    if len(x) < minimum or len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(stats.spearmanr(x, y).statistic)


def sample(*rows: tuple[float, float, int, int]) -> np.ndarray:
    """Rows of score, IoU, object, label."""
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


# Spearman -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 5)), max_size=60),
    minimum=st.integers(2, 6),
)
def test_every_segment_equals_scipy_with_ties_constants_and_few_values(
    rows: list[tuple[int, int, int]], minimum: int
) -> None:
    segments, x, y = (np.array(column, dtype=np.int64) for column in (zip(*rows, strict=True) if rows else ([],) * 3))
    rho = segmented_spearman(x / 7, y / 3, segments, 8, minimum=minimum)
    expected = [reference(x[segments == s] / 7, y[segments == s] / 3, minimum) for s in range(8)]
    np.testing.assert_allclose(rho, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_thousand_random_segments_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    segments = rng.integers(0, 1000, 12_000)
    x = rng.random(12_000).astype(np.float32)
    y = (0.4 * x + rng.random(12_000)).round(2)
    rho = segmented_spearman(x, y, segments, 1000)
    expected = [reference(x[segments == s], y[segments == s], 5) for s in range(1000)]
    assert np.isfinite(rho).sum() > 900
    np.testing.assert_allclose(rho, expected, rtol=0, atol=1e-12)


def test_pooled_equals_scipy() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random(5000).round(2), rng.random(5000)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_ties_share_their_mean_rank_as_computed_by_hand() -> None:
    # Ranks of x: 1, 2.5, 2.5, 4, 5; of y: 1..5. Deviations from 3: x -2 -.5 -.5 1 2, y -2 -1 0 1 2.
    # sxy = 4 + .5 + 0 + 1 + 4 = 9.5, sxx = 4 + .25 + .25 + 1 + 4 = 9.5, syy = 10: rho = 9.5 / sqrt(95).
    rho = spearman(np.array([0.1, 0.2, 0.2, 0.3, 0.4]), np.array([0.0, 0.1, 0.2, 0.3, 0.4]))
    assert rho == pytest.approx(9.5 / math.sqrt(95), abs=1e-15)


@settings(deadline=None)
@given(values=st.lists(st.integers(-50, 50), min_size=5, max_size=40).filter(lambda v: len(set(v)) > 1))
def test_agreement_is_exactly_one_and_reversal_exactly_minus_one(values: list[int]) -> None:
    x = np.array(values, dtype=float)
    assert spearman(x, x) == 1.0
    assert spearman(x, -x) == -1.0


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=5, max_size=40).filter(
        lambda p: len({a for a, _ in p}) > 1 and len({b for _, b in p}) > 1
    )
)
def test_increasing_maps_and_order_of_rows_change_nothing(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    rho = spearman(x, y)
    assert spearman(np.exp(x / 5), y**3) == rho
    assert spearman(y, x) == rho
    assert spearman(x[::-1], y[::-1]) == rho
    assert spearman(-x, y) == -rho


def test_too_few_and_constant_values_are_undefined() -> None:
    assert math.isnan(spearman(np.empty(0), np.empty(0)))
    assert math.isnan(spearman(np.arange(4.0), np.arange(4.0)))
    assert spearman(np.arange(4.0), np.arange(4.0), minimum=4) == 1.0
    assert math.isnan(spearman(np.ones(9), np.arange(9.0)))
    assert math.isnan(spearman(np.arange(9.0), np.ones(9)))
    assert math.isnan(spearman(np.ones(1), np.ones(1), minimum=1))
    assert np.isnan(segmented_spearman(np.empty(0), np.empty(0), np.empty(0, dtype=int), 3)).tolist() == [True] * 3
    assert len(segmented_spearman(np.empty(0), np.empty(0), np.empty(0, dtype=int), 0)) == 0


# Samples --------------------------------------------------------------------------------------------------------------


def random_image(seed: int, anchors: int = 80, classes: int = 4, objects: int = 6) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)

    def some(n: int) -> torch.Tensor:
        corner = torch.rand(n, 2, generator=g) * 60
        return torch.cat((corner, corner + 10 + torch.rand(n, 2, generator=g) * 40), 1)

    scores = torch.rand(anchors, classes, generator=g) ** 6
    labels = torch.randint(0, classes, (objects,), generator=g)
    return some(anchors), scores, some(objects), labels


def overlap(a: list[float], b: list[float]) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


@pytest.mark.parametrize("seed", range(5))
def test_samples_equal_a_loop_over_anchors_classes_and_objects(seed: int) -> None:
    boxes, scores, gt_boxes, gt_labels = random_image(seed)
    expected = []
    for a, box in enumerate(boxes.tolist()):
        for k in range(scores.shape[1]):
            same = [m for m, label in enumerate(gt_labels.tolist()) if label == k]
            if scores[a, k] <= 0.05 or not same:
                continue
            best = max(same, key=lambda m: overlap(box, gt_boxes[m].tolist()))
            iou = overlap(box, gt_boxes[best].tolist())
            expected.append((float(scores[a, k]), iou, best if iou > 0 else NO_OBJECT, k))
    samples = match(entries(boxes, scores), gt_boxes, gt_labels)
    assert samples.dtype == np.float32
    assert len(expected) > 20
    order = np.lexsort(samples.T)
    np.testing.assert_allclose(samples[order], sample(*expected)[np.lexsort(sample(*expected).T)], atol=1e-6)


def test_the_threshold_is_strict_and_nan_scores_are_no_entries() -> None:
    scores = torch.tensor([[0.05], [0.0501], [math.nan], [0.9]])
    rows = entries(torch.arange(16.0).reshape(4, 4), scores)
    assert rows[:, 4].tolist() == pytest.approx([0.0501, 0.9])
    assert rows[0, :4].tolist() == [4, 5, 6, 7]


def test_an_image_gives_its_best_entries_up_to_the_limit() -> None:
    boxes, scores, _, _ = random_image(0)
    rows = entries(boxes, scores, limit=7)
    top = scores.flatten().topk(7).values
    assert torch.equal(rows[:, 4], top)
    for row in rows:
        a, k = (scores == row[4]).nonzero()[0].tolist()
        assert (row[5], row[:4].tolist()) == (k, boxes[a].tolist())


def test_half_precision_predictions_give_float32_samples() -> None:
    boxes, scores, gt_boxes, gt_labels = random_image(1)
    half = match(entries(boxes.half(), scores.half()), gt_boxes, gt_labels)
    full = match(entries(boxes.half().float(), scores.half().float()), gt_boxes, gt_labels)
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, full)


@pytest.mark.parametrize(("anchors", "objects"), [(0, 3), (5, 0), (0, 0)])
def test_no_predictions_or_no_objects_give_no_samples(anchors: int, objects: int) -> None:
    boxes, scores, gt_boxes, gt_labels = random_image(0, anchors, 3, objects)
    assert match(entries(boxes, scores), gt_boxes, gt_labels).shape == (0, 4)


def test_an_object_of_zero_area_has_no_candidates() -> None:
    rows = torch.tensor([[0.0, 0, 10, 10, 0.9, 0]])
    assert match(rows, torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([0]))[0, OBJECT] == NO_OBJECT


def test_boxes_that_are_not_finite_are_left_out() -> None:
    rows = torch.tensor([[0.0, 0, math.nan, 10, 0.9, 0], [0, 0, math.inf, 10, 0.9, 0], [0, 0, 10, 10, 0.9, 0]])
    assert match(rows, torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0])).tolist() == [[pytest.approx(0.9), 1, 0, 0]]


# Data set -------------------------------------------------------------------------------------------------------------


def test_images_keep_their_objects_apart() -> None:
    first = sample((0.9, 0.5, 1, 0), (0.8, 0, NO_OBJECT, 0))
    merged = merge([first, sample(), first, sample((0.7, 0, NO_OBJECT, 0)), first])
    assert merged[:, OBJECT].tolist() == [1, -1, 3, -1, -1, 5, -1]
    assert merge([]).shape == (0, 4)


def test_a_data_set_computed_by_hand() -> None:
    up, down = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    scores = [0.2, 0.3, 0.4, 0.5, 0.6]

    def rows(ious: list[float], k: int, label: int) -> list[tuple[float, float, int, int]]:
        return [(s, i, k, label) for s, i in zip(scores, ious, strict=True)]

    # Image one: an object of class 0 with rho 1, one of class 1 with rho -1, one of class 1 with four candidates.
    # Image two: an object of class 0 with rho 1, one with equal IoU. Three are defined: mean 1/3.
    images = [
        sample(*rows(up, 0, 0), *rows(down, 1, 1), *rows(up, 2, 1)[:4]),
        sample(*rows(up, 0, 0), *rows([0.3] * 5, 1, 0)),
    ]
    found = divergence(images, 3)
    assert found.per_object == pytest.approx(1 / 3)
    assert found.per_object_by_class[:2].tolist() == [1, -1]
    assert np.isnan(found.per_object_by_class[2])
    pool = np.concatenate(images)
    assert found.pooled == pytest.approx(stats.spearmanr(pool[:, SCORE], pool[:, IOU]).statistic, abs=1e-12)
    for k in range(2):
        rows_k = pool[pool[:, LABEL] == k]
        expected = stats.spearmanr(rows_k[:, SCORE], rows_k[:, IOU]).statistic
        assert found.pooled_by_class[k] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found.pooled_by_class[2])


def test_boxes_that_overlap_no_object_count_in_the_pool_only() -> None:
    inside = sample(*((s, s, 0, 0) for s in (0.1, 0.2, 0.3, 0.4, 0.5)))
    outside = sample(*((s, 0, NO_OBJECT, 0) for s in (0.6, 0.7, 0.8, 0.9)))
    found = divergence([np.concatenate((inside, outside))], 1)
    assert found.per_object == 1.0
    assert found.pooled < 0


@pytest.mark.parametrize("images", [[], [sample()], [sample((0.5, 0.5, 0, 0))]])
def test_a_data_set_with_nothing_to_rank_is_undefined_without_a_warning(images: list[np.ndarray]) -> None:
    found = divergence(images, 2)
    assert math.isnan(found.per_object)
    assert math.isnan(found.pooled)
    assert np.isnan(found.per_object_by_class).all()
    assert np.isnan(found.pooled_by_class).all()


def test_order_of_images_changes_nothing() -> None:
    images = []
    for seed in range(4):
        boxes, scores, gt_boxes, gt_labels = random_image(seed)
        images.append(match(entries(boxes, scores), gt_boxes, gt_labels))
    forward, backward = divergence(images, 4), divergence(images[::-1], 4)
    assert forward.per_object == pytest.approx(backward.per_object, abs=1e-12)
    assert forward.pooled == pytest.approx(backward.pooled, abs=1e-12)
    assert abs(forward.per_object) < 1


def test_examples_in_the_documentation_hold() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0
