"""The criteria of segmentation and pose: an assigner decides, Ultralytics' own losses learn masks and keypoints.

1. Where the schedule holds `STOCK` and the head has no IoU channel, upstream's criterion runs, to the bit.
2. Any other assigner decides per task, and class and box losses are those of detection (`training.yolo_criterion`).
   Under a channel upstream's own assignment goes the same way.
3. Masks and keypoints are learned where boxes are: upstream's losses of them see localisation's positives, each with
   its object.

Upstream normalises masks and keypoints by each rank's own anchors, and so do these. Assigners see boxes alone: YOLO26's
mask- and keypoint-aware alignment is upstream's own assignment, which `assigner=tal` runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import loss as upstream
from ultralytics.utils.loss import PoseLoss26, v8PoseLoss, v8SegmentationLoss

from mlc_yolo.assigners import STOCK, Assigner, Assignment, Predictions, Targets
from mlc_yolo.priors import Priors
from mlc_yolo.training.ranks import Losses, Pending
from mlc_yolo.training.upstream_assigner import as_assignment
from mlc_yolo.training.yolo_criterion import PerTaskLoss, gather_boxes

#: Key under which what upstream's loss knows nothing of travels through it, in the dict of raw outputs it hands on.
_ASIDE = "aside"


class BoxesAndMore(PerTaskLoss):
    """A criterion of boxes with something more at each anchor, which upstream's loss learns at the positives."""

    def prepare(self, preds: Any, batch: dict[str, Any], *, images: int | None = None) -> Pending[Losses]:
        """Return upstream's losses of the task, with no normaliser to wait for: those of boxes are summed within.

        Args:
            preds: raw head outputs: those of detection, and the task's own; or (decoded, raw outputs).
            batch: upstream's training batch, with the task's targets.
            images: what multiplies the losses in place of the batch's B.

        Returns:
            What finishes to losses, one for each of `loss_names` and one more with an IoU channel, and to items: the
            same by name, pos_cls and pos_loc, the anchors trained as positive for each task, per image.
        """
        preds = self.parse_output(preds)
        own = len(preds["boxes"])

        def finish(_: Tensor) -> Losses:
            aside: dict[str, Tensor] = {}
            losses, items = super(PerTaskLoss, self).loss({**preds, _ASIDE: aside}, batch)
            if "iou" in preds:
                iou_loss = aside.pop("iou_loss")
                losses = torch.cat((losses, iou_loss[None] * own))
                items["iou_loss"] = iou_loss.detach()
            return losses if images is None else losses * (images / own), {**items, **aside}

        return Pending(torch.zeros(0, device=self.device), finish)

    def get_assigned_targets_and_loss(self, preds: dict[str, Any], batch: dict[str, Any], **aware: Any) -> Any:
        """Assign both tasks and return what upstream's losses of masks and keypoints go by.

        Args:
            preds: raw outputs, and a dict for what is none of upstream's.
            batch: as for `prepare`.
            **aware: what upstream's own assigner compares beside boxes.

        Returns:
            ((positive (B, A) bool, slot of its object (B, A) int64, box of its object (B, A, 4) xyxy px, points (A, 2)
            and strides (A, 1)), losses (3,) of boxes, classes and distances, their items by name).
        """
        entry = self.schedule.at(self.epoch)
        if entry is STOCK:
            if "iou" not in preds:
                assigned = super().get_assigned_targets_and_loss(preds, batch, **aware)
                count = assigned[0][0].sum() / len(preds["boxes"])
                preds[_ASIDE].update(pos_cls=count, pos_loc=count)
                return assigned
            entry = self._upstreams_choice(preds, batch, **aware)
        decided: list[tuple[Assignment, Targets]] = []

        def deciding(predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
            decided.append((entry(predictions, priors, targets), targets))
            return decided[0][0]

        losses, items = self._assigned_step(deciding, preds, batch, 1).over_ranks()  # upstream multiplies by images
        (assignment, targets), priors = decided[0], self._priors(preds)
        preds[_ASIDE].update((name, items.pop(name)) for name in ("pos_cls", "pos_loc"))
        if "iou" in preds:
            items.pop("iou_loss")
            losses, preds[_ASIDE]["iou_loss"] = losses[:-1], losses[-1]
        where = assignment.localization
        strides = priors.strides[:, None]
        boxes = gather_boxes(targets, where.gt_index)
        return (where.positive, where.gt_index.clamp(min=0), boxes, priors.points / strides, strides), losses, items

    def _upstreams_choice(self, preds: dict[str, Any], batch: dict[str, Any], **aware: Any) -> Assigner:
        """Return an assigner that says what upstream's says of this batch, by all that it compares.

        Upstream's loss of boxes runs for its assignment alone; its losses know no predicted IoU.
        """
        chosen: list[Assignment] = []
        watch = self.assigner.register_forward_hook(lambda module, args, out: chosen.append(as_assignment(*out[2:])))
        try:
            with torch.no_grad():
                super().get_assigned_targets_and_loss(preds, batch, **aware)
        finally:
            watch.remove()
        return lambda predictions, priors, targets: chosen[0]


class MaskLoss(BoxesAndMore, v8SegmentationLoss):
    """Boxes and masks, v8 to 12."""


class MaskLoss26(BoxesAndMore, getattr(upstream, "SegmentLoss26", v8SegmentationLoss)):  # type: ignore[misc]  # of newer upstream
    """Boxes and masks of YOLO26."""


class KeypointLoss(BoxesAndMore, v8PoseLoss):
    """Boxes and keypoints, v8 to 12."""


class KeypointLoss26(BoxesAndMore, PoseLoss26):
    """Boxes and keypoints of YOLO26."""
