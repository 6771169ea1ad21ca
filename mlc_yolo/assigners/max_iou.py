"""Static matching by the IoU of prior boxes, as RetinaNet, RPN and SSD do (RetinaNet, ICCV 2017, section 4).

1. Each prior goes to the object it overlaps most. 2. IoU >= positive_iou is positive, [negative_iou, positive_iou)
ignored, the rest negative. 3. Low-quality matches: the priors that overlap an object best are positive whatever their
IoU, each for the object of step 1, which is torchvision's rule.

Difference: an object that overlaps no prior forces nothing. torchvision's matcher finds every prior "best" for it.
"""

from __future__ import annotations

from mlc_yolo.assigners.claims import Claims, StaticAssigner
from mlc_yolo.assigners.conflicts import anchor_key, keep_best
from mlc_yolo.assigners.groups import best_in_group, count_in_group
from mlc_yolo.assigners.objects import Objects
from mlc_yolo.assigners.pair_quality import pairs_iou
from mlc_yolo.assigners.pairs import pairs_touching, rows_where
from mlc_yolo.priors import Priors


class MaxIoU(StaticAssigner):
    """Assign both tasks alike, by the IoU of prior and object (RetinaNet, ICCV 2017)."""

    def __init__(self, *, positive_iou: float = 0.5, negative_iou: float = 0.4, low_quality: bool = True) -> None:
        """Set the assigner up.

        Args:
            positive_iou: from here on positive.
            negative_iou: below here negative.
            low_quality: force each object's best priors positive.

        Raises:
            ValueError: the thresholds are not 0 <= negative_iou <= positive_iou <= 1.
        """
        if not 0 <= negative_iou <= positive_iou <= 1:
            raise ValueError(f"expected 0 <= negative_iou <= positive_iou <= 1, got {negative_iou} and {positive_iou}")
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.low_quality = low_quality

    def claims(self, priors: Priors, objects: Objects, *, batch: int) -> Claims:
        """Return the positive and the ignored pairs.

        Args:
            priors: A > 0 anchors.
            objects: N > 0 objects.
            batch: B.

        Returns:
            Claims with one object per anchor.
        """
        pairs = pairs_touching(objects, priors.boxes)
        iou = pairs_iou(pairs, objects, priors.boxes)
        overlapping = rows_where(iou > 0)
        pairs, values = pairs[overlapping], iou[overlapping]
        positive = values >= self.positive_iou
        if self.low_quality:
            is_best = values == best_in_group(values, pairs.object, len(objects))
            key = anchor_key(pairs, objects, len(priors))
            positive |= (count_in_group(key, batch * len(priors), of=is_best) > 0)[key]
        kept = keep_best(pairs, objects, values, batch=batch, anchors=len(priors))
        rows = rows_where(kept & (positive | (values >= self.negative_iou)))
        return Claims(pairs[rows], positive[rows])
