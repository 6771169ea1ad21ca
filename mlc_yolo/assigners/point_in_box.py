"""Static matching of anchor points (FCOS, ICCV 2019, sections 3.1 and 3.2).

1. A point inside a box is a candidate if the box's farthest side suits its level (`in_level_range`). 2. A point inside
several boxes goes to the smallest; equal areas to the lower object. 3. The rest are negative; nothing is ignored.

`levels="all"` keeps the candidates of other levels too and calls them ignored: the reading of MLC section 3.1 in which
"all samples located inside the ground-truth boxes" take part in mutual labelling.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mlc_yolo.assigners.claims import Claims, StaticAssigner
from mlc_yolo.assigners.conflicts import anchor_key, keep_best
from mlc_yolo.assigners.groups import count_in_group
from mlc_yolo.assigners.objects import Objects
from mlc_yolo.assigners.pairs import Pairs, pairs_inside, rows_where
from mlc_yolo.priors import Priors


class PointInBox(StaticAssigner):
    """Assign both tasks alike, by where the anchor point lies (FCOS, ICCV 2019)."""

    def __init__(self, *, levels: Literal["range", "all"] = "range") -> None:
        """Set the assigner up.

        Args:
            levels: "range" claims points of the responsible level only, "all" adds the others as ignored.

        Raises:
            ValueError: another value.
        """
        if levels not in ("range", "all"):
            raise ValueError(f"levels={levels!r} must be 'range' or 'all'")
        self.levels = levels

    def claims(self, priors: Priors, objects: Objects, *, batch: int) -> Claims:
        """Return the positive pairs and, with levels="all", the ignored ones.

        Args:
            priors: A > 0 anchors.
            objects: N > 0 objects.
            batch: B.

        Returns:
            Claims with one object per anchor.
        """
        pairs = pairs_inside(objects, priors.points)
        suits = in_level_range(pairs, objects, priors)
        if self.levels == "range":
            competes = suits
        else:
            # What the baseline trains comes first: an ignored claim never takes an anchor from a positive one.
            key = anchor_key(pairs, objects, len(priors))
            competes = suits | (count_in_group(key, batch * len(priors), of=suits) == 0)[key]
        rows = rows_where(competes)
        pairs, positive = pairs[rows], suits[rows]
        size = objects.kind.area(objects.boxes)
        smallest = keep_best(pairs, objects, -size[pairs.object], batch=batch, anchors=len(priors))
        rows = rows_where(smallest)
        return Claims(pairs[rows], positive[rows])


def in_level_range(pairs: Pairs, objects: Objects, priors: Priors) -> Tensor:
    """Tell whether an anchor's level is responsible for the box as seen from its point (FCOS, section 3.2).

    The farthest side must lie within 4 to 8 strides, both ends included; the finest level is open below, the coarsest
    above. With strides 8 to 128 these are FCOS' (0, 64), (64, 128), ... (512, inf).

    Args:
        pairs: P pairs.
        objects: N objects.
        priors: A anchors.

    Returns:
        (P,) bool.
    """
    point, stride, level = priors.points[pairs.anchor], priors.strides[pairs.anchor], priors.levels[pairs.anchor]
    box = objects.boxes[pairs.object]
    farthest = objects.kind.sides_from(point, box).amax(1)
    fits_below = (farthest >= 4 * stride) | (level == 0)
    return fits_below & ((farthest <= 8 * stride) | (level == priors.levels.amax()))
