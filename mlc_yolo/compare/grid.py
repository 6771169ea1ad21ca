"""From options with several values to the trainings of a comparison.

Any option of a training may be a list; the grid is the product of all lists. Of these, `seed` and `data` do not make
variants: runs of the same seed on the same data are compared with one another.

An option whose one value may be a list (`LIST_VALUED`) varies when it is a list of lists: `lr_steps=[8,11],[16,18]` is
two values, `lr_steps=8,11` is one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ultralytics.cfg import smart_value

from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.options import specification as options
from mlc_yolo.paper.rows import canonical, refuse_unknown

#: Options whose one value may be a list.
LIST_VALUED = frozenset({"classes", "freeze", "lr_steps", "unlabeled"})
#: What makes no variant: differences are taken within each data set, between runs of the same seed.
PAIRING = ("data", "seed")
#: Arguments of a training that are no part of the question; a run that is finished may differ in them.
PLACE = frozenset({"workers", "verbose", "plots", "trust"})
#: Most bytes of a value's short name, and of a run's: a name of a file may have 255, what we add to it included.
_LABEL_BYTES, _NAME_BYTES = 80, 200
_JUDGING = ("classes", "single_cls", "split")
_OWN = ("cfg", "mode", "resume", "save_dir", "task")


@dataclass(frozen=True)
class Cell:
    """One training of a grid.

    Attributes:
        name: of its folder, such as "assigner=mlc,seed=0".
        variant: the same without data and seed; empty where nothing else varies.
        data: short name of the data set.
        options: every argument of its training, canonical.
        varied: those that vary in the grid, by name; `data` and `seed` among them.
    """

    name: str
    variant: str
    data: str
    options: dict[str, Any]
    varied: dict[str, Any]

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return int(self.options["seed"])

    @property
    def command(self) -> str:
        """The command of its training alone."""
        return shlex.join(["mlc-yolo", "train", *(f"{name}={value}" for name, value in self._telling.items())])

    @property
    def digest(self) -> str:
        """A hash of the options that its result depends on."""
        return hashlib.sha256(json.dumps(self._telling, sort_keys=True).encode()).hexdigest()

    @property
    def _telling(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name not in PLACE}


@dataclass(frozen=True)
class Grid:
    """The trainings of a comparison.

    Attributes:
        fixed: options with one value.
        lists: options with several values, and always `seed`.
        chosen: the baseline's values of the options that make variants.
        baseline: its name.
        cells: the trainings, in the order in which they run: a seed of every variant before the next seed.
    """

    fixed: dict[str, Any]
    lists: dict[str, list[Any]]
    chosen: dict[str, Any]
    baseline: str
    cells: list[Cell]

    @property
    def variants(self) -> list[str]:
        """Names of the variants, the baseline first."""
        others = dict.fromkeys(cell.variant for cell in self.cells if cell.variant != self.baseline)
        return [self.baseline, *others]

    def cell(self, name: str) -> Cell:
        """Return the cell of that name.

        Raises:
            KeyError: there is none.
        """
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise KeyError(f"no run '{name}'; there are {', '.join(cell.name for cell in self.cells)}")


def split_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the command line's comma-separated words into lists, as `compare` takes them.

    Args:
        arguments: values as Ultralytics reads them from key=value.

    Returns:
        The same, words with commas outside brackets as lists. A name with a comma is written in brackets:
        model=['a,b.pt'].

    Example:
        >>> split_values({"assigner": "tal,mlc", "ssl": "none,sed", "seed": (0, 1), "name": "a,b"})
        {'assigner': ['tal', 'mlc'], 'ssl': ['none', 'sed'], 'seed': [0, 1], 'name': 'a,b'}
    """
    listed: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, tuple):
            value = list(value)
        whole = name in {"baseline", "device", "name", "project"} or (name in LIST_VALUED and "[" not in str(value))
        if isinstance(value, str) and not whole:
            words = re.split(r",(?![^\[(]*[\])])", value)
            value = [_value(name, word.strip()) for word in words] if len(words) > 1 else value
        listed[name] = value
    return listed


def plan(arguments: Mapping[str, Any], baseline: str | Mapping[str, Any] | None = None) -> Grid:
    """Make the grid, names and our options checked.

    Args:
        arguments: options of trainings by name, `model` and `data` among them, any of them a list.
        baseline: values of varied options, as a mapping or as "assigner=mlc,iou_head=True"; for those left out, the
            first of the list.

    Raises:
        ValueError: an unknown option, a value outside its domain, a list of what may not vary, or a baseline that is
            not in the grid.
    """
    for name in _OWN:
        if arguments.get(name) is not None:
            raise ValueError(f"{name} does not go with a comparison, which starts trainings of its own: leave it out")
    refuse_unknown(arguments, "compare")
    lists: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    for name, value in {"seed": 0, **arguments}.items():
        values = [_settled(name, canonical({name: option})[name]) for option in _values(name, value)]
        if len(values) == 1 and name != "seed":
            fixed[name] = values[0]
        else:
            lists[name] = values
    _refuse_lists(lists)
    varied = [name for name in lists if name not in PAIRING]
    chosen = {name: lists[name][0] for name in varied} | _baseline(baseline, {name: lists[name] for name in varied})
    labels = {name: dict(zip(map(_key, values), _labels(values), strict=True)) for name, values in lists.items()}

    def name_of(chosen: Mapping[str, Any], names: Sequence[str]) -> str:
        joined = ",".join(f"{name}={labels[name][_key(chosen[name])]}" for name in names)
        return _within(joined, _NAME_BYTES, joined)

    pairing = [name for name in PAIRING if name in lists]
    cells = []
    for combination in product(*(lists[name] for name in [*pairing, *varied])):
        drawn = dict(zip([*pairing, *varied], combination, strict=True))
        cells.append(
            Cell(
                name=name_of(drawn, [*varied, *pairing]),
                variant=name_of(drawn, varied),
                data=labels["data"][_key(drawn["data"])] if "data" in lists else _labels([fixed["data"]])[0],
                options=canonical({**fixed, **drawn}),  # once more: two options may contradict each other
                varied=drawn,
            )
        )
    if len({_folded(cell.name) for cell in cells}) < len(cells):
        raise ValueError("two runs would have one name: rename the files or folders that the lists name")
    if len(cells) == 1:
        raise ValueError("nothing to compare: give an option several values, such as assigner=tal,mlc seed=0,1,2")
    return Grid(fixed, lists, chosen, name_of(chosen, varied), cells)


