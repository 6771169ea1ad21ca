"""Which assigner trains in which epoch: a base first, the chosen one after the warm-up (MLC section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_yolo.assigners.assignment import Assigner


@dataclass(frozen=True)
class Schedule:
    """A base assigner for the first epochs, then the main one; a function of the epoch alone, so that resuming is free.

    Attributes:
        base: trains epochs 0 to warmup - 1.
        main: trains from epoch `warmup` on.
        warmup: epochs.
    """

    base: Assigner
    main: Assigner
    warmup: int

    def __deepcopy__(self, memo: object) -> Schedule:
        """Return itself: models are copied with their criterion, and an assigner holds no state worth copying."""
        return self

    def at(self, epoch: int) -> Assigner:
        """Return the assigner of an epoch counted from 0.

        Example:
            >>> Schedule(base="base", main="main", warmup=2).at(2)
            'main'
        """
        return self.base if epoch < self.warmup else self.main
