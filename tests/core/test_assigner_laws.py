"""The laws that every assigner obeys, whatever its paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mlc_yolo.assigners import (
    Assignment,
    MutualLabeling,
    Predictions,
    Role,
    Targets,
    TaskAligned,
    TaskAssignment,
)
from mlc_yolo.priors import Priors

from .references import VARIANTS, Variant, images
from .scenes import NUM_CLASSES, Scene, mirrored, scene, shifted, single_image, with_nine_anchors_a_cell

SEEDS = range(6)
TASKS = ("classification", "localization")


#: An assigner a user derives without a change obeys the laws as its base does.
DERIVED = {f"own {name}": variant for name, variant in VARIANTS.items() if name in ("tal", "max_iou", "fcos", "atss")}
DERIVED |= {f"own {name}": VARIANTS[name] for name in ("mutual_guidance-2.0-both", "mlc-tal-0.5-both")}


def derived(variant: Variant) -> Variant:
    """Return the variant with an assigner of a subclass, `class Mine(TaskAligned)` and so on."""
    base = type(variant.assigner)
    mine = object.__new__(type("Mine", (base,), {}))
    vars(mine).update(vars(variant.assigner))
    return replace(variant, assigner=mine)


@pytest.fixture(params=[*VARIANTS, *DERIVED])
def variant(request: pytest.FixtureRequest) -> Variant:
    name = request.param
    return VARIANTS[name] if name in VARIANTS else derived(DERIVED[name])


def assign(variant: Variant, batch: Scene) -> Assignment:
    return variant.assigner(*batch.inputs)


def tasks(assignment: Assignment) -> list[TaskAssignment]:
    return [getattr(assignment, name) for name in TASKS]


def assert_same(first: Assignment, second: Assignment, *, exact: bool = True) -> None:
    for one, other in zip(tasks(first), tasks(second), strict=True):
        torch.testing.assert_close(one.role, other.role)
        torch.testing.assert_close(one.gt_index, other.gt_index)
        tolerance = 0.0 if exact else 1e-6
        torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=tolerance)
        torch.testing.assert_close(one.quality, other.quality, rtol=0, atol=tolerance)


def map_tensors(assignment: Assignment, change) -> Assignment:
    return Assignment(
        *(
            TaskAssignment(change(task.gt_index), change(task.role), change(task.weight), change(task.quality))
            for task in tasks(assignment)
        )
    )


def add_objects(batch: Scene, boxes: Tensor, *, valid: bool, front: bool = False) -> Scene:
    """Give every image further objects (N, 4) of class 0, behind its own or before them."""
    old = batch.targets
    count, images_ = len(boxes), len(old.labels)
    new = (
        torch.zeros((images_, count), dtype=torch.int64),
        boxes.expand(images_, count, 4),
        torch.full((images_, count), valid),
    )
    pairs = zip((old.labels, old.boxes, old.valid), new, strict=True)
    return replace(batch, targets=Targets(*(torch.cat((b, a) if front else (a, b), 1) for a, b in pairs)))


# Shape and domain -----------------------------------------------------------------------------------------------------


def test_shapes_types_and_domains_are_the_contracts(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        slots = batch.targets.labels.shape[1]
        for task in tasks(assign(variant, batch)):
            shape = batch.predictions.boxes.shape[:2]
            dtypes = (torch.int64, torch.int8, torch.float32, torch.float32)
            for tensor, dtype in zip((task.gt_index, task.role, task.weight, task.quality), dtypes, strict=True):
                assert tensor.shape == shape and tensor.dtype == dtype and not tensor.requires_grad
            assert set(task.role.unique().tolist()) <= {int(role) for role in Role}
            assert ((task.gt_index >= 0) == task.positive).all()
            assert ((task.gt_index >= -1) & (task.gt_index < max(slots, 1))).all()
            assert task.weight.isfinite().all() and (task.weight >= 0).all()
            assert (task.weight[task.role == Role.IGNORED] == 0).all()
            assert ((task.quality >= 0) & (task.quality <= 1)).all()
            assert (task.quality[~task.positive] == 0).all()


@pytest.mark.slow
def test_an_anchor_far_from_every_object_is_a_negative_of_weight_one(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        result = assign(variant, batch)
        for index, image in enumerate(images(batch)):
            for task, classification in zip(tasks(result), (True, False), strict=True):
                for a in image.anchors:
                    if not any(variant.candidate(image, obj, a, classification) for obj in image.objects):
                        assert task.role[index, a] == Role.NEGATIVE and task.weight[index, a] == 1


def test_positives_are_candidates_of_their_own_object(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        result = assign(variant, batch)
        for index, image in enumerate(images(batch)):
            owner = {obj.slot: obj for obj in image.objects}
            for task, classification in zip(tasks(result), (True, False), strict=True):
                for a in task.positive[index].nonzero()[:, 0].tolist():
                    assert variant.candidate(image, owner[int(task.gt_index[index, a])], a, classification)


@pytest.mark.parametrize("slots", [0, 3])
def test_images_without_objects_are_all_negative(variant: Variant, slots: int) -> None:
    batch = scene(0)
    count, anchors = batch.predictions.boxes.shape[:2]
    targets = Targets(
        torch.zeros(count, slots), torch.rand(count, slots, 4) * 99, torch.zeros(count, slots, dtype=torch.bool)
    )
    for task in tasks(assign(variant, replace(batch, targets=targets))):
        assert task.role.shape == (count, anchors)
        assert (task.role == Role.NEGATIVE).all() and (task.gt_index == -1).all()
        assert (task.weight == 1).all() and (task.quality == 0).all()


@pytest.mark.parametrize("slots", [0, 3])
def test_a_head_without_anchors_gives_empty_tensors(variant: Variant, slots: int) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    priors = Priors(torch.zeros(0, 2), torch.zeros(0, 4), torch.zeros(0), none)
    targets = Targets(
        torch.zeros(2, slots), torch.tensor([1.0, 1, 9, 9]).expand(2, slots, 4), torch.ones(2, slots, dtype=torch.bool)
    )
    result = variant.assigner(Predictions(torch.zeros(2, 0, NUM_CLASSES), torch.zeros(2, 0, 4)), priors, targets)
    assert all(tensor.shape == (2, 0) for task in tasks(result) for tensor in (task.role, task.weight, task.quality))


# Purity ---------------------------------------------------------------------------------------------------------------


def test_inputs_stay_as_they_were(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        tensors = [value for part in batch.inputs for value in vars(part).values() if isinstance(value, Tensor)]
        before = [tensor.clone() for tensor in tensors]
        assign(variant, batch)
        after = [value for part in batch.inputs for value in vars(part).values() if isinstance(value, Tensor)]
        assert len(after) == 9
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_called_twice_equals_called_once(variant: Variant) -> None:
    first = [assign(variant, scene(seed)) for seed in SEEDS]
    for seed, result in zip(SEEDS, first, strict=True):
        assert_same(assign(variant, scene(seed)), result)


def test_no_gradient_flows_into_the_predictions(variant: Variant) -> None:
    batch = scene(1)
    scores = batch.predictions.scores.clone().requires_grad_()
    boxes = batch.predictions.boxes.clone().requires_grad_()
    result = assign(variant, replace(batch, predictions=Predictions(scores, boxes)))
    assert not any(tensor.requires_grad for task in tasks(result) for tensor in (task.weight, task.quality))


# Several anchors a cell -----------------------------------------------------------------------------------------------


def test_nine_anchors_a_cell_are_assigned_as_one_is(variant: Variant) -> None:
    for seed in range(5):
        batch = with_nine_anchors_a_cell(scene(seed, generic=True))
        together = assign(variant, batch)
        for index, image in enumerate(images(batch)):
            alone = assign(variant, single_image(batch, index))
            assert_same(map_tensors(together, lambda t, i=index: t[i : i + 1]), alone, exact=False)
            owner = {obj.slot: obj for obj in image.objects}
            for task, classification in zip(tasks(together), (True, False), strict=True):
                for a in task.positive[index].nonzero()[:, 0].tolist():
                    assert variant.candidate(image, owner[int(task.gt_index[index, a])], a, classification)
        assert_same(assign(variant, mirrored(batch)), together)


# Equivariance ---------------------------------------------------------------------------------------------------------


def test_every_image_of_a_batch_is_assigned_as_if_alone(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        together = assign(variant, batch)
        for index in range(len(batch.targets.labels)):
            alone = assign(variant, single_image(batch, index))
            assert_same(map_tensors(together, lambda t, i=index: t[i : i + 1]), alone, exact=False)


def test_permuting_anchors_permutes_the_result(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed, generic=True)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(batch.priors)))
        priors = Priors(*(getattr(batch.priors, name)[order] for name in ("points", "boxes", "strides", "levels")))
        predictions = Predictions(batch.predictions.scores[:, order], batch.predictions.boxes[:, order])
        result = assign(variant, replace(batch, priors=priors, predictions=predictions))
        assert_same(result, map_tensors(assign(variant, batch), lambda t, o=order: t[:, o]), exact=False)


def test_permuting_objects_permutes_the_result(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed, generic=True)
        if variant.sigma:
            batch = without_contended_best(batch, variant.sigma)
        targets = batch.targets
        slots = targets.labels.shape[1]
        order = torch.from_numpy(np.random.default_rng(seed).permutation(slots))
        moved = Targets(targets.labels[:, order], targets.boxes[:, order], targets.valid[:, order])
        result = assign(variant, replace(batch, targets=moved))
        back = torch.cat((order, torch.tensor([-1])))  # slot -1 stays -1
        for task, expected in zip(tasks(result), tasks(assign(variant, batch)), strict=True):
            torch.testing.assert_close(back[task.gt_index], expected.gt_index)
            torch.testing.assert_close(task.role, expected.role)
            torch.testing.assert_close(task.weight, expected.weight, rtol=0, atol=1e-6)
            torch.testing.assert_close(task.quality, expected.quality, rtol=0, atol=1e-6)


def without_contended_best(batch: Scene, sigma: float) -> Scene:
    """Drop objects whose best prior is another's too: Mutual Guidance gives it to the lower object, by its order."""
    valid = batch.targets.valid.clone()
    for index, image in enumerate(images(batch)):
        taken: tuple[set[int], ...] = (set(), set(), set())
        for k, obj in enumerate(image.objects):
            prior, decoded = image.prior_ious[k], image.decoded_ious[k]
            amplified = prior ** ((sigma - image.scores[:, obj.label]) / sigma)
            best = [int(row.argmax()) for row in (prior, decoded, amplified)]
            if any(b in seen for b, seen in zip(best, taken, strict=True)):
                valid[index, obj.slot] = False
                continue
            for b, seen in zip(best, taken, strict=True):
                seen.add(b)
    return replace(batch, targets=replace(batch.targets, valid=valid))


