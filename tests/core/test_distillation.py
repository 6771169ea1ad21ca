"""Distillation by hand, in closed form, and its laws: agreement is free, background quiet, teachers fixed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from mlc_yolo.losses.distillation import (
    agreement,
    distilled_boxes,
    distilled_classes,
    distilled_distributions,
    distilled_quality,
    foreground,
    foreground_normaliser,
    region_logits,
    reweight,
    top_anchors,
)
from mlc_yolo.losses.scale_pairs import scale_pairs

ONE = torch.tensor(1.0)
Loss = Callable[[Tensor, Tensor], Tensor]
#: A loss of student and teacher, and the size of either beyond (B, A).
LOSSES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "classes": (lambda s, t: distilled_classes(s, t, ONE, power=0), (3,)),
    "re-weighted classes": (lambda s, t: distilled_classes(s, t, ONE), (3,)),
    "boxes": (lambda s, t: distilled_boxes(s, t, torch.ones(s.shape[:2])), (4,)),
    "distributions": (lambda s, t: distilled_distributions(s, t, torch.ones(s.shape[:2])), (4, 16)),
    "quality": (lambda s, t: distilled_quality(s, t, torch.ones(s.shape[:2])), ()),
}
#: Those that are means weighted by m.
MEANS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "boxes": (distilled_boxes, (4,)),
    "distributions": (distilled_distributions, (4, 16)),
    "quality": (distilled_quality, ()),
}
every_mean = pytest.mark.parametrize(("mean", "extent"), MEANS.values(), ids=MEANS)
every_loss = pytest.mark.parametrize(("loss", "extent"), LOSSES.values(), ids=LOSSES)


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def boxes(count: int = 50, seed: int = 0, images: int = 2) -> Tensor:
    """(images, count, 4) xyxy; fp16 holds every coordinate exactly."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 400, (images, count, 2), generator=generator)
    return torch.cat((corner, corner + torch.randint(4, 300, (images, count, 2), generator=generator)), 2) / 2


def example(extent: tuple[int, ...], anchors: int = 50, seed: int = 0) -> Tensor:
    """What a loss takes of one side: boxes, or logits as far apart as -40 and 40."""
    return boxes(anchors, seed) if extent == (4,) else logits(2, anchors, *extent, seed=seed, scale=12.0)


# Foreground and normaliser


def test_foreground_is_the_largest_probability() -> None:
    found = foreground(torch.tensor([[[0.0, math.log(3.0)], [-100.0, -math.log(4.0)]]]))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.2]]))


def test_the_normaliser_by_hand() -> None:
    # Image 1: .49 + .81 + .04 + .64. Image 2: .01 counts as 1.
    m = torch.zeros(2, 300)
    m[0, [5, 70, 200, 299]] = torch.tensor([0.7, 0.9, 0.2, 0.8])
    m[1, 3] = 0.1
    assert foreground_normaliser(m).item() == pytest.approx(1.98 + 1)


def test_the_normaliser_of_a_batch_is_the_sum_of_its_images() -> None:
    m = foreground(logits(4, 730, 5, scale=4.0))
    apart = torch.stack([foreground_normaliser(image[None]) for image in m])
    assert len(set(apart.tolist())) == 4 and float(apart.min()) > 1
    torch.testing.assert_close(foreground_normaliser(m), apart.sum())


@pytest.mark.parametrize("anchors", [0, 1, 99, 5000])
def test_a_teacher_that_sees_nothing_counts_as_one_object_per_image(anchors: int) -> None:
    assert foreground_normaliser(foreground(torch.full((3, anchors, 2), -30.0))).item() == 3


def test_background_hardly_counts_in_the_normaliser() -> None:
    m = torch.full((1, 10_000), 0.01)
    m[0, :150] = 1.0
    assert foreground_normaliser(m).item() == pytest.approx(150 + 0.985)


# Classification


def test_re_weighting_by_hand() -> None:
    # Probabilities 3/4 and 1/2 are 1/4 apart, 1/5 and 1/5 nothing.
    student = torch.tensor([[[0.0, -math.log(4.0)]]])
    teacher = torch.tensor([[[math.log(3.0), -math.log(4.0)]]])
    torch.testing.assert_close(reweight(student, teacher, power=2), torch.tensor([[[1 / 16, 0.0]]]))


