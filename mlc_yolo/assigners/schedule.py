"""What trains in which epoch: a base assigner first, the chosen one after the warm-up (MLC section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from mlc_yolo.assigners.assignment import Assigner
from mlc_yolo.assigners.stock_assignment import StockAssignment

#: What may stand in a schedule: detectors take assigners alone.
Entry = TypeVar("Entry", bound=Assigner | StockAssignment, covariant=True)


@dataclass(frozen=True)
class Schedule(Generic[Entry]):
    """A base assigner for the first epochs, then the main one; a function of the epoch alone, so that resuming is free.

    Attributes:
        base: trains epochs 0 to warmup - 1.
        main: trains from epoch `warmup` on.
        warmup: epochs.
        iou_warmup: epochs in which the predicted IoU does not train.
    """

    base: Entry
    main: Entry
    warmup: int
    iou_warmup: int = 0

    def __deepcopy__(self, memo: object) -> Schedule[Entry]:
        """Return itself: models are copied with their criterion, and an assigner holds no state worth copying."""
        return self

    def at(self, epoch: int) -> Entry:
        """Return the assigner of an epoch counted from 0.

        Example:
            >>> Schedule(base="base", main="main", warmup=2).at(2)
            'main'
        """
        return self.base if epoch < self.warmup else self.main

    def trains_iou(self, epoch: int) -> bool:
        """Return whether the predicted IoU trains in an epoch counted from 0.

        Example:
            >>> Schedule(base="base", main="main", warmup=2, iou_warmup=3).trains_iou(2)
            False
        """
        return epoch >= self.iou_warmup

    def warms_up(self, epoch: int) -> bool:
        """Return whether one of the warm-ups is still to end at an epoch counted from 0."""
        return epoch < max(self.warmup, self.iou_warmup)

    def lasting(self, warmup: int, iou_warmup: int, *, epoch: int) -> Schedule[Entry]:
        """Return this schedule with new lengths for the warm-ups under way; one that has ended stays ended.

        Args:
            warmup: epochs that `base` should train now that the run's length is estimated anew.
            iou_warmup: the same for the epochs without the predicted IoU.
            epoch: the epoch about to train, counted from 0.

        Example:
            >>> Schedule(base="base", main="main", warmup=2, iou_warmup=6).lasting(8, 4, epoch=3)
            Schedule(base='base', main='main', warmup=2, iou_warmup=4)
        """
        return replace(
            self,
            warmup=warmup if epoch < self.warmup else self.warmup,
            iou_warmup=iou_warmup if epoch < self.iou_warmup else self.iou_warmup,
        )
