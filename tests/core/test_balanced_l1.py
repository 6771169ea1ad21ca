"""Balanced L1 against the equations of Libra R-CNN: values and gradients by hand, by integration, at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mlc_yolo.losses.balanced_l1 import balanced_l1

B = math.exp(3) - 1  # of alpha 0.5 and gamma 1.5


def _loss(error: float, **curve: float) -> float:
    """The loss of one positive whose first delta is off by `error`."""
    return balanced_l1(torch.tensor([[error, 0.0, 0.0, 0.0]]), torch.zeros(1, 4), torch.ones(1), **curve).item()


def _gradient(errors: Tensor, **curve: float) -> Tensor:
    """d loss / d delta of errors (n,), by autograd."""
    predicted = torch.zeros(len(errors), 4)
    predicted[:, 0] = errors
    predicted.requires_grad_()
    balanced_l1(predicted, torch.zeros(len(errors), 4), torch.ones(len(errors)), **curve).backward()
    assert predicted.grad is not None
    assert not predicted.grad[:, 1:].any()
    return predicted.grad[:, 0]


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (0.0, 0.0),
        # (.5 / b)(b .055 + .11) ln(b / 2 + 1) - .5 * .055 = .026198 * 1.159704 * 2.355440 - .0275
        (0.055, 0.044062),
        # 1.5 * .11 + 1.5 * .11 / b - .5 * .11 = .165 + .008645 - .055
        (0.11, 0.118645),
        # 1.5 + .008645 - .055
        (1.0, 1.453645),
        (-1.0, 1.453645),
        (1e4, 1.5e4 - 0.046355),
    ],
)
def test_values_by_hand(error: float, value: float) -> None:
    assert _loss(error) == pytest.approx(value, rel=2e-5, abs=1e-9)


@pytest.mark.parametrize(("alpha", "gamma", "beta"), [(0.5, 1.5, 0.11), (0.2, 1.0, 0.5), (1.0, 1.5, 2.0)])
def test_the_gradient_is_alpha_log_up_to_beta_and_gamma_beyond(alpha: float, gamma: float, beta: float) -> None:
    errors = torch.linspace(-3 * beta, 3 * beta, 601)
    b = math.exp(gamma / alpha) - 1
    expected = torch.where(errors.abs() < beta, alpha * torch.log(b * errors.abs() / beta + 1), gamma) * errors.sign()
    torch.testing.assert_close(_gradient(errors, alpha=alpha, gamma=gamma, beta=beta), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_continuous_at_zero_and_at_beta() -> None:
    at = torch.tensor([0.0, 1e-6, 0.11 - 1e-6, 0.11, 0.11 + 1e-6])
    gradient = _gradient(at)
    assert gradient[0] == 0 and abs(float(gradient[1])) < 1e-4
    torch.testing.assert_close(gradient[2:], torch.full((3,), 1.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("error", [0.02, 0.1, 0.3])
def test_the_value_is_the_integral_of_the_gradient(error: float) -> None:
    steps = 20_000
    middle = ((torch.arange(steps, dtype=torch.float64) + 0.5) * (error / steps)).tolist()
    gradient = (0.5 * math.log(B * x / 0.11 + 1) if x < 0.11 else 1.5 for x in middle)
    assert _loss(error) == pytest.approx(math.fsum(gradient) * error / steps, rel=1e-5)


@pytest.mark.parametrize("error", [0.1, 0.9, 1.0, 2.5])
def test_with_beta_one_it_is_the_equation_as_printed(error: float) -> None:
    constant = 0.5 / B * (B + 1) * math.log(B + 1) - 0.5 - 1.5
    printed = 0.5 / B * (B * error + 1) * math.log(B * error + 1) - 0.5 * error if error < 1 else 1.5 * error + constant
    assert _loss(error, beta=1.0) == pytest.approx(printed, rel=1e-5)


def test_small_errors_pull_harder_than_in_smooth_l1() -> None:
    errors = torch.linspace(0.005, 0.1, 20)
    assert bool((_gradient(errors) > 1.5 * errors / 0.11).all())


def test_deltas_and_positives_add_up_by_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 6, 4, generator=generator).unbind()
    weight = torch.rand(6, generator=generator)
    expected = sum(
        float(w) * _loss(float(p - t))
        for row, goal, w in zip(predicted, target, weight, strict=True)
        for p, t in zip(row, goal, strict=True)
    )
    assert balanced_l1(predicted, target, weight).item() == pytest.approx(expected, rel=1e-4)


def test_half_precision_is_that_of_the_same_values_in_single() -> None:
    predicted, target = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).half().unbind()
    weight = torch.linspace(0, 1, 5).half()
    loss = balanced_l1(predicted, target, weight)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, balanced_l1(predicted.float(), target.float(), weight.float()))


def test_without_positives_it_is_a_differentiable_zero() -> None:
    predicted = torch.zeros(0, 4, requires_grad=True)
    loss = balanced_l1(predicted, torch.zeros(0, 4), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0 and predicted.grad is not None
