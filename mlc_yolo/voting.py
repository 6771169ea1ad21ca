"""Box voting: a kept box becomes the mean of the candidates that overlap it.

Source: He et al., "Bounding Box Regression with Uncertainty for Accurate Object Detection", CVPR 2019 (arXiv
1809.08545), section 3.4, variance voting.

1. The voters of a kept box are the candidates of its group (its class) whose IoU with it is above a threshold, itself
   among them.
2. A voter's weight is its score times its closeness, exp(-(1 - IoU)^2 / sigma).
3. Each side of the box becomes the weighted mean of the voters' side; where the variance of each side is known, the
   weight is divided by it.

Differences from the paper, their effect not measured one by one: there the weight has no score, every box that
overlaps at all votes, and a layer of its own predicts the variance; here it is that of the distribution over distances
from which a YOLO decodes its box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.oriented import pairwise_probiou

#: Overlaps computed at once: the memory of voting, whatever the number of boxes (2 MiB of float64).
MAX_OVERLAPS = 2**18
#: Least variance of a distance, in bins^2: of 0.01 bins. Where a float32 softmax promises less, it only rounds.
LEAST_VARIANCE = 1e-4


def vote(
    kept: Tensor,
    kept_groups: Tensor,
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    variances: Tensor | None = None,
) -> Tensor:
    """Move each kept box to the weighted mean of its voters.

    Laws: a box whose voters are all equal to it, or are itself alone, does not move at all; voted boxes stay within the
    hull of their voters, side by side; flipping, shifting or scaling every box (variances by the square) does the same
    to the result. Boxes and variances that are not finite do not vote, and a kept box without voters stays.

    Args:
        kept: (n, 4) xyxy px, rows of `boxes`.
        kept_groups: (n,) int64.
        boxes: (N, 4) xyxy px, the candidates.
        scores: (N,) >= 0.
        groups: (N,) int64; only boxes of one group vote for one another.
        iou_threshold: candidates that overlap the kept box by more than this vote.
        sigma: width of the closeness, above 0; smaller trusts near boxes more.
        variances: (N, 4) px^2 of left, top, right, bottom, above 0; None weighs every side alike.

    Returns:
        (n, 4) float32 xyxy px.

    Example:
        The other box overlaps the kept one by 0.9 and has half its score: exp(-0.1^2 / 0.01) = 0.368, so that the
        bottom side is (0.5 * 10 + 0.25 * 0.368 * 9) / (0.5 + 0.25 * 0.368).

        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
        >>> scores, groups = torch.tensor([0.5, 0.25]), torch.tensor([0, 0])
        >>> vote(boxes[:1], groups[:1], boxes, scores, groups, iou_threshold=0.7, sigma=0.01)
        tensor([[ 0.0000,  0.0000, 10.0000,  9.8446]])
    """
    kept, boxes = kept.float(), boxes.float()
    exact = _exact(boxes)
    sides = boxes.to(exact)
    spread = torch.ones_like(sides) if variances is None else variances.to(exact)
    finite = (sides.isfinite() & spread.isfinite()).all(1)
    precisions = spread.reciprocal().where(finite[:, None], 0)  # a weight of 0 times infinity would be nan
    summands = torch.cat((precisions * sides.where(finite[:, None], 0), precisions), 1)
    sums = summands.new_empty((len(kept), 8))
    ballots = _ballots(kept, kept_groups, boxes, scores.where(finite, 0), groups, pairwise_iou, iou_threshold, sigma)
    for here, weights in ballots:
        sums[here] = weights @ summands
    weighted, total = sums[:, :4], sums[:, 4:]
    return torch.where(total > 0, weighted / total, kept.to(exact)).float()


def vote_oriented(
    kept: Tensor,
    kept_groups: Tensor,
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
) -> Tensor:
    """Move each kept oriented box to the weighted mean of its voters: `vote`, with probiou in place of IoU.

    A box stays itself when its angle grows by pi, or by pi / 2 with its sides swapped. Each voter is taken in that of
    its forms whose angle is nearest the kept box's, within pi / 4; then centres, sides and differences of angle have a
    mean. So neither form nor multiple of pi of any box matters, and turning all boxes turns the result. Of a square,
    whose probiou does not depend on its angle, voters may lie at any: the mean is then one of many that fit alike.

    Args:
        kept: (n, 5) x, y, w, h px, angle in radians; rows of `boxes`.
        kept_groups: (n,) int64.
        boxes: (N, 5), the candidates.
        scores: (N,) >= 0.
        groups: (N,) int64; only boxes of one group vote for one another.
        iou_threshold: candidates whose probiou with the kept box is above this vote.
        sigma: width of the closeness, above 0.

    Returns:
        (n, 5) float32, sides 0 or more, angles within pi / 4 of the kept ones.

    Example:
        The second box is the first one, turned by a quarter with its sides swapped: nothing moves.

        >>> boxes = torch.tensor([[10.0, 10.0, 8.0, 4.0, 0.0], [10.0, 10.0, 4.0, 8.0, torch.pi / 2]])
        >>> scores, groups = torch.tensor([0.5, 0.25]), torch.tensor([0, 0])
        >>> moved = vote_oriented(boxes[:1], groups[:1], boxes, scores, groups, iou_threshold=0.7, sigma=0.01)
        >>> torch.allclose(moved, boxes[:1], atol=1e-4)
        True
    """
    kept, boxes = kept.float(), boxes.float()
    exact = _exact(boxes)
    finite = boxes.isfinite().all(1)
    rows, voted = boxes.to(exact).where(finite[:, None], 0), kept.to(exact)
    ballots = _ballots(
        kept, kept_groups, boxes, scores.where(finite, 0), groups, pairwise_probiou, iou_threshold, sigma
    )
    for here, weights in ballots:
        turned = rows[:, 4] - voted[here, 4:]
        quarters = (turned / (torch.pi / 2)).round()
        first, second = rows[:, 2].abs(), rows[:, 3].abs()
        swapped = quarters.remainder(2) == 1
        means = (
            weights @ rows[:, :2],
            (weights * torch.where(swapped, second, first)).sum(1, keepdim=True),
            (weights * torch.where(swapped, first, second)).sum(1, keepdim=True),
            (weights * (turned - quarters * (torch.pi / 2))).sum(1, keepdim=True),
        )
        total = weights.sum(1, keepdim=True)
        mean = torch.cat(means, 1) / total
        mean[:, 4:] += voted[here, 4:]
        voted[here] = torch.where(total > 0, mean, voted[here])
    return voted.float()


def _exact(boxes: Tensor) -> torch.dtype:
    """Return the type of sums: in float64 the mean of equal numbers is that number. Apple's GPUs have no float64."""
    return torch.float32 if boxes.device.type == "mps" else torch.float64


