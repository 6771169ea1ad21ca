"""Non-maximum suppression that ranks by predicted IoU (IoU-Net, ECCV 2018, algorithm 1), and the choice of detections.

1. Rank the boxes by predicted IoU. 2. Take the highest-ranked box left, and with it every box left of its group (its
class) that overlaps it by more than the threshold. 3. It is kept, with the largest class score among them. 4. Repeat
until no box is left.

torchvision finds what is kept; each other box then belongs to the first kept box that overlaps it, which is the one
the loop above would have suppressed it with. The paper has one class; which class a kept box gets where boxes of
several compete is ours (`select_detections`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

#: (anchor, class) pairs of one image that enter suppression at most, the best by score; as in Ultralytics.
MAX_PAIRS = 30_000
#: Pixels by which Ultralytics moves the boxes of each class away from those of the class before.
CLASS_OFFSET = 7680
#: Overlaps computed at once when suppressed boxes look for their owner (2 MiB of float64): more is slower on a CPU.
MAX_OVERLAPS = 2**18
#: Owner of a box that no kept box suppressed; sorts before every other.
NO_OWNER = -1


def iou_guided_nms(
    boxes: Tensor, scores: Tensor, predicted_ious: Tensor, groups: Tensor, *, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """Keep the best-placed boxes and give each the largest score among itself and those it suppresses.

    Of equal predicted IoUs the first in the input ranks higher; of equal resulting scores the one that ranks higher
    comes first.

    Args:
        boxes: (N, 4) xyxy in input px.
        scores: (N,) class scores.
        predicted_ious: (N,) what boxes are ranked by, any monotone scale.
        groups: (N,) int64; only boxes of one group compete.
        iou_threshold: a box is suppressed by one that overlaps it by more than this.

    Returns:
        keep: (n,) int64 indices into the input, the largest resulting score first.
        scores: (n,) float32, the resulting scores.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [50.0, 50.0, 60.0, 60.0]])
        >>> scores, predicted = torch.tensor([0.75, 0.5, 0.625]), torch.tensor([0.5, 0.9, 0.5])
        >>> iou_guided_nms(boxes, scores, predicted, torch.zeros(3, dtype=torch.int64), iou_threshold=0.5)
        (tensor([1, 2]), tensor([0.7500, 0.6250]))
    """
    keep, source = _iou_guided(boxes, scores, predicted_ious, groups, iou_threshold)
    return keep, scores[source].float()


def select_detections(boxes: Tensor, scores: Tensor, **options: Any) -> Tensor:
    """Turn the predictions of one image into its detections: `select_with_anchors` without the anchors.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
        >>> select_detections(boxes, torch.tensor([[0.75], [0.5]]), confidence=0.1, iou_threshold=0.5, max_det=300)
        tensor([[ 0.0000,  0.0000, 10.0000, 10.0000,  0.7500,  0.0000]])
    """
    return select_with_anchors(boxes, scores, **options)[0]


def select_with_anchors(
    boxes: Tensor,
    scores: Tensor,
    *,
    confidence: float,
    iou_threshold: float,
    max_det: int,
    predicted_ious: Tensor | None = None,
    groups: Tensor | None = None,
    multi_label: bool = True,
    agnostic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Turn the predictions of one image into its detections.

    Without `predicted_ious` and `groups` this is Ultralytics' `non_max_suppression`, rounding included.

    Args:
        boxes: (A, 4) xyxy in input px.
        scores: (A, K) in [0, 1], K >= 1; what detections are thresholded and suppressed by.
        confidence: a pair of anchor and class needs a score above this.
        iou_threshold: a box is suppressed by one that overlaps it by more than this.
        max_det: detections kept at most.
        predicted_ious: (A,); given, suppression is IoU-guided instead of by score.
        groups: (A,) int64 in [0, G), such as the pyramid level; given, only boxes of one group compete.
        multi_label: each class above the threshold makes a detection; else the anchor's best class only.
        agnostic: boxes of different classes compete. If guided by IoU, a detection's class is that of its score.

    Returns:
        detections: (n, 6) float32 rows x1, y1, x2, y2, score, class; the largest score first.
        anchors: (n,) int64, whose box each is.
    """
    boxes, scores = boxes.float(), scores.float()
    anchor, label, score = candidates(scores, confidence=confidence, multi_label=multi_label)
    boxes = boxes[anchor]

    rivals = torch.zeros_like(label) if agnostic else label
    if groups is not None:
        rivals = rivals + groups[anchor] * scores.shape[1]
    if predicted_ious is not None:
        keep, source = _iou_guided(boxes, score, predicted_ious[anchor], rivals, iou_threshold)
    elif groups is not None:
        rank = score.argsort(descending=True, stable=True)
        keep = source = rank[_ranked_nms(_separable(boxes[rank]), rivals[rank], iou_threshold)]
    else:
        # At class 79 this offset rounds float32 coordinates to 1/16 px. Exact ones would keep other boxes than
        # Ultralytics does in one dense image of ten.
        keep = source = nms(boxes + (rivals * CLASS_OFFSET)[:, None], score, iou_threshold)
    keep, source = keep[:max_det], source[:max_det]
    rows = torch.cat((boxes[keep], score[source, None], label[source, None].float()), dim=1)
    return rows, anchor[keep]


