"""Checkpoints are data, not programs: a .pt is read by a restricted reader before Ultralytics opens it.

A .pt is a pickle, and a pickle may call anything. Ultralytics opens it unrestricted, in several places. So every file
that reaches Ultralytics through this package is read here first:

1. `torch.load(weights_only=True)` reads it, with an allow-list of the classes that checkpoints are made of.
2. Each of them is replaced by a stand-in that holds what it was given and does nothing; see `checkpoints.stand_ins`.
3. The model's YAML in the file is read as Ultralytics does when it rebuilds the model, for then it evaluates the entry
   `activation` and calls the layers by name. Where it would open another file instead, the file is refused.
4. So it is for a data set on another machine: it may name a program to run, and resuming would fetch it.

What is refused is named, before anything runs. The promise ends where others may write: a file that is exchanged
between this reading and Ultralytics' own is not noticed.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from ultralytics.nn import tasks
from ultralytics.utils import SETTINGS, clean_url
from ultralytics.utils.checks import REMOTE_FILE_PREFIXES, check_file, check_model_file_from_stem
from ultralytics.utils.downloads import attempt_download_asset
from ultralytics.utils.files import get_latest_run

from mlc_yolo.checkpoints import model_yaml
from mlc_yolo.checkpoints.stand_ins import Held, Refused, StandIn, stand_in

__all__ = ["RefusedCheckpoint", "check", "check_description", "load_checkpoint", "resumed"]

#: What files of tensors name beside the types and functions of `torch`, and its `_rebuild_` functions.
_TENSORS = ("collections.OrderedDict", "torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter")
#: Entries that Ultralytics opens as a file where they are a name.
_YAML, _MODELS = "yaml", ("teacher_model", "student_model")
#: Suffixes of what no checkpoint is, beside those of exported models.
_OTHER_KINDS = ("yaml", "yml", "safetensors", "pth", "mlmodel")
#: An address on another machine, as what fetches data reads it; a drive's letter is none.
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_PLATFORM_DATA = re.compile(r"ul://[^/\s]+/datasets/[^/\s]+")
_LOCK = threading.Lock()  # torch keeps its allow-list for the whole process


class RefusedCheckpoint(ValueError):
    """A checkpoint that holds more than weights and known classes."""


def check(file: str | Path, *, trust: bool = False) -> None:
    """Refuse a checkpoint that is more than data.

    A file that does not exist is left to Ultralytics, which says so.

    Args:
        file: .pt file by path, by URL or by the name of an official model, which is then downloaded as Ultralytics
            would. Any other file is looked at too, unless its suffix tells that it is of another kind.
        trust: do not look: the file may run anything.

    Raises:
        RefusedCheckpoint: it asks for something that no checkpoint needs; the message names it.
        ValueError: it cannot be read.
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
    if not path.is_file():
        return
    named = set(_names(path))
    stand_ins = {each: made for each in named if (made := stand_in(each)) is not None}
    try:
        found = _read(path, stand_ins)
        _refuse_programs(found, set())
        _refuse_remote_data(found.get("train_args") if isinstance(found, dict) else None)
    except Refused as refused:
        raise _refusal(path, str(refused)) from None
    except pickle.UnpicklingError as error:
        unknown = sorted(each for each in named if each not in stand_ins and not _is_torchs(each))
        raise _refusal(path, ", ".join(unknown) or str(error).splitlines()[0]) from None
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is empty, cut off or something else "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


def load_checkpoint(file: str | Path, *, trust: bool = False) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint with Ultralytics' own function, once `check` has passed it.

    Args:
        file: .pt file.
        trust: do not look: the file may run anything.

    Returns:
        The model, float32 and in evaluation mode, and the checkpoint.

    Raises:
        RefusedCheckpoint: see `check`.
    """
    check(file, trust=trust)
    model, checkpoint = tasks.load_checkpoint(file)
    return model, checkpoint


def check_description(config: Any, arguments: Any, file: str | Path) -> None:
    """Refuse what tells of a model in a file without pickles, where it is more than data.

    Args:
        config: the model's YAML.
        arguments: those of its run, by name.
        file: where they come from, for the message.

    Raises:
        RefusedCheckpoint: building the model, going on with the run or validating would run or fetch something.
        TypeError: the YAML is no dict; Ultralytics would take a text for the name of a file.
    """
    if not isinstance(config, dict):
        raise TypeError(f"its YAML is {config!r}")
    try:
        _refuse_programs(config, set())
        _refuse_remote_data(arguments)
    except Refused as refused:
        raise _refusal(Path(file), str(refused), advice="") from None


def resumed(resume: Any) -> str:
    """Return the file that Ultralytics goes on from; empty if there is none.

    Args:
        resume: the option.
    """
    given = isinstance(resume, str | Path) and Path(resume).exists()
    return str(resume) if given else str(get_latest_run())


def _is_remote(name: Any) -> bool:
    return str(name).strip().lower().startswith(REMOTE_FILE_PREFIXES)


def _suffixes(name: str) -> set[str]:
    """Return the suffixes that Ultralytics may read in a name: as it stands, and as a URL without its query."""
    return {read.rpartition(".")[-1].lower().strip() for read in (name, clean_url(name))}


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
    """Read a file with stand-ins for what is allowed; its tensors hold no values."""
    allowed: list[Any] = [(made, name) for name, made in stand_ins.items()]
    with _LOCK:
        others = torch.serialization.get_safe_globals()  # whatever someone allows, here stand-ins are all there is
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
        try:
            return torch.load(path, map_location="meta", weights_only=True)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


def _is_torchs(name: str) -> bool:
    """Whether the name is one that files of tensors have; torch decides, this only keeps it out of messages."""
    return name in _TENSORS or name.startswith("torch._utils._rebuild_") or (name[:6], name.count(".")) == ("torch.", 1)


def _names(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file's pickles refer to, also in protocols that torch does not read."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith(".pkl"):
                    with archive.open(entry) as stream:
                        yield from _names_in(stream)
    else:  # before torch 1.6: a magic number, a version, the machine's sizes, then the object
        with open(path, "rb") as stream:
            for _ in range(4):
                yield from _names_in(stream)


def _names_in(stream: Any) -> Iterator[str]:
    texts: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name in {"GLOBAL", "INST"}:
                yield _present(*str(argument).split(" ", 1))
            elif operation.name == "STACK_GLOBAL":
                yield _present(*texts[-2:])
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception:  # the names only serve a message: what cannot be read is refused by torch
        return


def _present(module: str = "", name: str = "") -> str:
    """Return a dotted name as Python 3 has it."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _refuse_programs(held: Any, seen: set[int]) -> None:
    """Refuse what Ultralytics would run something for, anywhere in what was read.

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


def _refuse_remote_data(arguments: Any) -> None:
    """Refuse arguments of a run that would have Ultralytics fetch a data YAML when the run goes on or is validated.

    Raises:
        Refused: they would.
    """
    if arguments is None:
        return
    if not isinstance(arguments, dict):
        raise Refused(f"arguments of a run that are no dict: {str(arguments)[:80]}")
    data = arguments.get("data")
    for each in data if isinstance(data, list | tuple) else [data]:
        text = str(PurePosixPath(*each.given) if isinstance(each, Held) else each)
        if _ADDRESS.match(text) and not _PLATFORM_DATA.fullmatch(text):  # Ultralytics' platform has no such YAMLs
            raise Refused(f"data to be fetched from {text}")