def test_the_class_loss_by_hand() -> None:
    # Teacher 3/4, student 1/2: .75 log 1.5 + .25 log .5 = .304099 - .173287 = .130812; teacher 1/2, student 3/4:
    # .5 log(2/3) + .5 log 2 = .143841. Both 1/4 apart, and N is 2.
    student, teacher = torch.tensor([[[0.0], [math.log(3.0)]]]), torch.tensor([[[math.log(3.0)], [0.0]]])
    both = (0.130812 + 0.143841) / 2
    assert distilled_classes(student, teacher, 2 * ONE, power=0).item() == pytest.approx(both, rel=1e-5)
    assert distilled_classes(student, teacher, 2 * ONE).item() == pytest.approx(both / 16, rel=1e-5)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_class_loss_is_the_cross_entropy_less_the_teachers_entropy(power: int) -> None:
    student, teacher = logits(2, 30, 4).double(), logits(2, 30, 4, seed=1).double()
    p, t = student.sigmoid(), teacher.sigmoid()
    cross_entropy = -(t * p.log() + (1 - t) * (1 - p).log())
    entropy = -(t * t.log() + (1 - t) * (1 - t).log())
    expected = ((cross_entropy - entropy) * (t - p).abs() ** power).sum() / 7
    loss = distilled_classes(student.float(), teacher.float(), 7 * ONE, power=power)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_gradient_of_the_class_loss_is_the_disagreement_times_its_weight(power: int) -> None:
    student, teacher = logits(2, 30, 4).requires_grad_(), logits(2, 30, 4, seed=1)
    distilled_classes(student, teacher, 5 * ONE, power=power).backward()
    apart = (student.sigmoid() - teacher.sigmoid()).detach()
    torch.testing.assert_close(student.grad, apart * apart.abs() ** power / 5, rtol=1e-4, atol=1e-7)


def test_background_that_both_agree_on_weighs_about_nothing() -> None:
    # 8,400 x 80 background scores around 1 in 400 on either side, and one object that the student has not found.
    student, teacher = logits(1, 8400, 80, scale=0.5) - 6, logits(1, 8400, 80, seed=1, scale=0.5) - 6
    assert float(reweight(student, teacher, power=2).max()) < 1e-3
    background = distilled_classes(student, teacher, ONE).item()
    teacher[0, 4000, 17] = 2.0
    missed = distilled_classes(student, teacher, ONE).item() - background
    assert missed > 1 and background < 0.01 * missed
    assert distilled_classes(student, teacher, ONE, power=0).item() > 50 * missed  # without it, it drowns


# Boxes


def test_agreement_by_hand() -> None:
    # Shifted by a third of the side: IoU 2 / 4, not more than half; by a quarter: 3 / 5. An empty box: nothing.
    first = torch.tensor([[[0.0, 0.0, 12.0, 6.0], [0.0, 0.0, 12.0, 6.0], [5.0, 5.0, 5.0, 5.0]]])
    second = first + torch.tensor([[[4.0, 0.0, 4.0, 0.0], [3.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    found = agreement(first, second)
    assert found.tolist() == [[False, True, False]]
    assert torch.equal(found, agreement(second, first))


def test_the_box_loss_by_hand() -> None:
    # Disjoint unit squares with a gap of 2: enclosing 4, union 2: GIoU = 0 - 2/4. Equal boxes: GIoU = 1.
    student = torch.tensor([[[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 8.0, 8.0]]])
    teacher = torch.tensor([[[3.0, 0.0, 4.0, 1.0]], [[0.0, 0.0, 8.0, 8.0]]])
    assert distilled_boxes(student, teacher, torch.tensor([[0.9], [0.6]])).item() == pytest.approx(0.9 * 1.5 / 1.5)


def test_the_box_loss_is_the_weighted_mean_of_torchvisions() -> None:
    student, teacher, weight = boxes(), boxes(seed=1), torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    expected = (generalized_box_iou_loss(student, teacher) * weight).sum() / weight.sum()
    torch.testing.assert_close(distilled_boxes(student, teacher, weight), expected)


def test_the_distribution_loss_by_hand() -> None:
    # Two bins; teacher (3/4, 1/4), student (1/2, 1/2): .130812 on one side of four, weight 2 of 3.
    student, teacher = torch.zeros(1, 2, 4, 2), torch.zeros(1, 2, 4, 2)
    teacher[0, 1, 2, 0] = math.log(3.0)
    loss = distilled_distributions(student, teacher, torch.tensor([[1.0, 2.0]]))
    assert loss.item() == pytest.approx(0.130812 / 4 * 2 / 3, rel=1e-5)


def test_the_distribution_loss_is_the_divergence_of_the_definition() -> None:
    student, teacher = logits(2, 50, 4, 16), logits(2, 50, 4, 16, seed=1)
    weight = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    p, t = student.double().softmax(-1), teacher.double().softmax(-1)
    divergence = (t * (t / p).log()).sum(-1).mean(-1)
    expected = (divergence * weight).sum() / weight.sum()
    torch.testing.assert_close(
        distilled_distributions(student, teacher, weight), expected.float(), rtol=1e-4, atol=1e-6
    )


def test_the_quality_loss_by_hand() -> None:
    # 3/4 and 1/2, 1/5 and 1/2: 1/16 and 9/100, weighted 1 and 3.
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), -math.log(4.0)]])
    loss = distilled_quality(student, teacher, torch.tensor([[1.0, 3.0]]))
    assert loss.item() == pytest.approx((1 / 16 + 3 * 0.09) / 4)


