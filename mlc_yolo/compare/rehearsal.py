"""Start trainings and stop before their first batch, so that all of a comparison is known to start before any does.

In a process of its own, `python -m mlc_yolo.compare.rehearsal FILE`: a trainer sets random seeds, chooses the device
and logs. FILE holds the options of each training as YAML; why the trainers refuse them replaces it, None for those
that they accept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlc_yolo.compare.executors import environment


def refusals(trainings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return why trainings could not start; writes nothing but a temporary folder.

    Args:
        trainings: options of each, by name.

    Returns:
        Name -> reason, of those refused.

    Raises:
        RuntimeError: the process itself failed.
    """
    with tempfile.TemporaryDirectory(prefix="mlc-yolo-") as folder:
        file = Path(folder) / "trainings.yaml"
        file.write_text(yaml.safe_dump({name: dict(options) for name, options in trainings.items()}))
        ended = subprocess.run(
            [sys.executable, "-m", __name__, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment()},
            text=True,
            check=False,
        )
        found = yaml.safe_load(file.read_text())
        if ended.returncode or not all(value is None or isinstance(value, str) for value in found.values()):
            raise RuntimeError(f"checking the options failed ({ended.returncode}):\n{ended.stdout[-2000:]}")
    return {name: reason for name, reason in found.items() if reason}


def _refusal(options: dict[str, Any], folder: str) -> str | None:
    from mlc_yolo.model import MLCYOLO
    from mlc_yolo.training.semi_trainer import SemiTrainer

    class Started(Exception):
        """The trainer accepted everything."""

    class Rehearsal(SemiTrainer):
        def train(self) -> None:
            raise Started

    try:
        model = MLCYOLO(options.pop("model"), trust=bool(options.get("trust", False)))
        if model.task != "detect":  # it would train, and the validation that records boxes would fail afterwards
            return f"expected a detection model, got one of task '{model.task}', whose results cannot be judged here"
        model.train(Rehearsal, **{**options, "project": folder, "name": "run", "exist_ok": True, "device": "cpu"})
    except Started:
        return None
    except Exception as error:  # whatever a training would end with
        return f"{str(error).strip() or type(error).__name__}"
    return "it did not train"


if __name__ == "__main__":
    _file = Path(sys.argv[1])
    _trainings = yaml.safe_load(_file.read_text())
    _found = {name: _refusal(options, str(_file.parent)) for name, options in _trainings.items()}
    _file.write_text(yaml.safe_dump(_found))
