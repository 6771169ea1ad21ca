"""Predictions that are decoded on first use. Static assigners never read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlc_yolo.assigners import Predictions


class DeferredPredictions(Predictions):
    """`Predictions` whose tensors are computed at the first look.

    Every assigner is called alike, and a static one costs no sigmoid over all classes and no decoding.
    """

    def __init__(self, compute: Callable[[], Predictions]) -> None:
        """Set up.

        Args:
            compute: gives the predictions.
        """
        object.__setattr__(self, "_compute", compute)

    def __getattr__(self, name: str) -> Any:
        """Compute both tensors, once."""
        if name not in ("scores", "boxes"):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        whole = self._compute()
        object.__setattr__(self, "scores", whole.scores)
        object.__setattr__(self, "boxes", whole.boxes)
        return getattr(whole, name)
