"""The criterion of oriented boxes: an assigner decides by probiou, Ultralytics' own losses learn boxes and angles.

1. Where the schedule holds `STOCK`, upstream's criterion runs, to the bit.
2. Any other assigner decides per task (`training.yolo_criterion`). Its objects, predictions and priors are rows
   (x, y, w, h, angle); priors are square, and the overlap of a square does not depend on its angle.
3. Angles are learned where boxes are. Objects with a side below 2 px are nobody's, as upstream leaves them out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from ultralytics.utils.loss import v8OBBLoss

from mlc_yolo.assigners import Predictions, Targets
from mlc_yolo.box_kinds import ORIENTED, BoxKind
from mlc_yolo.priors import Priors
from mlc_yolo.training.ranks import Losses, Pending
from mlc_yolo.training.yolo_criterion import PerTaskLoss

#: The shortest side of an object that is learned, in px, as in upstream's loss.
_SHORTEST = 2.0


class OrientedLoss(PerTaskLoss, v8OBBLoss):
    """`v8OBBLoss` with a scheduled assigner."""

    kind: ClassVar[BoxKind] = ORIENTED

    def _stock_step(self, preds: dict[str, Tensor], batch: dict[str, Any], images: int) -> Pending[Losses]:
        """Run upstream's own loss: each rank normalises it by itself, and multiplies by its own images."""
        counts: list[Tensor] = []
        watch = self.assigner.register_forward_hook(lambda module, args, assigned: counts.append(assigned[3].sum()))
        try:
            losses, items = super(PerTaskLoss, self).loss(preds, batch)
        finally:
            watch.remove()
        own = len(preds["boxes"])
        items = {**items, **dict.fromkeys(("pos_cls", "pos_loc"), counts[0] / own)}
        return Pending(losses.new_zeros(0), lambda _: (losses * (images / own), items))

    def _box_outputs(self, preds: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return distances (B, A, 4R) and angles (B, A, 1)."""
        return (*super()._box_outputs(preds), preds["angle"].permute(0, 2, 1).contiguous())

    def _further_losses(
        self, decoded: Tensor, goals: Tensor, weight: Tensor, normaliser: Tensor, positive: Tensor
    ) -> Tensor:
        """Return the loss of angles, (1,)."""
        loss = self.calculate_angle_loss(decoded, goals, positive, weight[positive], normaliser)
        return torch.stack((loss * self.hyp.angle,))

    def _priors(self, preds: dict[str, Any]) -> Priors:
        priors = super()._priors(preds)
        return replace(priors, boxes=ORIENTED.of_upright(priors.boxes))

    def _inputs(
        self, preds: dict[str, Tensor], batch: dict[str, Any], priors: Priors, decoded: Tensor
    ) -> tuple[Predictions, Priors, Targets]:
        if len(batch["bboxes"]) != len(batch["cls"]):
            raise TypeError(
                f"expected an oriented box for each of {len(batch['cls'])} objects, got {len(batch['bboxes'])}: a "
                "label is a class and four corners, x1 y1 x2 y2 x3 y3 x4 y4. For upright boxes use a detection model"
            )
        predictions, priors, targets = super()._inputs(preds, batch, priors, decoded)
        learned = targets.valid & (targets.boxes[..., 2:4] >= _SHORTEST).all(-1)
        return predictions, priors, replace(targets, valid=learned)
