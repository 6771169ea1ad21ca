"""The criterion of semi-supervised training: the supervised one, and what a teacher says of images without labels.

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
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xyxy2xywhn

from mlc_yolo.boxes import aligned_iou
from mlc_yolo.evaluation.postprocess import detections, extra_channels
from mlc_yolo.losses.distillation import (
    agreement,
    distilled_boxes,
    distilled_classes,
    distilled_distributions,
    distilled_quality,
    foreground,
    foreground_normaliser,
)
from mlc_yolo.losses.scale_pairs import scale_pairs
from mlc_yolo.training.detector_criterion import DetectorLoss, total_over_ranks
from mlc_yolo.training.yolo_criterion import PerTaskE2ELoss, PerTaskLoss

#: What training without labels adds to the log: losses, and how far student and teacher agree on the foreground.
ITEMS = ("ssl_cls", "ssl_box", "ssl_scale", "agree_cls", "agree_iou")

Supervised = PerTaskLoss | PerTaskE2ELoss | DetectorLoss


@dataclass(frozen=True)
class Dense:
    """A branch's predictions at every anchor.

    Attributes:
        logits: (B, A, K) class logits.
        boxes: (B, A, 4) xyxy px of its own input.
        distributions: (B, A, 4, R) logits over distances in strides, where the head has them.
        quality: (B, A) logits of predicted IoU or centerness, where the head has them.
        sizes: (H, W) in cells, of each level.
    """

    logits: Tensor
    boxes: Tensor
    distributions: Tensor | None
    quality: Tensor | None
    sizes: list[tuple[int, int]]

    def at(self, anchors: slice, *, zoom: float = 1.0) -> Dense:
        """Return some anchors, their boxes `zoom` times as large."""
        cut = [None if part is None else part[:, anchors] for part in (self.distributions, self.quality)]
        return Dense(self.logits[:, anchors], self.boxes[:, anchors] * zoom, cut[0], cut[1], self.sizes)


@dataclass(frozen=True)
class Gains:
    """Weights of the terms, those of the supervised loss.

    Attributes:
        classes: of the class loss.
        boxes: of 1 - GIoU.
        distributions: of the distributions' KL.
        quality: of the predicted IoU's squared error.
    """

    classes: float
    boxes: float
    distributions: float
    quality: float


class SemiLoss:
    """Callable `(preds, batch) -> (losses, items)`: a supervised criterion, and distillation where a batch has views.

    Other attributes, such as `schedule` and an end-to-end criterion's `update`, are the supervised criterion's.

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
        reweigh: bool,
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
            reweigh: weigh class distillation by |p_t - p_s|^2.
            scale: distil at half the scale too.
            threshold: least confidence of a pseudo-label.
            nms_iou: overlap from which the NMS of pseudo-labels suppresses.
            max_det: pseudo-labels per image.
        """
        self.supervised = supervised
        self.mode = mode
        self.student = student
        self.teacher = teacher
        self.reweigh = reweigh
        self.scale = scale
        self.threshold = threshold
        self.nms_iou = nms_iou
        self.max_det = max_det
        self.gain = 0.0

    def __getattr__(self, name: str) -> Any:
        """Look what is not ours up in the supervised criterion."""
        if name == "supervised":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.supervised, name)

    @property
    def epoch(self) -> int:
        """The epoch being trained."""
        return self.supervised.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.supervised.epoch = value

    @property
    def schedule(self) -> Any:
        """Assigners of the labelled images by epoch."""
        return self.supervised.schedule

    @schedule.setter
    def schedule(self, value: Any) -> None:
        self.supervised.schedule = value

    @property
    def updates(self) -> int:
        """Epochs an end-to-end criterion has counted."""
        return int(self.supervised.updates)  # type: ignore[union-attr]

    @updates.setter
    def updates(self, value: int) -> None:
        self.supervised.updates = value  # type: ignore[union-attr]

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted losses and every item for the log.

        Args:
            preds: the labelled images' raw predictions.
            batch: upstream's batch; in training with `unlabeled`, weak and strong views (U, 3, H, W) in [0, 1].

        Returns:
            losses: the supervised ones, then one for each term learned without labels.
            items: the supervised ones and, in training, `ITEMS`.
        """
        losses, items = self.supervised(preds, batch)
        if not torch.is_grad_enabled():
            return losses, items
        views = batch.get("unlabeled")
        terms = {} if views is None or not self.gain else self._terms(views["weak"], views["strong"])
        extra = {name: terms.get(name, losses.new_zeros(())) for name in ITEMS}
        learned = self._times(batch) * torch.stack([extra[name] for name in ITEMS[:3]])
        logged = {name: term.detach() for name, term in extra.items()}
        return torch.cat((losses, self.gain * learned.to(losses.dtype))), {**items, **logged}

    def _times(self, batch: dict[str, Any]) -> int:
        """Return what multiplies a loss: for YOLO the labelled images of a step, as upstream does; else 1."""
        return 1 if isinstance(self.supervised, DetectorLoss) else len(batch["img"])

    def _terms(self, weak: Tensor, strong: Tensor) -> dict[str, Tensor]:
        student, teacher = self.student(), self.teacher()
        with torch.no_grad(), _batch_statistics(teacher, student):
            decoded, taught = teacher(weak)
            halved = None if self.mode == "pseudo" else teacher(_halved(weak))[1]
        with _batch_statistics(student, student):
            seen = student(strong)
            small = student(_halved(strong)) if self.scale and halved is not None else None
        terms = dict.fromkeys(ITEMS, strong.new_zeros(()))
        for name, criterion, share in self._branches():
            parts = [raw if name is None or raw is None else raw[name] for raw in (taught, halved, seen, small)]
            for term, value in self._distil(criterion, parts).items():
                terms[term] = terms[term] + share * value
        if self.mode == "pseudo":
            terms = {**terms, **self._pseudo(decoded, seen, strong)}
        return terms

    def _branches(self) -> list[tuple[str | None, PerTaskLoss | DetectorLoss, float]]:
        """Return name, criterion and weight of the head's branches."""
        if isinstance(self.supervised, PerTaskE2ELoss):
            both = self.supervised
            return [("one2many", both.one2many, both.o2m), ("one2one", both.one2one, both.o2o)]
        return [(None, self.supervised, 1.0)]

    def _distil(self, criterion: PerTaskLoss | DetectorLoss, raws: list[Any]) -> dict[str, Tensor]:
        """Return one branch's terms.

        Args:
            criterion: the branch's own.
            raws: raw predictions of the teacher, the teacher at half scale (None for pseudo-labels, which no branch
                distils), the student, and the student at half scale (None without the scale term).
        """
        with torch.no_grad():
            teacher = dense(criterion, raws[0])
            halved = None if raws[1] is None else dense(criterion, raws[1])
        student = dense(criterion, raws[2])
        sure = foreground(teacher.logits)
        terms = _agreement_items(student, teacher, sure)
        if halved is None:
            return terms
        cells = sum(height * width for height, width in teacher.sizes)
        source = criterion.head if isinstance(criterion, DetectorLoss) else criterion
        strides = [float(stride) for stride in source.level_strides]
        per_cell = teacher.logits.shape[1] // cells
        pairs = scale_pairs(teacher.sizes, halved.sizes, strides, anchors_per_cell=per_cell)
        paired = teacher.at(pairs.full)
        trusted = torch.zeros_like(sure)
        agree = agreement(paired.boxes, halved.at(pairs.half, zoom=2).boxes)
        trusted[:, pairs.full] = sure[:, pairs.full] * agree
        # Summed over ranks, the losses equal one process'; YOLO's also take the size of one rank's batch for all of it.
        ranks = _ranks() if isinstance(criterion, PerTaskLoss) else 1
        gains = _gains(criterion)
        classes, boxes = self._compare(student, teacher, sure, trusted, gains)
        terms |= {"ssl_cls": classes * ranks, "ssl_box": boxes * ranks}
        if raws[3] is not None:
            small = dense(criterion, raws[3]).at(pairs.half, zoom=2)
            both = self._compare(small, paired, sure[:, pairs.full], trusted[:, pairs.full], gains)
            terms["ssl_scale"] = (both[0] + both[1]) * ranks
        return terms

    def _compare(
        self, student: Dense, teacher: Dense, sure: Tensor, trusted: Tensor, gains: Gains
    ) -> tuple[Tensor, Tensor]:
        """Return class loss and the sum of the losses of boxes, both times their gains."""
        normaliser = total_over_ranks(foreground_normaliser(sure))
        classes = distilled_classes(student.logits, teacher.logits, normaliser, reweigh=self.reweigh)
        weight = total_over_ranks(trusted.sum())
        boxes = gains.boxes * distilled_boxes(student.boxes, teacher.boxes, trusted, total=weight)
        if student.distributions is not None and teacher.distributions is not None:
            divergence = distilled_distributions(student.distributions, teacher.distributions, trusted, total=weight)
            boxes = boxes + gains.distributions * divergence
        if student.quality is not None and teacher.quality is not None:
            boxes = boxes + gains.quality * distilled_quality(student.quality, teacher.quality, trusted, total=weight)
        return gains.classes * classes, boxes

    def _pseudo(self, decoded: Tensor, seen: Any, strong: Tensor) -> dict[str, Tensor]:
        """Return the supervised criterion's losses with the teacher's confident detections as labels."""
        batch = pseudo_labels(
            decoded,
            extra_channels(self.teacher()),
            (strong.shape[2], strong.shape[3]),
            end2end=bool(getattr(self.teacher().model[-1], "end2end", False)),
            threshold=self.threshold,
            nms_iou=self.nms_iou,
            max_det=self.max_det,
        )
        losses, items = self.supervised(seen, {**batch, "img": strong})
        losses = losses / self._times({"img": strong})
        index = list(items).index("cls_loss")
        return {"ssl_cls": losses[index], "ssl_box": losses.sum() - losses[index]}


