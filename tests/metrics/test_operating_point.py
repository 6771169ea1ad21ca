"""Precision and recall at a threshold: worked by hand, and what holds for any detector."""

from __future__ import annotations

import numpy as np
import pytest
from made_records import records_of

from mlc_yolo.metrics.operating_point import OperatingCurve, operating_curve

CAT = (0, 0, 20, 20, 0)


def test_points_count_what_reaches_the_threshold() -> None:
    # One object: right at 0.9, a duplicate at 0.6, a box elsewhere at 0.3.
    found = [(0, 0, 20, 20, 0.9, 0), (0, 0, 20, 18, 0.6, 0), (50, 50, 60, 60, 0.3, 0)]
    curve = operating_curve(records_of([CAT], found))
    points = [curve.at(threshold) for threshold in (0.95, 0.9, 0.5, 0.0)]
    counts = [(point.detections, point.right, point.false) for point in points]
    assert counts == [(0, 0, 0), (1, 1, 0), (2, 1, 1), (3, 1, 2)]
    assert np.isnan(points[0].precision)
    assert points[0].recall == 0
    assert [point.precision for point in points[1:]] == pytest.approx([1, 1 / 2, 1 / 3])
    assert points[3].per_image == 3
    assert curve.best_f1().threshold == pytest.approx(0.9)


def test_an_anchor_counts_under_its_best_class_only() -> None:
    found = [(0, 0, 20, 20, 0.9, 0), (0, 0, 20, 20, 0.8, 1)]
    assert operating_curve(records_of([CAT], found)).at(0.5).detections == 1
    other = [(0, 0, 20, 20, 0.7, 0), (0, 0, 20, 20, 0.8, 1)]
    point = operating_curve(records_of([CAT], other)).at(0.5)
    assert (point.detections, point.right) == (1, 0)


def test_without_objects_or_detections_what_is_undefined_is_nan() -> None:
    nothing = operating_curve(records_of([], [])).at(0.25)
    assert np.isnan([nothing.precision, nothing.recall, nothing.f1]).all()
    assert nothing.per_image == 0
    assert operating_curve(records_of([CAT], [])).best_f1().f1 == 0


@pytest.mark.parametrize("seed", range(10))
def test_the_best_f1_is_the_best_of_all_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    scores = -np.sort(-rng.choice(np.linspace(0.1, 0.9, 6, dtype=np.float32), count))
    curve = OperatingCurve(scores, np.cumsum(rng.random(count) < 0.5), objects=count, images=3)
    if curve.right[-1]:
        assert curve.best_f1().f1 == max(curve.at(threshold).f1 for threshold in scores)