def candidates(scores: Tensor, *, confidence: float, multi_label: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs of anchor and class of one image that enter suppression, `MAX_PAIRS` at most.

    Args:
        scores: (A, K), K >= 1.
        confidence: a pair needs a score above this.
        multi_label: each class above it makes a pair; else the anchor's best class only.

    Returns:
        anchors: (N,) int64.
        labels: (N,) int64.
        scores: (N,) as in the input.
    """
    if multi_label:
        anchor, label = (scores > confidence).nonzero(as_tuple=True)
    else:
        best, label = scores.max(1)
        anchor = (best > confidence).nonzero().squeeze(1)
        label = label[anchor]
    score = scores[anchor, label]
    if len(score) > MAX_PAIRS:
        top = score.argsort(descending=True, stable=True)[:MAX_PAIRS]
        anchor, label, score = anchor[top], label[top], score[top]
    return anchor, label, score


def _iou_guided(
    boxes: Tensor, scores: Tensor, predicted_ious: Tensor, groups: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the kept boxes and, for each, the box its score comes from: (n,) int64 both, the largest score first."""
    rank = predicted_ious.argsort(descending=True, stable=True)
    owner = _owners(boxes[rank], groups[rank], iou_threshold)
    # Best score first within each owner; among equals the highest-ranked, so the owner itself if its score is best.
    order = scores[rank].argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    owner = owner[order]
    is_first = owner != torch.cat((owner.new_full((1,), NO_OWNER), owner[:-1]))
    keep, source = rank[owner[is_first]], rank[order[is_first]]
    best_first = scores[source].argsort(descending=True, stable=True)
    return keep[best_first], source[best_first]


def _owners(boxes: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return the kept box that each of the ranked boxes belongs to, itself if kept: (N,) int64."""
    boxes = _separable(boxes)
    kept = _ranked_nms(boxes, groups, iou_threshold)
    # Where there is no float64, rounding can leave a suppressed box without one that overlaps it enough: it is dropped.
    owner = torch.full_like(groups, NO_OWNER)
    owner[kept] = kept
    pending = (owner == NO_OWNER).nonzero().squeeze(1)
    # From the highest-ranked kept boxes down, as many at once as memory allows.
    while len(pending) and len(kept):
        size = max(1, MAX_OVERLAPS // len(pending))
        chunk, kept = kept[:size], kept[size:]
        overlaps = box_iou(boxes[chunk], boxes[pending]) > iou_threshold
        overlaps &= groups[chunk, None] == groups[pending]
        is_owned, first = overlaps.max(0)
        owner[pending[is_owned]] = chunk[first[is_owned]]
        pending = pending[~is_owned]
    return owner


def _ranked_nms(boxes: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return which of the ranked, separable boxes are kept: (n,) int64, ascending."""
    order = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    keep: Tensor = batched_nms(boxes, order, groups, iou_threshold)
    return keep.sort().values


def _separable(boxes: Tensor) -> Tensor:
    """Return boxes that torchvision can move apart by group: in float64, without rounding, and none negative."""
    if not len(boxes):
        return boxes  # an empty tensor has no smallest value
    # Apple's GPUs have no float64.
    boxes = boxes.to(torch.float32 if boxes.device.type == "mps" else torch.float64)
    # torchvision moves by the largest coordinate: a negative one would reach into the group before.
    return boxes - boxes.amin()
