"""The training criterion of the ported detectors: assign, then named losses by the head's recipe.

1. The epoch's assigner decides, per task. A recipe with sampling then draws the anchors that take part.
2. Class loss over classification's anchors / number of its positives; box loss over localisation's positives / theirs.
   With sampling both are divided by the anchors drawn, as Faster R-CNN does.
3. The quality layer: predicted IoU over the positives of either task (MLC eq. 10), or centerness over localisation's.
4. Prediction alignment (MLC table 1), if asked for, over the positives of either task.

Normalisers are counted over all ranks, in one sum. The loss is the mean detectors are published with, not its multiple
by the batch size that Ultralytics takes for YOLO: published learning rates hold for it with `nbs` equal to the batch.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mlc_yolo.assigners import Assigner, Predictions, Role, Schedule, Targets, TaskAssignment
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
from mlc_yolo.training.deferred_predictions import DeferredPredictions
from mlc_yolo.training.dense_outputs import Dense, Gains, level_sizes
from mlc_yolo.training.ranks import Losses, Pending
from mlc_yolo.training.targets import padded_targets, positives_of_either

#: Where Smooth-L1 turns from square to line: mmdetection's value; torchvision's RPN has 1/9.
SMOOTH_L1_BETA = 0.11


class DetectorLoss:
    """Callable `(preds, batch) -> (losses, items)` for a `DetectorModel`.

    Attributes:
        schedule: gives the assigner of an epoch.
        epoch: the epoch being trained, set by the trainer.
        times_images: the losses are means; a step's number of images does not multiply them.
    """

    times_images: ClassVar[bool] = False

    def __init__(
        self,
        model: DetectorModel,
        *,
        schedule: Schedule[Assigner],
        prior_scale: float = 5.0,
        iou_gain: float = 1.0,
        align_gain: float = 0.0,
    ) -> None:
        """Set the criterion up.

        Args:
            model: unwrapped model.
            schedule: assigners by epoch.
            prior_scale: side of the square priors of point-based heads, in strides.
            iou_gain: factor of the predicted-IoU loss.
            align_gain: factor of the prediction-alignment loss; 0 leaves it out.
        """
        self.head = model.head
        self.level_strides = [float(stride) for stride in model.head.level_strides]
        self.schedule = schedule
        self.epoch = 0
        self.prior_scale = prior_scale
        self.iou_gain = iou_gain
        self.align_gain = align_gain

    def __call__(self, preds: Any, batch: dict[str, Any]) -> Losses:
        """Return the losses, weighted, and every item for the log.

        Args:
            preds: the head's raw predictions, or (decoded, raw) as in evaluation.
            batch: upstream's training batch: batch_idx (N,), cls (N, 1), bboxes (N, 4) xywh in [0, 1].

        Returns:
            losses: (n,) of box, class, quality and alignment, the latter two where they exist.
            items: box_loss, cls_loss, iou_loss or ctr_loss, align_loss; pos_cls and pos_loc: the anchors trained as
                positive for each task, per image.
        """
        return self.prepare(preds, batch).over_ranks()

    def prepare(self, preds: Any, batch: dict[str, Any], *, images: int | None = None) -> Pending[Losses]:
        """Assign both tasks; return this rank's normalisers and the function that turns their sums into losses.

        Args:
            preds: as for a call.
            batch: as for a call.
            images: changes nothing: the losses are means. YOLO's criterion takes it.
        """
        raw = preds[1] if isinstance(preds, tuple) else preds
        priors = self.head.priors(raw["feats"], scale=self.prior_scale)
        targets = self._targets(raw, batch)
        cls, loc = self._assign(raw, priors, targets)
        image, anchor, slot = positives_of_either(cls, loc)
        target = self._centerness_target(raw, priors, targets, loc)
        counts = self._counts(cls, loc, target)
        counts["either"] = torch.full((), len(image), dtype=torch.float32, device=image.device)

        def finish(sums: Tensor) -> Losses:
            totals = dict(zip(counts, sums, strict=True))
            losses = self._task_losses(raw, priors, targets, cls, loc, target, totals)
            goals, either = targets.boxes[image, slot], totals["either"].clamp(min=1)
            if "quality" in raw and self.head.quality == "iou":
                decoded = self.head.decode(raw["boxes"].detach()[image, anchor], priors[anchor])
                learned = raw["quality"][image, anchor]
                # A gain of 0 keeps the layer in the graph, which distributed training asks for.
                losses["iou_loss"] = self._iou_gain() * iou_rescoring_loss(learned, aligned_iou(decoded, goals), either)
            if self.align_gain:
                scores = raw["scores"][image, anchor, targets.labels[image, slot]].float().sigmoid()
                decoded = self.head.decode(raw["boxes"][image, anchor], priors[anchor])
                losses["align_loss"] = self.align_gain * alignment_loss(scores, aligned_iou(decoded, goals), either)
            items = {name: loss.detach() for name, loss in losses.items()}
            items["pos_cls"], items["pos_loc"] = (task.positive.sum() / len(raw["scores"]) for task in (cls, loc))
            return torch.stack(list(losses.values())), items

        return Pending(torch.stack([count.float() for count in counts.values()]), finish)

    def assigner_inputs(self, raw: dict[str, Any], batch: dict[str, Any]) -> tuple[Predictions, Priors, Targets]:
        """Return the inputs of an assigner, made from raw predictions and a batch."""
        priors = self.head.priors(raw["feats"], scale=self.prior_scale)
        return self._predictions(raw, priors), priors, self._targets(raw, batch)

    def dense(self, raw: dict[str, Any]) -> Dense:
        """Return raw predictions decoded, with gradients."""
        priors = self.head.priors(raw["feats"], scale=self.prior_scale)
        boxes = self.head.decode(raw["boxes"], priors)
        return Dense(raw["scores"], boxes, None, raw.get("quality"), level_sizes(raw["feats"]))

    def gains(self) -> Gains:
        """Return the weights of the epoch's terms."""
        return Gains(1.0, 1.0, 0.0, 1.0 if self.head.quality == "centerness" else self._iou_gain())

    def branches(self) -> list[tuple[str | None, DetectorLoss, float]]:
        """Return name in the raw predictions, criterion and weight of the head's one branch."""
        return [(None, self, 1.0)]

    def _iou_gain(self) -> float:
        return self.iou_gain * self.schedule.trains_iou(self.epoch)

    def _predictions(self, raw: dict[str, Any], priors: Priors) -> Predictions:
        with torch.no_grad():
            return Predictions(
                raw["scores"].detach().float().sigmoid(), self.head.decode(raw["boxes"].detach(), priors)
            )

    def _assign(self, raw: dict[str, Any], priors: Priors, targets: Targets) -> tuple[TaskAssignment, TaskAssignment]:
        predictions = DeferredPredictions(lambda: self._predictions(raw, priors))
        assignment = self.schedule.at(self.epoch)(predictions, priors, targets)
        cls, loc = assignment.classification, assignment.localization
        size = self.head.recipe.sample
        if size is None:
            return cls, loc
        if loc is cls:
            cls = sample_balanced(cls, size=size)
            return cls, cls
        return sample_balanced(cls, size=size), sample_positives(loc, limit=size // 2)

    def _centerness_target(
        self, raw: dict[str, Any], priors: Priors, targets: Targets, loc: TaskAssignment
    ) -> Tensor | None:
        """Return centerness targets of localisation's P positives, (P,) in [0, 1]; None without a centerness layer."""
        if "quality" not in raw or self.head.quality != "centerness":
            return None
        image, anchor = loc.positive.nonzero(as_tuple=True)
        goal = targets.boxes[image, loc.gt_index[image, anchor]]
        # Assigners other than FCOS' own may train points outside their box: centerness 0.
        return centerness(encode_distance(goal, priors[anchor].points).clamp(min=0))

    def _counts(self, cls: TaskAssignment, loc: TaskAssignment, target: Tensor | None) -> dict[str, Tensor]:
        """Return this rank's part of the normalisers of box, class and centerness losses."""
        recipe = self.head.recipe
        counts = {"box": loc.quality.sum(), "cls": cls.quality.sum()}
        if recipe.sample is not None:  # as in Faster R-CNN: by the anchors drawn, not by the positives
            counts["box"] = counts["cls"] = (cls.role != Role.IGNORED).sum()
        if target is not None:
            counts["ctr"] = loc.positive.sum()
            if recipe.weigh_by_centerness:
                counts["box"] = (loc.quality[loc.positive] * target).sum()
        return counts

    def _task_losses(
        self,
        raw: dict[str, Any],
        priors: Priors,
        targets: Targets,
        cls: TaskAssignment,
        loc: TaskAssignment,
        target: Tensor | None,
        totals: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return box and class losses, and the centerness loss where that is learned."""
        recipe = self.head.recipe
        image, anchor = loc.positive.nonzero(as_tuple=True)
        at = priors[anchor]
        goal = targets.boxes[image, loc.gt_index[image, anchor]]
        weight = (loc.weight * loc.quality)[image, anchor]
        by_centerness = target is not None and recipe.weigh_by_centerness
        if target is not None and by_centerness:
            weight = weight * target
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
        # Centerness may add up to less than one positive's.
        box_norm = totals["box"].clamp(min=1e-6 if by_centerness else 1)
        losses = {"box_loss": box / box_norm, "cls_loss": classes / totals["cls"].clamp(min=1)}
        if target is not None:
            learned = raw["quality"][image, anchor]
            losses["ctr_loss"] = centerness_loss(learned, target, totals["ctr"].clamp(min=1))
        return losses

    def _targets(self, raw: dict[str, Any], batch: dict[str, Any]) -> Targets:
        height, width = raw["feats"][0].shape[2:]
        size = height * self.level_strides[0], width * self.level_strides[0]
        return padded_targets(batch, len(raw["scores"]), size, raw["scores"].device)
