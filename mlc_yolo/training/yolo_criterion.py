"""The training criterion of YOLO heads: an assigner per epoch, stock box and class losses, the predicted-IoU loss.

While the scheduled assigner is `TaskAligned`, upstream's own method runs, to the bit; `assigner=tal iou_head=False` is
therefore stock Ultralytics. Any other assigner goes through `Assignment`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

from mlc_yolo.assigners import Predictions, Schedule, Targets, TaskAligned, TaskAssignment
from mlc_yolo.boxes import aligned_iou
from mlc_yolo.losses.assigned_bce import assigned_bce
from mlc_yolo.losses.iou_rescoring import iou_rescoring_loss
from mlc_yolo.priors import Priors, grid_priors


@dataclass(frozen=True)
class _Step:
    """What one forward pass gave: gain-scaled losses and who was positive.

    Attributes:
        losses: (3,) box, class and DFL (or L1) losses, times their gains.
        items: the same by name, detached.
        positive: (B, A) bool, positive for either task.
        boxes: (B, A, 4) xyxy px, the box of each positive's object.
        counts: (2,) positives for classification and for localisation.
        priors: A anchors.
    """

    losses: Tensor
    items: dict[str, Tensor]
    positive: Tensor
    boxes: Tensor
    counts: Tensor
    priors: Priors


class PerTaskLoss(v8DetectionLoss):
    """`v8DetectionLoss` with a scheduled assigner and a predicted-IoU term.

    Attributes:
        schedule: gives the assigner of an epoch.
        epoch: the epoch being trained, set by the trainer; everything else about the schedule follows from it.
    """

    def __init__(
        self,
        model: nn.Module,
        tal_topk: int = 10,
        tal_topk2: int | None = None,
        *,
        schedule: Schedule,
        prior_scale: float,
        iou_gain: float,
        iou_warmup: int = 0,
    ) -> None:
        """Set the criterion up.

        Args:
            model: detection model with strides and `args`.
            tal_topk: upstream's argument, handed on.
            tal_topk2: upstream's argument, handed on.
            schedule: assigners by epoch.
            prior_scale: side of the square priors in strides.
            iou_gain: factor of the predicted-IoU loss.
            iou_warmup: epochs without that loss.
        """
        super().__init__(model, tal_topk, tal_topk2)
        self.schedule = schedule
        self.epoch = 0
        self.prior_scale = prior_scale
        self.iou_gain = iou_gain
        self.iou_warmup = iou_warmup
        self.level_strides = [float(stride) for stride in self.stride]

    def loss(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses times the batch size, the ranks' mean of it, and every named item for the log.

        Args:
            preds: raw head outputs: boxes (B, 4R, A), scores (B, K, A), feats, and iou (B, 1, A) where the head has it.
            batch: upstream's training batch.

        Returns:
            losses: (3,) or, with an IoU channel, (4,).
            items: box_loss, cls_loss, dfl_loss (l1_loss), iou_loss where there is a channel, pos_cls and pos_loc: the
                anchors trained as positive for each task, per image.
        """
        batch_size = preds["boxes"].shape[0]
        upstream = isinstance(self.schedule.at(self.epoch), TaskAligned)
        step = self._upstream_step(preds, batch) if upstream else self._assigned_step(preds, batch)
        losses, items = step.losses, dict(step.items)
        if "iou" in preds:
            gain = self.iou_gain * (self.epoch >= self.iou_warmup)  # times 0 keeps the layer in the graph, for DDP
            iou_loss = gain * self._iou_loss(preds, step)
            losses = torch.cat((losses, iou_loss[None]))
            items["iou_loss"] = iou_loss.detach()
        items["pos_cls"], items["pos_loc"] = (step.counts / batch_size).unbind()
        return losses * self._mean_over_ranks(torch.full((), batch_size, device=losses.device)), items

    def assigner_inputs(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> tuple[Predictions, Priors, Targets]:
        """Return what an assigner gets to see of raw head outputs and a batch.

        Args:
            preds: raw head outputs, as for `loss`.
            batch: upstream's training batch.

        Returns:
            Detached predictions, priors and targets.
        """
        priors = self._priors(preds)
        distances = preds["boxes"].permute(0, 2, 1).contiguous()
        return self._inputs(preds, batch, priors, self._decode(priors.points / priors.strides[:, None], distances))

    def decoded(self, preds: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return boxes (B, A, 4), xyxy px, and their distributions' logits (B, A, 4, R) where R > 1, with gradients."""
        priors = self._priors(preds)
        distances = preds["boxes"].permute(0, 2, 1).contiguous()
        strides = priors.strides[:, None]
        boxes = self._decode(priors.points / strides, distances) * strides
        return boxes, distances.unflatten(2, (4, -1)) if self.use_dfl else None

    def _upstream_step(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> _Step:
        assigned, losses, items = self.get_assigned_targets_and_loss(preds, batch)
        positive, _, boxes, _, _ = assigned
        count = positive.sum()
        return _Step(losses, items, positive, boxes, torch.stack((count, count)), self._priors(preds))

    def _assigned_step(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> _Step:
        distances = preds["boxes"].permute(0, 2, 1).contiguous()
        logits = preds["scores"].permute(0, 2, 1).contiguous()
        priors = self._priors(preds)
        strides = priors.strides[:, None]
        cells = priors.points / strides
        decoded = self._decode(cells, distances)
        predictions, _, targets = self._inputs(preds, batch, priors, decoded)
        assignment = self.schedule.at(self.epoch)(predictions, priors, targets)
        cls, loc = assignment.classification, assignment.localization
        boxes = _gather_boxes(targets, loc)

        cls_loss = assigned_bce(logits, targets.labels, cls, self._flat_class_weights())
        cls_loss = cls_loss / self._normaliser(cls.quality.sum())
        box_loss, dfl_loss = self.bbox_loss(
            distances,
            decoded,
            cells,
            boxes / strides,
            (loc.quality * loc.weight)[..., None],
            self._normaliser(loc.quality.sum()),
            loc.positive,
            self._image_size(preds),
            strides,
        )
        losses = torch.stack((box_loss * self.hyp.box, cls_loss * self.hyp.cls, dfl_loss * self.hyp.dfl))
        boxes = torch.where(cls.positive[..., None], _gather_boxes(targets, cls), boxes)
        counts = torch.stack((cls.positive.sum(), loc.positive.sum()))
        items = dict(zip(self.loss_names, losses.detach(), strict=True))
        return _Step(losses, items, cls.positive | loc.positive, boxes, counts, priors)

    def _iou_loss(self, preds: dict[str, Tensor], step: _Step) -> Tensor:
        """Compare predicted and actual IoU where either task is positive; only those boxes are decoded."""
        image, anchor = step.positive.nonzero(as_tuple=True)
        points, strides = step.priors.points[anchor], step.priors.strides[anchor, None]
        distances = preds["boxes"].detach().permute(0, 2, 1)[image, anchor].float()
        decoded = self._decode(points / strides, distances[None])[0] * strides
        ious = aligned_iou(decoded, step.boxes[image, anchor])
        return iou_rescoring_loss(preds["iou"][:, 0][image, anchor], ious, self._normaliser(step.positive.sum()))

    def _decode(self, cells: Tensor, distances: Tensor) -> Tensor:
        """Decode boxes (B, A, 4), in cells, in float32 under any AMP mode: in bfloat16 they would be off by a pixel."""
        with torch.autocast(distances.device.type, enabled=False):
            boxes: Tensor = self.bbox_decode(cells, distances.float())
        return boxes

    def _priors(self, preds: dict[str, Tensor]) -> Priors:
        sizes = [tuple(features.shape[2:]) for features in preds["feats"]]
        return grid_priors(sizes, self.level_strides, scale=self.prior_scale, device=self.device)

    def _inputs(
        self, preds: dict[str, Tensor], batch: dict[str, Any], priors: Priors, decoded: Tensor
    ) -> tuple[Predictions, Priors, Targets]:
        """Wrap what was decoded, in cells, for an assigner."""
        scores = preds["scores"].detach().permute(0, 2, 1).float().sigmoid()
        targets = self._targets(batch, len(scores), self._image_size(preds))
        return Predictions(scores, decoded.detach() * priors.strides[:, None]), priors, targets

    def _image_size(self, preds: dict[str, Tensor]) -> Tensor:
        """Height and width of the network's input in px, (2,)."""
        cells = torch.tensor(preds["feats"][0].shape[2:], device=self.device, dtype=preds["scores"].dtype)
        return cells * self.stride[0]

    def _targets(self, batch: dict[str, Any], batch_size: int, image_size: Tensor) -> Targets:
        rows = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]), 1)
        padded = self.preprocess(rows.to(self.device), batch_size, scale_tensor=image_size[[1, 0, 1, 0]])
        labels, boxes = padded[..., 0].long(), padded[..., 1:5]
        return Targets(labels, boxes, boxes.sum(2) > 0)

    def _flat_class_weights(self) -> Tensor | None:
        return None if self.class_weights is None else self.class_weights.flatten()

    def _normaliser(self, total: Tensor) -> Tensor:
        """Return a sum's mean over ranks, at least 1 over all of them."""
        ranks = dist.get_world_size() if self._joins_ranks() else 1
        return self._mean_over_ranks(total).clamp(min=1 / ranks)

    def _mean_over_ranks(self, total: Tensor) -> Tensor:
        """Return a total's mean over ranks.

        Upstream multiplies the loss by the world size and averages gradients, so dividing by the mean makes ranks
        together equal one process on the joined batch.
        """
        if not self._joins_ranks():
            return total
        total = total.float().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def _joins_ranks() -> bool:
        """Whether there are others, and this is training: validation batches differ in number."""
        return dist.is_initialized() and torch.is_grad_enabled()


class PerTaskE2ELoss(E2ELoss):
    """Upstream's dual-branch loss: the scheduled assigner trains the one-to-many branch, top-1 alignment the other.

    Logged items are the one-to-one branch's, as upstream logs them, with the positive counts of the one-to-many branch.
    """

    @property
    def epoch(self) -> int:
        """The epoch being trained."""
        return self.one2many.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.one2many.epoch = self.one2one.epoch = value

    @property
    def schedule(self) -> Schedule:
        """Assigners of the one-to-many branch by epoch."""
        return self.one2many.schedule

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        self.one2many.schedule = value

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of both branches' losses and the items for the log."""
        preds = self.one2many.parse_output(preds)
        many, many_items = self.one2many.loss(preds["one2many"], batch)
        one, one_items = self.one2one.loss(preds["one2one"], batch)
        counts = {name: many_items[name] for name in ("pos_cls", "pos_loc")}
        return many * self.o2m + one * self.o2o, {**one_items, **counts}


def build_criterion(
    model: DetectionModel, *, schedule: Schedule, prior_scale: float, iou_gain: float, iou_warmup: int = 0
) -> PerTaskLoss | PerTaskE2ELoss:
    """Return the criterion that fits the model's head.

    Args:
        model: unwrapped detection model on its device, `args` attached.
        schedule: assigners by epoch.
        prior_scale: side of the square priors in strides.
        iou_gain: factor of the predicted-IoU loss.
        iou_warmup: epochs without that loss.

    Returns:
        A callable `(preds, batch) -> (losses, items)` with settable `epoch` and `schedule`.
    """

    def branch(model: DetectionModel, tal_topk: int = 10, tal_topk2: int | None = None) -> PerTaskLoss:
        # Upstream asks for a second, tighter top-k only for the one-to-one branch, which keeps its own assignment.
        own = schedule if tal_topk2 is None else Schedule(TaskAligned(), TaskAligned(), 0)
        return PerTaskLoss(
            model,
            tal_topk,
            tal_topk2,
            schedule=own,
            prior_scale=prior_scale,
            iou_gain=iou_gain,
            iou_warmup=iou_warmup,
        )

    layers: Any = model.model
    if getattr(layers[-1], "one2one_cv2", None) is not None:
        return PerTaskE2ELoss(model, branch)
    return branch(model)


def _gather_boxes(targets: Targets, task: TaskAssignment) -> Tensor:
    """Return the box of each anchor's object, (B, A, 4); some object's box, unused, where the anchor has none."""
    if not targets.boxes.shape[1]:
        return targets.boxes.new_zeros((*task.gt_index.shape, 4))
    index = task.gt_index.clamp(min=0)[..., None].expand(-1, -1, 4)
    return targets.boxes.gather(1, index)
