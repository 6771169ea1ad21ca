"""One all-reduce a step sums all normalisers over the ranks that train together.

1. A loss is a sum over this rank's anchors, divided by a normaliser that is counted over all ranks.
2. A criterion returns its rank's part of every normaliser as `Pending`, with a function from the sums to the losses.
3. `joined` merges several parts of a step; `over_ranks` sums them in one all-reduce and computes the losses.

Upstream multiplies a loss by the number of ranks and averages gradients over them: together they sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result", covariant=True)
#: Losses (n,) and the items for the log by name.
Losses = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Pending(Generic[Result]):
    """A result that waits for its normalisers.

    Attributes:
        counts: (n,) float32, this rank's part of each; n may be 0.
        finish: makes the result of their sums over all ranks, (n,) float32.
    """

    counts: Tensor
    finish: Callable[[Tensor], Result]

    def over_ranks(self) -> Result:
        """Sum over all ranks and finish. Every rank must come here, with as many counts."""
        return self.finish(total_over_ranks(self.counts))


def joined(parts: Sequence[Pending[Result]]) -> Pending[list[Result]]:
    """Return several pending results as one that waits for all of their normalisers.

    Args:
        parts: one or more, on one device.

    Returns:
        What finishes to the results in order.

    Example:
        >>> halves = [Pending(torch.ones(1), lambda sums: sums / 2), Pending(torch.zeros(0), len)]
        >>> joined(halves).over_ranks()
        [tensor([0.5000]), 0]
    """
    lengths = [len(part.counts) for part in parts]

    def finish(sums: Tensor) -> list[Result]:
        return [part.finish(own) for part, own in zip(parts, sums.split(lengths), strict=True)]

    return Pending(torch.cat([part.counts for part in parts]), finish)


def total_over_ranks(counts: Tensor) -> Tensor:
    """Return sums over all ranks, (n,) float32, in one all-reduce; none where n is 0."""
    counts = counts.float()
    if counts.numel() and _joins_ranks():
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def training_ranks() -> int:
    """Return how many ranks a sum of this moment goes over: 1 unless several train."""
    return dist.get_world_size() if _joins_ranks() else 1


def _joins_ranks() -> bool:
    """Whether there are others, and this is training: ranks validate different numbers of batches."""
    return dist.is_initialized() and torch.is_grad_enabled()
