"""Losses in closed form, their gradients, and images without objects."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mlc_yolo.assigners import Role, TaskAssignment
from mlc_yolo.assigners.assignment import all_negative
from mlc_yolo.losses.assigned_bce import assigned_bce
from mlc_yolo.losses.iou_rescoring import iou_rescoring_loss
from mlc_yolo.losses.product import product_logits


def example() -> tuple[torch.Tensor, torch.Tensor, TaskAssignment]:
    """Two images, four anchors, three classes: positives, weighted negatives and an ignored anchor."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, generator=generator)
    labels = torch.tensor([[2, 0], [1, 1]])
    task = TaskAssignment(
        gt_index=torch.tensor([[0, -1, 1, -1], [-1, 1, -1, -1]]),
        role=torch.tensor([[1, 0, 1, 2], [0, 1, 0, 0]], dtype=torch.int8),
        weight=torch.tensor([[1.0, 0.5, 0.25, 0.0], [1.0, 1.0, 1.0, 0.0]]),
        quality=torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 0.8, 0.0, 0.0]]),
    )
    return logits, labels, task


def target() -> torch.Tensor:
    target = torch.zeros(2, 4, 3)
    target[0, 0, 2], target[0, 2, 0], target[1, 1, 1] = 1.0, 0.5, 0.8
    return target


def test_bce_by_hand() -> None:
    # Logit 0 costs log 2 whatever the target. Four anchors of two classes, weights 1, .5, 0, 1: 2.5 * 2 * log 2.
    task = TaskAssignment(
        torch.tensor([[0, -1, -1, -1]]),
        torch.tensor([[1, 0, 2, 0]], dtype=torch.int8),
        torch.tensor([[1.0, 0.5, 0.0, 1.0]]),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
    )
    loss = assigned_bce(torch.zeros(1, 4, 2), torch.tensor([[1]]), task)
    torch.testing.assert_close(loss, 5 * torch.tensor(2.0).log())


@pytest.mark.parametrize("class_weights", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_bce_is_the_weighted_sum_over_anchors_and_classes(class_weights: torch.Tensor | None) -> None:
    logits, labels, task = example()
    factors = task.weight[..., None] * (1.0 if class_weights is None else class_weights)
    expected = (F.binary_cross_entropy_with_logits(logits, target(), reduction="none") * factors).sum()
    torch.testing.assert_close(assigned_bce(logits, labels, task, class_weights), expected)


@pytest.mark.parametrize("class_weights", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_the_gradient_of_bce_is_score_minus_target_and_none_for_ignored_anchors(
    class_weights: torch.Tensor | None,
) -> None:
    logits, labels, task = example()
    logits.requires_grad_()
    assigned_bce(logits, labels, task, class_weights).backward()
    factors = task.weight[..., None] * (1.0 if class_weights is None else class_weights)
    torch.testing.assert_close(logits.grad, (logits.detach().sigmoid() - target()) * factors)
    assert (logits.grad[task.role == Role.IGNORED] == 0).all()


def test_bce_of_images_without_objects_trains_background_alone() -> None:
    logits = torch.zeros(2, 5, 3, requires_grad=True)
    task = all_negative(2, 5, logits.device)
    loss = assigned_bce(logits, torch.zeros(2, 0, dtype=torch.int64), task)
    torch.testing.assert_close(loss.detach(), 30 * torch.tensor(2.0).log())
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.full((2, 5, 3), 0.5))


@pytest.mark.parametrize("slots", [0, 2])
def test_bce_without_anchors_is_a_differentiable_zero(slots: int) -> None:
    logits = torch.zeros(2, 0, 3, requires_grad=True)
    loss = assigned_bce(logits, torch.zeros(2, slots, dtype=torch.int64), all_negative(2, 0, logits.device))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bce_of_half_precision_logits_is_that_of_the_same_values_in_single(dtype: torch.dtype) -> None:
    logits, labels, task = example()
    loss = assigned_bce(logits.to(dtype), labels, task)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, assigned_bce(logits.to(dtype).float(), labels, task), rtol=0, atol=0)