@every_mean
def test_weights_that_add_up_to_less_than_one_object_pull_less(
    mean: Callable[..., Tensor], extent: tuple[int, ...]
) -> None:
    student, teacher = example(extent, 4), example(extent, 4, seed=1)
    full, half = (mean(student, teacher, torch.full((2, 4), each)).item() for each in (0.125, 0.0625))
    assert full > 0 and half == pytest.approx(full / 2)
    assert mean(student, teacher, torch.full((2, 4), 3.0)).item() == pytest.approx(full)


@every_mean
def test_over_ranks_the_sum_of_all_weights_divides(mean: Callable[..., Tensor], extent: tuple[int, ...]) -> None:
    student, teacher = example(extent), example(extent, seed=1)
    weight = 3 * torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    parts = [mean(student[i : i + 1], teacher[i : i + 1], weight[i : i + 1], total=weight.sum()) for i in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], mean(student, teacher, weight))
    alone = mean(student, teacher, weight)
    assert mean(student, teacher, weight, total=torch.tensor(0.0)).item() == pytest.approx(
        (alone * weight.sum()).item()
    )


def test_anchors_without_weight_have_no_gradient() -> None:
    student, weight = boxes(6).requires_grad_(), torch.ones(2, 6)
    weight[:, 3] = 0
    distilled_boxes(student, boxes(6, 1), weight).backward()
    assert student.grad is not None
    assert not student.grad[:, 3].any() and bool(student.grad[:, :3].any(-1).all())


# Temperature


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
def test_the_distributions_loss_is_the_divergence_at_a_temperature(temperature: float) -> None:
    student, teacher = logits(2, 30, 4, 16).double(), logits(2, 30, 4, 16, seed=1).double()
    weight = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)).double()
    p, q = ((side / temperature).softmax(-1) for side in (student, teacher))
    per_side = temperature**2 * (q * (q.log() - p.log())).sum(-1)
    expected = (per_side.mean(-1) * weight).sum() / weight.sum()
    loss = distilled_distributions(student.float(), teacher.float(), weight.float(), temperature=temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_high_temperature_compares_logits_themselves() -> None:
    student, teacher = logits(1, 5, 4, 16), logits(1, 5, 4, 16, seed=1)
    half_variance = (student - teacher).var(-1, unbiased=False).mean() / 2
    loss = distilled_distributions(student, teacher, torch.ones(1, 5), temperature=300.0)
    assert loss.item() == pytest.approx(half_variance.item(), rel=0.03)


# Dense Teacher


def test_the_region_holds_the_surest_anchors_of_each_image() -> None:
    m = torch.rand(3, 420, generator=torch.Generator().manual_seed(0))
    region = top_anchors(m)
    assert region.sum(1).tolist() == [4, 4, 4]
    assert all(m[i][region[i]].min() > m[i][~region[i]].max() for i in range(3))
    assert top_anchors(m[:, :7]).sum(1).tolist() == [1, 1, 1]


def test_outside_the_region_a_student_is_taught_nothing_by_the_square_of_what_it_says() -> None:
    # Two anchors, one in the region. In: p_t = 3/4, p_s = 1/2, as above .130812 / 16. Out: p_s = 3/4: 9/16 * log 4.
    student = torch.tensor([[[0.0], [math.log(3.0)]]], requires_grad=True)
    teacher = torch.tensor([[[math.log(3.0)], [math.log(3.0)]]])
    aim = region_logits(teacher, torch.tensor([[True, False]]))
    loss = distilled_classes(student, aim, ONE, power=2)
    assert loss.item() == pytest.approx(0.130812 / 16 + 9 / 16 * math.log(4), rel=1e-5)
    loss.backward()
    assert student.grad is not None and student.grad[0, 1, 0].item() == pytest.approx(9 / 16 * 0.75, rel=1e-5)


# Laws of all


@every_loss
def test_agreement_costs_nothing_and_moves_nothing(loss: Loss, extent: tuple[int, ...]) -> None:
    student = example(extent).requires_grad_()
    cost = loss(student, student.detach().clone())
    cost.backward()
    assert abs(cost.item()) < 1e-6
    assert student.grad is not None and float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("power", [0, 1, 2])
def test_agreeing_classes_cost_exactly_nothing(power: int) -> None:
    student = logits(2, 500, 20, scale=15.0).requires_grad_()
    cost = distilled_classes(student, student.detach().clone(), ONE, power=power)
    cost.backward()
    assert cost.item() == 0 and student.grad is not None and not student.grad.any()


@every_loss
def test_agreement_across_scales_costs_nothing(loss: Loss, extent: tuple[int, ...]) -> None:
    pairs = scale_pairs([(8, 8), (4, 4), (2, 2)], [(4, 4), (2, 2), (1, 1)], (8, 16, 32))
    teacher, student = example(extent, 84), example(extent, 21, seed=1)
    halved = 0.5 if extent == (4,) else 1.0  # boxes shrink with the image, everything else stays
    student[:, pairs.half] = halved * teacher[:, pairs.full]
    student.requires_grad_()
    cost = loss(student[:, pairs.half] / halved, teacher[:, pairs.full])
    cost.backward()
    assert abs(cost.item()) < 1e-6
    assert student.grad is not None and float(student.grad.abs().max()) < 1e-6


@every_loss
def test_disagreement_costs_something_and_pulls_the_student_only(loss: Loss, extent: tuple[int, ...]) -> None:
    student, teacher = example(extent).requires_grad_(), example(extent, seed=1).requires_grad_()
    cost = loss(student, teacher)
    cost.backward()
    assert cost.item() > 0.1
    assert student.grad is not None and bool(student.grad.any())
    assert teacher.grad is None


def test_weights_and_normaliser_are_detached() -> None:
    student, teacher = logits(1, 9, 3).requires_grad_(), logits(1, 9, 3, seed=1).requires_grad_()
    m = foreground(teacher)
    others = (m, foreground_normaliser(m), foreground_normaliser(student.amax(-1)), reweight(student, teacher, power=2))
    assert not any(each.requires_grad for each in others)
    weight = torch.rand(1, 9).requires_grad_()
    assert not distilled_boxes(boxes(9, images=1), boxes(9, 1, 1), weight).requires_grad


@every_loss
def test_descending_the_loss_reaches_the_teacher(loss: Loss, extent: tuple[int, ...]) -> None:
    student, teacher = example(extent, 6).div(10).requires_grad_(), example(extent, 6, seed=1).div(10)
    optimiser = torch.optim.Adam([student])
    first = loss(student, teacher).item()
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 0.4 * (1 - step / 400)
        optimiser.zero_grad()
        cost = loss(student, teacher)
        cost.backward()
        optimiser.step()
    assert cost.item() < 0.1 * first


@every_loss
def test_inputs_are_left_alone(loss: Loss, extent: tuple[int, ...]) -> None:
    student, teacher = example(extent), example(extent, seed=1)
    before = student.clone(), teacher.clone()
    first = loss(student, teacher)
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])
    assert torch.equal(loss(student, teacher), first)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gives_the_loss_of_the_same_values_in_single(
    loss: Loss, extent: tuple[int, ...], dtype: torch.dtype
) -> None:
    student, teacher = example(extent).to(dtype), example(extent, seed=1).to(dtype)
    expected = loss(student.float(), teacher.float())
    assert expected.dtype == torch.float32 and torch.equal(loss(student, teacher), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(student, teacher), expected)


