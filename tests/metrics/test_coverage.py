"""Coverage of stated deviations against numbers drawn as stated, and the factor that puts the others right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlc_yolo.metrics.coverage import WITHIN_ONE, coverage, edge_errors, spread


def test_errors_drawn_as_stated_are_covered_and_need_no_factor() -> None:
    rng = np.random.default_rng(0)
    sigmas = rng.uniform(0.5, 20, (20_000, 4))
    areas = rng.uniform(0, 20_000, 20_000)
    found = coverage(rng.normal(0, sigmas), sigmas, areas)
    shares = [found.overall, *found.by_side, *found.by_size]
    assert found.count == 20_000 and shares == [pytest.approx(WITHIN_ONE, abs=0.02)] * 8
    assert found.factor == pytest.approx(1, abs=0.02)


def test_the_spread_of_errors_drawn_as_stated_is_the_stated_one_in_every_bin() -> None:
    rng = np.random.default_rng(2)
    sigmas = rng.uniform(0.5, 20, (20_000, 4))
    found = spread(rng.normal(0, 3 * sigmas), sigmas)
    assert found.count.tolist() == [8000] * 10 and (np.diff(found.stated) > 0).all()
    np.testing.assert_allclose(found.actual / found.stated, 3, rtol=0.1)
    alike = spread(rng.normal(0, 5, (20_000, 4)), sigmas)  # a head that knows nothing of single edges
    np.testing.assert_allclose(alike.actual, 5, rtol=0.1)
    assert len(spread(np.ones(3), np.ones(3)).count) == 3 and len(spread(np.ones(0), np.ones(0)).count) == 0


@pytest.mark.parametrize("off", [0.2, 1.0, 3.0])
def test_the_factor_makes_any_deviations_cover_what_they_should(off: float) -> None:
    rng = np.random.default_rng(1)
    sigmas, areas = rng.uniform(0.5, 20, (500, 4)), np.ones(500)
    errors = rng.laplace(0, off * sigmas)
    factor = coverage(errors, sigmas, areas).factor
    again = coverage(errors, sigmas * factor, areas)
    assert again.overall == pytest.approx(WITHIN_ONE, abs=1e-3) and again.factor == pytest.approx(1)
    assert coverage(-errors * 7, sigmas * 7, areas).factor == pytest.approx(factor), "of no unit, and of no sign"


def test_sides_and_sizes_are_counted_by_themselves() -> None:
    errors = np.array([[0.0, 2, 0, 2], [0, 0, 2, 2], [1, 1, 1, 1]])
    found = coverage(errors, np.ones((3, 4)), np.array([1023.0, 1024, 9216]))
    np.testing.assert_allclose(found.by_side, [1, 2 / 3, 2 / 3, 1 / 3])
    np.testing.assert_allclose(found.by_size, [0.5, 0.5, 1])
    assert found.overall == pytest.approx(8 / 12)
    assert "0.67 of the edges of 3 detections" in found.text() and "large 1.00" in found.text()
    assert "nan" not in coverage(errors, np.ones((3, 4)), np.full(3, 500.0)).text(), "where all objects are small"


def test_without_detections_nothing_is_known() -> None:
    found = coverage(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0))
    assert found.count == 0 and np.isnan([found.overall, *found.by_side, *found.by_size, found.factor]).all()


def test_a_detection_is_compared_with_the_object_of_its_class_that_it_overlaps_most() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 12], [50.0, 50, 70, 60], [0.0, 0, 10, 11]])
    classes = torch.tensor([0, 0, 1, 1])
    boxes = torch.tensor([[1.0, 0, 10, 12], [50.0, 50, 70, 61], [50.0, 50, 70, 61], [0.0, 0, 10, 4]])
    index, errors, areas = edge_errors(boxes, torch.tensor([0, 1, 0, 0]), objects, classes)
    assert index.tolist() == [0, 1], "the third is of another class, the fourth overlaps too little"
    assert errors.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]] and areas.tolist() == [120, 200]
    for none in (
        edge_errors(boxes[:0], classes[:0], objects, classes),
        edge_errors(boxes, classes, objects[:0], classes[:0]),
    ):
        assert [len(each) for each in none] == [0, 0, 0] and none[0].dtype == torch.int64