def test_bce_stays_finite_for_extreme_logits() -> None:
    _, labels, task = example()
    logits = torch.full((2, 4, 3), 1e4, requires_grad=True)
    loss = assigned_bce(logits, labels, task)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_the_iou_loss_by_hand() -> None:
    # sigmoid(0) = .5, sigmoid(log 3) = .75: ((.5 - .1)^2 + (.75 - .5)^2) / 2 = (.16 + .0625) / 2.
    logits = torch.tensor([0.0, torch.tensor(3.0).log()])
    loss = iou_rescoring_loss(logits, torch.tensor([0.1, 0.5]), torch.tensor(2))
    torch.testing.assert_close(loss, torch.tensor(0.11125))


def test_the_iou_loss_moves_the_channel_and_not_the_boxes() -> None:
    logits = torch.randn(6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ious = torch.rand(6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    iou_rescoring_loss(logits, ious, torch.tensor(6)).backward()
    predicted = logits.detach().sigmoid()
    # d/dx (s - i)^2 = 2 (s - i) s (1 - s).
    torch.testing.assert_close(logits.grad, 2 * (predicted - ious.detach()) * predicted * (1 - predicted) / 6)
    assert ious.grad is None


def test_the_iou_loss_is_zero_at_its_target() -> None:
    ious = torch.tensor([0.1, 0.5, 0.9])
    assert iou_rescoring_loss(ious.logit(), ious, torch.tensor(3)).item() == pytest.approx(0, abs=1e-12)


def test_the_iou_loss_without_positives_is_a_differentiable_zero() -> None:
    logits = torch.zeros(0, requires_grad=True)
    loss = iou_rescoring_loss(logits, torch.zeros(0), torch.tensor(1))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


def test_the_iou_loss_divides_by_the_count_it_is_given() -> None:
    logits, ious = torch.zeros(3), torch.ones(3)  # 3 * .25 = .75
    assert iou_rescoring_loss(logits, ious, torch.tensor(1.5)).item() == pytest.approx(0.5)
    # A rank's share of one positive among two ranks is a half: .75 / .5.
    assert iou_rescoring_loss(logits, ious, torch.tensor(0.5)).item() == pytest.approx(1.5)


def test_the_iou_loss_of_half_precision_logits_is_single() -> None:
    loss = iou_rescoring_loss(torch.zeros(2).half(), torch.ones(2).half(), torch.tensor(2))
    assert loss.dtype == torch.float32 and loss.item() == 0.25


def test_the_logit_of_a_product_by_hand() -> None:
    # 1/2 * 1/2 = 1/4 has the logit log(1/3); e^c = 1, e^q = 3: 1/2 * 3/4 = 3/8 has log(3/5).
    quality = torch.tensor([0.0, 3.0]).log()
    logits = product_logits(torch.zeros(2), torch.tensor([0.0, quality[1]]))
    torch.testing.assert_close(logits, torch.tensor([1 / 3, 3 / 5]).log())


def test_the_logit_of_a_product_is_exact_in_float32_where_the_textbook_formula_overflows() -> None:
    values = torch.tensor([-300.0, -60, -20.5, -5, -0.1, 0, 0.1, 5, 20.5, 60, 300])
    scores, quality = values[:, None], values[None]
    exact = -torch.logaddexp(torch.logaddexp(-scores.double(), -quality.double()), -scores.double() - quality.double())
    assert torch.isinf(scores + quality - torch.log(1 + scores.exp() + quality.exp())).any()
    logits = product_logits(scores, quality)
    # A float32 of 300 is known to 3e-5.
    torch.testing.assert_close(logits, exact.float(), rtol=1e-6, atol=3e-5)
    torch.testing.assert_close(logits, logits.T, rtol=1e-6, atol=3e-5)  # the two factors are alike
    assert (logits <= torch.minimum(scores, quality) + 3e-5).all()
    assert product_logits(scores.half(), quality.half()).dtype == torch.float32


def test_the_cross_entropy_of_a_product_has_finite_gradients_into_both_factors() -> None:
    values = torch.tensor([-80.0, -5, 0, 5, 80])
    scores, quality = values[:, None].repeat(1, 5).requires_grad_(), values[None].repeat(5, 1).requires_grad_()
    F.binary_cross_entropy_with_logits(product_logits(scores, quality), torch.full((5, 5), 0.3)).backward()
    assert scores.grad.isfinite().all() and quality.grad.isfinite().all()
    assert (scores.grad[1:4, 1:4] != 0).all() and (quality.grad[1:4, 1:4] != 0).all()
    # where the one factor is far the larger, the other learns alone, as if it were the whole score
    torch.testing.assert_close(scores.grad[2, 4], (torch.tensor(0.5) - 0.3) / 25)
