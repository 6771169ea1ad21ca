"""Distinguish mistakes in a request from faults of mlc-yolo by whether the work had begun.

Every command first checks its request and opens model and data, then works. An error before the work is about the
request, and its text is all the user needs. A later error is a fault, and is shown with its traceback.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

_BEGUN: ContextVar[bool] = ContextVar("mlc_yolo_work_begun", default=False)

#: Callbacks of Ultralytics that run once everything is checked and opened; an exporter's runs before it writes.
FIRST_STEPS = ("on_train_start", "on_val_batch_start", "on_predict_batch_start", "on_export_start")


class UsageError(ValueError):
    """A request that cannot be met, whenever that shows; its text is all the user needs."""


def begin_work(_source: Any = None) -> None:
    """Note that all checks are behind; also a callback for `FIRST_STEPS`."""
    _BEGUN.set(True)


def expect_work() -> None:
    """Note that a request comes in, of which nothing is checked yet."""
    _BEGUN.set(False)


def work_has_begun() -> bool:
    """Whether an error that arises now is a fault."""
    return _BEGUN.get()
