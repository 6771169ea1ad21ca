"""The training criterion of the ported detectors: assign, then named losses by the head's recipe.

1. The epoch's assigner decides, per task. A recipe with sampling then draws the anchors that take part.
2. Class loss over classification's anchors / number of its positives; box loss over localisation's positives / theirs.
   With sampling both are divided by the anchors drawn, as Faster R-CNN does.
3. The quality layer: predicted IoU over the positives of either task (MLC eq. 10), or centerness over localisation's.
4. Prediction alignment (MLC table 1), if asked for, over the positives of either task.

Normalisers are counted over all ranks. The loss is the mean detectors are published with, not its multiple by the batch
size that Ultralytics takes for YOLO: published learning rates hold for it with `nbs` equal to the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mlc_yolo.assigners import Predictions, Role, Schedule, Targets, TaskAssignment
from mlc_yolo.assigners.claims import StaticAssigner
from mlc_yolo.assigners.sampling import sample_balanced, sample_positives
from mlc_yolo.boxes import aligned_iou
from mlc_yolo.coding import encode_distance
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.losses.alignment import alignment_loss
from mlc_yolo.losses.assigned_bce import assigned_bce
from mlc_yolo.losses.balanced_l1 import balanced_l1
from mlc_yolo.losses.box_regression import giou, log_iou, smooth_l1
from mlc_yolo.losses.centerness import centerness, centerness_loss
from mlc_yolo.losses.focal import assigned_focal
from mlc_yolo.losses.iou_rescoring import iou_rescoring_loss
from mlc_yolo.priors import Priors

#: Where Smooth-L1 turns from square to line: mmdetection's value; torchvision's RPN has 1/9.
SMOOTH_L1_BETA = 0.11


class DetectorLoss:
    """Callable `(preds, batch) -> (losses, items)` for a `DetectorModel`.

    Attributes:
        schedule: gives the assigner of an epoch.
        epoch: the epoch being trained, set by the trainer.
    """

    def __init__(
        self,
        model: DetectorModel,
        *,
        schedule: Schedule,
        prior_scale: float = 5.0,
        iou_gain: float = 1.0,
        iou_warmup: int = 0,
        align_gain: float = 0.0,
    ) -> None:
        """Set the criterion up.

        Args:
            model: unwrapped model.
            schedule: assigners by epoch.
            prior_scale: side of the square priors of point-based heads, in strides.
            iou_gain: factor of the predicted-IoU loss.
            iou_warmup: epochs without that loss.
            align_gain: factor of the prediction-alignment loss; 0 leaves it out.
        """
        self.head = model.head
        self.schedule = schedule
        self.epoch = 0
        self.prior_scale = prior_scale
        self.iou_gain = iou_gain
        self.iou_warmup = iou_warmup
        self.align_gain = align_gain

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses, weighted, and every item for the log.

        Args:
            preds: the head's raw predictions, or (decoded, raw) as in evaluation.
            batch: upstream's training batch: batch_idx (N,), cls (N, 1), bboxes (N, 4) xywh in [0, 1].

        Returns:
            losses: (n,) of box, class, quality and alignment, the latter two where they exist.
            items: box_loss, cls_loss, iou_loss or ctr_loss, align_loss; pos_cls and pos_loc: the anchors trained as
                positive for each task, per image.
        """
        raw = preds[1] if isinstance(preds, tuple) else preds
        priors = self.head.priors(raw["feats"], scale=self.prior_scale)
        targets = self._targets(raw, batch)
        cls, loc = self._assign(raw, priors, targets)
        losses = self._task_losses(raw, priors, targets, cls, loc)

        either = cls.positive | loc.positive
        image, anchor = either.nonzero(as_tuple=True)
        slot = torch.where(loc.positive, loc.gt_index, cls.gt_index)[image, anchor]
        if "quality" in raw and self.head.quality == "iou":
            decoded = self.head.decode(raw["boxes"].detach()[image, anchor], priors[anchor])
            ious = aligned_iou(decoded, targets.boxes[image, slot])
            count = total_over_ranks(either.sum())
            gain = self.iou_gain * (self.epoch >= self.iou_warmup)  # times 0 keeps the layer in the graph, for DDP
            losses["iou_loss"] = gain * iou_rescoring_loss(raw["quality"][image, anchor], ious, count)
        if self.align_gain:
            scores = raw["scores"][image, anchor, targets.labels[image, slot]].float().sigmoid()
            decoded = self.head.decode(raw["boxes"][image, anchor], priors[anchor])
            ious = aligned_iou(decoded, targets.boxes[image, slot])
            losses["align_loss"] = self.align_gain * alignment_loss(scores, ious, total_over_ranks(either.sum()))

        items = {name: loss.detach() for name, loss in losses.items()}
        images = len(raw["scores"])
        items["pos_cls"], items["pos_loc"] = cls.positive.sum() / images, loc.positive.sum() / images
        return torch.stack(list(losses.values())), items

    def assigner_inputs(self, raw: dict[str, Any], batch: dict[str, Any]) -> tuple[Predictions, Priors, Targets]:
        """Return what an assigner gets to see of raw predictions and a batch."""
        priors = self.head.priors(raw["feats"], scale=self.prior_scale)
        return self._predictions(raw, priors), priors, self._targets(raw, batch)

    def _predictions(self, raw: dict[str, Any], priors: Priors) -> Predictions:
        with torch.no_grad():
            return Predictions(
                raw["scores"].detach().float().sigmoid(), self.head.decode(raw["boxes"].detach(), priors)
            )

    def _assign(self, raw: dict[str, Any], priors: Priors, targets: Targets) -> tuple[TaskAssignment, TaskAssignment]:
        assigner = self.schedule.at(self.epoch)
        if isinstance(assigner, StaticAssigner):  # needs no predictions: they are not computed
            assignment = assigner.assign(priors, targets)
        else:
            assignment = assigner(self._predictions(raw, priors), priors, targets)
        cls, loc = assignment.classification, assignment.localization
        size = self.head.recipe.sample
        if size is None:
            return cls, loc
        if loc is cls:
            cls = sample_balanced(cls, size=size)
            return cls, cls
        return sample_balanced(cls, size=size), sample_positives(loc, limit=size // 2)

    def _task_losses(
        self, raw: dict[str, Any], priors: Priors, targets: Targets, cls: TaskAssignment, loc: TaskAssignment
    ) -> dict[str, Tensor]:
        """Return box and class losses, and the centerness loss where that is learned."""
        recipe = self.head.recipe
        image, anchor = loc.positive.nonzero(as_tuple=True)
        at = priors[anchor]
        goal = targets.boxes[image, loc.gt_index[image, anchor]]
        weight = (loc.weight * loc.quality)[image, anchor]
        box_norm, cls_norm = total_over_ranks(loc.quality.sum()), total_over_ranks(cls.quality.sum())
        if recipe.sample is not None:  # as in Faster R-CNN: by the anchors drawn, not by the positives
            box_norm = cls_norm = total_over_ranks((cls.role != Role.IGNORED).sum())

        learned = None
        if "quality" in raw and self.head.quality == "centerness":
            # Assigners other than FCOS' own may train points outside their box: centerness 0.
            target = centerness(encode_distance(goal, at.points).clamp(min=0))
            count = total_over_ranks(loc.positive.sum())
            learned = centerness_loss(raw["quality"][image, anchor], target, count)
            if recipe.weigh_by_centerness:
                weight = weight * target
                box_norm = total_over_ranks((loc.quality[image, anchor] * target).sum(), at_least=1e-6)

        boxes = raw["boxes"][image, anchor]
        if recipe.box in ("giou", "log_iou"):
            loss = giou if recipe.box == "giou" else log_iou
            box = loss(self.head.decode(boxes, at), goal, weight)
        elif recipe.box == "balanced_l1":
            box = balanced_l1(boxes, self.head.encode(goal, at), weight) / 4  # the mean over a positive's deltas
        else:
            box = smooth_l1(
                boxes, self.head.encode(goal, at), weight, beta=SMOOTH_L1_BETA * (recipe.box == "smooth_l1")
            )
        if recipe.classification == "focal":
            classes = assigned_focal(raw["scores"], targets.labels, cls, gamma=recipe.gamma)
        else:
            classes = assigned_bce(raw["scores"], targets.labels, cls)
        losses = {"box_loss": box / box_norm, "cls_loss": classes / cls_norm}
        return losses if learned is None else {**losses, "ctr_loss": learned}

    def _targets(self, raw: dict[str, Any], batch: dict[str, Any]) -> Targets:
        """Pad the batch's objects: (B, M), M the most objects of an image."""
        device, images = raw["scores"].device, len(raw["scores"])
        index = batch["batch_idx"].to(device).long().flatten()
        counts = torch.bincount(index, minlength=images)
        order = index.argsort(stable=True)
        slot = torch.arange(len(index), device=device) - (counts.cumsum(0) - counts)[index[order]]
        most = int(counts.max()) if len(index) else 0
        height, width = (n * self.head.level_strides[0] for n in raw["feats"][0].shape[2:])
        centre, size = batch["bboxes"].to(device).float()[order].split(2, 1)
        corners = torch.cat((centre - size / 2, centre + size / 2), 1)
        corners = corners * corners.new_tensor([width, height, width, height])
        labels = torch.zeros((images, most), dtype=torch.int64, device=device)
        boxes = torch.zeros((images, most, 4), device=device)
        where = (index[order], slot)
        labels[where] = batch["cls"].to(device).long().flatten()[order]
        boxes[where] = corners
        return Targets(labels, boxes, torch.arange(most, device=device) < counts[:, None])


def total_over_ranks(total: Tensor, *, at_least: float = 1) -> Tensor:
    """Return a sum over all ranks, at least `at_least`; only while training, for validation batches differ in number.

    Upstream multiplies the loss by the world size and averages gradients over ranks: together they sum.
    """
    total = total.float()
    if dist.is_initialized() and torch.is_grad_enabled():
        total = total.clone()
        dist.all_reduce(total)
    return total.clamp(min=at_least)
