"""The criterion of labelled images with a frozen teacher: the supervised losses, plus what the teacher teaches.

After Localization Distillation (Zheng et al., CVPR 2022, arXiv 2102.12252), which teaches box distributions, and the
quality focal loss' targets (Li et al., NeurIPS 2020), which are the teacher's probabilities here. In a step:

1. The supervised criterion sees the batch, as without a teacher.
2. The teacher sees the same images, if need be at another size: see `training.other_size`. Its foreground m is its
   largest class probability at an anchor.
3. Classes: sum KL(p_t || p_s) / N over all anchors and the classes that both have, N as in `losses.distillation`.
4. Box distributions: KL at temperature T, weighted by m where m > 0.1. Where one side has none, or they have other
   bins: 1 - GIoU instead, with the same weights; of oriented boxes 1 - probiou, always. Predicted IoU, where both have
   it, too.
5. The sum of 3 and 4, each with the supervised term's gain, counts by `weight`.

Different from Localization Distillation: the anchors are chosen by the teacher's confidence, not by the assigner and a
region around its positives. Masks and keypoints are learned from labels alone. An end-to-end model is taught in its
one-to-many branch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mlc_yolo.box_kinds import ORIENTED
from mlc_yolo.losses.distillation import foreground
from mlc_yolo.training.dense_outputs import Dense, Gains
from mlc_yolo.training.distilling import compared, normalisers
from mlc_yolo.training.other_size import at_cells
from mlc_yolo.training.ranks import Losses, Pending, joined
from mlc_yolo.training.teachers import Teachers
from mlc_yolo.training.wrapped_criterion import WrappedLoss

#: What a teacher adds to the losses and to the log.
TAUGHT = ("teach_cls", "teach_box")
#: A teacher's confidence above which its box teaches.
SURE = 0.1


class TaughtLoss(WrappedLoss):
    """Callable `(preds, batch) -> (losses, items)`: a supervised criterion, and frozen teachers in training."""

    def __init__(
        self, supervised: Any, *, teachers: Callable[[], Teachers], weight: float, temperature: float = 1.0
    ) -> None:
        """Set the criterion up.

        Args:
            supervised: criterion of the labelled images.
            teachers: gives the teachers; a function, so that copies of the model share them.
            weight: of what they teach.
            temperature: of box distributions.
        """
        super().__init__(supervised)
        self.teachers = teachers
        self.weight = weight
        self.temperature = temperature

    def __call__(self, preds: Any, batch: dict[str, Any]) -> Losses:
        """Return the weighted losses and every item for the log.

        Args:
            preds: raw predictions.
            batch: upstream's batch.

        Returns:
            losses: the supervised ones, in training then one for each of `TAUGHT`.
            items: the same by name.
        """
        return self.prepare(preds, batch).over_ranks()

    def prepare(self, preds: Any, batch: dict[str, Any]) -> Pending[Losses]:
        """Return this rank's normalisers and the function that turns their sums into losses, as for a call."""
        labelled = self.supervised.prepare(preds, batch)
        if not torch.is_grad_enabled():
            return labelled
        name, criterion, share = self.supervised.branches()[0]
        taught = self._taught(criterion, preds if name is None else preds[name], batch["img"])
        images = torch.full((1,), float(len(batch["img"])), device=batch["img"].device)
        step: Pending[list[Any]] = joined([labelled, taught, Pending(images, lambda sums: sums)])

        def finish(sums: Tensor) -> Losses:
            (losses, items), terms, all_images = step.finish(sums)
            own = self.weight * share * terms * (all_images if criterion.times_images else 1.0)
            logged = dict(zip(TAUGHT, terms.detach(), strict=True))
            return torch.cat((losses, own.to(losses.dtype))), {**items, **logged}

        return Pending(step.counts, finish)

    def _taught(self, criterion: Any, raw: dict[str, Any], images: Tensor) -> Pending[Tensor]:
        """Let the teachers see the images; return the terms `TAUGHT`, (2,), not yet weighted."""
        teachers = self.teachers()
        student = criterion.dense(raw).of(teachers.classes.to(images.device))
        teacher = at_cells(teachers(images), student.sizes)
        sure = foreground(teacher.logits)
        trusted = trusted_boxes(sure)
        gains = taught_gains(criterion.gains(), student, teacher)

        def finish(sums: Tensor) -> Tensor:
            terms = compared(student, teacher, trusted, sums, gains, power=0, temperature=self.temperature)
            return torch.stack(terms)

        return Pending(normalisers(sure, trusted), finish)


def trusted_boxes(sure: Tensor) -> Tensor:
    """Return the weight of a frozen teacher's boxes: its foreground (B, A) where that is above `SURE`, else 0."""
    return sure * (sure > SURE)


def taught_gains(gains: Gains, student: Dense, teacher: Dense) -> Gains:
    """Return gains by which boxes are taught once: by distributions where they compare, else by their overlap.

    Oriented boxes are taught by both, as distributions say nothing of their angles.
    """
    bins = [None if side.distributions is None else side.distributions.shape[-1] for side in (student, teacher)]
    if bins[0] is None or bins[0] != bins[1]:
        return replace(gains, distributions=0.0)
    return gains if student.kind is ORIENTED else replace(gains, boxes=0.0)
