"""Slow assigners, one image, one object, one anchor at a time, written from the papers. What the fast ones must equal.

Each takes an `Image` and returns the labels of the two tasks. Numbers are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch

from mlc_yolo import oriented
from mlc_yolo.assigners import (
    ATSS,
    Assigner,
    Disentangled,
    MaxIoU,
    MutualGuidance,
    MutualGuidance2021,
    MutualLabeling,
    PointInBox,
    Role,
    TaskAligned,
    WeighedByScore,
)

from .scenes import Scene


@dataclass(frozen=True)
class Object:
    """A ground truth: its slot in the padded targets, class, box."""

    slot: int
    label: int
    box: np.ndarray


@dataclass(eq=False)
class Image:
    """One image of a scene as numpy arrays: scores (A, K), boxes (A, 4), points (A, 2), priors (A, 4), levels (A,).

    Boxes and priors are (A, 5) where they are oriented.
    """

    scores: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    priors: np.ndarray
    strides: np.ndarray
    levels: np.ndarray
    objects: list[Object]

    @property
    def anchors(self) -> range:
        return range(len(self.points))

    @cached_property
    def prior_ious(self) -> np.ndarray:
        """(objects, A)."""
        return _ious(self.objects, self.priors)

    @cached_property
    def decoded_ious(self) -> np.ndarray:
        """(objects, A)."""
        return _ious(self.objects, self.boxes)

    @cached_property
    def prior_touches(self) -> np.ndarray:
        """(objects, A) bool."""
        return _touches(self.objects, self.priors)

    @cached_property
    def decoded_touches(self) -> np.ndarray:
        """(objects, A) bool."""
        return _touches(self.objects, self.boxes)


@dataclass
class Labels:
    """One task's labels of one image; starts with every anchor negative."""

    size: int
    gt_index: np.ndarray = field(init=False)
    role: np.ndarray = field(init=False)
    weight: np.ndarray = field(init=False)
    quality: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.gt_index = np.full(self.size, -1)
        self.role = np.full(self.size, int(Role.NEGATIVE))
        self.weight = np.ones(self.size)
        self.quality = np.zeros(self.size)

    def positive(self, anchor: int, obj: Object, *, weight: float = 1.0, quality: float = 1.0) -> None:
        self.gt_index[anchor] = obj.slot
        self.role[anchor] = int(Role.POSITIVE)
        self.weight[anchor] = weight
        self.quality[anchor] = quality

    def negative(self, anchor: int, *, weight: float) -> None:
        self.weight[anchor] = weight

    def ignored(self, anchor: int) -> None:
        self.role[anchor] = int(Role.IGNORED)
        self.weight[anchor] = 0.0


Both = tuple[Labels, Labels]


def images(scene: Scene) -> list[Image]:
    """Take a scene apart."""
    predictions, priors, targets = scene.inputs
    result = []
    for b in range(len(targets.labels)):
        objects = []
        for slot in range(targets.labels.shape[1]):
            box = targets.boxes[b, slot].double().numpy()
            if targets.valid[b, slot] and (sides(box) > 0).all():
                objects.append(Object(slot, int(targets.labels[b, slot]), box))
        result.append(
            Image(
                predictions.scores[b].double().numpy(),
                predictions.boxes[b].double().numpy(),
                priors.points.double().numpy(),
                priors.boxes.double().numpy(),
                priors.strides.double().numpy(),
                priors.levels.numpy(),
                objects,
            )
        )
    return result


# Geometry -------------------------------------------------------------------------------------------------------------


def iou(first: np.ndarray, second: np.ndarray) -> float:
    (ax, ay, ar, ab), (bx, by, br, bb) = first.tolist(), second.tolist()
    intersection = max(0.0, min(ar, br) - max(ax, bx)) * max(0.0, min(ab, bb) - max(ay, by))
    union = max(0.0, ar - ax) * max(0.0, ab - ay) + max(0.0, br - bx) * max(0.0, bb - by) - intersection
    return intersection / union if union > 0 else 0.0


