"""The training criterion of YOLO heads: an assigner per epoch, stock box and class losses, the predicted-IoU loss.

Where the schedule holds `STOCK` and the head has no IoU channel, upstream's own method runs, to the bit; that is stock
Ultralytics. Every assigner, and upstream's under a channel, is called and goes through `Assignment`.

A channel trains in one of two forms. By product, the class loss is that of the logit of class score * predicted IoU
(`losses/product.py`), over all anchors, and the squared error of the positives' IoU tells the two factors apart. In
the paper's form that squared error is all that teaches the channel. Assigners see the class score alone in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

from mlc_yolo.assigners import STOCK, Assigner, Predictions, Schedule, StockAssignment, Targets
from mlc_yolo.box_kinds import UPRIGHT, BoxKind
from mlc_yolo.losses.assigned_bce import assigned_bce
from mlc_yolo.losses.iou_rescoring import iou_rescoring_loss
from mlc_yolo.losses.product import product_logits
from mlc_yolo.priors import Priors, grid_priors
from mlc_yolo.training.dense_outputs import Dense, Gains, level_sizes
from mlc_yolo.training.ranks import Losses, Pending, joined, training_ranks
from mlc_yolo.training.targets import padded_targets, positives_of_either
from mlc_yolo.training.upstream_assigner import UpstreamAssigner

#: Upstream's names of the losses of boxes, among those of a task. A head without distributions has l1_loss.
_OF_BOXES = ("box_loss", "cls_loss", "dfl_loss", "l1_loss", "angle_loss")
#: What a YOLO's epochs train by.
YoloSchedule = Schedule[Assigner | StockAssignment]


class PerTaskLoss(v8DetectionLoss):
    """`v8DetectionLoss` with a scheduled assigner and a predicted-IoU term.

    Attributes:
        schedule: gives what trains in an epoch.
        epoch: the epoch being trained, set by the trainer; everything else about the schedule follows from it.
        times_images: the losses are multiplied by the images of a step, as upstream does.
        kind: what the boxes are.
        by_product: whether the class loss is that of class score times predicted IoU.
    """

    times_images: ClassVar[bool] = True
    kind: ClassVar[BoxKind] = UPRIGHT

    def __init__(
        self,
        model: nn.Module,
        tal_topk: int = 10,
        tal_topk2: int | None = None,
        *,
        schedule: YoloSchedule,
        prior_scale: float,
        iou_gain: float,
        by_product: bool = True,
    ) -> None:
        """Set the criterion up.

        Args:
            model: detection model with strides and `args`.
            tal_topk: upstream's argument, handed on.
            tal_topk2: upstream's argument, handed on.
            schedule: what trains by epoch.
            prior_scale: side of the square priors in strides.
            iou_gain: factor of the predicted-IoU loss.
            by_product: train the class loss through class score times predicted IoU, where the head has a channel.
        """
        super().__init__(model, tal_topk, tal_topk2)
        self.schedule = schedule
        self.epoch = 0
        self.prior_scale = prior_scale
        self.iou_gain = iou_gain
        self.by_product = by_product
        self.level_strides = [float(stride) for stride in self.stride]

    def loss(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> Losses:
        """Return the losses times the images of a step, the ranks' mean of them, and every named item for the log.

        Args:
            preds: raw head outputs: boxes (B, 4R, A), scores (B, K, A), feats, and iou (B, 1, A) where the head has it.
            batch: upstream's training batch.

        Returns:
            losses: (3,), (4,) with angles, one more with an IoU channel.
            items: box_loss, cls_loss, dfl_loss (l1_loss), iou_loss where there is a channel, pos_cls and pos_loc: the
                anchors trained as positive for each task, per image.
        """
        return self.prepare(preds, batch).over_ranks()

    def prepare(self, preds: Any, batch: dict[str, Any], *, images: int | None = None) -> Pending[Losses]:
        """Assign both tasks; return this rank's normalisers and the function that turns their sums into losses.

        Args:
            preds: as for `loss`, or (decoded, raw outputs) as in evaluation.
            batch: as for `loss`.
            images: what multiplies the losses in place of the batch's B.
        """
        preds = self.parse_output(preds)
        images = len(preds["boxes"]) if images is None else images
        entry = self.schedule.at(self.epoch)
        if entry is STOCK:
            if "iou" not in preds:
                return self._stock_step(preds, batch, images)
            entry = UpstreamAssigner(self.assigner)
        return self._assigned_step(entry, preds, batch, images)

    def assigner_inputs(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> tuple[Predictions, Priors, Targets]:
        """Return the inputs of an assigner, made from raw head outputs and a batch.

        Args:
            preds: raw head outputs, as for `loss`.
            batch: upstream's training batch.

        Returns:
            Detached predictions, priors and targets.
        """
        priors = self._priors(preds)
        cells = priors.points / priors.strides[:, None]
        return self._inputs(preds, batch, priors, self._decode(cells, *self._box_outputs(preds)))

    def dense(self, raw: dict[str, Any]) -> Dense:
        """Return raw head outputs decoded, with gradients; logits of the product where that is what trains."""
        priors = self._priors(raw)
        distances, *further = self._box_outputs(raw)
        strides = priors.strides[:, None]
        boxes = self.kind.scaled(self._decode(priors.points / strides, distances, *further), strides)
        distributions = distances.unflatten(2, (4, -1)) if self.use_dfl else None
        quality = raw["iou"][:, 0] if "iou" in raw else None
        logits = raw["scores"].transpose(1, 2)
        if self._trains_product(raw):
            logits = product_logits(logits, raw["iou"].transpose(1, 2))
        return Dense(logits, boxes, distributions, quality, level_sizes(raw["feats"]), self.kind)

    def gains(self) -> Gains:
        """Return the weights of the epoch's terms."""
        return Gains(self.hyp.cls, self.hyp.box, self.hyp.dfl, self._iou_gain())

    def branches(self) -> list[tuple[str | None, PerTaskLoss, float]]:
        """Return name in the raw outputs, criterion and weight of the head's branches."""
        return [(None, self, 1.0)]

    def _stock_step(self, preds: dict[str, Tensor], batch: dict[str, Any], images: int) -> Pending[Losses]:
        """Run upstream's own loss: each rank normalises it by itself, and multiplies by its own images."""
        (positive, *_), losses, items = self.get_assigned_targets_and_loss(preds, batch)
        count = positive.sum() / len(positive)
        return Pending(count.new_zeros(0), lambda _: (losses * images, {**items, "pos_cls": count, "pos_loc": count}))

    def _assigned_step(
        self, assigner: Assigner, preds: dict[str, Tensor], batch: dict[str, Any], images: int
    ) -> Pending[Losses]:
        distances, *further = self._box_outputs(preds)
        logits = preds["scores"].permute(0, 2, 1).contiguous()
        priors = self._priors(preds)
        strides = priors.strides[:, None]
        cells = priors.points / strides
        decoded = self._decode(cells, distances, *further)
        predictions, _, targets = self._inputs(preds, batch, priors, decoded)
        assignment = assigner(predictions, priors, targets)
        cls, loc = assignment.classification, assignment.localization
        image, anchor, slot = positives_of_either(cls, loc)

        def finish(sums: Tensor) -> Losses:
            classes, boxes, positives, step_images = self._means(sums)
            learned = product_logits(logits, preds["iou"].transpose(1, 2)) if self._trains_product(preds) else logits
            cls_loss = assigned_bce(learned, targets.labels, cls, self._flat_class_weights()) / classes
            goals, weight = self.kind.scaled(gather_boxes(targets, loc.gt_index), 1 / strides), loc.quality * loc.weight
            box_loss, dfl_loss = self.bbox_loss(
                distances,
                decoded,
                cells,
                goals,
                weight[..., None],
                boxes,
                loc.positive,
                self._image_size(preds),
                strides,
            )
            losses = torch.stack((box_loss * self.hyp.box, cls_loss * self.hyp.cls, dfl_loss * self.hyp.dfl))
            losses = torch.cat((losses, self._further_losses(decoded, goals, weight, boxes, loc.positive)))
            names = [name for name in self.loss_names if name in _OF_BOXES]
            items = dict(zip(names, losses.detach(), strict=True))
            if "iou" in preds:
                iou_loss = self._iou_loss(preds, image, anchor, targets.boxes[image, slot], positives)
                losses = torch.cat((losses, iou_loss[None]))
                items["iou_loss"] = iou_loss.detach()
            items["pos_cls"], items["pos_loc"] = (task.positive.sum() / len(logits) for task in (cls, loc))
            return losses * step_images, items

        own = (cls.quality.sum(), loc.quality.sum(), len(image), images)
        return Pending(torch.stack([torch.as_tensor(n, dtype=torch.float32, device=self.device) for n in own]), finish)

    @staticmethod
    def _means(sums: Tensor) -> Tensor:
        """Return the ranks' means of normalisers, at least 1 over all of them together.

        Upstream multiplies the loss by the number of ranks and averages gradients, so dividing by the mean makes ranks
        together equal one process on the joined batch, and each logs losses of the same size.
        """
        return sums.clamp(min=1) / training_ranks()

    def _trains_product(self, preds: dict[str, Any]) -> bool:
        """Whether the epoch's class loss is that of class score times predicted IoU."""
        return "iou" in preds and self.by_product and self.schedule.trains_iou(self.epoch)

    def _iou_gain(self) -> float:
        return self.iou_gain * self.schedule.trains_iou(self.epoch)

    def _iou_loss(
        self, preds: dict[str, Tensor], image: Tensor, anchor: Tensor, goals: Tensor, positives: Tensor
    ) -> Tensor:
        """Compare predicted and actual IoU at P positives; only their boxes are decoded.

        Args:
            preds: raw head outputs.
            image: (P,) int64 in [0, B).
            anchor: (P,) int64 in [0, A).
            goals: (P, 4) xyxy px, the boxes of their objects.
            positives: scalar, the normaliser.
        """
        priors = self._priors(preds)
        points, strides = priors.points[anchor], priors.strides[anchor, None]
        outputs = [rows.detach()[image, anchor][None] for rows in self._box_outputs(preds)]
        decoded = self.kind.scaled(self._decode(points / strides, *outputs)[0], strides)
        ious = self.kind.overlap(decoded, goals)
        # A gain of 0 keeps the layer in the graph, which distributed training asks for.
        return self._iou_gain() * iou_rescoring_loss(preds["iou"][:, 0][image, anchor], ious, positives)

    def _box_outputs(self, preds: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the raw outputs that boxes are decoded of, distances (B, A, 4R) first."""
        return (preds["boxes"].permute(0, 2, 1).contiguous(),)

    def _decode(self, cells: Tensor, *outputs: Tensor) -> Tensor:
        """Decode boxes (B, A, 4), in cells, in float32 under any AMP mode: in bfloat16 they would be off by a pixel."""
        with torch.autocast(cells.device.type, enabled=False):
            boxes: Tensor = self.bbox_decode(cells, *(rows.float() for rows in outputs))
        return boxes

    def _further_losses(
        self, decoded: Tensor, goals: Tensor, weight: Tensor, normaliser: Tensor, positive: Tensor
    ) -> Tensor:
        """Return what boxes learn beyond distances, (n,): nothing here.

        Args:
            decoded: (B, A, numbers), in cells.
            goals: (B, A, numbers), in cells; read where positive.
            weight: (B, A).
            normaliser: scalar.
            positive: (B, A) bool.
        """
        return weight.new_zeros(0)

    def _priors(self, preds: dict[str, Any]) -> Priors:
        return _priors_of_size(
            tuple(level_sizes(preds["feats"])), tuple(self.level_strides), self.prior_scale, self.device
        )

    def _inputs(
        self, preds: dict[str, Tensor], batch: dict[str, Any], priors: Priors, decoded: Tensor
    ) -> tuple[Predictions, Priors, Targets]:
        """Wrap decoded predictions, in cells, for an assigner."""
        scores = preds["scores"].detach().permute(0, 2, 1).float().sigmoid()
        height, width = preds["feats"][0].shape[2:]
        size = height * self.level_strides[0], width * self.level_strides[0]
        targets = padded_targets(batch, len(scores), size, self.device, self.kind)
        return Predictions(scores, self.kind.scaled(decoded.detach(), priors.strides[:, None])), priors, targets

    def _image_size(self, preds: dict[str, Tensor]) -> Tensor:
        """Height and width of the network's input in px, (2,)."""
        cells = torch.tensor(preds["feats"][0].shape[2:], device=self.device, dtype=preds["scores"].dtype)
        return cells * self.stride[0]

    def _flat_class_weights(self) -> Tensor | None:
        return None if self.class_weights is None else self.class_weights.flatten()


class PerTaskE2ELoss(E2ELoss):
    """Upstream's dual-branch loss: the schedule trains the one-to-many branch, top-1 alignment the other.

    Logged items are the one-to-one branch's, as upstream logs them, with the positive counts of the one-to-many branch.
    """

    times_images: ClassVar[bool] = True

    @property
    def epoch(self) -> int:
        """The epoch being trained."""
        return self.one2many.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.one2many.epoch = self.one2one.epoch = value

    @property
    def schedule(self) -> YoloSchedule:
        """The assigners of the one-to-many branch by epoch."""
        return self.one2many.schedule

    @schedule.setter
    def schedule(self, value: YoloSchedule) -> None:
        self.one2many.schedule, self.one2one.schedule = value, with_stock_assignment(value)

    def __call__(self, preds: Any, batch: dict[str, Any]) -> Losses:
        """Return the weighted sum of both branches' losses and the items for the log."""
        return self.prepare(preds, batch).over_ranks()

    def prepare(self, preds: Any, batch: dict[str, Any], *, images: int | None = None) -> Pending[Losses]:
        """Decide for both branches; see `PerTaskLoss.prepare`."""
        preds = self.one2many.parse_output(preds)
        branches = joined(
            [
                self.one2many.prepare(preds["one2many"], batch, images=images),
                self.one2one.prepare(preds["one2one"], batch, images=images),
            ]
        )

        def finish(sums: Tensor) -> Losses:
            (many, many_items), (one, one_items) = branches.finish(sums)
            counts = {name: many_items[name] for name in ("pos_cls", "pos_loc")}
            return many * self.o2m + one * self.o2o, {**one_items, **counts}

        return Pending(branches.counts, finish)

    def branches(self) -> list[tuple[str | None, PerTaskLoss, float]]:
        """Return name in the raw outputs, criterion and weight of both branches."""
        return [("one2many", self.one2many, self.o2m), ("one2one", self.one2one, self.o2o)]


def with_stock_assignment(schedule: YoloSchedule) -> YoloSchedule:
    """Return a schedule of upstream's own assignment that is as long, as a one-to-one branch has it."""
    return replace(schedule, base=STOCK, main=STOCK)


@lru_cache(maxsize=32)
def _priors_of_size(
    sizes: Sequence[tuple[int, int]], strides: Sequence[float], scale: float, device: torch.device
) -> Priors:
    """Build the priors of one input size once; a run has one, with `multi_scale` or rectangles a few dozen."""
    with torch.inference_mode(False):  # the first to ask may be a validation, and training could not save its tensors
        return grid_priors(sizes, strides, scale=scale, device=device)


def gather_boxes(targets: Targets, gt_index: Tensor) -> Tensor:
    """Return the box of each anchor's object, (B, A, numbers); some object's box, unused, where the anchor has none."""
    if not targets.boxes.shape[1]:
        return targets.boxes.new_zeros((*gt_index.shape, targets.kind.numbers))
    index = gt_index.clamp(min=0)[..., None].expand(-1, -1, targets.kind.numbers)
    return targets.boxes.gather(1, index)