def _ballots(
    kept: Tensor,
    kept_groups: Tensor,
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    overlap: Callable[[Tensor, Tensor], Tensor],
    iou_threshold: float,
    sigma: float,
) -> Iterator[tuple[slice, Tensor]]:
    """Give some kept boxes at a time, and the weight of every candidate in the vote on each, 0 where it has none."""
    size = max(1, MAX_OVERLAPS // max(1, len(boxes)))
    scores = scores.to(_exact(boxes))
    for start in range(0, len(kept), size):
        here = slice(start, start + size)
        overlaps = overlap(kept[here], boxes)
        votes = (overlaps > iou_threshold) & (kept_groups[here, None] == groups)
        closeness = ((1 - overlaps.to(scores.dtype)).square() / -sigma).exp()
        yield here, (scores * closeness).where(votes, 0)


def distance_variances(logits: Tensor) -> Tensor:
    """Return the variance of distances that are decoded as means of distributions over bins, `LEAST_VARIANCE` at least.

    Args:
        logits: (..., 4 * R): for each side R logits, over distances of 0 to R - 1 bins.

    Returns:
        (..., 4) float32, in bins^2.

    Example:
        Halves at 0 and 1 bin lie half a bin from their mean.

        >>> distance_variances(torch.tensor([[0.0, 0.0]]).repeat(1, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    weights = logits.float().reshape(*logits.shape[:-1], 4, logits.shape[-1] // 4).softmax(-1)
    bins = torch.arange(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    offsets = bins - (weights * bins).sum(-1, keepdim=True)
    variances: Tensor = (weights * offsets.square()).sum(-1).clamp(min=LEAST_VARIANCE)
    return variances
