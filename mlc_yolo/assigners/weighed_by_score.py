"""Boxes weighed by the class score, as quality focal loss weighs them (GFL, NeurIPS 2020; LD, CVPR 2022).

Wraps another assigner: classes learn what it says, and so do boxes, but a box's loss is weighed by the score that its
anchor now gives to the object's class. A confident box that sits badly learns most, where a weight that is the target
of the classes, as in task-aligned assignment, would leave it alone.
"""

from __future__ import annotations

from dataclasses import replace

from mlc_yolo.assigners.assignment import Assigner, Assignment, Predictions, Targets
from mlc_yolo.priors import Priors


class WeighedByScore:
    """An assigner whose localisation is weighed by the class score.

    Attributes:
        assigner: decides everything else.
    """

    def __init__(self, assigner: Assigner) -> None:
        """Set the assigner up.

        Args:
            assigner: decides everything else.
        """
        self.assigner = assigner

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign; the localisation's quality is sigmoid(class logit) of the object's class, detached."""
        assignment = self.assigner(predictions, priors, targets)
        boxes = assignment.localization
        if not targets.labels.shape[1]:
            return assignment
        label = targets.labels.gather(1, boxes.gt_index.clamp(min=0)).where(boxes.positive, 0)
        score = predictions.scores.gather(2, label[..., None])[..., 0].nan_to_num(nan=0.0)
        return replace(assignment, localization=replace(boxes, quality=score * boxes.positive))
