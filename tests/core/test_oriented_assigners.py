"""Assigners of oriented boxes: slow references, Ultralytics' own, and the laws of an angle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from ultralytics.utils.tal import RotatedTaskAlignedAssigner

from mlc_yolo.assigners import Assignment, MaxIoU, PointInBox, Predictions, Role, Targets, TaskAligned
from mlc_yolo.box_kinds import ORIENTED

from .oriented_scenes import changed, oriented_scene
from .references import VARIANTS, images
from .scenes import NUM_CLASSES, STRIDES, Scene, scene, single_image
from .test_assigner_laws import assert_same
from .test_assigner_references import assert_equals

SEEDS = range(15)
#: One of each rule: what their options change is the same for every kind of boxes.
NAMES = ["tal", "max_iou", "fcos", "fcos-all", "atss", "ddod", "tal-by_score", "mutual_guidance-2.0-both"]
NAMES += ["mutual_guidance_2021-2.0", "mlc-tal-0.5-both", "mlc-inside-0.5-both", "mlc-max_iou-0.5-both"]


def decide(name: str, batch: Scene) -> Assignment:
    return VARIANTS[name].assigner(*batch.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_an_assigner_of_oriented_boxes_equals_its_slow_reference(name: str) -> None:
    positives = 0
    for seed in SEEDS:
        batch = oriented_scene(seed)
        result = decide(name, batch)
        for index, image in enumerate(images(batch)):
            classification, localization = VARIANTS[name].reference(image)
            assert_equals(result.classification, index, classification, f"classification, scene {seed}, {index}")
            assert_equals(result.localization, index, localization, f"localization, scene {seed}, {index}")
            positives += int((classification.role == Role.POSITIVE).sum())
    assert positives > 100  # the scenes are not idle


def test_task_aligned_assignment_of_oriented_boxes_is_ultralytics() -> None:
    positives = 0
    for seed in SEEDS:
        predictions, priors, targets = oriented_scene(seed).inputs
        upstream = RotatedTaskAlignedAssigner(
            topk=10, num_classes=NUM_CLASSES, alpha=0.5, beta=6.0, stride=list(STRIDES)
        )
        labels, boxes = (
            t.where(v, 0)
            for t, v in zip((targets.labels, targets.boxes), (targets.valid, targets.valid[..., None]), strict=True)
        )
        _, _, scores, positive, slot = upstream(
            predictions.scores,
            predictions.boxes,
            priors.points,
            labels[..., None],
            boxes,
            targets.valid[..., None].float(),
        )
        task = TaskAligned()(predictions, priors, targets).classification
        quality = scores.sum(-1)
        trained = quality > 0  # of metric 0 upstream may fill up with positives that train nothing
        assert torch.equal(task.positive & (task.quality > 0), positive.bool() & trained)
        assert torch.equal(task.gt_index[trained], slot[trained])
        torch.testing.assert_close(task.quality, quality * positive, rtol=0, atol=1e-4)
        positives += int(trained.sum())
    assert positives > 300


def quarter_turn(batch: Scene) -> Scene:
    """Turn a whole scene by 90 degrees about its corner; anchors keep their numbers."""

    def turn(boxes: Tensor) -> Tensor:
        x, y, w, h, r = boxes.unbind(-1)
        return torch.stack((-y, x, w, h, r + math.pi / 2), -1)

    turned = changed(batch, turn)
    points = torch.stack((-batch.priors.points[:, 1], batch.priors.points[:, 0]), -1)
    return replace(turned, priors=replace(turned.priors, points=points))


def half_turn(batch: Scene) -> Scene:
    """Describe every box by the angle half a turn on."""
    return changed(batch, lambda boxes: boxes + torch.tensor([0, 0, 0, 0, math.pi]))


def swapped(batch: Scene) -> Scene:
    """Describe every box with its sides swapped, by the angle a quarter turn on."""
    return changed(batch, lambda boxes: boxes[..., [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2]))


@pytest.mark.parametrize("change", [quarter_turn, half_turn, swapped])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_boxes_described_or_seen_another_way_are_assigned_alike(name: str, change) -> None:
    alike = total = 0
    for seed in SEEDS:
        batch = oriented_scene(seed)
        first, second = decide(name, batch), decide(name, change(batch))
        for one, other in ((first.classification, second.classification), (first.localization, second.localization)):
            same = (one.role == other.role) & (one.gt_index == other.gt_index)
            torch.testing.assert_close(one.quality[same], other.quality[same], rtol=0, atol=2e-3)
            alike, total = alike + int(same.sum()), total + same.numel()
    assert alike >= 0.999 * total  # an angle rounds: now and then two nearly equal qualities change places


def test_objects_at_angle_zero_are_assigned_as_upright_ones_where_places_decide() -> None:
    for seed in SEEDS:
        upright = scene(seed, generic=True)
        assert_same(PointInBox()(*oriented_scene(seed, turned=False).inputs), PointInBox()(*upright.inputs))


@pytest.mark.parametrize("name", NAMES)
def test_batches_padding_and_precision_decide_nothing(name: str) -> None:
    batch = oriented_scene(1)
    whole = decide(name, batch)
    for index in range(len(batch.targets.labels)):
        single = single_image(batch, index)
        one = decide(name, single)
        for task in ("classification", "localization"):
            assert torch.equal(getattr(one, task).gt_index[0], getattr(whole, task).gt_index[index])
    padded = replace(
        batch,
        targets=Targets(
            *(torch.cat((t, t), 1) for t in (batch.targets.labels, batch.targets.boxes)),
            torch.cat((batch.targets.valid, torch.zeros_like(batch.targets.valid)), 1),
            ORIENTED,
        ),
    )
    assert_same(decide(name, padded), whole)
    half = Predictions(batch.predictions.scores.half(), batch.predictions.boxes.half())
    single = Predictions(half.scores.float(), half.boxes.float())
    assert_same(decide(name, replace(batch, predictions=half)), decide(name, replace(batch, predictions=single)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objects", ["none", "without area", "far away"])
def test_images_without_anything_to_learn_are_all_negative(name: str, objects: str) -> None:
    batch = oriented_scene(1)
    rows = {"none": torch.zeros(1, 0, 5), "without area": torch.tensor([[[20.0, 20.0, 0.0, 9.0, 0.5]]])}
    boxes = rows.get(objects, torch.tensor([[[9e4, 9e4, 8.0, 8.0, 1.0]]])).expand(len(batch.targets.labels), -1, -1)
    shape = boxes.shape[:2]
    targets = Targets(torch.zeros(shape), boxes, torch.ones(shape), ORIENTED)
    result = decide(name, replace(batch, targets=targets))
    for task in (result.classification, result.localization):
        assert (task.role == Role.NEGATIVE).all() and (task.weight == 1).all() and (task.quality == 0).all()


def test_a_box_askew_claims_the_points_inside_it_and_not_those_of_its_extent() -> None:
    # A bar of 60 x 4 px at 45 degrees: its extent is 45 px wide and high, and holds the corners that it leaves out.
    batch = oriented_scene(1)
    bar = torch.tensor([[[32.0, 32.0, 60.0, 4.0, math.pi / 4]]])
    targets = Targets(torch.zeros(1, 1), bar, torch.ones(1, 1), ORIENTED)
    points = torch.tensor([[20.0, 20.0], [44.0, 44.0], [20.0, 44.0], [44.0, 20.0], [32.0, 35.0]])
    priors = replace(batch.priors[torch.arange(5)], points=points)
    result = PointInBox().assign(priors, targets).localization
    assert result.positive.tolist() == [[True, True, False, False, False]]


def test_targets_say_how_long_a_box_of_theirs_is() -> None:
    with pytest.raises(ValueError, match=r"boxes \(B, M, 5\)"):
        Targets(torch.zeros(1, 2), torch.zeros(1, 2, 4), torch.ones(1, 2), ORIENTED)
    with pytest.raises(ValueError, match=r"\(B, A, 5\) of oriented"):
        Predictions(torch.zeros(1, 3, 2), torch.zeros(1, 3, 6))
    assert MaxIoU().assign(oriented_scene(0).priors, oriented_scene(0).targets).localization.positive.any()
