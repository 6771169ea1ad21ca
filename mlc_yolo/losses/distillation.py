"""Dense soft distillation on images without labels: a student learns what an averaged teacher sees, anchor by anchor.

SED-style: of Scale-Equivalent Distillation (Guo et al., CVPR 2022, arXiv 2203.12244) only the abstract was at hand, and
no code is public. It promises soft distillation from a teacher instead of hard pseudo-labels, and a re-weighting that
implicitly screens potential foreground. Everything below is a reconstruction of that, not the paper's equations:

1. m, the teacher's foreground, is its largest class probability at an anchor. No NMS, no threshold.
2. Classification: sum w * KL(p_t || p_s) / N over anchors and classes, each a Bernoulli variable.
3. w = |p_t - p_s|^r: about 0 on background that both agree on. r = 2 with re-weighting, 0 without, or 1.
4. N is the sum of m^2 over each image's anchors, at least 1 per image: about the number of anchors that see an object.
5. Boxes: sum m * (1 - GIoU) / sum m, and sum m * KL / sum m of the box distributions; here m is 0 at anchors whose
   boxes the teacher does not repeat at half the scale.
6. The scale term is the same losses between other anchors: see `mlc_yolo.losses.scale_pairs`.

KL, not cross entropy: the two differ by the teacher's entropy. That has no gradient while w is detached, but keeps
agreement from costing 0. Where student and teacher agree every term and its gradient are 0: exactly for classes, up to
rounding for boxes and distributions. No gradient reaches a teacher's tensor.

The gradient of a re-weighted logit is w (p_s - p_t) / N: with r = 2 the cube of the disagreement, which from 0.1 apart
pulls a hundredth as much as without re-weighting; with r = 1 its square, a tenth as much. They need different gains.
1 - GIoU has a kink at agreement, as an absolute value has: two boxes a rounding apart pull as hard as two boxes a pixel
apart.

Box distributions may be compared at a temperature T, as in Localization Distillation (Zheng et al., CVPR 2022, eq. 4):
KL(softmax(z_t / T) || softmax(z_s / T)), times T^2 so that its gradient keeps its size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mlc_yolo.boxes import aligned_iou
from mlc_yolo.losses.box_regression import giou
from mlc_yolo.oriented import aligned_probiou

#: A logit whose probability is 0 for every purpose, 1e-26, and stays finite in float32.
_NOTHING = -60.0


def foreground(teacher_logits: Tensor) -> Tensor:
    """Return m, the teacher's largest class probability at each anchor.

    Args:
        teacher_logits: (B, A, K) class logits, K >= 1.

    Returns:
        (B, A) float32 in [0, 1], detached.
    """
    return teacher_logits.detach().float().amax(-1).sigmoid()


def foreground_normaliser(foreground: Tensor) -> Tensor:
    """Return N: the sum of m^2 over an image's anchors, at least 1, summed over images.

    It plays the part that the sum of soft targets has where there are labels. The square keeps background out: 10,000
    anchors at 0.01 count as 1. A fixed share of the anchors does not do: their top 1 % is 13 at 256 px, where 15 blood
    cells have 150 positives, so that distillation pulled ten times as hard as the labels.

    Per image, so that the normaliser of a batch is the sum of its images': a crowded image does not decide for the
    others. A teacher that sees nothing yet, or an image without objects, counts as one object.

    Args:
        foreground: (B, A) in [0, 1].

    Returns:
        Scalar float32, at least B.

    Example:
        >>> import torch
        >>> foreground_normaliser(torch.tensor([[1.0, 0.5, 0.5, 0.0], [0.1, 0.0, 0.0, 0.0]]))
        tensor(2.5000)
    """
    return foreground.detach().float().square().sum(1).clamp(min=1).sum()


def top_anchors(foreground: Tensor, *, share: float = 0.01) -> Tensor:
    """Return each image's anchors of largest foreground: Dense Teacher's region (Zhou et al., ECCV 2022, section 3.3).

    Args:
        foreground: (B, A) in [0, 1], A >= 1.
        share: of the anchors; at least one is taken.

    Returns:
        (B, A) bool.

    Example:
        >>> import torch
        >>> top_anchors(torch.tensor([[0.1, 0.9, 0.5, 0.2]]), share=0.5)
        tensor([[False,  True,  True, False]])
    """
    top = foreground.topk(max(1, int(share * foreground.shape[1])), 1).indices
    return torch.zeros_like(foreground, dtype=torch.bool).scatter_(1, top, True)


def region_logits(teacher_logits: Tensor, region: Tensor) -> Tensor:
    """Return a teacher's logits where a region is, and elsewhere logits of a probability of nothing.

    With them `distilled_classes` at power 2 is Dense Teacher's loss: in the region |p_t - p_s|^2 times the cross
    entropy towards p_t, less that one's entropy; elsewhere -p_s^2 log(1 - p_s). Different from it, the weight takes no
    gradient, and the normaliser is the region's sum of m^2 instead of m.

    Args:
        teacher_logits: (B, A, K).
        region: (B, A) bool.

    Returns:
        (B, A, K) float32, detached.
    """
    return teacher_logits.detach().float().masked_fill(~region[..., None], _NOTHING)


def reweight(logits: Tensor, teacher_logits: Tensor, *, power: float) -> Tensor:
    """Return w = |p_t - p_s|^r.

    Args:
        logits: (B, A, K) the student's class logits.
        teacher_logits: (B, A, K).
        power: r >= 0.

    Returns:
        (B, A, K) float32 in [0, 1], detached.
    """
    return (teacher_logits.detach().float().sigmoid() - logits.detach().float().sigmoid()).abs().pow(power)


def distilled_classes(logits: Tensor, teacher_logits: Tensor, normaliser: Tensor, *, power: float = 2) -> Tensor:
    """Return sum w * KL(p_t || p_s) / N.

    Both sides are logits, so that agreement costs exactly 0 also where a probability would round to 1.

    Args:
        logits: (B, A, K) the student's class logits.
        teacher_logits: (B, A, K).
        normaliser: scalar > 0, see `foreground_normaliser`; summed over all ranks where there are several.
        power: r, the exponent of the re-weighting; 0 leaves it out.

    Returns:
        Scalar float32 >= 0 up to rounding; a differentiable 0 for A = 0.

    Example:
        A teacher of 3/4 and a student of 1/2: KL = 3/4 log(3/2) + 1/4 log(1/2) = 0.1308, w = 1/16.

        >>> import torch
        >>> student, teacher = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 3.0).log()
        >>> distilled_classes(student, teacher, torch.tensor(1.0), power=0)
        tensor(0.1308)
        >>> distilled_classes(student, teacher, torch.tensor(1.0))
        tensor(0.0082)
    """
    logits, teacher_logits = logits.float(), teacher_logits.detach().float()
    target = teacher_logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher_logits, target, reduction="none")
    divergence = F.binary_cross_entropy_with_logits(logits, target, reduction="none") - entropy
    if power:
        divergence = divergence * reweight(logits, teacher_logits, power=power)
    return divergence.sum() / normaliser


def agreement(boxes: Tensor, other: Tensor) -> Tensor:
    """Return where the teacher finds the same box at both scales: IoU > 0.5.

    Args:
        boxes: (B, A, 4) xyxy px, predicted at full scale.
        other: (B, A, 4) xyxy px, predicted at half the scale by the paired anchors, then doubled.

    Returns:
        (B, A) bool; False where a box is empty.

    Example:
        Overlap 2 of 6, then 3 of 5.

        >>> import torch
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 4.0, 1.0]]])
        >>> agreement(boxes, torch.tensor([[[2.0, 0.0, 6.0, 1.0], [1.0, 0.0, 5.0, 1.0]]]))
        tensor([[False,  True]])
    """
    return aligned_iou(boxes.detach(), other.detach()) > 0.5


def distilled_boxes(boxes: Tensor, teacher_boxes: Tensor, weight: Tensor, *, total: Tensor | None = None) -> Tensor:
    """Return the weighted mean of 1 - GIoU.

    The sum of the weights counts as 1 if it is less: anchors that the teacher takes for background do not pull the
    harder for there being nothing else.

    Args:
        boxes: (B, A, 4) the student's xyxy, not reversed.
        teacher_boxes: (B, A, 4) xyxy, not reversed, same unit.
        weight: (B, A) >= 0: m where the teacher's boxes agree, else 0.
        total: scalar, the sum of the weights over all ranks where a batch is spread over several.

    Returns:
        Scalar float32, at most 2; a differentiable 0 for A = 0. Equal boxes cost at most 1e-6, and their gradient is
        as small because the corners' subgradients cancel; equal empty boxes cost 1 (`agreement` sorts those out).

    Example:
        The first pair has GIoU 1/3, the second 1.

        >>> import torch
        >>> first = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]])
        >>> second = torch.tensor([[[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 2.0, 2.0]]])
        >>> distilled_boxes(first, second, torch.tensor([[0.5, 1.5]]))  # (0.5 * 2/3 + 1.5 * 0) / 2
        tensor(0.1667)
    """
    weight = weight.detach().float()
    return giou(boxes, teacher_boxes.detach(), weight) / _at_least_one(weight, total)


def distilled_oriented_boxes(
    boxes: Tensor, teacher_boxes: Tensor, weight: Tensor, *, total: Tensor | None = None
) -> Tensor:
    """Return the weighted mean of 1 - probiou, which teaches centres, sides and angles of oriented boxes.

    Args:
        boxes: (B, A, 5) the student's.
        teacher_boxes: (B, A, 5).
        weight: (B, A) >= 0, as in `distilled_boxes`; a sum of less than 1 counts as 1.
        total: as in `distilled_boxes`.

    Returns:
        Scalar float32 in [0, 1]; a differentiable 0 for A = 0. Equal boxes cost 0.0004, as probiou ends there.

    Example:
        The same box turned by a right angle has probiou 0.5528, and counts half.

        >>> import torch
        >>> student = torch.tensor([[[10.0, 10.0, 8.0, 4.0, 0.0]]])
        >>> teacher = torch.tensor([[[10.0, 10.0, 4.0, 8.0, 0.0]]])
        >>> distilled_oriented_boxes(student, teacher, torch.tensor([[0.5]]), total=torch.tensor(1.0))
        tensor(0.2236)
    """
    weight = weight.detach().float()
    # Elsewhere boxes may have no area, where probiou has no gradient: times a weight of 0 that would be nan.
    weighed = weight > 0
    apart = 1 - aligned_probiou(boxes[weighed], teacher_boxes.detach()[weighed])
    return (apart * weight[weighed]).sum() / _at_least_one(weight, total)


def distilled_distributions(
    logits: Tensor, teacher_logits: Tensor, weight: Tensor, *, total: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Return the weighted mean of the KL divergence between box distributions, itself the mean over the four sides.

    Args:
        logits: (B, A, 4, R) the student's logits over R bins of distance, in strides.
        teacher_logits: (B, A, 4, R).
        weight: (B, A) >= 0, as in `distilled_boxes`; a sum of less than 1 counts as 1.
        total: as in `distilled_boxes`.
        temperature: T > 0 that divides both sides' logits. A large one compares the logits themselves: the loss
            approaches half the variance, over the bins, of their difference.

    Returns:
        Scalar float32 >= 0 up to rounding; a differentiable 0 for A = 0.

    Example:
        One side of four has a teacher of (3/4, 1/4) and a student of (1/2, 1/2): KL = 0.1308.

        >>> import torch
        >>> student, teacher = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
        >>> teacher[..., 0, 0] = torch.tensor(3.0).log()
        >>> distilled_distributions(student, teacher, torch.ones(1, 1))
        tensor(0.0327)
    """
    weight = weight.detach().float()
    both = logits.float(), teacher_logits.detach().float()
    student, teacher = ((side / temperature).log_softmax(-1) for side in both)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean(-1)
    return temperature**2 * (divergence * weight).sum() / _at_least_one(weight, total)


def distilled_quality(logits: Tensor, teacher_logits: Tensor, weight: Tensor, *, total: Tensor | None = None) -> Tensor:
    """Return the weighted mean of the squared difference of predicted qualities, the IoU-rescoring loss' own measure.

    Args:
        logits: (B, A) the student's logits of predicted IoU, or of centerness.
        teacher_logits: (B, A).
        weight: (B, A) >= 0, as in `distilled_boxes`; a sum of less than 1 counts as 1.
        total: as in `distilled_boxes`.

    Returns:
        Scalar float32 in [0, 1]; a differentiable 0 for A = 0.

    Example:
        A teacher of 3/4 and a student of 1/2: 1/16.

        >>> import torch
        >>> student, teacher = torch.zeros(1, 1), torch.full((1, 1), 3.0).log()
        >>> distilled_quality(student, teacher, torch.ones(1, 1))
        tensor(0.0625)
    """
    weight = weight.detach().float()
    difference = logits.float().sigmoid() - teacher_logits.detach().float().sigmoid()
    return (difference.square() * weight).sum() / _at_least_one(weight, total)


def _at_least_one(weight: Tensor, total: Tensor | None) -> Tensor:
    return (weight.sum() if total is None else total).clamp(min=1)