def test_mirroring_the_scene_changes_nothing(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed, generic=True)
        assert_same(assign(variant, mirrored(batch)), assign(variant, batch))


@pytest.mark.parametrize(("dx", "dy"), [(32, 0), (-64, 96)])
def test_moving_the_scene_by_whole_strides_changes_nothing(variant: Variant, dx: float, dy: float) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        assert_same(assign(variant, shifted(batch, dx, dy)), assign(variant, batch))


def test_half_precision_predictions_give_what_the_same_values_give_in_single(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        scores, boxes = batch.predictions.scores.half(), batch.predictions.boxes.half()
        half = assign(variant, replace(batch, predictions=Predictions(scores, boxes)))
        single = assign(variant, replace(batch, predictions=Predictions(scores.float(), boxes.float())))
        assert_same(half, single)


# What must not matter -------------------------------------------------------------------------------------------------

GARBAGE = torch.tensor([[0.0, 0.0, 128.0, 128.0], [1e9, -1e9, 1e9, 2e9], [torch.nan, 0.0, torch.inf, 9.0]])
NO_AREA = torch.tensor(
    [[40.0, 20.0, 40.0, 90.0], [10.0, 30.0, 80.0, 30.0], [50.0, 50.0, 50.0, 50.0], [90.0, 90.0, 10.0, 10.0]]
)
REVERSED_ONE_WAY = torch.tensor([[90.0, 10.0, 10.0, 90.0], [10.0, 90.0, 90.0, 10.0]])


@pytest.mark.parametrize(
    ("boxes", "valid"),
    [
        pytest.param(GARBAGE, False, id="padding"),
        pytest.param(NO_AREA, True, id="boxes without area"),
        pytest.param(REVERSED_ONE_WAY, True, id="boxes reversed in one direction"),
    ],
)
@pytest.mark.parametrize("front", [False, True])
def test_slots_without_an_object_change_nothing(variant: Variant, boxes: Tensor, valid: bool, front: bool) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        expected = assign(variant, batch)
        result = assign(variant, add_objects(batch, boxes, valid=valid, front=front))
        if front:
            expected = Assignment(
                *(
                    replace(task, gt_index=torch.where(task.positive, task.gt_index + len(boxes), -1))
                    for task in tasks(expected)
                )
            )
        assert_same(result, expected, exact=False)


def test_an_object_that_overlaps_no_prior_gets_no_anchor_and_takes_none(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        far = add_objects(batch, torch.tensor([[1000.0, 1000.0, 1030.0, 1040.0]]), valid=True)
        assert_same(assign(variant, far), assign(variant, batch), exact=False)


def test_an_object_between_tiny_priors_never_makes_every_anchor_positive(variant: Variant) -> None:
    # Priors of one pixel about (4, 4), (12, 4), ...; the object fills the gap between them and contains no point.
    batch = scene(0)
    half = torch.full((len(batch.priors), 1), 0.5)
    points = batch.priors.points
    priors = replace(batch.priors, boxes=torch.cat((points - half, points + half), 1))
    count = len(batch.targets.labels)
    targets = Targets(
        torch.zeros(count, 1),
        torch.tensor([[[5.0, 5.0, 7.0, 7.0]]]).expand(count, 1, 4),
        torch.ones(count, 1, dtype=torch.bool),
    )
    for task in tasks(assign(variant, replace(batch, priors=priors, targets=targets))):
        assert task.positive.sum(1).amax() <= 9


def test_predictions_that_are_not_numbers_leave_every_output_finite(variant: Variant) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        scores, boxes = batch.predictions.scores.clone(), batch.predictions.boxes.clone()
        scores[:, ::7], boxes[:, ::5], boxes[:, 1::9] = torch.nan, torch.nan, torch.inf
        for task in tasks(assign(variant, replace(batch, predictions=Predictions(scores, boxes)))):
            assert task.weight.isfinite().all() and (task.weight >= 0).all()
            assert ((task.quality >= 0) & (task.quality <= 1)).all()
            assert ((task.gt_index >= 0) == task.positive).all()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_predictions_all_alike_are_assigned_without_nan(variant: Variant, value: float) -> None:
    for seed in SEEDS:
        batch = scene(seed)
        scores = torch.full_like(batch.predictions.scores, value)
        boxes = torch.tensor([10.0, 10.0, 50.0, 40.0]).expand_as(batch.predictions.boxes)
        for task in tasks(assign(variant, replace(batch, predictions=Predictions(scores, boxes)))):
            assert task.weight.isfinite().all()
            assert ((task.quality >= 0) & (task.quality <= 1)).all()


def test_a_thousand_objects_in_one_image_are_assigned(variant: Variant) -> None:
    batch = single_image(scene(0), 0)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (1000, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(3, 30, (1000, 2))), 1)
    targets = Targets(
        torch.from_numpy(rng.integers(0, NUM_CLASSES, (1, 1000))),
        torch.from_numpy(boxes)[None],
        torch.ones(1, 1000, dtype=torch.bool),
    )
    for task in tasks(assign(variant, replace(batch, targets=targets))):
        assert task.positive.any() and task.gt_index.amax() < 1000


@pytest.mark.parametrize("seed", range(40))
def test_mutual_labelling_trains_every_object_the_task_aligned_assigner_trains(seed: int) -> None:
    inputs = scene(seed).inputs
    baseline = TaskAligned()(*inputs).classification.gt_index
    result = MutualLabeling()(*inputs)
    for image, wanted in enumerate(baseline):
        for task in (result.classification, result.localization):
            assert set(wanted.tolist()) - {-1} <= set(task.gt_index[image].tolist())
