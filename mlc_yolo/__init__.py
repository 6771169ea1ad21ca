"""Detector training in which classification and localisation choose each other's samples."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlc_yolo.evaluation.validator import MLCValidator
    from mlc_yolo.model import MLCYOLO
    from mlc_yolo.training.trainer import MLCTrainer

__version__ = "0.1.0"

# Ultralytics reads these when it is imported. Offline, it sends no statistics and looks for no updates; files that are
# asked for are downloaded all the same. Without them, it would also install packages that it misses.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

# Imported on first use: `import mlc_yolo` and `mlc-yolo --help` load neither torch nor ultralytics.
_LAZY = {
    "MLCYOLO": "mlc_yolo.model",
    "MLCTrainer": "mlc_yolo.training.trainer",
    "MLCValidator": "mlc_yolo.evaluation.validator",
}

__all__ = ["MLCYOLO", "MLCTrainer", "MLCValidator", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public class when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mlc_yolo' has no attribute '{name}'")
