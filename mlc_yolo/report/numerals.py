"""Format numbers for the pages: a true minus sign, a dash for an unknown value."""

from __future__ import annotations

import math
from typing import Any


def cell(value: float, digits: int = 1) -> dict[str, Any]:
    """Return a table's cell: the value it is sorted by, and its text.

    Example:
        >>> cell(-1234.56)
        {'value': -1234.56, 'text': '−1,234.6'}
        >>> cell(math.nan)["text"]
        '–'
    """
    return {"value": value, "text": "–" if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")}


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign; one that rounds to nothing has none.

    Example:
        >>> signed(1.25, 2), signed(-0.04)
        ('+1.25', '0.0')
    """
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")
