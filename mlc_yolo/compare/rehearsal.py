"""Rehearse a comparison before anything is spent: start each training, stop before its first batch, judge its model.

In a process of its own, `python -m mlc_yolo.compare.rehearsal FILE`: a trainer sets random seeds, chooses the device
and logs. FILE holds the options of each training as YAML; why they are refused replaces it, None for those that are
accepted. The model that would be trained is judged as the trained one will be, on one blank image; no image of the data
set is read.
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
    """Return why trainings could not start or be judged; writes nothing but a temporary folder.

    Args:
        trainings: options of each, by name.

    Returns:
        Name -> reason, of those refused.

    Raises:
        RuntimeError: the process itself failed.
    """
    if not trainings:
        return {}
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
        reasons = yaml.safe_load(file.read_text())
        if ended.returncode or not all(value is None or isinstance(value, str) for value in reasons.values()):
            raise RuntimeError(f"checking the options failed ({ended.returncode}):\n{ended.stdout[-2000:]}")
    return {name: reason for name, reason in reasons.items() if reason}


def _refusal(options: dict[str, Any], folder: str) -> str | None:
    """Return why a training of these options could not start or be judged; None if it could."""
    from mlc_yolo.compare.blank_image import judge_blank_image
    from mlc_yolo.evaluation.recording import refuse_other_tasks
    from mlc_yolo.model import MLCYOLO
    from mlc_yolo.training.semi_trainer import SemiTrainer
    from mlc_yolo.training.task_trainers import TASK_TRAINERS

    class Started(Exception):
        """The trainer accepted everything."""

    def rehearsing(trainer: Any) -> Any:
        class Rehearsal(trainer):
            def train(self) -> None:
                self.setup_model()
                self.set_model_attributes()
                raise Started

        return Rehearsal

    name = options.pop("model")
    options |= {"project": folder, "name": "run", "exist_ok": True, "device": "cpu"}
    try:
        model = MLCYOLO(name, trust=bool(options.get("trust", False)))
        refuse_other_tasks(model)
        try:
            model.train(rehearsing(TASK_TRAINERS.get(model.task, SemiTrainer)), **options)
        except Started:
            model.model = model.trainer.model
        else:
            return "it did not train"
        judge_blank_image(model, {**options, "data": model.trainer.args.data})
    except Exception as error:  # whatever a training or its judging would end with
        return f"{str(error).strip() or type(error).__name__}"
    return None


if __name__ == "__main__":
    _file = Path(sys.argv[1])
    _trainings = yaml.safe_load(_file.read_text())
    _reasons = {name: _refusal(options, str(_file.parent)) for name, options in _trainings.items()}
    _file.write_text(yaml.safe_dump(_reasons))