def ciou(first: np.ndarray, second: np.ndarray, eps: float = 1e-7) -> float:
    """Complete IoU (Zheng et al., eq. 10-11); eps where Ultralytics puts it, for boxes without area."""
    (ax, ay, ar, ab), (bx, by, br, bb) = first.tolist(), second.tolist()
    aw, ah, bw, bh = ar - ax, ab - ay + eps, br - bx, bb - by + eps
    intersection = max(0.0, min(ar, br) - max(ax, bx)) * max(0.0, min(ab, bb) - max(ay, by))
    overlap = intersection / (aw * ah + bw * bh - intersection + eps)
    diagonal = (max(ar, br) - min(ax, bx)) ** 2 + (max(ab, bb) - min(ay, by)) ** 2 + eps
    distance = ((bx + br - ax - ar) ** 2 + (by + bb - ay - ab) ** 2) / 4
    v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
    return overlap - distance / diagonal - v * v / (1 - overlap + v + eps)


def distances(point: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom of a box as seen from a point, along the box's own axes."""
    if len(box) == 4:
        return np.concatenate((point - box[:2], box[2:] - point))
    cos, sin = math.cos(box[4]), math.sin(box[4])
    dx, dy = point - box[:2]
    along, down = dx * cos + dy * sin, dy * cos - dx * sin
    return np.array([box[2] / 2 + along, box[3] / 2 + down, box[2] / 2 - along, box[3] / 2 - down])


def inside(point: np.ndarray, box: np.ndarray) -> bool:
    return bool((distances(point, box) > 0).all())


def sides(box: np.ndarray) -> np.ndarray:
    return box[2:4] - box[:2] if len(box) == 4 else box[2:4]


def centre(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2 if len(box) == 4 else box[:2]


def widened(box: np.ndarray, least: float) -> np.ndarray:
    half = np.where(sides(box) < least, least, sides(box)) / 2
    if len(box) == 4:
        return np.concatenate((centre(box) - half, centre(box) + half))
    return np.concatenate((box[:2], 2 * half, box[4:]))


def area(box: np.ndarray) -> float:
    return float(sides(box).prod())


def alignment(image: Image, k: int, anchor: int) -> float:
    """What task-aligned assignment goes by: CIoU, of oriented boxes probiou."""
    upright = len(image.objects[k].box) == 4
    return max(0.0, ciou(image.objects[k].box, image.boxes[anchor])) if upright else image.decoded_ious[k, anchor]


def _ious(objects: list[Object], boxes: np.ndarray) -> np.ndarray:
    if boxes.shape[1] == 5:  # the measure itself, in float32, so that rounding decides nothing; it has its own tests
        return _compared(oriented.aligned_probiou, objects, boxes).astype(np.float64)
    return np.array([[iou(obj.box, box) for box in boxes] for obj in objects]).reshape(len(objects), len(boxes))


def _touches(objects: list[Object], boxes: np.ndarray) -> np.ndarray:
    return _compared(oriented.aligned_touch, objects, boxes) if boxes.shape[1] == 5 else _ious(objects, boxes) > 0


def _compared(measure: Callable[..., torch.Tensor], objects: list[Object], boxes: np.ndarray) -> np.ndarray:
    own = torch.from_numpy(np.array([obj.box for obj in objects]).reshape(-1, 5)).float()
    pairs = own.repeat_interleave(len(boxes), 0), torch.from_numpy(boxes).float().repeat(len(own), 1)
    return measure(*reversed(pairs)).reshape(len(own), len(boxes)).numpy()


# TAL (TOOD section 3.2, as Ultralytics trains) ------------------------------------------------------------------------


@cache
def aligned(image: Image, topk: int) -> tuple[dict[int, int], np.ndarray, np.ndarray, dict[tuple[int, int], int]]:
    """Return anchor -> object, the metric and the overlap (objects, anchors), and each pair's rank by the metric."""
    second_stride = np.unique(image.strides)[:2][-1]
    metric = np.zeros((len(image.objects), len(image.points)))
    overlap = np.zeros_like(metric)
    claims: dict[int, list[int]] = {}
    ranks: dict[tuple[int, int], int] = {}
    for k, obj in enumerate(image.objects):
        for a in image.anchors:
            if inside(image.points[a], widened(obj.box, second_stride)):
                overlap[k, a] = alignment(image, k, a)
                metric[k, a] = image.scores[a, obj.label] ** 0.5 * overlap[k, a] ** 6
        order = [a for a in sorted(image.anchors, key=lambda a: -metric[k, a]) if metric[k, a] > 0]
        for rank, a in enumerate(order):
            ranks[k, a] = rank
            if rank < topk:
                claims.setdefault(a, []).append(k)
    owner = {a: ks[0] if len(ks) == 1 else int(overlap[:, a].argmax()) for a, ks in claims.items()}
    return owner, metric, overlap, ranks


def soft_quality(owner: dict[int, int], metric: np.ndarray, overlap: np.ndarray) -> dict[int, float]:
    """Rescale the metric of each object's positives so that its largest value is their largest overlap."""
    result = {}
    for a, k in owner.items():
        mine = [other for other, claimed in owner.items() if claimed == k]
        # Upstream adds 1e-9 to the denominator.
        result[a] = metric[k, a] / (max(metric[k, mine]) + 1e-9) * max(overlap[k, mine])
    return result


def task_aligned(image: Image, *, topk: int = 10) -> Both:
    owner, metric, overlap, _ = aligned(image, topk)
    labels = Labels(len(image.points))
    for a, quality in soft_quality(owner, metric, overlap).items():
        labels.positive(a, image.objects[owner[a]], quality=quality)
    return labels, labels


# Static matching ------------------------------------------------------------------------------------------------------


def static(image: Image, owner: dict[int, tuple[int, bool]]) -> Both:
    """Label anchor -> (object, positive); what is not positive is ignored."""
    labels = Labels(len(image.points))
    for a, (k, is_positive) in owner.items():
        if is_positive:
            labels.positive(a, image.objects[k])
        else:
            labels.ignored(a)
    return labels, labels


@cache
def max_iou_owner(image: Image, positive: float = 0.5, negative: float = 0.4) -> dict[int, tuple[int, bool]]:
    """RetinaNet section 4 with torchvision's low-quality rule; candidates are the positive and the ignored."""
    if not image.objects:
        return {}
    overlaps = image.prior_ious * image.prior_touches
    owner = {}
    for a in image.anchors:
        k = int(overlaps[:, a].argmax())
        if overlaps[k, a] >= negative:
            owner[a] = k, bool(overlaps[k, a] >= positive)
    for row in overlaps:
        for a in image.anchors:
            if row[a] > 0 and row[a] == row.max():
                owner[a] = int(overlaps[:, a].argmax()), True
    return owner


def max_iou(image: Image) -> Both:
    return static(image, max_iou_owner(image))


def responsible(image: Image, anchor: int, box: np.ndarray) -> bool:
    """FCOS section 3.2: the farthest side is within 4 to 8 strides; open below the finest level, above the coarsest."""
    farthest = distances(image.points[anchor], box).max()
    stride = image.strides[anchor]
    low = 0.0 if image.levels[anchor] == image.levels.min() else 4 * stride
    high = math.inf if image.levels[anchor] == image.levels.max() else 8 * stride
    return bool(low <= farthest <= high)


@cache
def point_owner(image: Image, *, other_levels: bool = False) -> dict[int, tuple[int, bool]]:
    """FCOS' positives; with `other_levels` also, as ignored, the points inside a box that are nobody's positive."""
    owner = {}
    for a in image.anchors:
        within = [k for k, obj in enumerate(image.objects) if inside(image.points[a], obj.box)]
        fitting = [k for k in within if responsible(image, a, image.objects[k].box)]
        if fitting:
            owner[a] = min(fitting, key=lambda k: area(image.objects[k].box)), True
        elif within and other_levels:
            owner[a] = min(within, key=lambda k: area(image.objects[k].box)), False
    return owner


def fcos(image: Image) -> Both:
    return static(image, point_owner(image))


def atss(image: Image, *, topk: int = 9) -> Both:
    """ATSS, algorithm 1, with the authors' topk * anchors per location and 0.01 px."""
    best: dict[int, tuple[float, int]] = {}
    for k, obj in enumerate(image.objects):
        candidates = []
        for level in np.unique(image.levels):
            on_level = [a for a in image.anchors if image.levels[a] == level]
            per_location = len(on_level) // len({tuple(image.points[a]) for a in on_level})
            on_level.sort(key=lambda a: float(((image.points[a] - centre(obj.box)) ** 2).sum()))
            candidates += on_level[: topk * per_location]
        overlaps = [float(image.prior_ious[k, a]) for a in candidates]
        threshold = np.mean(overlaps) + (np.std(overlaps, ddof=1) if len(overlaps) > 1 else 0.0)
        for a, overlap in zip(candidates, overlaps, strict=True):
            depth = distances(image.points[a], obj.box).min()
            if overlap >= threshold and depth > 0.01 and overlap > best.get(a, (-1.0, 0))[0]:
                best[a] = overlap, k
    return static(image, {a: (k, True) for a, (_, k) in best.items()})


# Mutual Guidance: the six steps ---------------------------------------------------------------------------------------


def contend(quality: np.ndarray) -> np.ndarray:
    """Step 2: every object's best prior becomes 1, then every prior keeps its column's maximum, of all who tie."""
    quality = quality.copy()
    for k in range(len(quality)):
        if quality[k].max() > 0:
            quality[k, int(quality[k].argmax())] = 1.0
    return np.where(quality == quality.max(0), quality, 0.0)


def mutual_guidance(image: Image, *, sigma: float = 2.0, tasks: str = "both") -> Both:
    """The authors' first code with matrices, one object at a time."""
    classification, localization = Labels(len(image.points)), Labels(len(image.points))
    if not image.objects:
        return classification, localization
    # 1. Three matrices.
    anchor, regressed = image.prior_ious * image.prior_touches, image.decoded_ious * image.decoded_touches
    amplified = np.zeros_like(anchor)
    for k, obj in enumerate(image.objects):
        for a in image.anchors:
            amplified[k, a] = anchor[k, a] ** ((sigma - image.scores[a, obj.label]) / sigma)
    # 2.
    anchor, regressed, amplified = contend(anchor), contend(regressed), contend(amplified)
    by_box = regressed if tasks in ("both", "l2c") else anchor  # a task that is not guided uses the anchor matrix
    by_score = amplified if tasks in ("both", "c2l") else anchor
    ignored: set[int] = set()
    # From the last object to the first, so that the lower overwrites the higher.
    for k, obj in reversed(list(enumerate(image.objects))):
        # 3.
        n_positive = int((anchor[k] >= 0.5).sum())
        n_both = int((anchor[k] >= 0.4).sum())
        assert n_positive >= 1 or not image.prior_touches[k].any()
        # 4. and 5., and in `take` 6.
        ignored.update(take(by_box[k], n_both)[n_positive:])
        for a in take(by_box[k], n_positive):
            classification.positive(a, obj)
        for a in take(by_score[k], n_positive):
            localization.positive(a, obj)
    for a in ignored:
        if classification.role[a] != int(Role.POSITIVE):
            classification.ignored(a)
    return classification, localization


def take(row: np.ndarray, count: int) -> list[int]:
    """The `count` largest non-zero entries; the lower anchor first among equals."""
    return [a for a in sorted(range(len(row)), key=lambda a: -row[a]) if row[a] > 0][:count]


# The continued rule ---------------------------------------------------------------------------------------------------


def mutual_guidance_2021(image: Image, *, sigma: float = 2.0) -> Both:
    """The authors' later code with matrices, one object at a time; values above 1 contend by their own size."""
    classification, localization = Labels(len(image.points)), Labels(len(image.points))
    if not image.objects:
        return classification, localization
    amplified = image.prior_ious * image.prior_touches
    for k, obj in enumerate(image.objects):
        for a in image.anchors:
            amplified[k, a] *= math.exp(image.scores[a, obj.label] / sigma)
    reached = image.decoded_ious * image.decoded_touches
    for labels, matrix in ((classification, reached), (localization, amplified)):
        contended = np.where(matrix == matrix.max(0), matrix, 0.0)
        for k, obj in reversed(list(enumerate(image.objects))):
            for a in take(contended[k], as_many_as(np.minimum(contended[k], 1))):
                labels.positive(a, obj, quality=min(1.0, contended[k, a]))
    return classification, localization


def as_many_as(qualities: np.ndarray) -> int:
    """How many anchors an object trains: what its 15 best qualities add up to, at least one."""
    return max(1, math.floor(sum(sorted(qualities, reverse=True)[:15]) + 1e-4))


# DDOD: each task its own metric ---------------------------------------------------------------------------------------


def disentangled(image: Image) -> Both:
    classification, localization = Labels(len(image.points)), Labels(len(image.points))
    overlap = np.zeros((len(image.objects), len(image.points)))
    for k, obj in enumerate(image.objects):
        for a in image.anchors:
            if in_widened_box(image, obj, a, True):
                overlap[k, a] = image.decoded_ious[k, a]
    for labels, by_score, by_iou in ((classification, 0.2, 0.8), (localization, 0.5, 0.5)):
        metric = np.zeros_like(overlap)
        claims: dict[int, list[int]] = {}
        for k, obj in enumerate(image.objects):
            for a in image.anchors:
                metric[k, a] = image.scores[a, obj.label] ** by_score * overlap[k, a] ** by_iou
            for a in take(metric[k], as_many_as(overlap[k])):
                claims.setdefault(a, []).append(k)
        owner = {a: ks[0] if len(ks) == 1 else int(overlap[:, a].argmax()) for a, ks in claims.items()}
        for a, quality in soft_quality(owner, metric, overlap).items():
            labels.positive(a, image.objects[owner[a]], quality=quality)
    return classification, localization


# Boxes weighed by the class score -------------------------------------------------------------------------------------


def weighed_by_score(reference: Callable[[Image], Both], image: Image) -> Both:
    classification, plain = reference(image)
    localization = Labels(len(image.points))
    localization.role, localization.weight = plain.role, plain.weight
    by_slot = {obj.slot: obj for obj in image.objects}
    for a in image.anchors:
        if plain.role[a] == int(Role.POSITIVE):
            obj = by_slot[plain.gt_index[a]]
            localization.gt_index[a], localization.quality[a] = obj.slot, image.scores[a, obj.label]
    return classification, localization


# MLC: equations 4 to 8 ------------------------------------------------------------------------------------------------


def otsu(values: list[float], *, tie: float = 1e-9) -> float | None:
    """Try every cut between two different values; the lowest wins among cuts within `tie` of the best."""
    ordered = sorted(values)
    cuts = []
    for i in range(1, len(ordered)):
        if ordered[i - 1] < ordered[i]:
            lower, upper = ordered[:i], ordered[i:]
            gap = math.fsum(lower) / len(lower) - math.fsum(upper) / len(upper)
            cuts.append((len(lower) * len(upper) * gap**2, (ordered[i - 1] + ordered[i]) / 2))
    if not cuts:
        return None
    best = max(variance for variance, _ in cuts)
    return next(threshold for variance, threshold in cuts if variance >= best * (1 - tie))


def mutual_labeling(
    image: Image, owner: dict[int, tuple[int, bool]], *, alpha: float = 0.5, tasks: str = "both"
) -> Both:
    """Re-label a static baseline's candidates anchor -> (object, baseline positive)."""
    classification, localization = Labels(len(image.points)), Labels(len(image.points))
    for k, obj in enumerate(image.objects):
        group = [a for a in owner if owner[a][0] == k]
        located = {a: float(image.decoded_ious[k, a]) for a in group}
        scored = {a: float(image.scores[a, obj.label]) for a in group}
        tau_loc = otsu(list(located.values())) if tasks in ("both", "cls") else None
        tau_cls = otsu(list(scored.values())) if tasks in ("both", "loc") else None
        for labels, values, tau in ((classification, located, tau_loc), (localization, scored, tau_cls)):
            for a in group:
                was_positive = owner[a][1]
                if tau is None:
                    if was_positive:
                        labels.positive(a, obj)
                    else:
                        labels.ignored(a)
                    continue
                weight = 1.0 if was_positive else abs(values[a] - tau) ** alpha  # eq. 7 and 8
                if values[a] > tau:  # eq. 4 and 6
                    labels.positive(a, obj, weight=weight)
                elif labels is classification:  # eq. 5
                    labels.negative(a, weight=weight)
                else:  # localisation has no negatives
                    labels.ignored(a)
    return classification, localization


def mutual_labeling_aligned(image: Image, *, alpha: float = 0.5, tasks: str = "both", extra: int = 10) -> Both:
    """The task-aligned variant: TAL's positives, then on free anchors each object's next `extra` best; soft targets."""
    baseline, metric, overlap, ranks = aligned(image, 10)
    in_baseline = set(baseline)
    wanted: dict[int, list[int]] = {}
    for (k, a), rank in ranks.items():
        if 10 <= rank < 10 + extra and not any(ranks.get((other, a), 10) < 10 for other in range(len(image.objects))):
            wanted.setdefault(a, []).append(k)
    owner = dict(baseline)
    for a, ks in wanted.items():
        owner[a] = max(sorted(ks), key=lambda k: overlap[k, a])
    result = []
    for is_classification, relabel in ((True, tasks in ("both", "cls")), (False, tasks in ("both", "loc"))):
        if not relabel:
            result.append(task_aligned(image)[0])
            continue
        labels = Labels(len(image.points))
        positive = {}
        for k, obj in enumerate(image.objects):
            group = [a for a in owner if owner[a] == k]
            if is_classification:
                values = {a: float(image.decoded_ious[k, a]) for a in group}
            else:
                values = {a: float(image.scores[a, obj.label]) for a in group}
            tau = otsu(list(values.values()))
            for a in group:
                if values[a] > tau if tau is not None else a in in_baseline:
                    positive[a] = k
                elif tau is None:
                    pass  # a negative to the baseline
                elif is_classification:
                    labels.negative(a, weight=abs(values[a] - tau) ** alpha)
                else:
                    labels.ignored(a)
        for a, quality in soft_quality(positive, metric, overlap).items():
            labels.positive(a, image.objects[positive[a]], quality=quality)
        result.append(labels)
    return result[0], result[1]


# Every assigner -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """An assigner beside its reference.

    Attributes:
        assigner: the fast one.
        reference: the slow one, for one image.
        candidate: (image, object, anchor, is classification) -> may this anchor be positive for that object?
        sigma: of Mutual Guidance, whose objects contend for priors in their order; None for the others.
    """

    assigner: Assigner
    reference: Callable[[Image], Both]
    candidate: Callable[[Image, Object, int, bool], bool]
    sigma: float | None = None


def in_box(image: Image, obj: Object, anchor: int, classification: bool) -> bool:
    return inside(image.points[anchor], obj.box)


def in_widened_box(image: Image, obj: Object, anchor: int, classification: bool) -> bool:
    return inside(image.points[anchor], widened(obj.box, 16))


def touches_prior(image: Image, obj: Object, anchor: int, classification: bool) -> bool:
    return iou(obj.box, image.priors[anchor]) > 0


def touches_decoded(image: Image, obj: Object, anchor: int, classification: bool) -> bool:
    return iou(obj.box, (image.boxes if classification else image.priors)[anchor]) > 0


def _variants() -> dict[str, Variant]:
    found = {
        "tal": Variant(TaskAligned(), task_aligned, in_widened_box),
        "max_iou": Variant(MaxIoU(), max_iou, touches_prior),
        "fcos": Variant(PointInBox(), fcos, in_box),
        "fcos-all": Variant(
            PointInBox(levels="all"), lambda image: static(image, point_owner(image, other_levels=True)), in_box
        ),
        "atss": Variant(ATSS(), atss, in_box),
        "ddod": Variant(Disentangled(), disentangled, in_widened_box),
        "tal-by_score": Variant(WeighedByScore(TaskAligned()), partial(weighed_by_score, task_aligned), in_widened_box),
        "max_iou-by_score": Variant(WeighedByScore(MaxIoU()), partial(weighed_by_score, max_iou), touches_prior),
    }
    for sigma in (1.5, 2.0):
        found[f"mutual_guidance_2021-{sigma}"] = Variant(
            MutualGuidance2021(sigma=sigma), partial(mutual_guidance_2021, sigma=sigma), touches_decoded
        )
    for sigma, tasks in ((1.5, "both"), (2.0, "both"), (3.0, "both"), (2.0, "l2c"), (2.0, "c2l")):
        options: dict[str, Any] = {"sigma": sigma, "tasks": tasks}
        found[f"mutual_guidance-{sigma}-{tasks}"] = Variant(
            MutualGuidance(**options),
            partial(mutual_guidance, **options),
            touches_prior if tasks == "c2l" else touches_decoded,
            sigma,
        )
    for alpha, tasks in ((0.0, "both"), (0.5, "both"), (2.0, "both"), (0.5, "cls"), (0.5, "loc")):
        options = {"alpha": alpha, "tasks": tasks}
        found[f"mlc-tal-{alpha}-{tasks}"] = Variant(
            MutualLabeling(**options), partial(mutual_labeling_aligned, **options), in_widened_box
        )
        for name, baseline, owner, candidate in (
            ("level", PointInBox(), point_owner, in_box),
            ("inside", PointInBox(levels="all"), partial(point_owner, other_levels=True), in_box),
            ("max_iou", MaxIoU(), max_iou_owner, touches_prior),
        ):
            found[f"mlc-{name}-{alpha}-{tasks}"] = Variant(
                MutualLabeling(baseline=baseline, **options), _labelled(owner, options), candidate
            )
    return found


def _labelled(owner: Callable[[Image], dict[int, tuple[int, bool]]], options: dict[str, Any]) -> Callable[..., Both]:
    return lambda image: mutual_labeling(image, owner(image), **options)


VARIANTS = _variants()
