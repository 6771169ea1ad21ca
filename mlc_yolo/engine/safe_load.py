"""Checkpoints are data, not programs: a .pt is read by a restricted reader before Ultralytics opens it.

A .pt is a pickle, and a pickle may call anything. Ultralytics opens it unrestricted, in several places. So every file
that reaches Ultralytics through this package is read here first:

1. `torch.load(weights_only=True)` reads it, with an allow-list of the classes that checkpoints are made of: modules of
   torch.nn, torchvision, Ultralytics and this package, and the data types named below.
2. Each of them is replaced by a stand-in that holds a state and does nothing: no constructor, no `__setstate__`, no
   function runs. A class that the file calls, instead of filling it in as pickled modules are, is refused: some
   constructors evaluate what they are given, those of Ultralytics' models among them.
3. The model's YAML in the file is read as Ultralytics does when it rebuilds the model, for then it evaluates the entry
   `activation` and calls the layers by name. So is the data set it names: one on another machine may name a program
   to run, and resuming would fetch it.

What is refused is named, before anything runs. The promise ends where others may write: a file that is exchanged
between this reading and Ultralytics' own is not noticed.
"""

from __future__ import annotations

import ast
import pickle
import pickletools
import sys
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from ultralytics.nn import distill_model, tasks
from ultralytics.utils import SETTINGS, clean_url, loss, tal
from ultralytics.utils.checks import REMOTE_FILE_PREFIXES, check_file, check_model_file_from_stem
from ultralytics.utils.downloads import attempt_download_asset
from ultralytics.utils.files import get_latest_run

from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.dense import LossRecipe
from mlc_yolo.heads.iou_aware import IoUAwareDetect

__all__ = ["RefusedCheckpoint", "check", "check_yaml", "load_checkpoint", "resumed"]

#: Packages whose `nn.Module` classes are allowed.
_PACKAGES = (
    *("torch.nn.modules", "torchvision.models", "torchvision.ops", "torchvision.transforms"),
    *("ultralytics.nn.modules", tasks.__name__, distill_model.__name__, loss.__name__, tal.__name__),
    *(module.__module__.rpartition(".")[0] for module in (DetectorModel, IoUAwareDetect)),
)
#: Modules of which other classes are allowed too: they are filled in as data, by pickle itself.
_DATA_MODULES = (
    *(distill_model.__name__, loss.__name__, tal.__name__, LossRecipe.__module__, BoxCoder.__module__),
    "torchvision.transforms.transforms",
)
#: Names of released checkpoints that Ultralytics reads as other classes.
_ALIASES = (
    *("ultralytics.nn.modules.block.Silence", "ultralytics.nn.tasks.YOLOv10DetectionModel"),
    "ultralytics.utils.loss.v10DetectLoss",
)
#: What files of tensors name beside the types and functions of `torch`, and its `_rebuild_` functions.
_TENSORS = ("collections.OrderedDict", "torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter")
_LOCK = threading.Lock()  # torch keeps its allow-list for the whole process


class RefusedCheckpoint(ValueError):
    """A checkpoint that holds more than weights and known classes."""


class _Refused(Exception):
    """Raised within torch's reader; not an `UnpicklingError`, which it would dress up."""


class _StandIn(type):
    """Makes classes that stand for an allowed one; `accepts` says which arguments it may be called with, if any."""

    accepts: Callable[..., bool] | None

    def __call__(cls, *args: Any) -> Any:
        if cls.accepts is None or not cls.accepts(*args):
            shown = ", ".join(repr(arg) if isinstance(arg, str | int) else type(arg).__name__ for arg in args)
            raise _Refused(f"a call of {cls.__name__}({shown[:80]})")
        return type.__call__(cls, *args)


class _Held(metaclass=_StandIn):
    """An object of the checkpoint while it is looked at."""

    accepts = None
    state: Any = None

    def __new__(cls, *_: Any) -> _Held:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if type(self).__name__ == "numpy.dtype" and any(part is not None for part in state[2:5]):
            raise _Refused("a numpy.dtype of several fields")
        self.state = state


def _is_bound_forward(owner: Any, name: str) -> bool:
    """Whether `getattr(owner, name)` is a layer's `forward`, as fused models hold it."""
    of_layer = isinstance(owner, _Held | _StandIn)
    return of_layer and name.startswith("forward") and name.isidentifier()


def _is_number(kind: Any, *_: Any) -> bool:
    return isinstance(kind, str) and kind.lstrip("<>=|")[:1] in tuple("?bBiuf")


def _are_texts(*parts: Any) -> bool:
    return all(isinstance(part, str) for part in parts)


