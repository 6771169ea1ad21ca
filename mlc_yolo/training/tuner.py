"""Hyperparameter evolution that starts its trainings through our command line."""

from __future__ import annotations

import sys
from inspect import signature
from typing import Any

from torch import nn
from ultralytics.engine.tuner import Tuner

from mlc_yolo.faults import begin_work
from mlc_yolo.options.arguments import Arguments
from mlc_yolo.upstream import training_command

#: What starts one training; upstream appends `train key=value ...`.
COMMAND = [sys.executable, "-m", "mlc_yolo.cli"]


class MLCTuner(Tuner):
    """Upstream's `Tuner` that carries our options to each training it starts."""

    def __init__(
        self,
        args: dict[str, Any],
        _callbacks: dict[str, Any] | None = None,
        *,
        arguments: Arguments,
        model: nn.Module | None = None,
    ) -> None:
        """Set up as upstream does.

        Args:
            args: upstream's training arguments; `space` as upstream's.
            arguments: what was asked for.
            _callbacks: callbacks by event.
            model: what upstream would otherwise build from `args`, as a YOLO; early 8.4 releases need none.
        """
        extra = {"model": model} if "model" in signature(Tuner.__init__).parameters else {}
        super().__init__(args, _callbacks, **extra)
        for name in arguments.explicit:  # on a command line an empty option may read as a choice of that name
            setattr(self.args, name, arguments.ours[name])

    def __call__(self, iterations: int = 300, cleanup: bool = True) -> None:
        """Run the evolution.

        Args:
            iterations: trainings to run.
            cleanup: delete the runs that were not best.
        """
        begin_work()
        with training_command(COMMAND):
            super().__call__(iterations=iterations, cleanup=cleanup)