def dense(criterion: PerTaskLoss | DetectorLoss, raw: dict[str, Any]) -> Dense:
    """Return raw predictions of one branch, decoded, with gradients."""
    sizes = [(int(features.shape[2]), int(features.shape[3])) for features in raw["feats"]]
    if isinstance(criterion, DetectorLoss):
        priors = criterion.head.priors(raw["feats"], scale=criterion.prior_scale)
        boxes = criterion.head.decode(raw["boxes"], priors)
        return Dense(raw["scores"], boxes, None, raw.get("quality"), sizes)
    boxes, distributions = criterion.decoded(raw)
    quality = raw["iou"][:, 0] if "iou" in raw else None
    return Dense(raw["scores"].transpose(1, 2), boxes, distributions, quality, sizes)


@torch.no_grad()
def pseudo_labels(
    decoded: Tensor,
    extras: tuple[str, ...],
    size: tuple[int, int],
    *,
    end2end: bool,
    threshold: float,
    nms_iou: float,
    max_det: int,
) -> dict[str, Tensor]:
    """Return a teacher's confident detections as a batch's labels.

    Args:
        decoded: the head's decoded output, as NMS takes it.
        extras: names of its channels after the class scores.
        size: (H, W) of the input in px.
        end2end: whether the head needs no NMS.
        threshold: least confidence; of a head that predicts it, IoU included.
        nms_iou: overlap from which NMS suppresses.
        max_det: labels per image.

    Returns:
        batch_idx (n,), cls (n, 1) and bboxes (n, 4), xywh in [0, 1].
    """
    if extras:
        found = detections(
            decoded,
            extras,
            confidence=threshold,
            iou_threshold=nms_iou,
            max_det=max_det,
            agnostic=False,
            multi_label=False,
        )
    else:
        found = non_max_suppression(decoded, threshold, nms_iou, max_det=max_det, end2end=end2end, max_time_img=1.0)
    rows = torch.cat([F.pad(each[:, :6].float(), (1, 0), value=image) for image, each in enumerate(found)])
    boxes = xyxy2xywhn(rows[:, 1:5], w=size[1], h=size[0], clip=True)
    return {"batch_idx": rows[:, 0], "cls": rows[:, 6:7], "bboxes": boxes}


