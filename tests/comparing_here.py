"""Comparisons whose trainings run in this process, which saves what a process takes to start."""

from __future__ import annotations

import importlib
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mlc_yolo.checkpoints import own_files
from mlc_yolo.compare import executors, parent


def run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let comparisons run their tasks here. None knows which files the others wrote; what ends one is in its log."""

    def run(tasks: Sequence[executors.Task], **_: Any) -> Iterator[tuple[executors.Task, int]]:
        for task in tasks:
            monkeypatch.setattr(own_files, "_own", {})
            monkeypatch.setattr(sys, "argv", [task.module, *task.arguments, "cpu"])
            try:
                runpy.run_path(str(importlib.import_module(task.module).__file__), run_name="__main__")
            except Exception:
                task.log.write_text(traceback.format_exc())
                yield task, 1
            else:
                yield task, 0

    monkeypatch.setattr(executors, "run_local", run)
    monkeypatch.setattr(parent, "end_with_parent", lambda: None)
