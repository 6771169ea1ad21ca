"""The targets of a criterion's losses: a batch's objects in pixels, and the object of each positive anchor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlc_yolo.assigners import Targets, TaskAssignment
from mlc_yolo.box_kinds import UPRIGHT, BoxKind


def padded_targets(
    batch: dict[str, Any],
    images: int,
    size: tuple[float, float],
    device: torch.device,
    kind: BoxKind = UPRIGHT,
) -> Targets:
    """Pad a batch's objects to the most that an image has.

    Args:
        batch: upstream's training batch: batch_idx (N,), cls (N, 1), bboxes (N, 4) xywh in [0, 1], with an angle (N, 5)
            of oriented boxes; in any order.
        images: B.
        size: (H, W) of the network's input in px.
        device: where the targets are to live.
        kind: what the boxes are.

    Returns:
        Targets (B, M), an image's objects in the batch's order.
    """
    index = batch["batch_idx"].to(device).long().flatten()
    counts = torch.bincount(index, minlength=images)
    order = index.argsort(stable=True)
    slot = torch.arange(len(index), device=device) - (counts.cumsum(0) - counts)[index[order]]
    most = int(counts.max()) if len(index) else 0
    height, width = size
    # Scaled before corners are taken, as upstream does: the same boxes to the bit.
    rows = batch["bboxes"].to(device).float()[order]
    scale = torch.tensor([width, height, width, height, 1.0], device=device)[: kind.numbers]
    labels = torch.zeros((images, most), dtype=torch.int64, device=device)
    boxes = torch.zeros((images, most, kind.numbers), device=device)
    where = (index[order], slot)
    labels[where] = batch["cls"].to(device).long().flatten()[order]
    boxes[where] = kind.of_labels(rows * scale)
    return Targets(labels, boxes, torch.arange(most, device=device) < counts[:, None], kind)


def positives_of_either(cls: TaskAssignment, loc: TaskAssignment) -> tuple[Tensor, Tensor, Tensor]:
    """Return the anchors that are positive for either task, and the object of each.

    What is compared there is a box, so that an anchor both tasks claim, for different objects, belongs to
    localisation's.

    Args:
        cls: who learns which class.
        loc: whose box learns which object.

    Returns:
        image, anchor and slot of the object among its image's, each (P,) int64, in order of image and anchor.
    """
    image, anchor = (cls.positive | loc.positive).nonzero(as_tuple=True)
    slot = torch.where(loc.positive, loc.gt_index, cls.gt_index)[image, anchor]
    return image, anchor, slot
