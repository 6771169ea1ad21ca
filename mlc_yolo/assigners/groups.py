"""Values in groups, as an object's pairs are: how many, which is best, who ranks where, without a loop over groups."""

from __future__ import annotations

import torch
from torch import Tensor

#: All bits of a float32 but its sign.
_SIGN = 2**31 - 1


def count_in_group(group: Tensor, num_groups: int, *, of: Tensor | None = None) -> Tensor:
    """Return how often each group occurs, (G,) int64; with `of`, a (P,) bool, how often where that is True."""
    ones = torch.ones_like(group) if of is None else of.long()
    return torch.zeros(num_groups, dtype=torch.int64, device=group.device).index_add_(0, group, ones)


def best_in_group(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return the largest value of each value's group.

    Args:
        values: (P,) >= 0, no nan.
        group: (P,) int64 in [0, num_groups).
        num_groups: G.

    Returns:
        (P,).
    """
    return values.new_zeros(num_groups).scatter_reduce_(0, group, values, "amax").index_select(0, group)


def rank_in_group(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Rank values within their group, the largest first.

    One sort orders by group and value: the bits of a float32 >= 0, read as an integer, rise with it.

    Args:
        values: (P,) float32 >= 0; nan ranks first.
        group: (P,) int64 in [0, num_groups), below 2^31.
        num_groups: G.

    Returns:
        (P,) int64 from 0; equal values rank in the order given.

    Example:
        >>> rank_in_group(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1]), 2)
        tensor([1, 0, 0])
    """
    falling = _SIGN - (values.contiguous().view(torch.int32) & _SIGN)
    key, order = (group * 2**32 + falling).sort(stable=True)
    sizes = count_in_group(group, num_groups)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(group), device=group.device) - starts.index_select(0, key >> 32)
    return torch.empty_like(group).scatter_(0, order, place)
