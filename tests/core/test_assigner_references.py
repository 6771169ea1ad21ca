"""Every assigner equals its slow reference and, where there is one, the implementation others trust."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import Matcher
from ultralytics.utils.tal import TaskAlignedAssigner

from mlc_yolo.assigners import Assignment, MaxIoU, MutualGuidance, Role, Targets, TaskAligned, TaskAssignment
from mlc_yolo.boxes import pairwise_iou

from .references import VARIANTS, Image, Labels, contend, images, mutual_guidance
from .scenes import NUM_CLASSES, STRIDES, Scene, scene, single_image, with_nine_anchors_a_cell

SEEDS = range(100)


@cache
def case(seed: int) -> tuple[Scene, list[Image]]:
    return scene(seed), images(scene(seed))


def assert_equals(task: TaskAssignment, index: int, expected: Labels, where: str) -> None:
    np.testing.assert_array_equal(task.role[index].numpy(), expected.role, err_msg=f"role, {where}")
    np.testing.assert_array_equal(task.gt_index[index].numpy(), expected.gt_index, err_msg=f"gt_index, {where}")
    np.testing.assert_allclose(task.weight[index].numpy(), expected.weight, rtol=0, atol=2e-5, err_msg=where)
    np.testing.assert_allclose(task.quality[index].numpy(), expected.quality, rtol=0, atol=2e-5, err_msg=where)


# Mutual Guidance has scenes of its own, below.
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.sigma is None])
def test_an_assigner_equals_its_slow_reference_on_a_hundred_scenes(name: str) -> None:
    variant = VARIANTS[name]
    positives = 0
    for seed in SEEDS:
        batch, parts = case(seed)
        result: Assignment = variant.assigner(*batch.inputs)
        for index, image in enumerate(parts):
            classification, localization = variant.reference(image)
            assert_equals(result.classification, index, classification, f"classification, scene {seed}, {index}")
            assert_equals(result.localization, index, localization, f"localization, scene {seed}, {index}")
            positives += int((classification.role == Role.POSITIVE).sum())
    assert positives > 500  # the scenes are not idle


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("max_iou", "atss", "tal", "ddod", "mutual_guidance-2.0-both", "mutual_guidance_2021-2.0"),
        "mlc-max_iou-0.5-both",
    ],
)
def test_an_assigner_equals_its_slow_reference_on_scenes_of_nine_anchors_a_cell(name: str) -> None:
    variant = VARIANTS[name]
    positives = 0
    for seed in range(20):
        batch = with_nine_anchors_a_cell(scene(seed, generic=True))  # no two cells are equally near to an object
        result: Assignment = variant.assigner(*batch.inputs)
        for index, image in enumerate(images(batch)):
            classification, localization = variant.reference(image)
            assert_equals(result.classification, index, classification, f"classification, scene {seed}, {index}")
            assert_equals(result.localization, index, localization, f"localization, scene {seed}, {index}")
            positives += int((classification.role == Role.POSITIVE).sum())
    assert positives > 100


@cache
def hard_case(seed: int) -> tuple[Scene, list[Image]]:
    """A scene that Mutual Guidance needs all its rules for.

    A third of the batches has each object twice, of another class the second time: ties everywhere. In another third
    the left half has no priors and nine boxes in ten are predicted elsewhere: objects without anything to learn from.
    """
    batch = scene(seed)
    predictions, priors, targets = batch.inputs
    elsewhere = torch.tensor([1000.0, 1000.0, 1010.0, 1010.0])
    if seed % 3 == 0:
        other = (targets.labels + 1) % NUM_CLASSES
        twice = Targets(
            torch.cat((targets.labels, other), 1), targets.boxes.repeat(1, 2, 1), targets.valid.repeat(1, 2)
        )
        batch = replace(batch, targets=twice)
    elif seed % 3 == 1:
        missing = torch.arange(predictions.boxes.shape[1]) % 10 > 0
        left = priors.points[:, 0] < batch.size[1] / 2
        batch = replace(
            batch,
            predictions=replace(predictions, boxes=torch.where(missing[:, None], elsewhere, predictions.boxes)),
            priors=replace(priors, boxes=torch.where(left[:, None], elsewhere, priors.boxes)),
        )
    return batch, images(batch)


# What l2c decides does not depend on sigma.
@pytest.mark.parametrize(("sigma", "tasks"), [*product((1.5, 2.0, 2.5, 3.0), ("both", "c2l")), (2.0, "l2c")])
def test_mutual_guidance_equals_its_steps_on_a_hundred_hard_scenes(sigma: float, tasks: Any) -> None:
    assigner = MutualGuidance(sigma=sigma, tasks=tasks)
    for seed in SEEDS:
        batch, parts = hard_case(seed)
        result = assigner(*batch.inputs)
        for index, image in enumerate(parts):
            classification, localization = mutual_guidance(image, sigma=sigma, tasks=tasks)
            assert_equals(result.classification, index, classification, f"classification, scene {seed}, {index}")
            assert_equals(result.localization, index, localization, f"localization, scene {seed}, {index}")


def test_mutual_guidance_equals_its_steps_on_fifty_hard_scenes_of_nine_anchors_a_cell() -> None:
    compared = 0
    for seed in range(200, 250):
        batch = with_nine_anchors_a_cell(single_image(hard_case(seed)[0], 0))
        result = MutualGuidance()(*batch.inputs)
        (image,) = images(batch)
        classification, localization = mutual_guidance(image)
        assert_equals(result.classification, 0, classification, f"classification, scene {seed}")
        assert_equals(result.localization, 0, localization, f"localization, scene {seed}")
        compared += bool(image.objects)
    assert compared > 25


def test_the_hard_scenes_need_every_rule_of_mutual_guidance() -> None:
    needed: Counter[str] = Counter()
    for image in (image for seed in SEEDS for image in hard_case(seed)[1] if image.objects):
        prior, kept, decoded = image.prior_ious, contend(image.prior_ious), contend(image.decoded_ious)
        best = [int(row.argmax()) for row in prior if row.max() > 0]
        needed["two objects force one prior"] += len(best) - len(set(best))
        needed["two objects overlap a prior alike"] += int(((prior == prior.max(0)) & (prior > 0)).sum(0).max() > 1)
        for row, own, reached in zip(prior, kept, decoded, strict=True):
            needed["an object overlaps no prior"] += int(row.max() == 0)
            needed["an object is below every threshold"] += int(0 < row.max() < 0.4)
            needed["two priors are best alike"] += int(row.max() > 0 and (row == row.max()).sum() > 1)
            needed["an object loses a prior above the thresholds"] += int((own >= 0.4).sum() < (row >= 0.4).sum())
            needed["fewer boxes than Np touch the object"] += int((own >= 0.5).sum() > (reached > 0).sum())
    assert len(needed) == 7 and min(needed.values()) > 5, needed


def _valid_where_upstream_widens_alike(targets: Targets, upstream: TaskAlignedAssigner) -> torch.Tensor:
    """Early 8.4 releases widen only sides below the first stride; there, leave out objects between the two strides."""
    point, box = torch.tensor([[9.0, 16.0]]), torch.tensor([[[10.0, 10.0, 22.0, 22.0]]])
    if upstream.select_candidates_in_gts(point, box, torch.ones(1, 1, 1)).any():
        return targets.valid
    sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
    return targets.valid & ~((sides >= STRIDES[0]) & (sides < STRIDES[1])).any(-1)


def test_tal_equals_the_assigner_ultralytics_trains_with() -> None:
    compared = 0
    for seed in SEEDS:
        predictions, priors, targets = scene(seed).inputs
        upstream = TaskAlignedAssigner(topk=10, num_classes=NUM_CLASSES, alpha=0.5, beta=6.0, stride=list(STRIDES))
        targets = replace(targets, valid=_valid_where_upstream_widens_alike(targets, upstream))
        valid = targets.valid[..., None]
        args = (
            predictions.scores,
            predictions.boxes,
            priors.points,
            (targets.labels[..., None] * valid).float(),
            targets.boxes * valid,
            valid.float(),
        )
        _, boxes, scores, foreground, gt_index = upstream(*args)
        if targets.labels.shape[1]:
            # Upstream fills up to ten with pairs of metric 0. They train nothing, but may contest another's anchor.
            claimed, metric, _ = upstream.get_pos_mask(args[0], args[1], args[3], args[4], args[2], args[5])
            filled = (claimed > 0) & (metric == 0)
            if (filled.any(1) & (claimed.sum(1) > 1)).any():
                continue
        foreground = foreground.bool() & (scores.sum(-1) > 0)
        compared += 1

        task = TaskAligned()(predictions, priors, targets).classification
        torch.testing.assert_close(task.positive, foreground, msg=f"scene {seed}")
        torch.testing.assert_close(task.gt_index[foreground], gt_index[foreground].long(), msg=f"scene {seed}")
        torch.testing.assert_close(task.quality, scores.sum(-1), rtol=1e-5, atol=1e-6, msg=f"scene {seed}")
        image = torch.arange(len(boxes))[:, None].expand_as(foreground)[foreground]
        torch.testing.assert_close(targets.boxes[image, task.gt_index[foreground]], boxes[foreground])
    assert compared > 75


@pytest.mark.parametrize("low_quality", [True, False])
def test_max_iou_equals_torchvisions_matcher_where_every_object_overlaps_a_prior(low_quality: bool) -> None:
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)
    compared = 0
    for seed in SEEDS:
        predictions, priors, targets = scene(seed).inputs
        task = MaxIoU(low_quality=low_quality)(predictions, priors, targets).classification
        for index, valid in enumerate(targets.valid):
            (slots,) = valid.nonzero(as_tuple=True)
            iou = pairwise_iou(targets.boxes[index, slots], priors.boxes)
            if not len(slots) or not iou.any(1).all():
                continue
            matches = matcher(iou)
            positive = matches >= 0
            role = torch.where(positive, int(Role.POSITIVE), int(Role.NEGATIVE))
            role[matches == Matcher.BETWEEN_THRESHOLDS] = int(Role.IGNORED)
            gt_index = torch.where(positive, slots[matches.clamp(min=0)], -1)
            torch.testing.assert_close(task.role[index], role.to(torch.int8), msg=f"scene {seed}, {index}")
            torch.testing.assert_close(task.gt_index[index], gt_index, msg=f"scene {seed}, {index}")
            compared += 1
    assert compared > 100
