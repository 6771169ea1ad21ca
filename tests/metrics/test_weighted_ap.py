"""AP under weights equals pycocotools' on the set that the weights describe."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_records import made_records

from mlc_yolo.metrics.bootstrap import draw_images
from mlc_yolo.metrics.coco import coco_evaluate
from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.weighted_ap import NAMES, WeightedAP


def _judged_by_pycocotools(records: Records, weights: np.ndarray | None = None) -> dict[str, float]:
    """What pycocotools says of the set that has each image as often as its weight says; nan for its -1."""
    times = np.ones(len(records.images), dtype=int) if weights is None else weights.astype(int)
    found = np.column_stack((records.boxes, records.scores, records.labels))
    objects = np.column_stack((records.gt_boxes, records.gt_labels))
    drawn = np.repeat(np.arange(len(times)), times)
    values = coco_evaluate(
        [found[records.image == i] for i in drawn],
        [objects[records.gt_image == i] for i in drawn],
        len(records.names),
    )
    return {name: math.nan if values[name] == -1 else values[name] for name in NAMES if name in values}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.02, 0.12, 0.4])
def test_with_every_image_once_it_is_pycocotools_ap(seed: int, noise: float) -> None:
    records = made_records(num_classes=1 + 2 * seed, seed=seed, noise=noise)
    expected = _judged_by_pycocotools(records)
    found = WeightedAP(records)()
    assert len(expected) == 6
    assert {name: found[name][0] for name in expected} == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_with_drawn_images_it_is_pycocotools_ap_of_the_images_drawn() -> None:
    records = made_records(images=25)
    weights = draw_images(25, resamples=40)  # more than are computed at once
    found = WeightedAP(records)(weights)
    for b in (0, 7, 39):
        expected = _judged_by_pycocotools(records, weights[:, b])
        assert {name: found[name][b] for name in expected} == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_of_many_detections_of_an_image_and_class_the_100_best_count() -> None:
    records = made_records(images=1, num_classes=1, empty=9)
    many = {name: np.repeat(getattr(records, name), 30, axis=0) for name in ("image", "boxes", "scores", "labels")}
    many["scores"] = np.random.default_rng(0).permutation(len(many["scores"])).astype(np.float32) / 1024
    records = replace(records, **many)
    assert len(records.image) > 100
    assert WeightedAP(records)()["AP"][0] == pytest.approx(_judged_by_pycocotools(records)["AP"], abs=1e-9)


def test_ap_by_threshold_contains_ap50_and_ap75_and_averages_to_ap() -> None:
    judge = WeightedAP(made_records())
    aps, named = judge.by_threshold(), judge()
    assert aps.shape == (10,)
    assert (aps[0], aps[5], aps.mean()) == pytest.approx((named["AP50"][0], named["AP75"][0], named["AP"][0]))


def test_without_detections_every_object_is_missed() -> None:
    records = made_records()
    nothing = {name: getattr(records, name)[:0] for name in ("image", "boxes", "scores", "labels")}
    assert WeightedAP(replace(records, **nothing))()["AP"].tolist() == [0.0]


def test_without_objects_there_is_nothing_to_judge() -> None:
    records = made_records()
    nothing = {name: getattr(records, name)[:0] for name in ("gt_image", "gt_boxes", "gt_labels")}
    judge = WeightedAP(replace(records, **nothing))
    assert all(math.isnan(value[0]) for value in judge().values())
    assert np.isnan(judge.by_threshold()).all()


def test_a_class_whose_images_are_not_drawn_is_left_out_of_the_mean() -> None:
    records = made_records(images=2, num_classes=2, empty=9)
    records = replace(records, gt_labels=records.gt_image.copy(), labels=records.image.copy())  # a class per image
    judge = WeightedAP(records)
    first, both = judge(np.array([[1.0], [0.0]]))["AP"][0], judge()["AP"][0]
    second = judge(np.array([[0.0], [1.0]]))["AP"][0]
    assert both == pytest.approx((first + second) / 2)
    assert first != second


def test_the_rank_correlation_is_the_mean_over_the_objects_that_have_one() -> None:
    records = made_records(images=3, empty=9)
    rho = np.full(len(records.gt_image), np.nan, dtype=np.float32)
    first, second = (np.flatnonzero(records.gt_image == i)[0] for i in (0, 1))
    rho[first], rho[second] = 0.5, -0.25
    found = WeightedAP(replace(records, spearman=rho))(np.array([[1.0, 3.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 3.0]]))
    assert found["spearman"] == pytest.approx([0.125, 0.3125, math.nan], nan_ok=True)
    assert math.isnan(WeightedAP(records)()["spearman"][0])