#: Allowed types that are no modules -> what they may be called with.
_DATA: dict[str, Callable[..., bool]] = {
    "builtins.getattr": _is_bound_forward,
    "numpy.dtype": _is_number,
    **{f"numpy.{core}.multiarray.scalar": lambda kind, content: True for core in ("core", "_core")},
    **{f"{module}.{kind}Path": _are_texts for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")},
    **{f"ultralytics.{place}.IterableSimpleNamespace": lambda: True for place in ("utils", "yolo.utils")},
    "torchvision.transforms.functional.InterpolationMode": _are_texts,
}


def check(file: str | Path, *, trust: bool = False) -> None:
    """Refuse a checkpoint that is more than data.

    A file that does not exist is left to Ultralytics, which says so.

    Args:
        file: .pt file by path, by URL or by the name of an official model, which is then downloaded as Ultralytics
            would. Any other file is left alone.
        trust: do not look: the file may run anything.

    Raises:
        RefusedCheckpoint: it asks for something that no checkpoint needs; the message names it.
        ValueError: it cannot be read.
    """
    name = str(check_model_file_from_stem(str(file).strip()))
    if trust or name.lower().endswith((".yaml", ".yml")):
        return
    if _is_remote(name):
        name = str(check_file(name, download_dir=SETTINGS["weights_dir"]))
    if clean_url(name).rpartition(".")[-1].lower().strip() != "pt":  # as upstream reads suffixes
        return
    path = Path(attempt_download_asset(name))
    if not path.is_file():
        return
    named = set(_names(path))
    stand_ins = {each: made for each in named if (made := _stand_in(each)) is not None}
    try:
        found = _read(path, stand_ins)
        _refuse_programs(found, set())
        _refuse_remote_data(found)
    except _Refused as refused:
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


def check_yaml(config: Any, file: str | Path) -> None:
    """Refuse a model's YAML that is more than data.

    Args:
        config: its content.
        file: where it comes from, for the message.

    Raises:
        RefusedCheckpoint: building it would run something.
    """
    try:
        _refuse_programs(config, set())
    except _Refused as refused:
        raise _refusal(Path(file), str(refused)) from None


def resumed(resume: Any) -> str:
    """Return the file that Ultralytics goes on from; empty if there is none.

    Args:
        resume: the option.
    """
    given = isinstance(resume, str | Path) and Path(resume).exists()
    return str(resume) if given else str(get_latest_run())


def _is_remote(name: Any) -> bool:
    return str(name).lower().startswith(REMOTE_FILE_PREFIXES)


def _refusal(path: Path, what: str) -> RefusedCheckpoint:
    return RefusedCheckpoint(
        f"{path} is refused: it holds {what}. A checkpoint is data, weights and known model classes; opening this one "
        "could run a program. If you trust whoever made it, give trust=True"
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


def _stand_in(name: str) -> type | None:
    """Return what stands for an allowed class while a file is looked at; None if it is not allowed."""
    if name in _DATA:
        return _StandIn(name, (_Held,), {"accepts": staticmethod(_DATA[name])})
    return _StandIn(name, (_Held,), {}) if name in _ALIASES or _is_allowed_class(name) else None


def _is_allowed_class(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)  # nothing is imported because a file names it
    if not isinstance(found, type) or not any(f"{module}.".startswith(f"{package}.") for package in _PACKAGES):
        return False
    return issubclass(found, nn.Module) or (module in _DATA_MODULES and found.__module__ == module)


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
    """Refuse model YAMLs, anywhere in what was read, that Ultralytics would run something for.

    Raises:
        _Refused: there is one.
    """
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, _Held):
        _refuse_programs(held.state, seen)
    elif isinstance(held, dict):
        _check_yaml(held)
        for value in held.values():
            _refuse_programs(value, seen)
    elif isinstance(held, list | tuple | set):
        for value in held:
            _refuse_programs(value, seen)


def _check_yaml(config: dict[Any, Any]) -> None:
    """Refuse an activation that is not `nn.Name(literals)`, and layers that are no classes of layers.

    Raises:
        _Refused: there is one.
    """
    if config.get("activation") and not _is_activation(config["activation"]):
        raise _Refused(f"a model YAML with activation: {str(config['activation'])[:80]}")
    for part in ("backbone", "head"):
        rows = config.get(part)
        for row in rows if isinstance(rows, list | tuple) else ():
            name = row[2] if isinstance(row, list | tuple) and len(row) == 4 else row
            if not isinstance(name, str) or not _is_layer(name):
                raise _Refused(f"a model YAML with the layer {str(name)[:80]}")


def _refuse_remote_data(checkpoint: Any) -> None:
    """Refuse arguments of a run that would have Ultralytics fetch a data YAML when the run goes on or is validated.

    Raises:
        _Refused: they would.
    """
    arguments = checkpoint.get("train_args") if isinstance(checkpoint, dict) else None
    data = arguments.get("data") if isinstance(arguments, dict) else None
    if _is_remote(data) and not str(data).lower().startswith("ul://"):  # Ultralytics' platform has no such YAMLs
        raise _Refused(f"data to be fetched from {data}")


def _is_activation(text: Any) -> bool:
    try:
        call = ast.parse(str(text).strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            return False
        for value in (*call.args, *(keyword.value for keyword in call.keywords)):
            ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return False
    place, _, name = ast.unparse(call.func).rpartition(".")
    return place in {"nn", "torch.nn"} and _is_module(getattr(nn, name, None))


def _is_layer(name: str) -> bool:
    """Whether `parse_model` finds a class of layers under that name."""
    if "nn." in name:
        return _is_module(getattr(nn, name[3:], None))
    if "torchvision.ops." in name:
        return _is_module(getattr(torchvision.ops, name[16:], None))
    found = vars(tasks).get(name)
    return _is_module(found) and found.__module__.startswith("ultralytics.nn.modules.")


def _is_module(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)
