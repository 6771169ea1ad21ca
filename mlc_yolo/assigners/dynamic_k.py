"""How many anchors an object trains, by how well its best ones suit it (OTA, CVPR 2021, section 3.3).

k = max(1, floor(sum of the object's 15 best qualities)): an object that many anchors hit well trains many, a small or
hard one few, and none goes without.
"""

from __future__ import annotations

from torch import Tensor

#: The best qualities that are added up.
POOL = 15
#: Added before rounding down: a float32 quality is known to about 1e-7, and 15 of them that add up to 3 should give 3.
SLACK = 1e-4


def dynamic_k(values: Tensor, rank: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return each group's k.

    Args:
        values: (P,) in [0, 1].
        rank: (P,) int64, a value's place in its group, the largest first (`rank_in_group`).
        group: (P,) int64 in [0, G).
        num_groups: G.

    Returns:
        (G,) int64 in [1, 15]; 1 for a group without values.

    Example:
        >>> import torch
        >>> dynamic_k(torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 0, 1]), 2)
        tensor([2, 1])
    """
    best = values.masked_fill(rank >= POOL, 0)
    total = values.new_zeros(num_groups).index_add_(0, group, best)
    return (total + SLACK).floor().long().clamp_(min=1)
