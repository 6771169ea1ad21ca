"""Detectors' losses, slowly: image by image and anchor by anchor in Python floats, from the papers' equations.

Assigners and the sampler are taken as they are (they have tests of their own), but called for one image at a time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlc_yolo.assigners import Assigner, Assignment, Predictions, Role, Targets, TaskAssignment
from mlc_yolo.priors import Priors

Box = list[float]


def reference_losses(
    kind: str,
    head: Any,
    raw: dict[str, Any],
    batch: dict[str, Tensor],
    assigner: Assigner,
    *,
    iou_gain: float,
    align_gain: float,
    assignments: list[Assignment] | None = None,
) -> dict[str, float]:
    """Return the losses of a batch by name.

    Args:
        kind: "retinanet", "fcos" (by the paper's rules) or "rpn".
        head: gives the priors and says what its quality layer predicts.
        raw: raw predictions; their values alone are read.
        batch: upstream's training batch.
        assigner: who decides.
        iou_gain: factor of the predicted-IoU loss.
        align_gain: factor of the alignment loss.
        assignments: decisions already made, an image each, for an RPN: those its sampler left over.
    """
    priors = head.priors(raw["feats"], scale=5.0)
    points, prior_boxes = priors.points.tolist(), priors.boxes.tolist()
    size = [n * float(head.stride[0]) for n in raw["feats"][0].shape[2:]]
    total = dict.fromkeys(("cls", "box", "quality", "align"), 0.0)
    norm = dict.fromkeys(("cls", "box", "loc", "either", "drawn", "centerness"), 0.0)
    for image in range(len(raw["scores"])):
        scores, boxes = raw["scores"][image].double().tolist(), raw["boxes"][image].double().tolist()
        decoded = [decode(kind, *each) for each in zip(boxes, points, prior_boxes, strict=True)]
        learned = raw["quality"][image].double().tolist() if "quality" in raw else []
        labels, goals = _objects(batch, image, size)
        if assignments is None:
            assignment = _assign_one(assigner, scores, decoded, priors, labels, goals)
        else:
            assignment = assignments[image]
        for a, (cls, loc) in enumerate(
            zip(_rows(assignment.classification), _rows(assignment.localization), strict=True)
        ):
            is_cls, is_loc = cls.role == Role.POSITIVE, loc.role == Role.POSITIVE
            weight, quality = cls.weight, cls.quality
            norm["drawn"] += cls.role != Role.IGNORED
            for k, logit in enumerate(scores[a]):
                target = quality if is_cls and labels[cls.gt_index] == k else 0.0
                total["cls"] += weight * (bce(logit, target) if kind == "rpn" else focal(logit, target))
            norm["cls"] += quality
            if is_loc:
                goal, weight, quality = goals[loc.gt_index], loc.weight, loc.quality
                norm["loc"] += 1
                if head.quality == "centerness":
                    wanted = centerness(goal, points[a])
                    total["quality"] += bce(learned[a], wanted)
                    norm["centerness"] += quality * wanted
                    weight *= wanted
                norm["box"] += quality
                if kind == "fcos":
                    total["box"] += weight * quality * -math.log(max(iou(decoded[a], goal), 1e-6))
                else:
                    wanted_deltas = deltas(goal, prior_boxes[a])
                    errors = (abs(x - y) for x, y in zip(boxes[a], wanted_deltas, strict=True))
                    total["box"] += weight * quality * sum(e**2 / 0.22 if e < 0.11 else e - 0.055 for e in errors)
            if is_cls or is_loc:
                slot = (loc if is_loc else cls).gt_index
                overlap = iou(decoded[a], goals[slot])
                norm["either"] += 1
                total["align"] += (sigmoid(scores[a][labels[slot]]) - overlap) ** 2
                if head.quality == "iou":
                    total["quality"] += (sigmoid(learned[a]) - overlap) ** 2

    if kind == "rpn":
        norm["cls"] = norm["box"] = norm["drawn"]
    by_centerness = max(norm["centerness"], 1e-6)
    losses = {
        "box_loss": total["box"] / (by_centerness if head.quality == "centerness" else max(norm["box"], 1)),
        "cls_loss": total["cls"] / max(norm["cls"], 1),
    }
    if head.quality == "centerness":
        losses["ctr_loss"] = total["quality"] / max(norm["loc"], 1)
    if head.quality == "iou":
        losses["iou_loss"] = iou_gain * total["quality"] / max(norm["either"], 1)
    if align_gain:
        losses["align_loss"] = align_gain * total["align"] / max(norm["either"], 1)
    return losses


def decode(kind: str, box: Box, point: Box, prior: Box) -> Box:
    """Return a raw box in px: exp of log distances for FCOS, deltas for the others."""
    if kind == "fcos":
        (x, y), (left, top, right, bottom) = point, map(math.exp, box)
        return [x - left, y - top, x + right, y + bottom]
    x0, y0, x1, y1 = prior
    width, height = x1 - x0, y1 - y0
    x, y = (x0 + x1) / 2 + box[0] * width, (y0 + y1) / 2 + box[1] * height
    half_width, half_height = width * math.exp(box[2]) / 2, height * math.exp(box[3]) / 2
    return [x - half_width, y - half_height, x + half_width, y + half_height]


def deltas(goal: Box, prior: Box) -> Box:
    """Return what decodes to `goal` (Faster R-CNN, eq. 2)."""
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    return [
        ((goal[0] + goal[2]) - (prior[0] + prior[2])) / 2 / width,
        ((goal[1] + goal[3]) - (prior[1] + prior[3])) / 2 / height,
        math.log((goal[2] - goal[0]) / width),
        math.log((goal[3] - goal[1]) / height),
    ]


def iou(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return width * height / (sum(areas) - width * height)


def centerness(goal: Box, point: Box) -> float:
    """FCOS, eq. 3; 0 for a point outside."""
    left, top = point[0] - goal[0], point[1] - goal[1]
    right, bottom = goal[2] - point[0], goal[3] - point[1]
    if min(left, top, right, bottom) <= 0:
        return 0.0
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def bce(logit: float, target: float) -> float:
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(1 - sigmoid(logit))


def focal(logit: float, target: float) -> float:
    """Focal loss with alpha 0.25 and gamma 2 (RetinaNet, eq. 5); a soft target interpolates."""
    p = sigmoid(logit)
    right = p * target + (1 - p) * (1 - target)
    return (0.25 * target + 0.75 * (1 - target)) * (1 - right) ** 2 * bce(logit, target)


def _objects(batch: dict[str, Tensor], image: int, size: list[float]) -> tuple[list[int], list[Box]]:
    labels, boxes = [], []
    for index, label, (x, y, w, h) in zip(
        batch["batch_idx"].tolist(), batch["cls"].flatten().tolist(), batch["bboxes"].tolist(), strict=True
    ):
        if index == image:
            labels.append(int(label))
            height, width = size
            boxes.append([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
    return labels, boxes


def _assign_one(
    assigner: Assigner, scores: list[list[float]], boxes: list[Box], priors: Priors, labels: list[int], goals: list[Box]
) -> Assignment:
    predictions = Predictions(torch.tensor(scores).sigmoid()[None], torch.tensor(boxes)[None])
    count = len(labels)
    targets = Targets(
        torch.tensor(labels, dtype=torch.int64)[None],
        torch.tensor(goals).reshape(1, count, 4),
        torch.ones(1, count, dtype=torch.bool),
    )
    return assigner(predictions, priors, targets)


class _Row(NamedTuple):
    """What one anchor learns for one task."""

    gt_index: int
    role: int
    weight: float
    quality: float


def _rows(task: TaskAssignment) -> list[_Row]:
    columns = (task.gt_index, task.role, task.weight, task.quality)
    return [_Row(*values) for values in zip(*(column[0].tolist() for column in columns), strict=True)]
