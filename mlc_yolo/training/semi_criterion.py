"""The criterion of semi-supervised training: supervised losses, plus losses against a teacher without labels.

SED-style: `mlc_yolo.losses.distillation` says what is the abstract's and what is our reconstruction. In a step:

1. The supervised criterion sees the labelled batch, as without us.
2. The teacher sees the weak views, for soft and sed at half scale too; where its two boxes of an object agree, boxes
   are taught.
3. The student sees the strong views at full scale: class, box and predicted-IoU losses against the teacher, anchor by
   anchor (soft, sed), or the supervised criterion on the teacher's confident detections (pseudo).
4. The student sees them at half scale (sed): the same losses, each level against the teacher's next coarser one.
5. The sum of 3 and 4 counts by `gain`, which the trainer raises from 0.

The class, box and DFL losses have the gains of the supervised ones. The finest level has no partner at half scale, so
it learns classes without labels, but no boxes. All student passes happen within the model's one forward call, so that
distributed training reduces their gradients once. Images without labels normalise the student's layers by their own
statistics but do not enter the running ones: those stay the labelled images', which the teacher is used with. The
teacher normalises by the batch as well: its running statistics lag in a short run, and a student that is to give the
same scores by its batch's statistics runs away (fine-tuning on 15 images of bccd-416 with ssl=soft, the class term grew
threefold within 13 epochs; by the batch's statistics it starts at a ninth of that and halves).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlc_yolo.boxes import aligned_iou
from mlc_yolo.evaluation.postprocess import extra_channels
from mlc_yolo.losses.distillation import agreement, foreground
from mlc_yolo.losses.scale_pairs import scale_pairs
from mlc_yolo.training.dense_outputs import Dense, Gains
from mlc_yolo.training.detector_criterion import DetectorLoss
from mlc_yolo.training.distilling import compared, normalisers
from mlc_yolo.training.pseudo_labels import pseudo_labels
from mlc_yolo.training.ranks import Losses, Pending, joined, training_ranks
from mlc_yolo.training.wrapped_criterion import WrappedLoss
from mlc_yolo.training.yolo_criterion import PerTaskE2ELoss, PerTaskLoss

#: The losses of training without labels.
LOSSES = ("ssl_cls", "ssl_box", "ssl_scale")
#: What it adds to the log: its losses, and how far student and teacher agree on the foreground.
ITEMS = (*LOSSES, "agree_cls", "agree_iou")

Supervised = PerTaskLoss | PerTaskE2ELoss | DetectorLoss


class SemiLoss(WrappedLoss):
    """Callable `(preds, batch) -> (losses, items)`: a supervised criterion, and distillation where a batch has views.

    Attributes:
        gain: weight of what is learned without labels; 0 leaves the student's and teacher's passes out.
    """

    def __init__(
        self,
        supervised: Supervised,
        *,
        mode: str,
        student: Callable[[], Any],
        teacher: Callable[[], Any],
        power: int,
        scale: bool,
        threshold: float = 0.7,
        nms_iou: float = 0.7,
        max_det: int = 300,
    ) -> None:
        """Set the criterion up.

        Args:
            supervised: criterion of the labelled images.
            mode: "pseudo", "soft" or "sed".
            student: gives the model that is trained.
            teacher: gives its average, in evaluation mode.
            power: exponent by which class distillation weighs the disagreement |p_t - p_s|; 0 does not weigh.
            scale: distil at half the scale too.
            threshold: least confidence of a pseudo-label.
            nms_iou: overlap from which the NMS of pseudo-labels suppresses.
            max_det: pseudo-labels per image.
        """
        super().__init__(supervised)
        self.mode = mode
        self.student = student
        self.teacher = teacher
        self.power = power
        self.scale = scale
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

        terms = self._terms(views["weak"], views["strong"])
        images = terms.counts.new_full((1,), len(batch["img"]))
        step: Pending[list[Any]] = joined([labelled, terms, Pending(images, lambda sums: sums / training_ranks())])
        (losses, items), learned, mean_images = step.over_ranks()
        weight = self.gain * mean_images if self.supervised.times_images else self.gain
        own = weight * torch.stack([learned[name] for name in LOSSES])
        logged = {name: learned[name].detach() for name in ITEMS}
        return torch.cat((losses, own.to(losses.dtype))), {**items, **logged}

    def _terms(self, weak: Tensor, strong: Tensor) -> Pending[dict[str, Tensor]]:
        """Let teacher and student see the views; return `ITEMS`, not yet weighted by gain and images."""
        student, teacher = self.student(), self.teacher()
        with torch.no_grad(), _batch_statistics(teacher, student):
            decoded, taught = teacher(weak)
            halved = None if self.mode == "pseudo" else teacher(_halved(weak))[1]
        with _batch_statistics(student, student):
            seen = student(strong)
            small = student(_halved(strong)) if self.scale and halved is not None else None
        parts, shares = [], []
        for name, criterion, share in self.supervised.branches():
            raws = [raw if name is None or raw is None else raw[name] for raw in (taught, halved, seen, small)]
            parts.append(self._distil(criterion, raws))
            shares.append(share)
        if self.mode == "pseudo":
            parts.append(self._pseudo(decoded, seen, strong))
            shares.append(1.0)
        branches = joined(parts)

        def finish(sums: Tensor) -> dict[str, Tensor]:
            terms = dict.fromkeys(ITEMS, strong.new_zeros(()))
            for share, part in zip(shares, branches.finish(sums), strict=True):
                for name, value in part.items():
                    terms[name] = terms[name] + share * value
            return terms

        return Pending(branches.counts, finish)

    def _distil(self, criterion: PerTaskLoss | DetectorLoss, raws: list[Any]) -> Pending[dict[str, Tensor]]:
        """Return one branch's terms.

        Args:
            criterion: the branch's own.
            raws: raw predictions of the teacher, the teacher at half scale (None for pseudo-labels, which no branch
                distils), the student, and the student at half scale (None without the scale term).
        """
        with torch.no_grad():
            teacher = criterion.dense(raws[0])
            halved = None if raws[1] is None else criterion.dense(raws[1])
        student = criterion.dense(raws[2])
        sure = foreground(teacher.logits)
        items = _agreement_items(student, teacher, sure)
        if halved is None:
            return Pending(sure.new_zeros(0), lambda _: items)
        cells = sum(height * width for height, width in teacher.sizes)
        per_cell = teacher.logits.shape[1] // cells
        pairs = scale_pairs(teacher.sizes, halved.sizes, criterion.level_strides, anchors_per_cell=per_cell)
        paired = teacher.at(pairs.full)
        trusted = torch.zeros_like(sure)
        agree = agreement(paired.boxes, halved.at(pairs.half, zoom=2).boxes)
        trusted[:, pairs.full] = sure[:, pairs.full] * agree
        masks = [(sure, trusted)]
        compared = [(student, teacher)]
        if raws[3] is not None:
            masks.append((sure[:, pairs.full], trusted[:, pairs.full]))
            compared.append((criterion.dense(raws[3]).at(pairs.half, zoom=2), paired))
        counts = torch.cat([normalisers(sure, trusted) for sure, trusted in masks])

        def finish(sums: Tensor) -> dict[str, Tensor]:
            # Summed over ranks these equal one process'; where images multiply, upstream's rule is the ranks' mean.
            share = training_ranks() if criterion.times_images else 1
            losses = [
                self._compare(seen, aim, mask, totals, criterion.gains())
                for (seen, aim), (_, mask), totals in zip(compared, masks, sums.split(2), strict=True)
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
        return compared(student, teacher, trusted, totals, gains, power=self.power)

    def _pseudo(self, decoded: Tensor, seen: Any, strong: Tensor) -> Pending[dict[str, Tensor]]:
        """Return the supervised criterion's losses with the teacher's confident detections as labels."""
        labels = pseudo_labels(
            decoded,
            extra_channels(self.teacher()),
            (strong.shape[2], strong.shape[3]),
            end2end=bool(getattr(self.teacher().model[-1], "end2end", False)),
            threshold=self.threshold,
            nms_iou=self.nms_iou,
            max_det=self.max_det,
        )
        learned = self.supervised.prepare(seen, {**labels, "img": strong}, images=1)  # the labelled ones multiply

        def finish(sums: Tensor) -> dict[str, Tensor]:
            losses, items = learned.finish(sums)
            index = list(items).index("cls_loss")
            return {"ssl_cls": losses[index], "ssl_box": losses.sum() - losses[index]}

        return Pending(learned.counts, finish)


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


def _halved(views: Tensor) -> Tensor:
    """Return (U, 3, H / 2, W / 2), each pixel the mean of four."""
    return F.avg_pool2d(views, 2)


@contextmanager
def _batch_statistics(model: nn.Module, student: nn.Module) -> Iterator[None]:
    """Let a model's layers normalise by the batch where the student's do, without taking it into running statistics."""
    pairs = zip(model.modules(), student.modules(), strict=True)
    layers = [
        (layer, layer.training)
        for layer, other in pairs
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and other.training
    ]
    try:
        for layer, _ in layers:
            layer.train()
            layer.track_running_stats = False  # a momentum of 0 would still take a nan in
        yield
    finally:
        for layer, training in layers:
            layer.train(training)
            layer.track_running_stats = True
