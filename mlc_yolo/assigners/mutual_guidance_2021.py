"""Mutual Guidance as its authors continued it after the paper (their repository, October to December 2021).

For the N objects and A priors of a batch:
1. Two qualities per pair: IoU(object, decoded box), for the classes; IoU(object, prior) * exp(p / sigma), for the
   boxes, p being the score of the object's class.
2. In each of them apart, each prior keeps its largest value and whatever equals it.
3. In each of them apart, an object trains k = max(1, floor(sum of its 15 largest values)) anchors, its k best; values
   count as 1 at most.
4. A positive's class target is its IoU, and its box is weighed by its amplified IoU, at most 1.
5. An anchor that several objects choose goes to the lowest of them.

Nothing is forced and nothing ignored. In the paper's rule (`mutual_guidance.py`) a tiny object has Np = 1 and trains
the one prior that happens to regress best at the moment; here its best priors still count for as much as they overlap.
Differences from that code: only pairs of non-zero quality count (as in our reading of the paper's rule), and values
above 1 contend and rank by their own size, where the code cuts them to 1 first and so lets the order of objects decide.
Effect on accuracy: not measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlc_yolo.assigners.anchor_labels import label_anchors
from mlc_yolo.assigners.assignment import Assignment, Predictions, Role, Targets, TaskAssignment, all_negative
from mlc_yolo.assigners.conflicts import anchor_key, keep_best
from mlc_yolo.assigners.dynamic_k import dynamic_k
from mlc_yolo.assigners.groups import best_in_group, rank_in_group
from mlc_yolo.assigners.objects import Objects, flatten_targets
from mlc_yolo.assigners.pair_quality import pairs_iou, pairs_score
from mlc_yolo.assigners.pairs import Pairs, pairs_touching, rows_where
from mlc_yolo.priors import Priors


class MutualGuidance2021:
    """Assign each task by the quality of the other's predictions, softly and by as many anchors as suit the object."""

    def __init__(self, *, sigma: float = 2.0) -> None:
        """Set the assigner up.

        Args:
            sigma: amplification of the prior IoU, above 0; the smaller, the stronger.

        Raises:
            ValueError: a value outside its domain.
        """
        if not sigma > 0:
            raise ValueError(f"sigma={sigma} must be above 0: the prior IoU is multiplied by exp(score / sigma)")
        self.sigma = sigma

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign. See the module's head for the steps and `assignment.py` for shapes."""
        batch, anchors = predictions.boxes.shape[:2]
        objects = flatten_targets(targets)
        if not len(objects) or not anchors:
            task = all_negative(batch, anchors, predictions.boxes.device)
            return Assignment(task, task)
        reached = pairs_touching(objects, predictions.boxes)
        near = pairs_touching(objects, priors.boxes)
        score = pairs_score(near, objects, predictions.scores)
        amplified = pairs_iou(near, objects, priors.boxes) * (score / self.sigma).exp()
        return Assignment(
            _task(reached, pairs_iou(reached, objects, predictions.boxes), objects, batch, anchors),
            _task(near, amplified, objects, batch, anchors),
        )


def _task(pairs: Pairs, values: Tensor, objects: Objects, batch: int, anchors: int) -> TaskAssignment:
    """Steps 2 to 5 for one task."""
    values = values.where(values > 0, 0)  # a nan is no quality
    of_anchor = best_in_group(values, anchor_key(pairs, objects, anchors), batch * anchors)
    kept = rows_where((values == of_anchor) & (values > 0))
    pairs, values = pairs[kept], values[kept]
    rank = rank_in_group(values, pairs.object, len(objects))
    count = dynamic_k(values.clamp(max=1), rank, pairs.object, len(objects))
    taken = rows_where(rank < count[pairs.object])
    pairs, values = pairs[taken], values[taken]
    single = rows_where(keep_best(pairs, objects, values, batch=batch, anchors=anchors))
    return label_anchors(
        objects,
        pairs[single],
        role=torch.full_like(single, Role.POSITIVE, dtype=torch.int8),
        weight=torch.ones_like(values[single]),
        quality=values[single].clamp(max=1),
        batch=batch,
        anchors=anchors,
    )
