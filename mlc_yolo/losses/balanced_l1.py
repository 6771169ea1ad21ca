"""Balanced L1 loss (Libra R-CNN, Pang et al., CVPR 2019, section 3.3) on deltas: a weighted sum over positives.

For the error x of one delta:
1. Its gradient is alpha * ln(b |x| / beta + 1) up to beta and gamma beyond (eq. 7, there for beta = 1).
2. b = e^(gamma / alpha) - 1 makes the two meet at beta (eq. 9).
3. Integrated from 0: (alpha / b) (b |x| + beta) ln(b |x| / beta + 1) - alpha |x| up to beta, beyond it
   gamma |x| + gamma beta / b - alpha beta (eq. 8).

Small errors thus pull harder than in Smooth-L1 (at beta / 2 here 1.18 against 0.75 of a gradient that ends at 1.5),
and outliers no harder than gamma.

Difference: a formula in common use puts b |x| + 1 for b |x| + beta, which is the same for beta = 1 alone. For beta =
0.11 its gradient is alpha (1 / beta - 1) = 4.05 at an error of 0 and jumps from 1.70 to 1.5 at beta: nearly an L1 loss.
This is the paper's integral. Effect on accuracy: not measured.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def balanced_l1(
    predicted: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    alpha: float = 0.5,
    gamma: float = 1.5,
    beta: float = 0.11,
) -> Tensor:
    """Return sum weight * balanced L1 of the four deltas; the caller divides by its normaliser.

    Args:
        predicted: (P, 4) deltas.
        target: (P, 4) deltas.
        weight: (P,) >= 0.
        alpha: > 0; the smaller, the larger the gradient of small errors.
        gamma: > 0, the gradient of errors beyond beta.
        beta: > 0, where the curve becomes a line.

    Returns:
        Scalar float32; a differentiable 0 for P = 0. Its gradient is continuous.

    Example:
        At beta: gamma beta (1 + 1 / b) - alpha beta with b = e^3 - 1 = 19.09.

        >>> balanced_l1(torch.tensor([[0.11, 0.0, 0.0, 0.0]]), torch.zeros(1, 4), torch.ones(1))
        tensor(0.1186)
    """
    error = (predicted.float() - target.float()).abs()
    b = math.expm1(gamma / alpha)
    small = error.clamp(max=beta)  # keeps the other branch's values out of the logarithm
    curve = alpha / b * (b * small + beta) * torch.log1p(b * small / beta) - alpha * small
    return ((curve + gamma * (error - small)).sum(-1) * weight.float()).sum()
