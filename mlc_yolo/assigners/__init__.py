"""Label assigners: who learns what, decided per task. `build_assigner` makes one from options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlc_yolo.assigners.assignment import Assigner, Assignment, Predictions, Role, Targets, TaskAssignment
from mlc_yolo.assigners.atss import ATSS
from mlc_yolo.assigners.claims import StaticAssigner
from mlc_yolo.assigners.disentangled import Disentangled
from mlc_yolo.assigners.max_iou import MaxIoU
from mlc_yolo.assigners.mutual_guidance import MutualGuidance
from mlc_yolo.assigners.mutual_guidance_2021 import MutualGuidance2021
from mlc_yolo.assigners.mutual_labeling import MutualLabeling
from mlc_yolo.assigners.point_in_box import PointInBox
from mlc_yolo.assigners.schedule import Schedule
from mlc_yolo.assigners.stock_assignment import STOCK, StockAssignment
from mlc_yolo.assigners.task_aligned import TaskAligned
from mlc_yolo.assigners.weighed_by_score import WeighedByScore

__all__ = [
    "ATSS",
    "STOCK",
    "Assigner",
    "Assignment",
    "Disentangled",
    "MaxIoU",
    "MutualGuidance",
    "MutualGuidance2021",
    "MutualLabeling",
    "PointInBox",
    "Predictions",
    "Role",
    "Schedule",
    "StaticAssigner",
    "StockAssignment",
    "Targets",
    "TaskAligned",
    "TaskAssignment",
    "WeighedByScore",
    "build_assigner",
    "yolo_assigner",
]

_CANDIDATES: dict[str, Callable[[], TaskAligned | PointInBox]] = {
    "tal": TaskAligned,
    "level": PointInBox,
    "inside": lambda: PointInBox(levels="all"),
}

_ASSIGNERS: dict[str, Callable[[Mapping[str, Any]], Assigner]] = {
    "tal": lambda options: TaskAligned(),
    "max_iou": lambda options: MaxIoU(),
    "fcos": lambda options: PointInBox(),
    "atss": lambda options: ATSS(),
    "ddod": lambda options: Disentangled(),
    "mutual_guidance": lambda options: _mutual_guidance(options),
}


def build_assigner(name: str, options: Mapping[str, Any], *, own: StaticAssigner | None = None) -> Assigner:
    """Return the assigner of that name, set up from checked options.

    Args:
        name: canonical name, as in `cfg/mlc.yaml`.
        options: checked options of `cfg/mlc.yaml`, complete.
        own: the assigner the detector was published with: stands for its class's name with its own thresholds, and
            labels mutual labelling's candidates for `mlc_candidates=own`.

    Returns:
        A callable `(Predictions, Priors, Targets) -> Assignment`.

    Raises:
        KeyError: an unknown name.
    """
    assigner = _by_name(name, options, own)
    return WeighedByScore(assigner) if options["box_weight"] == "score" else assigner


def yolo_assigner(name: str, options: Mapping[str, Any]) -> Assigner | StockAssignment:
    """Return what trains a YOLO under an assigner's name: Ultralytics' own loss for plain "tal", else ours.

    Args:
        name: canonical name, as in `cfg/mlc.yaml`.
        options: checked options of `cfg/mlc.yaml`, complete.

    Raises:
        KeyError: an unknown name.
    """
    plain = name == "tal" and options["box_weight"] == "target"
    return STOCK if plain else build_assigner(name, options)


def _by_name(name: str, options: Mapping[str, Any], own: StaticAssigner | None) -> Assigner:
    if name == "mlc":
        candidates = options["mlc_candidates"]
        baseline = own if candidates == "own" else _CANDIDATES[candidates]()
        return MutualLabeling(baseline=baseline, alpha=options["mlc_alpha"], tasks=options["mlc_tasks"])
    assigner = _ASSIGNERS[name](options)
    return own if own is not None and type(own) is type(assigner) else assigner


def _mutual_guidance(options: Mapping[str, Any]) -> Assigner:
    if options["mg_rule"] == "2021":
        return MutualGuidance2021(sigma=options["mg_sigma"])
    return MutualGuidance(sigma=options["mg_sigma"], tasks=options["mg_tasks"])
