"""What may help a detector without training, tried on the very images of a diagnosis: box voting, another image size.

A detector is seldom at its best at the very size it was trained at: augmentation shows it objects of other sizes than
a validation does (Touvron et al., Fixing the train-test resolution discrepancy, NeurIPS 2019). What helps whom is
measured, not known beforehand; docs/experiments.md has gains and losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import nn
from ultralytics.utils import LOGGER

from mlc_yolo.evaluation.diagnosis import Diagnosis, Tried
from mlc_yolo.evaluation.recording import RECORDERS, listed
from mlc_yolo.evaluation.validator import LOWEST_CONFIDENCE
from mlc_yolo.faults import UsageError
from mlc_yolo.options.specification import changed

#: How much larger the images are at which a detector is tried unless sizes are named.
LARGER = 1.125
VOTE = "vote"
#: Arguments of a validation that make files or judge otherwise; here AP alone is asked for.
_LEFT_OUT = ("project", "name", "exist_ok", "save_json", "save_txt", "coco_eval", "voc_eval", "calibrate")


def parse_remedies(remedies: Any, *, resizable: bool = True) -> tuple[str | int, ...] | None:
    """Return what is asked for; empty for nothing, None for our choice.

    Args:
        remedies: "vote", an image size in px, or several of these as a list or with commas; None is our choice, False
            nothing.
        resizable: whether the model takes images of several sizes.

    Raises:
        ValueError: what is neither, or a size where the model takes one alone.

    Example:
        >>> parse_remedies("vote,640")
        ('vote', 640)
    """
    if remedies is None or remedies is False:
        return None if remedies is None else ()
    words = remedies.split(",") if isinstance(remedies, str) else remedies
    asked = [_read(word) for word in (words if isinstance(words, list | tuple) else [words])]
    known = tuple(remedy for remedy in asked if remedy is not None)
    if not asked or len(known) < len(asked):
        raise ValueError(
            f"remedies={remedies!r} must be vote, image sizes in px or both, such as remedies=vote,640; False is none"
        )
    sizes = [remedy for remedy in known if remedy != VOTE]
    if sizes and not resizable:
        raise ValueError(f"sizes are tried with checkpoints: leave {sizes[0]} out, or diagnose the export's checkpoint")
    return known


def _read(word: Any) -> str | int | None:
    """Return "vote" or a size in px; None of what is neither."""
    if isinstance(word, str):
        word = word.strip()
        if word == VOTE:
            return VOTE
        word = int(word) if word.isdecimal() else None
    return int(word) if isinstance(word, Integral) and not isinstance(word, bool) and int(word) > 0 else None


def try_remedies(
    model: Any, diagnosis: Diagnosis, remedies: Sequence[str | int] | None, *, size: int, arguments: Mapping[str, Any]
) -> Iterator[Tried]:
    """Validate the same weights again, with each remedy alone.

    Args:
        model: an `MLCYOLO`.
        diagnosis: of it, with its folder.
        remedies: as `parse_remedies` returns them. A size is rounded up to a multiple of the model's stride.
        size: of the images of the diagnosis, in px; of a checkpoint.
        arguments: of the validation that was diagnosed.

    Yields:
        A row for each that differs from the diagnosis itself. One that was not asked for and fails is left out, with a
        line in the log: a head has no NMS, say, or memory does not hold larger images.

    Raises:
        UsageError: a vote was asked for, of a head without NMS.
    """
    assert diagnosis.folder is not None
    place = {"project": str(diagnosis.folder.parent), "name": diagnosis.folder.name, "exist_ok": True}
    kept = {name: value for name, value in arguments.items() if name not in _LEFT_OUT}
    common = {**kept, **place, "conf": LOWEST_CONFIDENCE, "plots": False, "verbose": False}
    ours: tuple[str | float, ...] = (VOTE, LARGER * size) if isinstance(model.model, nn.Module) else (VOTE,)
    tries: dict[str, tuple[dict[str, Any], float]] = {}
    for remedy in ours if remedies is None else remedies:
        if isinstance(remedy, str):
            if not diagnosis.votes:
                also = "".join(f" {name}={kept[name]}" for name in changed(kept, "vote_"))
                tries[f"vote=True{also}"] = {"vote": True}, 1.0
            continue
        step = max(int(model.model.stride.max()), 32)
        base, other = (math.ceil(px / step) * step for px in (size, remedy))
        if other == base:
            LOGGER.info(f"imgsz={remedy} is no other size: images of {size} px are {base} px to the model")
        else:
            tries[f"imgsz={other}"] = {"imgsz": other}, (other / base) ** 2
    for name, (changes, pixels) in tries.items():
        LOGGER.info(f"The same weights with {name}:")
        validator, made = listed(RECORDERS[model.task])
        try:
            model.val(validator, **{**common, **changes})
        except (UsageError, RuntimeError) as error:  # torch's of memory is a RuntimeError
            if remedies is not None:
                raise
            LOGGER.info(f"{name} is left out: {error}")
            continue
        records = made[0].records
        assert records is not None
        yield Tried(name, pixels, *diagnosis.changed(records))
