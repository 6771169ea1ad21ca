"""A random sample of an assignment's anchors (Faster R-CNN, Ren et al., 2015, section 3.1.3), all images at once.

1. Every anchor of the role asked for draws a number in [0, 1); the others draw -1.
2. Each image keeps the anchors with its largest numbers, as many as asked for or as there are.
3. What was not drawn becomes IGNORED.

torchvision's `BalancedPositiveNegativeSampler` draws the same counts, image by image in a Python loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.assignment import Role, TaskAssignment


def sample_balanced(
    task: TaskAssignment, *, size: int = 256, positive_fraction: float = 0.5, generator: torch.Generator | None = None
) -> TaskAssignment:
    """Keep `size` anchors of each image: at most `positive_fraction` of them positives, the rest negatives.

    Args:
        task: who is what.
        size: anchors to keep per image, >= 0; fewer where an image has not enough negatives.
        positive_fraction: largest share of positives, in [0, 1]; negatives take the room they leave.
        generator: of the assignment's device; None is torch's own.

    Returns:
        The assignment with every other anchor IGNORED.

    Example:
        One of two positives and one of two negatives:

        >>> task = TaskAssignment(
        ...     gt_index=torch.tensor([[0, 0, -1, -1]]),
        ...     role=torch.tensor([[1, 1, 0, 0]], dtype=torch.int8),
        ...     weight=torch.ones(1, 4),
        ...     quality=torch.tensor([[1.0, 1.0, 0.0, 0.0]]),
        ... )
        >>> sample_balanced(task, size=2).role.sort().values  # NEGATIVE, POSITIVE, IGNORED, IGNORED
        tensor([[0, 1, 2, 2]], dtype=torch.int8)
    """
    positive = _draw(task.positive, int(size * positive_fraction), generator)
    room = size - positive.sum(1, keepdim=True)
    negative = _draw(task.role == Role.NEGATIVE, size, generator, room)
    return _keep(task, positive | negative)


def sample_positives(
    task: TaskAssignment, *, limit: int = 128, generator: torch.Generator | None = None
) -> TaskAssignment:
    """Keep at most `limit` positives of each image and every negative.

    Args:
        task: who is what.
        limit: positives to keep per image, >= 0.
        generator: of the assignment's device; None is torch's own.

    Returns:
        The assignment with the other positives IGNORED.
    """
    return _keep(task, _draw(task.positive, limit, generator) | (task.role == Role.NEGATIVE))


def _draw(pool: Tensor, most: int, generator: torch.Generator | None, room: Tensor | None = None) -> Tensor:
    """Choose anchors of the pool uniformly, without replacement.

    Args:
        pool: (B, A) bool.
        most: anchors to choose per image.
        generator: as above.
        room: (B, 1) int64 <= most, a limit of each image's own.

    Returns:
        (B, A) bool, a part of the pool.
    """
    number = torch.rand(pool.shape, generator=generator, device=pool.device).masked_fill_(~pool, -1)
    largest, anchor = number.topk(min(most, pool.shape[1]), dim=1)
    drawn = largest >= 0
    if room is not None:
        drawn &= torch.arange(anchor.shape[1], device=pool.device) < room
    return torch.zeros_like(pool).scatter_(1, anchor, drawn)


def _keep(task: TaskAssignment, kept: Tensor) -> TaskAssignment:
    return TaskAssignment(
        gt_index=task.gt_index.where(kept, -1),
        role=task.role.where(kept, Role.IGNORED),
        weight=task.weight.where(kept, 0),
        quality=task.quality.where(kept, 0),
    )
