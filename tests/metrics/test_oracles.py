"""Oracles: three laws on random records, golden cases, and the detector's own AP against pycocotools' definition."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from made_records import records_of

from mlc_yolo.metrics.bootstrap import draw_images
from mlc_yolo.metrics.oracles import NAMES, Fault, Oracles, Repair, Scope
from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.weighted_ap import WeightedAP

#: Sets of repairs that are tried: each alone, each pair, and all.
SETS = [(), *((repair,) for repair in Repair), *combinations(Repair, 2), tuple(Repair)]


def _random(seed: int) -> tuple[Records, np.ndarray]:
    """Crowded random records of a few images, some of them empty, and what each object's candidates reach."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    count, extra = int(rng.integers(0, 12)), int(rng.integers(0, 15))
    corner, side = rng.uniform(0, 60, (count, 2)), rng.uniform(4, 40, (count, 2))
    gt_boxes, gt_labels, gt_image = np.hstack((corner, corner + side)), rng.integers(classes, size=count), None
    gt_image = np.sort(rng.integers(images, size=count))
    near = rng.integers(count, size=extra * 2) if count else np.empty(0, dtype=np.int64)
    moved = gt_boxes[near] + rng.normal(0, rng.uniform(0.1, 6), (len(near), 4))
    labels = np.where(rng.random(len(near)) < 0.7, gt_labels[near], rng.integers(classes, size=len(near)))
    noise = rng.uniform(0, 60, (extra, 2))
    boxes = np.vstack((moved, np.hstack((noise, noise + rng.uniform(4, 40, (extra, 2))))))
    boxes = np.hstack((np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])))
    image = np.concatenate((gt_image[near], rng.integers(images, size=extra)))
    records = Records(
        images=[str(i) for i in range(images)],
        sizes=np.full((images, 2), 100),
        gt_image=gt_image,
        gt_boxes=gt_boxes.astype(np.float32),
        gt_labels=gt_labels,
        image=image,
        boxes=boxes.astype(np.float32),
        scores=rng.choice(np.linspace(0.05, 0.95, 12), len(image)).astype(np.float32),
        labels=np.concatenate((labels, rng.integers(classes, size=extra))),
        names={i: str(i) for i in range(classes)},
    )
    return records, rng.uniform(0, 1, count)


@pytest.mark.parametrize("seed", range(40))
def test_without_repairs_ap_is_what_coco_says_under_any_weights(seed: int) -> None:
    records, reach = _random(seed)
    weights = draw_images(len(records.images), resamples=5, seed=seed)
    expected, got = WeightedAP(records)(weights), Oracles(records, reach=reach)((), weights)
    for name in NAMES:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("seed", range(30))
def test_no_repair_lowers_ap_and_all_together_give_one(seed: int) -> None:
    records, reach = _random(seed)
    oracles = Oracles(records, reach=reach)
    weights = draw_images(len(records.images), resamples=4, seed=seed)
    values = {repairs: oracles(repairs, weights) for repairs in SETS}
    for repairs, value in values.items():
        for name in NAMES:
            defined = ~np.isnan(value[name])
            assert (value[name][defined] >= values[()][name][defined] - 1e-12).all(), (repairs, name)
    everything = values[tuple(Repair)]["AP"]
    assert (everything[~np.isnan(everything)] == 1).all()
    assert np.isnan(everything).all() == (len(records.gt_labels) == 0) or len(records.images) > 1


@pytest.mark.parametrize("seed", range(30))
def test_a_second_repair_never_lowers_what_the_first_has_reached(seed: int) -> None:
    records, reach = _random(seed)
    oracles = Oracles(records, reach=reach)
    if not len(records.gt_labels):
        return
    for size in range(1, len(Repair)):
        repairs = tuple(Repair)[:size]
        assert oracles(repairs)["AP"][0] <= oracles((*repairs, tuple(Repair)[size]))["AP"][0] + 1e-12, repairs


@pytest.mark.parametrize("repair", list(Repair))
def test_a_repair_with_nothing_to_mend_gains_exactly_nothing(repair: Repair) -> None:
    records = records_of([(0, 0, 10, 10, 0), (30, 30, 50, 50, 1)], [(0, 0, 10, 10, 0.9, 0), (30, 30, 50, 50, 0.3, 1)])
    oracles = Oracles(records, reach=np.array([1.0, 1.0]))
    assert oracles((repair,)) == oracles(()) == {name: np.ones(1) for name in NAMES}


def test_each_kind_of_mistake_is_mended_by_its_own_repair_alone() -> None:
    # One object and one detection each; AP50 is 0 until the repair, then 1.
    truth = [(0, 0, 20, 20, 0)]
    cases = {
        Repair.PLACE: [(0, 0, 20, 8, 0.9, 0)],  # IoU 0.4
        Repair.CLASS: [(0, 0, 20, 18, 0.9, 1)],  # IoU 0.9, another class
        Repair.MISSED: [(60, 60, 80, 80, 0.9, 0)],
    }
    for mender, detections in cases.items():
        oracles = Oracles(records_of(truth, detections), reach=np.zeros(1))
        gains = {repair: float(oracles((repair,))["AP50"][0]) for repair in Repair}
        assert gains == {repair: float(repair is mender) for repair in Repair}, mender


