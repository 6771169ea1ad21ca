"""Checkpoints are data, not programs: a .pt is read by a restricted reader before Ultralytics opens it.

A .pt is a pickle, and a pickle may call anything. Ultralytics opens it unrestricted, in several places. So this package
first reads every file that it hands to Ultralytics:

1. `torch.load(weights_only=True)` reads the file, with an allow-list of the classes that checkpoints are made of.
2. A stand-in replaces each of these classes. It holds what an object is filled in with, and runs nothing; see
   `checkpoints.stand_ins`.
3. The model's YAML in the file is searched for programs: when Ultralytics rebuilds the model, it evaluates the entry
   `activation` and calls layers by name. A YAML or a model given as the name of another file is refused.

The message of a refusal names the offender. Nothing of the file has run by then.

The data set that a checkpoint names is no reason to refuse the file: predicting and exporting do not open it. Where it
lies at an address, resuming and validating would fetch it. `refuse_fetching` asks the user for the address then.

The promise ends where others may write: a file that is exchanged between this reading and Ultralytics' own goes
unnoticed.
"""

from __future__ import annotations

import pickle
import re
import threading
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn import tasks
from ultralytics.utils import SETTINGS, clean_url
from ultralytics.utils.checks import REMOTE_FILE_PREFIXES, check_file, check_model_file_from_stem
from ultralytics.utils.downloads import attempt_download_asset
from ultralytics.utils.files import get_latest_run

from mlc_yolo.checkpoints import model_yaml, own_files
from mlc_yolo.checkpoints.pickled_names import is_of_yolov5, is_plain, names_in
from mlc_yolo.checkpoints.stand_ins import Held, Refused, StandIn, stand_in

__all__ = [
    *("RefusedCheckpoint", "check", "check_description", "is_fetched", "load_checkpoint", "refuse_fetching", "resumed"),
]

#: Entries that Ultralytics opens as a file where they are a name.
_YAML, _MODELS = "yaml", ("teacher_model", "student_model")
#: Suffixes of what no checkpoint is, beside those of exported models.
_OTHER_KINDS = ("yaml", "yml", "safetensors", "pth", "mlmodel")
#: An address on another machine, as what fetches data reads it; a drive's letter is none.
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_PLATFORM_DATA = re.compile(r"ul://[^/\s]+/datasets/[^/\s]+")
_LOCK = threading.Lock()  # torch keeps its allow-list for the whole process


class RefusedCheckpoint(ValueError):
    """A checkpoint that holds more than data, or names data that would have to be fetched."""


def check(file: str | Path, *, trust: bool = False) -> None:
    """Refuse a checkpoint that is more than data.

    A file that does not exist is left to Ultralytics, which says so. One that this process wrote is no stranger's.

    Args:
        file: .pt file by path, by URL or by the name of an official model, which is then downloaded as Ultralytics
            would. Any other file is read too, unless its suffix says that it is of another kind.
        trust: do not read it: the file may run anything.

    Raises:
        RefusedCheckpoint: it refers to something that no checkpoint needs, which the message names, or it is in
            YOLOv5's own format.
        ValueError: it cannot be read, or holds a bare module.
    """
    name = str(file).strip()
    if trust or _is_of_another_kind(name):
        return
    if _is_remote(name):
        name = str(check_file(name, download_dir=SETTINGS["weights_dir"]))
    name = str(check_model_file_from_stem(name))
    if _is_of_another_kind(name):
        return
    opened = _suffixes(name) & {"", "pt"}  # else Ultralytics refuses it: nothing is looked for elsewhere
    path = Path(attempt_download_asset(name) if opened else name)
    if not path.is_file() or own_files.is_own(path):
        return
    names = names_in(path)
    stand_ins = {name: allowed for name in names if (allowed := stand_in(name)) is not None}
    try:
        content = _read(path, stand_ins)
        _refuse_programs(content, set())
        if isinstance(content, dict) and not isinstance(arguments := content.get("train_args"), dict | None):
            raise Refused(f"arguments of a run that are no dict: {str(arguments)[:80]}")
    except Refused as refused:
        raise _refusal(path, str(refused)) from None
    except pickle.UnpicklingError as error:
        unknown = sorted(name for name in names if name not in stand_ins and not is_plain(name))
        if any(map(is_of_yolov5, unknown)):
            raise RefusedCheckpoint(
                f"{path} is in YOLOv5's own format, that of the repository ultralytics/yolov5, which Ultralytics' "
                "package does not open. Train its successor, such as model=yolov5nu.pt, or any other YOLO"
            ) from None
        raise _refusal(path, ", ".join(unknown) or str(error).splitlines()[0]) from None
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is empty, cut off or of another kind "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    if isinstance(content, Held):
        raise ValueError(
            f"{path} holds a bare {type(content).__name__.rpartition('.')[-1]}, not a checkpoint. Save the model by "
            "MLCYOLO(...).save('file.pt'), or as torch.save({'model': model}, 'file.pt')"
        )