def _agreement_items(student: Dense, teacher: Dense, sure: Tensor) -> dict[str, Tensor]:
    """Return how far student and teacher agree on the teacher's top 1 % of anchors, weighted by its foreground.

    `agree_cls` is 1 - |p_t - p_s| at the teacher's class, `agree_iou` the IoU of the boxes; both in [0, 1].
    """
    with torch.no_grad():
        top, anchors = sure.topk(max(1, sure.shape[1] // 100), 1)
        image = torch.arange(len(sure), device=sure.device)[:, None]
        label = teacher.logits[image, anchors].argmax(-1)
        scores = [each.logits[image, anchors, label].float().sigmoid() for each in (student, teacher)]
        ious = aligned_iou(student.boxes[image, anchors], teacher.boxes[image, anchors])
        total = top.sum().clamp(min=1e-6)
        classes = (top * (1 - (scores[0] - scores[1]).abs())).sum() / total
        return {"agree_cls": classes, "agree_iou": (top * ious).sum() / total}


def _gains(criterion: PerTaskLoss | DetectorLoss) -> Gains:
    quality = criterion.iou_gain * (criterion.epoch >= criterion.iou_warmup)
    if isinstance(criterion, DetectorLoss):
        return Gains(1.0, 1.0, 0.0, 1.0 if criterion.head.quality == "centerness" else quality)
    return Gains(criterion.hyp.cls, criterion.hyp.box, criterion.hyp.dfl, quality)


def _halved(views: Tensor) -> Tensor:
    """Return (U, 3, H / 2, W / 2), each pixel the mean of four."""
    return F.avg_pool2d(views, 2)


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


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