def test_what_only_stands_before_a_true_positive_halves_its_precision_until_it_goes() -> None:
    # The false positive ranks first: precision 1/2 at every recall.
    truth = [(0, 0, 20, 20, 0)]
    background = [(60, 60, 80, 80, 0.9, 0), (0, 0, 20, 20, 0.5, 0)]
    oracles = Oracles(records_of(truth, background))
    assert oracles(())["AP"][0] == 0.5
    for repair in (Repair.BACKGROUND, Repair.ACROSS):
        assert oracles((repair,))["AP"][0] == 1
    # Two objects; the duplicate of the first stands before the second: precision 1 to recall .5, then 2/3.
    truth = [(0, 0, 20, 20, 0), (50, 50, 70, 70, 0)]
    duplicate = [(0, 0, 20, 20, 0.9, 0), (0, 0, 20, 19, 0.8, 0), (50, 50, 70, 70, 0.7, 0)]
    oracles = Oracles(records_of(truth, duplicate))
    assert oracles(())["AP50"][0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert oracles((Repair.DUPLICATES,))["AP50"][0] == 1


def test_a_better_candidate_counts_up_to_the_iou_it_reaches() -> None:
    # Kept box: IoU 0.6, true at 0.50, 0.55 and 0.60; the best candidate reaches 0.82, true up to 0.80: 7 of 10.
    records = records_of([(0, 0, 10, 10, 0)], [(0, 0, 10, 6, 0.9, 0)])
    oracles = Oracles(records, reach=np.array([0.82]))
    assert oracles(())["AP"][0] == pytest.approx(0.3)
    assert oracles((Repair.INSIDE,))["AP"][0] == pytest.approx(0.7)
    assert Oracles(records)((Repair.INSIDE,))["AP"][0] == pytest.approx(0.3)


def test_a_class_error_takes_the_place_of_a_worse_scored_detection_of_the_object() -> None:
    # Class 1 at 0.9 sits on an object of class 0, which class 0 at 0.4 takes after a background box at 0.6.
    truth = [(0, 0, 20, 20, 0)]
    found = [(0, 0, 20, 20, 0.9, 1), (60, 60, 80, 80, 0.6, 0), (0, 0, 20, 20, 0.4, 0)]
    oracles = Oracles(records_of(truth, found))
    assert oracles(())["AP"][0] == 0.5
    assert oracles((Repair.CLASS,))["AP"][0] == 1


def test_a_scope_mends_its_own_objects_and_its_own_confusion_only() -> None:
    truth = [(0, 0, 20, 20, 0), (50, 50, 70, 70, 1), (0, 50, 20, 70, 2)]
    found = [(0, 0, 20, 20, 0.9, 1), (50, 50, 70, 70, 0.8, 2), (0, 50, 20, 70, 0.7, 2)]
    oracles = Oracles(records_of(truth, found, classes=3))
    everything = oracles((Repair.CLASS,))["AP"][0]
    assert everything == 1
    first = oracles((Repair.CLASS,), scope=Scope(confusion=(1, 0)))["AP"][0]
    assert oracles(())["AP"][0] < first < everything
    assert oracles((Repair.CLASS,), scope=Scope(objects=np.array([True, False, False])))["AP"][0] == first
    nothing = Scope(objects=np.zeros(3, dtype=bool))
    assert oracles(tuple(repair for repair in Repair if repair is not Repair.ACROSS), scope=nothing) == oracles(())


def test_every_kind_of_false_positive_is_named() -> None:
    truth = [(0, 0, 20, 20, 0), (50, 50, 70, 70, 1)]
    found = [
        (0, 0, 20, 20, 0.9, 0),  # true
        (0, 0, 20, 19, 0.8, 0),  # IoU 0.95
        (50, 50, 70, 70, 0.7, 0),
        (0, 0, 20, 8, 0.6, 0),  # IoU 0.4
        (50, 50, 70, 58, 0.5, 0),
        (80, 0, 99, 20, 0.4, 0),
    ]
    oracles = Oracles(records_of(truth, found))
    kind, target = oracles.faults()
    names = [-1, Fault.DUPLICATE.value, Fault.CLASS.value, Fault.LOCALIZATION.value, Fault.BOTH.value]
    assert kind.tolist() == [*names, Fault.BACKGROUND.value]
    assert target.tolist() == [-1, 0, 1, 0, 1, -1]
    assert oracles.missed().tolist() == [False, False]


def test_reach_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected reach of 1 objects, got 2"):
        Oracles(records_of([(0, 0, 1, 1, 0)], []), reach=np.zeros(2))
