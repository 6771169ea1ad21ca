"""Diagnose a detector: a validation, what it shows, and what helps without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.utils import LOGGER

from mlc_yolo.data.listing import image_files
from mlc_yolo.evaluation import diagnosis_files
from mlc_yolo.evaluation.diagnosing import DIAGNOSERS
from mlc_yolo.evaluation.diagnosis import Diagnosis
from mlc_yolo.evaluation.recording import listed
from mlc_yolo.evaluation.remedies import VOTE, parse_remedies, try_remedies
from mlc_yolo.evaluation.validator import LOWEST_CONFIDENCE
from mlc_yolo.options.optimizer_steps import few_steps


def diagnose(model: Any, *, conf: float = 0.25, remedies: Any = None, **arguments: Any) -> Diagnosis:
    """Measure what limits a detector.

    Validates, and again with each remedy that takes no training; prints the table of repairs and the verdict, and
    writes both to the run's folder as `diagnosis.csv` and `diagnosis.json`.

    Args:
        model: an `MLCYOLO` of detection, segmentation, pose or oriented boxes: a checkpoint, or an export that gives
            raw outputs.
        conf: the score threshold that the detector is deployed with, in [0, 1].
        remedies: what is tried, each alone: "vote" (box voting), image sizes in px, or a list of these. None is a vote
            and, of a checkpoint, a size an eighth larger, rounded up to a multiple of its stride; False is nothing.
        **arguments: of `MLCYOLO.val`.

    Returns:
        The diagnosis; `folder` says where its files are.

    Raises:
        ValueError: a model of another task, a threshold or a remedy out of its domain, data without objects, or with a
            class that the model does not know.
    """
    if model.task not in DIAGNOSERS:
        raise ValueError(
            f"a diagnosis needs a model of {', '.join(DIAGNOSERS)}, but '{model.model_name}' is a {model.task} model, "
            "which finds no boxes"
        )
    if isinstance(conf, bool) or not isinstance(conf, int | float) or not 0 <= conf <= 1:
        raise ValueError(f"conf={conf!r} must be a score threshold from 0 to 1, such as conf=0.25")
    wanted = parse_remedies(remedies, resizable=isinstance(model.model, nn.Module))
    if wanted and VOTE in wanted and arguments.get("vote"):
        raise ValueError("vote=True is what is diagnosed, not a remedy beside: leave one of the two out")
    validator, made = listed(DIAGNOSERS[model.task])
    try:
        model.val(validator, **{"name": "diagnose", **arguments, "conf": LOWEST_CONFIDENCE, "plots": False})
    except ValueError:
        for folder in (Path(begun.save_dir) for begun in made):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    seen = made[0].observations
    assert seen is not None
    diagnosis = Diagnosis(seen, confidence=conf)
    diagnosis.folder, diagnosis.training = Path(made[0].save_dir), _of_training(model, made[0].data)
    diagnosis.votes = bool(arguments.get("vote"))
    diagnosis.folder.mkdir(parents=True, exist_ok=True)
    diagnosis_files.write(diagnosis, diagnosis.folder)  # whatever becomes of the remedies
    for remedy in try_remedies(model, diagnosis, wanted, size=made[0].args.imgsz, arguments=arguments):
        diagnosis.tried.append(remedy)
    files = diagnosis_files.write(diagnosis, diagnosis.folder)
    LOGGER.info(f"\n{diagnosis_files.as_text(diagnosis)}\n\nWritten: {', '.join(map(str, files))}")
    return diagnosis


def _of_training(model: Any, data: dict[str, Any]) -> str | None:
    """Return a sentence on a training of few steps, if the detector was trained on this very data set."""
    checkpoint = model.ckpt if isinstance(model.ckpt, dict) else {}
    trained_on = (checkpoint.get("train_args") or {}).get("data")
    if not data.get("train") or trained_on is None or Path(str(trained_on)) != Path(str(data.get("yaml_file"))):
        return None
    try:
        return few_steps(checkpoint, len(image_files(data["train"])))
    except (FileNotFoundError, ValueError):  # its training images have gone since
        return None
