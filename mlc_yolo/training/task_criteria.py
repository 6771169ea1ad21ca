"""The criteria of segmentation and pose: an assigner decides, Ultralytics' own losses learn masks and keypoints.

1. Where the schedule holds `STOCK`, upstream's criterion runs, to the bit.
2. Any other assigner decides per task, and class and box losses are those of detection (`training.yolo_criterion`).
3. Masks and keypoints are learned where boxes are: upstream's losses of them see localisation's positives, each with
   its object.

Upstream normalises masks and keypoints by each rank's own anchors, and so do these. Assigners see boxes alone: YOLO26's
mask- and keypoint-aware alignment is upstream's own assignment, which `assigner=tal` runs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from ultralytics.nn.modules.head import Pose26, Segment, Segment26
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import loss as upstream
from ultralytics.utils.loss import PoseLoss26, v8PoseLoss, v8SegmentationLoss

from mlc_yolo.assigners import STOCK, Assignment, Predictions, Targets
from mlc_yolo.priors import Priors
from mlc_yolo.training.ranks import Losses
from mlc_yolo.training.yolo_criterion import (
    PerTaskE2ELoss,
    PerTaskLoss,
    YoloSchedule,
    gather_boxes,
    with_stock_assignment,
)

#: Key under which a step's positives travel through upstream's loss, in the dict of raw outputs that it hands on.
_COUNTS = "positives"


class BoxesAndMore(PerTaskLoss):
    """A criterion of boxes with something more at each anchor, which upstream's loss learns at the positives."""

    def loss(self, preds: dict[str, Any], batch: dict[str, Any]) -> Losses:
        """Return upstream's losses of the task times the images of the rank, and every named item for the log.

        Args:
            preds: raw head outputs: those of detection, and the task's own.
            batch: upstream's training batch, with the task's targets.

        Returns:
            losses: one for each of `loss_names`.
            items: the same by name, and pos_cls and pos_loc: the anchors trained as positive for each task, per image.
        """
        counts: dict[str, Tensor] = {}
        losses, items = super(PerTaskLoss, self).loss({**preds, _COUNTS: counts}, batch)
        return losses, {**items, **counts}

    def get_assigned_targets_and_loss(self, preds: dict[str, Any], batch: dict[str, Any], **aware: Any) -> Any:
        """Assign both tasks and return what upstream's losses of masks and keypoints go by.

        Args:
            preds: as for `loss`.
            batch: as for `loss`.
            **aware: what upstream's own assigner compares beside boxes.

        Returns:
            ((positive (B, A) bool, slot of its object (B, A) int64, box of its object (B, A, 4) xyxy px, points (A, 2)
            and strides (A, 1)), losses (3,) of boxes, classes and distances, their items by name).
        """
        entry = self.schedule.at(self.epoch)
        if entry is STOCK:
            assigned = super().get_assigned_targets_and_loss(preds, batch, **aware)
            count = assigned[0][0].sum() / len(preds["boxes"])
            preds[_COUNTS].update(pos_cls=count, pos_loc=count)
            return assigned
        decided: list[tuple[Assignment, Targets]] = []

        def deciding(predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
            decided.append((entry(predictions, priors, targets), targets))
            return decided[0][0]

        losses, items = self._assigned_step(deciding, preds, batch, 1).over_ranks()  # upstream multiplies by images
        (assignment, targets), priors = decided[0], self._priors(preds)
        preds[_COUNTS].update((name, items.pop(name)) for name in ("pos_cls", "pos_loc"))
        where = assignment.localization
        strides = priors.strides[:, None]
        boxes = gather_boxes(targets, where.gt_index)
        return (where.positive, where.gt_index.clamp(min=0), boxes, priors.points / strides, strides), losses, items


class MaskLoss(BoxesAndMore, v8SegmentationLoss):
    """Boxes and masks, v8 to 12."""


class MaskLoss26(BoxesAndMore, getattr(upstream, "SegmentLoss26", v8SegmentationLoss)):  # type: ignore[misc]  # of newer upstream
    """Boxes and masks of YOLO26."""


class KeypointLoss(BoxesAndMore, v8PoseLoss):
    """Boxes and keypoints, v8 to 12."""


class KeypointLoss26(BoxesAndMore, PoseLoss26):
    """Boxes and keypoints of YOLO26."""


class BoxesAndMoreE2E(PerTaskE2ELoss):
    """Upstream's dual-branch loss over two of these: the schedule trains the one-to-many branch."""

    def __call__(self, preds: Any, batch: dict[str, Any]) -> Losses:
        """Return the weighted sum of both branches' losses and the items for the log, as `PerTaskE2ELoss` does."""
        preds = self.one2many.parse_output(preds)
        many, many_items = self.one2many.loss(preds["one2many"], batch)
        one, one_items = self.one2one.loss(preds["one2one"], batch)
        counts = {name: many_items[name] for name in ("pos_cls", "pos_loc")}
        return many * self.o2m + one * self.o2o, {**one_items, **counts}


def build_task_criterion(
    model: DetectionModel, *, schedule: YoloSchedule, **common: Any
) -> BoxesAndMore | BoxesAndMoreE2E:
    """Return the criterion that fits the head of a segmentation or pose model.

    Args:
        model: unwrapped model on its device, `args` attached.
        schedule: what trains by epoch.
        **common: other arguments of `PerTaskLoss`.

    Returns:
        A callable `(preds, batch) -> (losses, items)` with settable `epoch` and `schedule`.
    """
    layers: Any = model.model
    head = layers[-1]
    if isinstance(head, Segment):
        kind: type[BoxesAndMore] = MaskLoss26 if isinstance(head, Segment26) else MaskLoss
    else:
        kind = KeypointLoss26 if isinstance(head, Pose26) else KeypointLoss

    def branch(model: nn.Module, tal_topk: int = 10, tal_topk2: int | None = None) -> BoxesAndMore:
        own = schedule if tal_topk2 is None else with_stock_assignment(schedule)
        return kind(model, tal_topk, tal_topk2, schedule=own, **common)

    if getattr(head, "one2one_cv2", None) is not None:
        return BoxesAndMoreE2E(model, branch)
    return branch(model)
