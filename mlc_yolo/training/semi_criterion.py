"""The criterion of semi-supervised training: supervised losses, plus losses against a teacher without labels.

SED-style: `mlc_yolo.losses.distillation` says what is the abstract's and what is our reconstruction. The teacher is the
student's running average, or frozen detectors; see `training.view_teachers`. In a step:

1. The supervised criterion sees the labelled batch, as without us.
2. The teacher sees the weak views. A running average sees them at half scale too, for soft and sed; where its two boxes
   of an object agree, boxes are taught. A frozen teacher's boxes are taught where it is sure.
3. The student sees the strong views at full scale: class, box and predicted-IoU losses against the teacher, anchor by
   anchor (soft, sed, dense), or the supervised criterion on the teacher's confident detections (pseudo).
4. The student sees them at half scale (sed): the same losses, each level against the teacher's next coarser one.
5. The sum of 3 and 4 counts by `gain`, which the trainer raises from 0.

dense is the rule of Dense Teacher (Zhou et al., ECCV 2022, arXiv 2207.02541): an image's top 1 % of anchors by the
teacher's largest class probability are positive, with that probability as their target; all others are taught towards
0, weighted by the square of what the student says there.

pseudo: with a teacher that is sure of little, the background's loss would be divided by almost nothing. So it is
divided by the positives of labels and pseudo-labels together. A label needs a class probability of `threshold`.
Predicted IoU does not count where it is taught beside the class, as then their product does not reach 0.7 early.

The class, box and DFL losses have the gains of the supervised ones. With a running average the finest level has no
partner at half scale, so it learns classes without labels, but no boxes. All student passes happen within the model's
one forward call, so that distributed training reduces their gradients once. Images without labels normalise the
student's layers by their own statistics but do not enter the running ones: those stay the labelled images', which the
teacher is used with. The running average normalises by the batch as well: its running statistics lag in a short run,
and a student that is to give the same scores by its batch's statistics runs away (fine-tuning on 15 images of bccd-416
with ssl=soft, the class term grew threefold within 13 epochs; by the batch's statistics it starts at a ninth of that
and halves).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mlc_yolo.boxes import aligned_iou
from mlc_yolo.losses.distillation import agreement, foreground, region_logits, top_anchors
from mlc_yolo.losses.scale_pairs import ScalePairs, scale_pairs
from mlc_yolo.training.dense_outputs import Dense, Gains
from mlc_yolo.training.distilling import compared, normalisers
from mlc_yolo.training.other_size import at_cells
from mlc_yolo.training.pseudo_labels import pseudo_labels
from mlc_yolo.training.ranks import Losses, Pending, joined, training_ranks
from mlc_yolo.training.taught_criterion import taught_gains, trusted_boxes
from mlc_yolo.training.view_teachers import FrozenTeachers, RunningAverage, Seen, batch_statistics, halved
from mlc_yolo.training.wrapped_criterion import WrappedLoss

#: The losses of training without labels.
LOSSES = ("ssl_cls", "ssl_box", "ssl_scale")
#: What it adds to the log: its losses, and how far student and teacher agree on the foreground.
ITEMS = (*LOSSES, "agree_cls", "agree_iou")


class SemiLoss(WrappedLoss):
    """Callable `(preds, batch) -> (losses, items)`: a supervised criterion, and distillation where a batch has views.

    Attributes:
        gain: weight of what is learned without labels; 0 leaves the student's and teacher's passes out.
    """

    def __init__(
        self,
        supervised: Any,
        *,
        mode: str,
        student: Callable[[], Any],
        teacher: RunningAverage | FrozenTeachers,
        power: float,
        scale: bool,
        temperature: float = 1.0,
        threshold: float = 0.7,
        nms_iou: float = 0.7,
        max_det: int = 300,
    ) -> None:
        """Set the criterion up.

        Args:
            supervised: criterion of the labelled images.
            mode: "pseudo", "soft", "sed" or "dense".
            student: gives the model that is trained.
            teacher: who sees the weak views.
            power: exponent by which class distillation weighs the disagreement |p_t - p_s|; 0 does not weigh.
            scale: distil at half the scale too.
            temperature: of a frozen teacher's box distributions.
            threshold: least class probability of a pseudo-label.
            nms_iou: overlap from which the NMS of pseudo-labels suppresses.
            max_det: pseudo-labels per image.
        """
        super().__init__(supervised)
        self.mode = mode
        self.student = student
        self.teacher = teacher
        self.power = power
        self.scale = scale
        self.temperature = temperature
        self.threshold = threshold
        self.nms_iou = nms_iou
        self.max_det = max_det
        self.gain = 0.0

    def __call__(self, preds: Any, batch: dict[str, Any]) -> Losses:
        """Return the weighted losses and every item for the log.

        Args:
            preds: the labelled images' raw predictions.
            batch: upstream's batch; in training with `unlabeled`, weak and strong views (U, 3, H, W) in [0, 1].

        Returns:
            losses: the supervised ones, then one for each term learned without labels.
            items: the supervised ones and, in training, `ITEMS`.
        """
        labelled = self.supervised.prepare(preds, batch)
        if not torch.is_grad_enabled():
            return labelled.over_ranks()
        views = batch.get("unlabeled")
        if views is None or not self.gain:
            losses, items = labelled.over_ranks()
            none = dict.fromkeys(ITEMS, losses.new_zeros(()))
            return torch.cat((losses, losses.new_zeros(len(LOSSES)))), {**items, **none}

        terms = self._terms(views["weak"], views["strong"], labelled, len(batch["img"]))
        images = terms.counts.new_full((1,), len(batch["img"]))
        step: Pending[list[Any]] = joined([labelled, terms, Pending(images, lambda sums: sums / training_ranks())])
        (losses, items), learned, mean_images = step.over_ranks()
        weight = self.gain * mean_images if self.supervised.times_images else self.gain
        own = weight * torch.stack([learned[name] for name in LOSSES])
        logged = {name: learned[name].detach() for name in ITEMS}
        return torch.cat((losses, own.to(losses.dtype))), {**items, **logged}

    def _terms(
        self, weak: Tensor, strong: Tensor, labelled: Pending[Losses], images: int
    ) -> Pending[dict[str, Tensor]]:
        """Let teacher and student see the views; return `ITEMS`, not yet weighted by gain and images."""
        student = self.student()
        branches = self.supervised.branches()
        taught = self.teacher(weak, branches, half=self.mode in {"soft", "sed"})
        with batch_statistics(student, student):
            seen = student(strong)
            small = student(halved(strong)) if self.scale and self.mode != "pseudo" else None
        parts, shares = [], []
        for (name, criterion, share), teaching in zip(branches, taught, strict=False):
            raws = [raw if name is None or raw is None else raw[name] for raw in (seen, small)]
            parts.append(self._distil(criterion, teaching, *raws))
            shares.append(share)
        if self.mode == "pseudo":
            # The last branch is the one that is validated; if there are two, it needs no NMS.
            parts.append(self._pseudo(taught[-1], len(taught) > 1, seen, strong, _positives(labelled, images)))
            shares.append(1.0)
        together = joined(parts)

        def finish(sums: Tensor) -> dict[str, Tensor]:
            terms = dict.fromkeys(ITEMS, strong.new_zeros(()))
            for share, part in zip(shares, together.finish(sums), strict=True):
                for name, value in part.items():
                    terms[name] = terms[name] + share * value
            return terms

        return Pending(together.counts, finish)

    def _distil(self, criterion: Any, teaching: Seen, raw: Any, small: Any) -> Pending[dict[str, Tensor]]:
        """Return one branch's terms.

        Args:
            criterion: the branch's own.
            teaching: what the teacher sees.
            raw: raw predictions of the student.
            small: the same at half scale; None without the scale term.
        """
        student = _of(criterion.dense(raw), teaching)
        teacher = at_cells(teaching.full, student.sizes)
        sure = foreground(teacher.logits)
        items = _agreement_items(student, teacher, sure)
        if self.mode == "pseudo":  # no branch distils
            return Pending(sure.new_zeros(0), lambda _: items)
        if self.mode == "dense":
            region = top_anchors(sure)
            sure = sure * region
            teacher = replace(teacher, logits=region_logits(teacher.logits, region))
        trusted = trusted_boxes(sure)
        if teaching.half is not None:
            pairs = _pairs(criterion, teacher, teaching.half)
            agree = agreement(teacher.at(pairs.full).boxes, teaching.half.at(pairs.half, zoom=2).boxes)
            trusted = torch.zeros_like(sure)
            trusted[:, pairs.full] = sure[:, pairs.full] * agree
        masks, sides = [(sure, trusted)], [(student, teacher)]
        if small is not None:
            half = _of(criterion.dense(small), teaching)
            pairs = _pairs(criterion, teacher, half)
            masks.append((sure[:, pairs.full], trusted[:, pairs.full]))
            sides.append((half.at(pairs.half, zoom=2), teacher.at(pairs.full)))
        counts = torch.cat([normalisers(*pair) for pair in masks])

        def finish(sums: Tensor) -> dict[str, Tensor]:
            # Summed over ranks these equal one process'; where images multiply, upstream's rule is the ranks' mean.
            share = training_ranks() if criterion.times_images else 1
            losses = [
                self._compare(own, aim, mask, totals, criterion.gains())
                for (own, aim), (_, mask), totals in zip(sides, masks, sums.split(2), strict=True)
            ]
            terms = {**items, "ssl_cls": losses[0][0] * share, "ssl_box": losses[0][1] * share}
            if len(losses) == 2:
                terms["ssl_scale"] = (losses[1][0] + losses[1][1]) * share
            return terms

        return Pending(counts, finish)

    def _compare(
        self, student: Dense, teacher: Dense, trusted: Tensor, totals: Tensor, gains: Gains
    ) -> tuple[Tensor, Tensor]:
        """Return class loss and the sum of the losses of boxes, both times their gains.

        Args:
            student: A anchors.
            teacher: the same ones.
            trusted: (B, A) weight of the teacher's boxes.
            totals: (2,) of `normalisers`, over all ranks.
            gains: weights of the terms.
        """
        if self.teacher.frozen:
            gains = taught_gains(gains, student, teacher)
        temperature = self.temperature if self.teacher.frozen else 1.0
        return compared(student, teacher, trusted, totals, gains, power=self.power, temperature=temperature)

    def _pseudo(
        self, teaching: Seen, needs_nms: bool, seen: Any, strong: Tensor, labelled: Tensor
    ) -> Pending[dict[str, Tensor]]:
        """Return the losses of labels alone with the teacher's confident detections as labels.

        Args:
            teaching: what the teacher sees, for the branch whose detections count.
            needs_nms: whether that branch finds an object more than once.
            seen: the student's raw predictions.
            strong: (U, 3, H, W) what it sees.
            labelled: (2,) positives of this rank's labelled images, for classes and boxes.
        """
        labels = pseudo_labels(
            teaching.full,
            teaching.classes,
            (strong.shape[2], strong.shape[3]),
            threshold=self.threshold,
            nms_iou=self.nms_iou if needs_nms else 1.0,
            max_det=self.max_det,
        )
        learned = self.innermost.prepare(seen, {**labels, "img": strong}, images=1)  # the labelled ones multiply
        own = _positives(learned, len(strong))

        def finish(sums: Tensor) -> dict[str, Tensor]:
            counts, pseudo, both = sums.split((len(sums) - 4, 2, 2))
            losses, items = learned.finish(counts)
            # Each was divided by the pseudo-labels' normaliser: by their share, it is as if by both sets' together.
            classes, boxes = pseudo.clamp(min=1) / both.clamp(min=1)
            index = list(items).index("cls_loss")
            return {"ssl_cls": classes * losses[index], "ssl_box": boxes * (losses.sum() - losses[index])}

        return Pending(torch.cat((learned.counts.float(), own, own + labelled)), finish)


def _positives(pending: Pending[Losses], images: int) -> Tensor:
    """Return the positives of this rank's images for classes and for boxes, (2,)."""
    with torch.no_grad():
        _, items = pending.finish(pending.counts)
    return images * torch.stack((items["pos_cls"], items["pos_loc"])).float()


