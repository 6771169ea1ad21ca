"""An assigner of your own: train with it, and draw what it decides beside Ultralytics' own.

    python examples/own_assigner.py mine.yaml yolo11n.pt epochs=50

An assigner is any callable from predictions, priors and targets to one assignment per task. This one trains classes as
Ultralytics does (task-aligned) and boxes where ATSS would.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mlc_yolo import MLCYOLO
from mlc_yolo.assigners import ATSS, Assignment, Predictions, Targets, TaskAligned
from mlc_yolo.figures.assignments import draw_assignments
from mlc_yolo.priors import Priors


class Mixed:
    """Classes by task alignment, boxes by ATSS."""

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        """Assign both tasks."""
        aligned = TaskAligned()(predictions, priors, targets)
        atss = ATSS()(predictions, priors, targets)
        return Assignment(classification=aligned.classification, localization=atss.localization)


def main(data: str, weights: str, **arguments: Any) -> list[Path]:
    """Train, and return the pictures."""
    model = MLCYOLO(weights)
    model.train(data=data, assigner=Mixed(), **arguments)
    return draw_assignments(MLCYOLO(model.trainer.best), data=data, assigner=["tal", Mixed()], count=2)


if __name__ == "__main__":
    pairs = (word.partition("=") for word in sys.argv[3:])
    for picture in main(*sys.argv[1:3], **{name: int(value) for name, _, value in pairs}):
        print(picture)
