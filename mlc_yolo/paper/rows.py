"""The rows of the papers' tables: files of cfg/paper, and how their schedules shrink.

A row is one flat file of training arguments, so that `cfg=` of any training takes it too. What the paper reports stands
in its header as the comment `# paper: AP=37.1`, in the paper's units, and nowhere else: a nested key would be refused
where the file is used as `cfg=`, and a second file would have to be kept in step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo.options import specification as options
from mlc_yolo.options.arguments import Arguments
from mlc_yolo.resources import resource_dir
from mlc_yolo.suggestions import did_you_mean


@dataclass(frozen=True)
class Row:
    """A row of a paper's table.

    Attributes:
        name: the file's name without ".yaml".
        arguments: its training arguments, `model` among them.
        paper: what the paper reports, by column of results.csv; AP and AR in percent. Empty where it is not known.
    """

    name: str
    arguments: dict[str, Any]
    paper: dict[str, float]


def find_row(row: str | Path) -> Path:
    """Return the file of a row.

    Args:
        row: a path, or the name of a file in cfg/paper, with or without ".yaml".

    Raises:
        FileNotFoundError: neither; the nearest names, or those of the tables, are in the message.
    """
    path = Path(row)
    if path.is_file():
        return path
    known = {file.stem: file for file in sorted((resource_dir("cfg") / "paper").glob("*.yaml"))}
    stem = path.name.removesuffix(".yaml")
    if stem in known and path.name == str(row):
        return known[stem]
    tables = sorted({"_".join(name.split("_")[:2]) for name in known})
    hint = did_you_mean(stem, known, most=3, cutoff=0.6) or f" Rows: {'_*, '.join(tables)}_*"
    wrong = f"'{row}' is neither a file nor a row of cfg/paper" if str(row) else f"name a row, such as {min(known)}"
    raise FileNotFoundError(f"{wrong}.{hint}")


def read_row(file: Path) -> Row:
    """Read a row's file.

    Args:
        file: a flat YAML of training arguments, with what the paper reports in a comment `# paper: AP=37.1 AP50=56.0`.

    Raises:
        ValueError: no such YAML, an unknown argument, a value outside its domain, or no model or epochs.
    """
    text = file.read_text(encoding="utf-8")
    try:
        arguments = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(arguments, dict) or not {"model", "epochs"} <= set(arguments):
        raise ValueError(f"{file} must hold 'key: value' lines, with model and epochs among them.")
    refuse_unknown(arguments, str(file))
    if "trust" in arguments:
        raise ValueError(f"{file} asks for trust, which no file grants: give it on the command line.")
    stated = [line.removeprefix("# paper:").split() for line in text.splitlines() if line.startswith("# paper:")]
    try:
        paper = {name: float(value) for name, value in (fact.split("=") for facts in stated for fact in facts)}
    except ValueError as error:
        raise ValueError(f"{file}: expected '# paper: AP=37.1', numbers by column: {error}") from error
    return Row(file.name.removesuffix(".yaml"), canonical(arguments), paper)


def rescaled(arguments: Mapping[str, Any], epochs: int, *, by_hand: Collection[str] = ()) -> dict[str, Any]:
    """Move a schedule's boundaries to a run of another length, in proportion; what is whole stays whole.

    Args:
        arguments: a row's arguments.
        epochs: the new length, 1 or more.
        by_hand: names that the user sets: left alone.

    Returns:
        Those of lr_steps, assigner_warmup, iou_warmup, ssl_burn_in and ssl_ramp (of these four, fractions below 1
        stay), warmup_epochs, close_mosaic and warmup_iters that `arguments` has and `by_hand` has not, moved.

    Raises:
        ValueError: so few epochs that two boundaries would fall together or a stage would vanish.

    Example:
        >>> rescaled({"epochs": 24, "lr_steps": [18, 22], "assigner_warmup": 12, "warmup_epochs": 0.06}, 12)
        {'lr_steps': [9, 11], 'assigner_warmup': 6, 'warmup_epochs': 0.03}
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs={epochs} must be a whole number, 1 or more.")
    planned = arguments["epochs"]
    old = {name: arguments[name] for name in _BOUNDARIES if arguments.get(name) is not None and name not in by_hand}
    for name in _MAY_BE_FRACTIONS:
        if 0 < old.get(name, 0) < 1:
            del old[name]

    def moved(length: int) -> dict[str, Any]:
        ratio = length / planned
        return {
            name: [_moved(step, ratio) for step in value] if isinstance(value, list) else _moved(value, ratio)
            for name, value in old.items()
        }

    def fits(length: int) -> bool:
        pairs = sorted(zip(_stages(old, planned), _stages(moved(length), length), strict=True))
        return all(left[0] == right[0] or left[1] < right[1] for left, right in pairwise(pairs))

    if not fits(epochs):
        least = next(length for length in range(epochs + 1, planned + 1) if fits(length))
        settings = ", ".join(f"{name}={value}" for name, value in old.items())
        raise ValueError(
            f"epochs={epochs} leaves nothing of a stage of the row's {planned} epochs ({settings}). "
            f"Take epochs={least} or more, set those by hand too, or shrink every stage alike: scale=0.05"
        )
    result = moved(epochs)
    if arguments.get("warmup_iters") is not None and "warmup_iters" not in by_hand:
        result["warmup_iters"] = shrunk(arguments["warmup_iters"], epochs / planned)
    return result


def shrunk(iterations: int, ratio: float) -> int:
    """Return that share of a number of iterations, whole; what was something stays something.

    Example:
        >>> shrunk(500, 0.05), shrunk(5, 0.05), shrunk(0, 0.05)
        (25, 1, 0)
    """
    return max(round(iterations * ratio), min(iterations, 1))


def refuse_unknown(names: Collection[str], where: str) -> None:
    """Refuse names that are no argument of a training.

    Args:
        names: upstream's and ours.
        where: what they stand in, for the message.

    Raises:
        ValueError: the nearest known name is in the message.
    """
    known = {**DEFAULT_CFG_DICT, **options.defaults()}
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: '{name}' is not an argument of a training.{did_you_mean(name, known)}")


def canonical(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with our options checked and in the form that `options` gives them."""
    return Arguments.of(arguments).flat()


_WARM_UPS = ("assigner_warmup", "iou_warmup", "ssl_burn_in", "warmup_epochs")
_MAY_BE_FRACTIONS = ("assigner_warmup", "iou_warmup", "ssl_burn_in", "ssl_ramp")
_BOUNDARIES = ("lr_steps", *_WARM_UPS, "ssl_ramp", "close_mosaic")


def _moved(value: float, ratio: float) -> float:
    return round(value * ratio) if float(value).is_integer() else value * ratio


def _stages(boundaries: Mapping[str, Any], epochs: int) -> list[float]:
    """Return where stages end, in epochs from the start."""
    ends = [boundaries[name] for name in _WARM_UPS if name in boundaries]
    if "ssl_ramp" in boundaries:
        ends.append(boundaries.get("ssl_burn_in", 0) + boundaries["ssl_ramp"])
    if "close_mosaic" in boundaries:
        ends.append(epochs - boundaries["close_mosaic"])
    return [0, *ends, *boundaries.get("lr_steps", []), epochs]