def _of(student: Dense, teaching: Seen) -> Dense:
    """Return a student's predictions of the classes that its teacher tells apart."""
    return student if teaching.classes is None else student.of(teaching.classes)


def _pairs(criterion: Any, full: Dense, half: Dense) -> ScalePairs:
    """Return which anchors see the same at full and at half scale."""
    per_cell = full.logits.shape[1] // sum(height * width for height, width in full.sizes)
    return scale_pairs(full.sizes, half.sizes, criterion.level_strides, anchors_per_cell=per_cell)


def _agreement_items(student: Dense, teacher: Dense, sure: Tensor) -> dict[str, Tensor]:
    """Return how far student and teacher agree on the teacher's top 1 % of anchors, weighted by its foreground.

    `agree_cls` is 1 - |p_t - p_s| at the teacher's class, `agree_iou` the IoU of the boxes; both in [0, 1].
    """
    with torch.no_grad():
        top, anchors = sure.topk(max(1, sure.shape[1] // 100), 1)
        image = torch.arange(len(sure), device=sure.device)[:, None]
        label = teacher.logits[image, anchors].argmax(-1)
        scores = [side.logits[image, anchors, label].float().sigmoid() for side in (student, teacher)]
        ious = aligned_iou(student.boxes[image, anchors], teacher.boxes[image, anchors])
        total = top.sum().clamp(min=1e-6)
        classes = (top * (1 - (scores[0] - scores[1]).abs())).sum() / total
        return {"agree_cls": classes, "agree_iou": (top * ious).sum() / total}