def load_checkpoint(file: str | Path, *, trust: bool = False) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint with Ultralytics' own function, once `check` has passed it.

    Args:
        file: .pt file.
        trust: do not check: the file may run anything.

    Returns:
        The model, float32 and in evaluation mode, and the checkpoint.

    Raises:
        RefusedCheckpoint: see `check`.
    """
    check(file, trust=trust)
    model, checkpoint = tasks.load_checkpoint(file)
    return model, checkpoint


def check_description(config: Any, file: str | Path) -> None:
    """Refuse the YAML of a model in a file without pickles, where it is more than data.

    Args:
        config: the model's YAML.
        file: where it comes from, for the message.

    Raises:
        RefusedCheckpoint: building the model would run or fetch something.
        TypeError: the YAML is no dict; Ultralytics would take a text for the name of a file.
    """
    if not isinstance(config, dict):
        raise TypeError(f"its YAML is {config!r}")
    try:
        _refuse_programs(config, set())
    except Refused as refused:
        raise _refusal(Path(file), str(refused), advice="") from None


def is_fetched(data: Any) -> bool:
    """Whether Ultralytics would fetch a data set, or one of several, from an address of someone's choice.

    Its own platform's data sets, `ul://USER/datasets/NAME`, hold no YAML that could name a program.
    """
    for entry in data if isinstance(data, list | tuple) else [data]:
        text = str(entry)
        if _ADDRESS.match(text) and not _PLATFORM_DATA.fullmatch(text):
            return True
    return False


def refuse_fetching(data: Any, file: str | Path) -> None:
    """Refuse to go on with the data set that a checkpoint names, where it would be fetched from an address.

    Args:
        data: what the checkpoint names.
        file: the checkpoint, for the message.

    Raises:
        RefusedCheckpoint: it would be fetched.
    """
    if is_fetched(data):
        raise RefusedCheckpoint(
            f"{file} was trained on {data}. mlc-yolo fetches no address that a file names: give data=..., that address "
            "if you trust it, or a copy that lies here"
        )


def resumed(resume: Any) -> str:
    """Return the file that Ultralytics goes on from; empty if there is none.

    Args:
        resume: the option; a file, or True for the latest run.
    """
    is_file = isinstance(resume, str | Path) and Path(resume).exists()
    return str(resume) if is_file else str(get_latest_run())


def _is_remote(name: Any) -> bool:
    return str(name).strip().lower().startswith(REMOTE_FILE_PREFIXES)


def _suffixes(name: str) -> set[str]:
    """Return the suffixes that Ultralytics may read in a name: as it stands, and as a URL without its query."""
    return {spelling.rpartition(".")[-1].lower().strip() for spelling in (name, clean_url(name))}


def _is_of_another_kind(name: str) -> bool:
    return _suffixes(name) <= {*_OTHER_KINDS, *_exported()}


@cache
def _exported() -> frozenset[str]:
    """Return the suffixes of exported models that are files."""
    from ultralytics.engine.exporter import export_formats  # much is imported with it

    return frozenset(suffix.rpartition(".")[-1] for suffix in export_formats()["Suffix"] if "." in suffix) - {"pt"}


def _refusal(
    path: Path, what: str, advice: str = ". If you trust whoever made it, give trust=True"
) -> RefusedCheckpoint:
    return RefusedCheckpoint(
        f"{path} is refused: it holds {what}. A checkpoint is data, weights and known model classes; opening this one "
        f"could run a program{advice}"
    )


def _read(path: Path, stand_ins: dict[str, type]) -> Any:
    """Read a file with stand-ins for allowed classes; its tensors hold no values."""
    allowed: list[Any] = [(kind, name) for name, kind in stand_ins.items()]
    with _LOCK:
        others = torch.serialization.get_safe_globals()  # what the user's program allows does not count here
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
        try:
            return torch.load(path, map_location="meta", weights_only=True)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


def _refuse_programs(held: Any, seen: set[int]) -> None:
    """Refuse content, at any depth, that would make Ultralytics run a program.

    Raises:
        Refused: there is such a thing.
    """
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, StandIn) and not held.__name__.startswith(("torch.nn.", "torchvision.ops.")):
        raise Refused(f"{held.__name__} itself, where an object of it belongs")  # it could be called with anything
    if isinstance(held, dict):
        _check_entries(held)
    inner = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple | set) else ()
    own = getattr(held, "__dict__", None)  # of stand-ins the state, of tensors and ordered dicts what was added to them
    for value in (*inner, own if isinstance(own, dict) else None):
        _refuse_programs(value, seen)


def _check_entries(held: dict[Any, Any]) -> None:
    """Refuse a dict that would have Ultralytics run something if it is a model's YAML or an object's attributes.

    Raises:
        Refused: it would.
    """
    own = getattr(held, "__dict__", {})  # they could stand in for its methods
    if set(own) - {"_metadata"}:
        raise Refused(f"a dict with attributes of its own: {', '.join(map(str, own))}")
    if program := model_yaml.program_in(held):
        raise Refused(program)
    config = held.get(_YAML)
    if isinstance(config, dict):
        for part in ("backbone", "head"):  # of the parser's rows, which other objects could give as well
            if not isinstance(dict.get(config, part), list | tuple | str | None):
                raise Refused(f"a model YAML whose {part} is no list")
    elif config is not None:
        raise Refused(f"a model whose YAML is {str(config)[:80]}")
    for name in _MODELS:
        if held.get(name) is not None and (not isinstance(held[name], Held) or held[name].accepts):
            raise Refused(f"a {name} that is no model: {str(held[name])[:80]}")
