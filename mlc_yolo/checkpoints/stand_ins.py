"""Stand-ins: the classes that a checkpoint may hold, and the inert objects that replace them while it is read.

1. Modules of torch.nn, torchvision, Ultralytics and this package are allowed, and the data types named in `_DATA`.
2. A stand-in holds what its object is made with and filled in with, and does nothing: no constructor, no
   `__setstate__`, no function runs.
3. A class that the file calls, instead of filling it in as pickled modules are, is refused: some constructors evaluate
   what they are given, those of Ultralytics' models among them. Data types are made with what they need, no more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.detection._utils import BoxCoder
from ultralytics.nn import distill_model, tasks
from ultralytics.utils import loss, tal

from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.dense import LossRecipe
from mlc_yolo.heads.iou_aware import IoUAwareDetect

__all__ = ["Held", "Refused", "StandIn", "stand_in"]

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
#: Modules of early versions, which Ultralytics translates while it reads a checkpoint -> what they are now.
_FORMER_MODULES = {
    "ultralytics.yolo.utils": "ultralytics.utils",
    "ultralytics.yolo.v8": "ultralytics.models.yolo",
    "ultralytics.yolo.data": "ultralytics.data",
}
#: Names of released checkpoints that Ultralytics reads as other classes.
_ALIASES = (
    *("ultralytics.nn.modules.block.Silence", "ultralytics.nn.tasks.YOLOv10DetectionModel"),
    "ultralytics.utils.loss.v10DetectLoss",
)


class Refused(Exception):
    """Raised within torch's reader; not an `UnpicklingError`, which it would dress up."""


class StandIn(type):
    """Metaclass of stand-ins. `accepts` checks the values that an object is made with; it is None for modules."""

    accepts: Callable[..., bool] | None

    def __call__(cls, *values: Any) -> Any:
        """Make an object as a call does; of modules none is made so."""
        if cls.accepts is None:
            raise _refused_call(cls, values)
        return type.__call__(cls, *values)


class Held(metaclass=StandIn):
    """An object of the checkpoint while it is looked at.

    Attributes:
        values: what it was made with; modules, which are made with nothing, keep none.
        state: what it was filled in with.
    """

    accepts = None
    values: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *values: Any) -> Held:
        """Make an object, which pickle does with a call or without."""
        if cls.accepts is not None and not cls.accepts(*values):
            raise _refused_call(cls, values)
        held = super().__new__(cls)
        if cls.accepts is not None:
            held.values = values
        return held

    def __setstate__(self, state: Any) -> None:
        name = type(self).__name__
        if self.state is not None:  # modules would merge them
            raise Refused(f"two states of one {name}")
        fits = _is_of_module if self.accepts is None else _FILLED.get(name)
        if fits is None or not fits(state):
            raise Refused(f"a {name} with the state {str(state)[:80]}")
        self.state = state


def _refused_call(kind: StandIn, values: tuple[Any, ...]) -> Refused:
    shown = ", ".join(repr(value) if isinstance(value, str | int) else type(value).__name__ for value in values)
    return Refused(f"a call of {kind.__name__}({shown[:80]})")


def _is_of_module(state: Any) -> bool:
    return isinstance(state, dict)


def _is_of_number(state: Any) -> bool:
    """Whether it is the state of a numpy.dtype without parts, names, fields, sizes and flags of its own."""
    return isinstance(state, tuple) and state[:1] + state[2:] == (3, None, None, None, -1, -1, 0)


def _is_bound_forward(owner: Any, name: str) -> bool:
    """Whether `getattr(owner, name)` is a layer's `forward`, as fused models hold it."""
    of_layer = isinstance(owner, Held | StandIn)
    return of_layer and name.startswith("forward") and name.isidentifier()


def _is_number(kind: Any, align: Any, copy: Any) -> bool:
    return isinstance(kind, str) and bool(re.fullmatch(r"[<>=|]?[?bBiuf][0-9]*", kind)) and not align and bool(copy)


def _is_of_dtype(kind: Any, content: Any) -> bool:
    return type(kind).__name__ == "numpy.dtype" and isinstance(kind, Held) and isinstance(content, bytes | str)


def _are_texts(*parts: Any) -> bool:
    return all(isinstance(part, str) for part in parts)


_SPACES = tuple(f"ultralytics.{place}.IterableSimpleNamespace" for place in ("utils", "yolo.utils"))
_PATHS = tuple(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows"))
#: Allowed types that are no modules -> what they may be made with.
_DATA: dict[str, Callable[..., bool]] = {
    "builtins.getattr": _is_bound_forward,
    "numpy.dtype": _is_number,
    **{f"numpy.{core}.multiarray.scalar": _is_of_dtype for core in ("core", "_core")},
    **dict.fromkeys(_PATHS, _are_texts),
    **dict.fromkeys(_SPACES, lambda: True),
    "torchvision.transforms.functional.InterpolationMode": _are_texts,
}
#: Those of them that have a state -> what it may be.
_FILLED: dict[str, Callable[[Any], bool]] = {"numpy.dtype": _is_of_number, **dict.fromkeys(_SPACES, _is_of_module)}


def stand_in(name: str) -> type | None:
    """Return the stand-in of an allowed class; None if the class is not allowed."""
    if name in _DATA:
        return StandIn(name, (Held,), {"accepts": staticmethod(_DATA[name])})
    return StandIn(name, (Held,), {}) if name in _ALIASES or _is_allowed_class(name) else None


def _is_allowed_class(name: str) -> bool:
    module, _, attribute = _present_name(name).rpartition(".")
    kind = getattr(sys.modules.get(module), attribute, None)  # nothing is imported because a file names it
    if not isinstance(kind, type) or not any(f"{module}.".startswith(f"{package}.") for package in _PACKAGES):
        return False
    return issubclass(kind, nn.Module) or (module in _DATA_MODULES and kind.__module__ == module)


def _present_name(name: str) -> str:
    """Return the current name of a class that Ultralytics has renamed; other names stay as they are."""
    for former, present in _FORMER_MODULES.items():
        if name.startswith(f"{former}."):
            return present + name.removeprefix(former)
    return name
