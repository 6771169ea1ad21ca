"""The two sources of teaching on images without labels: the student's own running average, and frozen teachers.

The running average normalises by the batch where the student does; see `training.semi_criterion`. It teaches each of
the student's branches by its own. Frozen teachers normalise by their running statistics and teach the first branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlc_yolo.training.dense_outputs import Dense
from mlc_yolo.training.teachers import Teachers

#: Name in the raw outputs, criterion and weight of a student's branch.
Branch = tuple[str | None, Any, float]


@dataclass(frozen=True)
class Seen:
    """What a teacher sees, for one branch of the student.

    Attributes:
        full: of the images as they are.
        half: of the images at half their size, where that was asked for and the teacher's boxes are to be proved by it.
        classes: (n,) int64, the student's classes that the teacher tells apart; None is all.
    """

    full: Dense
    half: Dense | None = None
    classes: Tensor | None = None


class RunningAverage:
    """The average of the student's weights as its teacher."""

    #: Trains with the student: its mistakes are the student's own.
    frozen = False

    def __init__(self, average: Callable[[], Any], student: Callable[[], Any]) -> None:
        """Set up; both are functions, so that copies of the model share them.

        Args:
            average: gives the average, in evaluation mode.
            student: gives the model that is trained.
        """
        self.average = average
        self.student = student

    def __call__(self, images: Tensor, branches: Sequence[Branch], *, half: bool) -> list[Seen]:
        """Return what it sees, for each branch; without gradients.

        Args:
            images: (U, 3, H, W) in [0, 1].
            branches: the student's.
            half: whether to look at them at half their size too.
        """
        model = self.average()
        with torch.no_grad(), batch_statistics(model, self.student()):
            raws = [model(images)[1], model(halved(images))[1] if half else None]
            seen = []
            for name, criterion, _ in branches:
                full, small = (raw if name is None or raw is None else raw[name] for raw in raws)
                seen.append(Seen(criterion.dense(full), None if small is None else criterion.dense(small)))
        return seen


class FrozenTeachers:
    """Tuned detectors as teachers of images without labels."""

    frozen = True

    def __init__(self, teachers: Callable[[], Teachers]) -> None:
        """Set up with a function that gives them."""
        self.teachers = teachers

    def __call__(self, images: Tensor, branches: Sequence[Branch], *, half: bool) -> list[Seen]:
        """Return what they see, for the first branch; their boxes need no proof at half the size."""
        teachers = self.teachers()
        return [Seen(teachers(images), None, teachers.classes.to(images.device))]


def halved(views: Tensor) -> Tensor:
    """Return (U, 3, H / 2, W / 2), each pixel the mean of four."""
    return F.avg_pool2d(views, 2)


@contextmanager
def batch_statistics(model: nn.Module, student: nn.Module) -> Iterator[None]:
    """Let a model's layers normalise by the batch where the student's do, without taking it into running statistics."""
    pairs = zip(model.modules(), student.modules(), strict=True)
    layers = [
        (layer, layer.training)
        for layer, other in pairs
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and other.training
    ]
    try:
        for layer, _ in layers:
            layer.train()
            layer.track_running_stats = False  # a momentum of 0 would still take a nan in
        yield
    finally:
        for layer, training in layers:
            layer.train(training)
            layer.track_running_stats = True
