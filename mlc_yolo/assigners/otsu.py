"""Otsu's threshold for many small groups at once, exact on the values themselves (Otsu 1979; used by MLC eq. 4-6).

1. Sort every group. 2. For each cut between two different neighbours compute the between-class variance
n0 * n1 * (mean0 - mean1)^2 from running sums. 3. Take the cut where it is largest, the lowest one among equals.
4. The threshold is the midpoint of the two values at the cut.

A histogram, as in image processing, would need hundreds of bins for groups of 3 to 30 values and still put the
threshold on a bin's edge. Groups with fewer than two different values have no cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.groups import count_in_group

#: Cuts whose variance is within this fraction of the largest count as equal, so that rounding does not choose.
TIE = 1e-9


def segmented_otsu(values: Tensor, group: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return each group's threshold.

    Affine-equivariant: thresholds of a * v + b (a > 0) are a * threshold + b.

    Args:
        values: (P,) finite floats.
        group: (P,) int64 in [0, G), in any order.
        num_groups: G.

    Returns:
        threshold: (G,) float64 (float32 on MPS), so that it lies between any two float32 values; nan where undefined. A
            value is in the upper class when it is larger.
        defined: (G,) bool, False for groups of fewer than two different values.

    Example:
        >>> segmented_otsu(torch.tensor([0.1, 0.9, 0.8, 0.5]), torch.tensor([0, 0, 0, 1]), 2)
        (tensor([0.4500,    nan], dtype=torch.float64), tensor([ True, False]))
    """
    # Apple's GPUs have no float64; there a tie may be decided by rounding.
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    order = values.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    sorted_values, sorted_group = values[order].to(dtype), group[order]

    size = count_in_group(group, num_groups)
    start = size.cumsum(0) - size
    total = torch.zeros(num_groups, dtype=dtype, device=values.device).index_add_(0, sorted_group, sorted_values)
    # Centred values keep the running sums small, so that their differences lose no digits.
    centred = sorted_values - (total / size.clamp(min=1))[sorted_group]
    running = centred.cumsum(0)
    before = torch.cat((running.new_zeros(1), running))[start]
    lower_sum = running - before[sorted_group]

    lower_size = torch.arange(1, len(order) + 1, device=values.device) - start[sorted_group]
    upper_size = size[sorted_group] - lower_size
    following = torch.cat((sorted_values[1:], sorted_values[-1:]))
    is_cut = (upper_size > 0) & (following > sorted_values)
    # With mean 0 overall, n0 * n1 * (mean0 - mean1)^2 = n^2 / (n0 * n1) * sum0^2; the constant n^2 is left out.
    variance = lower_sum.square() / (lower_size * upper_size).clamp(min=1)
    variance = torch.where(is_cut, variance, -1.0)

    best = torch.full((num_groups,), -1.0, dtype=dtype, device=values.device)
    best.scatter_reduce_(0, sorted_group, variance, "amax")
    position = torch.arange(len(order), device=values.device)
    wins = is_cut & (variance >= best[sorted_group] * (1 - TIE))
    cut = torch.full((num_groups,), len(order), dtype=torch.int64, device=values.device)
    cut.scatter_reduce_(0, sorted_group, torch.where(wins, position, len(order)), "amin")

    defined = cut < len(order)
    midpoint = torch.cat(((sorted_values + following) / 2, sorted_values.new_full((1,), torch.nan)))
    return midpoint[cut], defined
