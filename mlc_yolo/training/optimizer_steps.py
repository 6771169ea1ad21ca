"""How many steps the optimizer takes in a run, and advice where they are few.

Ultralytics adds up the gradients of several batches until they come from `nbs` images, 64 by default. A small data set
is then trained for few steps: 300 images, 20 epochs and a batch of 16 are 100. docs/experiments.md has what more of
them gained.
"""

from __future__ import annotations

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
    batch, nbs = trainer.batch_size, trainer.args.nbs
    gathered = max(round(nbs / batch), 1)
    if gathered == 1 or trainer.args.time:
        return None
    batches = len(trainer.train_loader) * trainer.epochs
    steps = count_steps(batches, trainer._get_warmup_iterations(len(trainer.train_loader)), gathered)
    line = f"optimizer: {steps} steps in this run, {gathered} batches each (nbs={nbs}, batch={batch})"
    if steps >= FEW:
        return line
    return f"{line}. So few train a detector badly: nbs={batch} takes {batches} in the same time"