def _value(name: str, word: str) -> Any:
    """Read one word; "none" is a choice of some options of ours, and empty for all others."""
    choices = options.specifications().get(name, {}).get("choices", ())
    return word if word.lower() == "none" and "none" in choices else smart_value(word)


def _values(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value]
    if name in LIST_VALUED and not any(isinstance(item, list | tuple) for item in value):
        return [list(value)]
    if not value:
        raise ValueError(f"{name} is an empty list: give it a value, or leave it out")
    return [list(item) if isinstance(item, tuple) else item for item in value]


def _settled(name: str, value: Any) -> Any:
    """Return a value that a file can hold and that means the same from any folder."""
    if name == "data":
        value = resolve_data(value)
    if name == "seed" and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"seed={value!r} must be a whole number")
    if isinstance(value, Path) or (name in {"data", "model", "pretrained"} and isinstance(value, str)):
        return str(Path(value).resolve()) if Path(value).is_file() else str(value)
    try:
        json.dumps(value)
    except TypeError as error:
        raise ValueError(f"{name}={value!r} cannot be handed to other processes: give text or numbers") from error
    return value


def _refuse_lists(lists: Mapping[str, list[Any]]) -> None:
    for name, values in lists.items():
        if name in _JUDGING:
            raise ValueError(f"{name} may not vary: it changes what is judged, and the results could not be compared")
        if name in PLACE:
            raise ValueError(f"{name} may not vary: it does not change a training's result")
        keys = [_key(value) for value in values]
        for value, key in zip(values, keys, strict=True):
            if keys.count(key) > 1:
                raise ValueError(f"{name}={value} is there twice: give each value once")


def _baseline(wanted: str | Mapping[str, Any] | None, lists: Mapping[str, list[Any]]) -> dict[str, Any]:
    if wanted is None:
        return {}
    if isinstance(wanted, str):
        pairs = [pair.partition("=") for pair in re.split(r",(?=\w+=)", wanted)]
        wanted = {name.strip(): _value(name.strip(), word) if word else None for name, _, word in pairs}
    baseline: dict[str, Any] = {}
    for name, value in wanted.items():
        value = _settled(name, canonical({name: value})[name] if name else value)
        if name not in lists or _key(value) not in map(_key, lists[name]):
            there = "; ".join(f"{name} is one of {', '.join(map(str, values))}" for name, values in lists.items())
            raise ValueError(f"baseline: no run has {name}={value}. Write baseline=name=value, where {there}")
        baseline[name] = value
    return baseline


def _key(value: Any) -> str:
    return json.dumps(value)


def _labels(values: Sequence[Any]) -> list[str]:
    """Return short names of an option's values, fit for file names and different from one another."""
    if all(isinstance(value, str) for value in values):
        paths = [Path(value) for value in values]
        # Every data set may call its file data.yaml, every run its weights best.pt.
        paths = [
            path.parent if path.name == "data.yaml" and path.parent.name else path.with_suffix("") for path in paths
        ]
        for parts in range(1, max(len(path.parts) for path in paths) + 1):
            names = ["-".join(path.parts[-parts:]) for path in paths]
            if len(set(names)) == len(names):
                return _one_to_one(names, values)
    names = ["-".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
    return _one_to_one(names, values)


def _one_to_one(names: Sequence[str], values: Sequence[Any]) -> list[str]:
    """Return names as labels; those that fall together on some file system, or are too long, get a digest."""
    labels = [_safe(name) for name in names]
    folded = [_folded(label) for label in labels]
    distinct = [
        label if label and folded.count(fold) == 1 else f"{label}-{_short_digest(_key(value))}".lstrip("-")
        for label, fold, value in zip(labels, folded, values, strict=True)
    ]
    return [_within(label, _LABEL_BYTES, _key(value)) for label, value in zip(distinct, values, strict=True)]


def _folded(name: str) -> str:
    """Return what a name is to file systems that keep neither case nor ways of writing a letter apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _within(name: str, limit: int, meaning: str) -> str:
    """Return a name of at most so many bytes of UTF-8; one that is cut ends with a digest of all that it means."""
    encoded = name.encode()
    if len(encoded) <= limit:
        return name
    return f"{encoded[: limit - 9].decode(errors='ignore')}-{_short_digest(meaning)}"


def _safe(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")