@every_loss
@pytest.mark.parametrize("batch", [0, 2])
def test_without_anchors_the_loss_is_a_differentiable_zero(loss: Loss, extent: tuple[int, ...], batch: int) -> None:
    student = torch.zeros(batch, 0, *extent, requires_grad=True)
    cost = loss(student, torch.zeros(batch, 0, *extent))
    cost.backward()
    assert cost.item() == 0 and cost.dtype == torch.float32 and student.grad is not None


@every_mean
def test_where_the_teacher_contradicts_itself_everywhere_boxes_cost_nothing(
    mean: Callable[..., Tensor], extent: tuple[int, ...]
) -> None:
    student = example(extent).requires_grad_()
    cost = mean(student, example(extent, seed=1), torch.zeros(2, 50))
    cost.backward()
    assert cost.item() == 0 and student.grad is not None and not student.grad.any()


@pytest.mark.parametrize("power", [0, 1, 2])
def test_extreme_logits_stay_finite(power: int) -> None:
    student = torch.tensor([[[6e4, -6e4, 6e4, -6e4, 0.0]]]).requires_grad_()
    cost = distilled_classes(student, torch.tensor([[[-6e4, 6e4, 6e4, -6e4, 6e4]]]), ONE, power=power)
    cost.backward()
    # Two logits 60,000 beyond the boundary, two that agree, and log 2 (weighted by 1/4) of the last.
    assert cost.item() == pytest.approx(12e4 + math.log(2) * 0.5**power, rel=1e-6)
    assert student.grad is not None and bool(student.grad.isfinite().all())
    bins = torch.tensor([6e4, -6e4]).expand(1, 1, 4, 2)
    assert distilled_distributions(bins, bins.flip(-1), torch.ones(1, 1)).item() == pytest.approx(12e4)
    assert F.softmax(bins, -1)[..., 1].max().item() == 0
