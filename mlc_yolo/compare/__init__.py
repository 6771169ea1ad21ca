"""Does it help, and by how much? Train every combination of options and judge the differences."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported on first use: the processes of a comparison shall not import what only their parent needs.
_LAZY = {
    "Comparison": "mlc_yolo.compare.results",
    "compare": "mlc_yolo.compare.run",
    "split_values": "mlc_yolo.compare.grid",
}

__all__ = ["Comparison", "compare", "split_values"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mlc_yolo.compare' has no attribute '{name}'")
