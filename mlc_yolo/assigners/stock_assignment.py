"""How a schedule asks for Ultralytics' own assignment and loss instead of an assigner."""

from __future__ import annotations

from enum import Enum
from typing import Final


class StockAssignment(Enum):
    """The one value that stands in a YOLO's schedule for "run Ultralytics' own loss, to the bit".

    It is no assigner and cannot be called: Ultralytics assigns within its loss. For the same decision as an assigner,
    to draw it for example, take `TaskAligned()`, which is what `build_assigner("tal", ...)` gives. An enum's member
    stays itself when a criterion is copied or pickled, so that `is STOCK` is the whole question.
    """

    STOCK = "stock"


STOCK: Final = StockAssignment.STOCK
