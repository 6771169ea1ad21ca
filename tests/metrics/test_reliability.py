"""Reliability of scores as estimates of IoU: arithmetic by hand, laws, and the IoU that scores are compared with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.reliability import best_ious, reliability

UNIT = st.floats(0, 1, width=32)


def test_scores_on_an_edge_belong_to_the_bin_above_and_one_to_the_last() -> None:
    found = reliability(np.array([0.0, 0.5, 1.0]), np.array([0.1, 0.2, 0.3]), bins=2)
    assert found.count.tolist() == [1, 2]
    assert found.score.tolist() == [0, 0.75]
    assert found.iou.tolist() == pytest.approx([0.1, 0.25])


def test_an_empty_bin_has_no_mean_and_no_weight() -> None:
    found = reliability(np.array([0.1, 0.1]), np.array([0.3, 0.3]), bins=4)
    assert found.count.tolist() == [2, 0, 0, 0]
    assert np.isnan(found.iou[1:]).all()
    assert np.isnan(found.score[1:]).all()
    assert (found.error, found.bias) == pytest.approx((0.2, -0.2))


def test_opposite_gaps_cancel_in_the_bias_but_not_in_the_error() -> None:
    found = reliability(np.array([0.2, 0.8]), np.array([0.4, 0.6]))
    assert (found.error, found.bias) == pytest.approx((0.2, 0.0))


def test_without_detections_nothing_is_defined() -> None:
    found = reliability(np.empty(0), np.empty(0))
    assert found.count.sum() == 0
    assert np.isnan([found.error, found.bias]).all()


@settings(deadline=None)
@given(st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=50))
def test_the_error_is_at_least_the_bias_and_zero_for_an_honest_score(pairs: list[tuple[float, float]]) -> None:
    scores, ious = np.array(pairs, dtype=np.float32).T
    found = reliability(scores, ious)
    assert found.count.sum() == len(pairs)
    assert abs(found.bias) <= found.error + 1e-12
    assert found.error <= 1
    assert found.bias == pytest.approx(float(scores.mean(dtype=np.float64) - ious.mean(dtype=np.float64)), abs=1e-9)
    assert reliability(ious, ious).error == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_bin_has_the_bias_as_its_error_in_any_precision(dtype: type) -> None:
    found = reliability(np.array([0.25, 0.5, 1.0], dtype), np.array([0.5, 0.5, 0.5], dtype), bins=1)
    assert found.error == abs(found.bias) == pytest.approx(1.75 / 3 - 0.5)


@pytest.mark.parametrize(("scores", "ious", "bins"), [(2, 1, 10), (1, 1, 0)])
def test_what_does_not_belong_together_is_refused(scores: int, ious: int, bins: int) -> None:
    with pytest.raises(ValueError, match=f"got {scores}, {ious} and bins={bins}"):
        reliability(np.zeros(scores), np.zeros(ious), bins=bins)


def test_each_detection_is_compared_with_the_best_object_of_its_class_in_its_image() -> None:
    data = Records(
        images=["a.jpg", "b.jpg", "c.jpg"],
        sizes=np.full((3, 2), 100),
        gt_image=np.array([1, 0, 0, 0]),
        gt_boxes=np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 9]], dtype=np.float32),
        gt_labels=np.array([0, 0, 0, 1]),
        image=np.array([1, 0, 0, 2, 1]),
        boxes=np.array(
            [[0, 0, 10, 5], [0, 0, 10, 15], [0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 10]], dtype=np.float32
        ),
        scores=np.full(5, 0.5, dtype=np.float32),
        labels=np.array([0, 0, 1, 0, 1]),
        names={0: "cat", 1: "dog"},
    )
    # 5/10 · max(10/15, 15/20) · 9/9 of the dog · an image without objects · an image without dogs
    assert best_ious(data).tolist() == pytest.approx([0.5, 0.75, 1.0, 0.0, 0.0])
