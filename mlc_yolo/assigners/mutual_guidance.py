"""Mutual Guidance (Zhang et al., ACCV 2020, sections 3.1 and 3.2): each task's samples chosen by the other's output.

For the N objects and A priors of a batch:
1. Three qualities per pair: IoU(object, prior); IoU(object, decoded box); amplified = IoU(object, prior)^((sigma - p) /
   sigma), p the score of the object's class (eq. 1).
2. In each of them apart, every object's best prior is set to 1; then each prior keeps its largest value and whatever
   equals it, so that objects sharing their best prior all keep it.
3. Per object, counted on the prior IoU after step 2: Np = how many reach 0.5, Np + Ni = how many reach 0.4; Np >= 1.
4. Localize to classify: the object's Np best decoded boxes are positive for classification, the next Ni ignored.
   Classify to localize: its Np best amplified pairs are positive for localisation.
5. An anchor that several objects choose is positive if one of them says so, for the lowest of those objects.
6. Only pairs of non-zero quality count, so that an object may end with fewer than Np.

A task that is not guided keeps step 3's static matching. Among equals the lower anchor ranks first. Step 6 and the
exception of step 2 for objects that overlap nothing are ours; the authors' first code promoted such pairs. Effect on
accuracy: not measured.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mlc_yolo.assigners.anchor_labels import label_anchors
from mlc_yolo.assigners.assignment import Assignment, Predictions, Role, Targets, TaskAssignment, all_negative
from mlc_yolo.assigners.conflicts import anchor_key, keep_best
from mlc_yolo.assigners.groups import best_in_group, count_in_group, rank_in_group
from mlc_yolo.assigners.objects import Objects, flatten_targets
from mlc_yolo.assigners.pair_quality import pairs_iou, pairs_score
from mlc_yolo.assigners.pairs import Pairs, pairs_touching, rows_where
from mlc_yolo.priors import Priors


class MutualGuidance:
    """Assign each task by the quality of the other's predictions (Mutual Guidance, ACCV 2020)."""

    def __init__(
        self,
        *,
        sigma: float = 2.0,
        tasks: Literal["both", "l2c", "c2l"] = "both",
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
    ) -> None:
        """Set the assigner up.

        Args:
            sigma: amplification of eq. 1, above 1; the smaller, the stronger.
            tasks: "l2c" guides classification only, "c2l" localisation only.
            positive_iou: prior IoU that counts for Np.
            negative_iou: prior IoU that counts for Np + Ni.

        Raises:
            ValueError: a value outside its domain.
        """
        if not sigma > 1:
            raise ValueError(f"sigma={sigma} must be above 1, or eq. 1 has no positive exponent; the paper uses 2")
        if tasks not in ("both", "l2c", "c2l"):
            raise ValueError(f"tasks={tasks!r} must be 'both', 'l2c' or 'c2l'")
        if not 0 < negative_iou <= positive_iou <= 1:
            raise ValueError(f"expected 0 < negative_iou <= positive_iou <= 1, got {negative_iou} and {positive_iou}")
        self.sigma = sigma
        self.tasks = tasks
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign. See the module's head for the steps and `assignment.py` for shapes."""
        batch, anchors = predictions.boxes.shape[:2]
        objects = flatten_targets(targets)
        if not len(objects) or not anchors:
            task = all_negative(batch, anchors, predictions.boxes.device)
            return Assignment(task, task)

        near = pairs_touching(objects, priors.boxes)
        prior_iou = pairs_iou(near, objects, priors.boxes)
        static = _contend(near, prior_iou, objects, batch, anchors)
        owner, value = static[0].object, static[1]
        num_positive = count_in_group(owner, len(objects), of=value >= self.positive_iou)
        num_ignored = count_in_group(owner, len(objects), of=value >= self.negative_iou) - num_positive

        classify = localize = static
        if self.tasks != "c2l":
            reached = pairs_touching(objects, predictions.boxes)
            classify = _contend(reached, pairs_iou(reached, objects, predictions.boxes), objects, batch, anchors)
        if self.tasks != "l2c":
            score = pairs_score(near, objects, predictions.scores)
            localize = _contend(near, amplified_iou(prior_iou, score, sigma=self.sigma), objects, batch, anchors)
        return Assignment(
            self._task(classify, num_positive, num_ignored, objects, batch, anchors),
            self._task(localize, num_positive, torch.zeros_like(num_ignored), objects, batch, anchors),
        )

    @staticmethod
    def _task(
        matched: tuple[Pairs, Tensor],
        num_positive: Tensor,
        num_ignored: Tensor,
        objects: Objects,
        batch: int,
        anchors: int,
    ) -> TaskAssignment:
        """Steps 4 and 5: label the best Np pairs of each object positive and the next Ni ignored."""
        pairs, value = matched
        rank = rank_in_group(value, pairs.object, len(objects))
        limit = num_positive[pairs.object]
        taken = rows_where(rank < limit + num_ignored[pairs.object])
        pairs, positive = pairs[taken], (rank < limit)[taken]
        # Objects that share an anchor value it alike: what one of them trains, no other can ignore or take.
        kept = rows_where(keep_best(pairs, objects, positive.float(), batch=batch, anchors=anchors))
        pairs, positive = pairs[kept], positive[kept]
        role = torch.where(positive, int(Role.POSITIVE), int(Role.IGNORED)).to(torch.int8)
        ones = torch.ones_like(role, dtype=torch.float32)
        return label_anchors(objects, pairs, role=role, weight=ones, quality=ones, batch=batch, anchors=anchors)


def amplified_iou(iou: Tensor, score: Tensor, *, sigma: float = 2.0) -> Tensor:
    """Raise the prior IoU where the class score is high (eq. 1).

    Args:
        iou: any shape, in [0, 1].
        score: same shape, class score in [0, 1].
        sigma: above 1.

    Returns:
        Same shape, in [iou, 1]; equals `iou` where the score is 0.

    Example:
        >>> amplified_iou(torch.tensor([0.25]), torch.tensor([1.0]), sigma=2.0)
        tensor([0.5000])
    """
    return iou.float().pow((sigma - score.float()) / sigma)


def _contend(pairs: Pairs, values: Tensor, objects: Objects, batch: int, anchors: int) -> tuple[Pairs, Tensor]:
    """Step 2: force each object's best pair to 1, then keep each prior's largest values; drop pairs of quality 0."""
    values = values.where(values > 0, 0)  # a nan is no quality
    best = rows_where((values == best_in_group(values, pairs.object, len(objects))) & (values > 0))
    owner = pairs.object[best]
    # Pairs are ordered by object: the first of several equally good pairs is where the object changes.
    first = torch.cat((owner.new_full((1,), -1), owner[:-1])) != owner
    values[best] = values[best].masked_fill(first, 1.0)
    key = anchor_key(pairs, objects, anchors)
    kept = rows_where((values == best_in_group(values, key, batch * anchors)) & (values > 0))
    return pairs[kept], values[kept]
