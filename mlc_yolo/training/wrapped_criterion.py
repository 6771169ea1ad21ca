"""A criterion around another one: it adds losses, and is otherwise what it stands around."""

from __future__ import annotations

from typing import Any


class WrappedLoss:
    """Adds to a supervised criterion. Attributes that are not its own, such as `update`, are that criterion's.

    Attributes:
        supervised: the criterion inside, which may be wrapped itself.
    """

    def __init__(self, supervised: Any) -> None:
        """Stand around a criterion."""
        self.supervised = supervised

    def __getattr__(self, name: str) -> Any:
        """Look other attributes up in the criterion inside."""
        if name == "supervised":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.supervised, name)

    @property
    def innermost(self) -> Any:
        """The criterion of labels alone."""
        return getattr(self.supervised, "innermost", self.supervised)

    @property
    def epoch(self) -> int:
        """The epoch being trained."""
        return int(self.supervised.epoch)

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.supervised.epoch = value

    @property
    def schedule(self) -> Any:
        """Assigners of the labelled images by epoch."""
        return self.supervised.schedule

    @schedule.setter
    def schedule(self, value: Any) -> None:
        self.supervised.schedule = value

    @property
    def updates(self) -> int:
        """Epochs an end-to-end criterion has counted."""
        return int(self.supervised.updates)

    @updates.setter
    def updates(self, value: int) -> None:
        self.supervised.updates = value
