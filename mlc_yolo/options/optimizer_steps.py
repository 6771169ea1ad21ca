"""How many steps the optimizer takes in a run, and advice where they are few.

Ultralytics adds up the gradients of several batches until they come from `nbs` images, 64 by default. A small data set
is then trained for few steps: 300 images, 20 epochs and a batch of 16 are 100. docs/experiments.md has what more of
them gained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Below so many steps a run is advised to take more.
FEW = 1000


def count_steps(batches: int, warmup: int, gathered: int) -> int:
    """Return how many steps the optimizer takes, as upstream's loop does.

    Args:
        batches: of the whole run.
        warmup: batches in which the number of batches a step grows from one.
        gathered: batches a step after that.

    Example:
        >>> count_steps(100, 0, 1), count_steps(100, 0, 4), count_steps(100, 40, 4)
        (100, 25, 34)
    """
    steps, last = 0, -1
    within = min(warmup + 1, batches) if warmup else 0
    for batch in range(within):
        if batch - last >= max(1, int(np.interp(batch, [0, warmup], [1, gathered]).round())):
            steps, last = steps + 1, batch
    return steps + (batches - 1 - last) // gathered


def describe_steps(trainer: Any) -> str | None:
    """Return a line on a run's optimizer steps; None where every batch is one, or the run's length is not known.

    Args:
        trainer: upstream's trainer at the start of its first epoch.
    """
    batch, nbs, gathered = trainer.batch_size, trainer.args.nbs, trainer.accumulate
    if gathered == 1 or trainer.args.time:
        return None
    batches = len(trainer.train_loader) * trainer.epochs
    steps = count_steps(batches, trainer._get_warmup_iterations(len(trainer.train_loader)), gathered)
    line = f"optimizer: {steps} steps in this run, {gathered} batches each (nbs={nbs}, batch={batch})"
    if steps >= FEW:
        return line
    return f"{line}. So few train a detector badly: nbs={batch} takes {batches} in the same time"


def few_steps(checkpoint: Mapping[str, Any], images: int) -> str | None:
    """Return a sentence on a finished training of few steps that could have had more in the same time; None for others.

    Args:
        checkpoint: as upstream saves it, with `train_args` and `train_results`.
        images: it was trained on.

    Example:
        >>> run = {"epochs": 15, "batch": 16, "nbs": 64, "warmup_epochs": 3.0}
        >>> few_steps({"train_args": run, "train_results": {"epoch": list(range(1, 16))}}, 292)
        'Trained in few steps: about 84 (292 images, 15 epochs, nbs=64). Try nbs=16 first, 285 in the same time.'
        >>> few_steps({"train_args": {**run, "nbs": 16}, "train_results": {"epoch": [1]}}, 292) is None
        True
    """
    args, epochs = checkpoint.get("train_args") or {}, len((checkpoint.get("train_results") or {}).get("epoch", ()))
    batch, nbs = args.get("batch", 0), args.get("nbs", 0)
    if not (epochs and batch > 0) or (gathered := max(round(nbs / batch), 1)) == 1:
        return None
    per_epoch = math.ceil(images / batch)
    warmup = round(min(args.get("warmup_epochs", 0), max(args.get("epochs", epochs) - 1, 0)) * per_epoch)
    steps = count_steps(per_epoch * epochs, warmup, gathered)
    if steps >= FEW:
        return None
    return (
        f"Trained in few steps: about {steps} ({images} images, {epochs} epochs, nbs={nbs}). "
        f"Try nbs={batch} first, {per_epoch * epochs} in the same time."
    )
