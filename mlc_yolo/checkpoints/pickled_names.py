"""List the names that the pickles of a file refer to, without loading any pickle.

Messages are made of these names. They do not decide what is refused: that is the restricted reader's part.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["is_of_yolov5", "is_plain", "names_in"]

#: What torch's restricted reader always allows, beside the types and functions of `torch`.
_PLAIN = frozenset(
    {
        *("builtins.bytearray", "builtins.complex", "builtins.set", "collections.Counter", "collections.OrderedDict"),
        *("_codecs.encode", "torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter"),
    }
)
_TORCHS = re.compile(r"torch\.\w+|torch\._utils\._rebuild_\w+|torch\.storage\.\w+|torch\.serialization\._get_layout")
#: Modules of the repository ultralytics/yolov5, whose checkpoints name its layers by their place there.
_YOLOV5 = ("models.yolo.", "models.common.", "models.experimental.")


def names_in(file: Path) -> set[str]:
    """Return the dotted names that a file's pickles refer to, also in protocols that torch does not read."""
    if not zipfile.is_zipfile(file):  # before torch 1.6: a magic number, a version, the machine's sizes, the object
        with open(file, "rb") as stream:
            return {name for _ in range(4) for name in _names_of(stream)}
    names: set[str] = set()
    with zipfile.ZipFile(file) as archive:
        for entry in archive.namelist():
            if entry.endswith(".pkl"):
                with archive.open(entry) as stream:
                    names.update(_names_of(stream))
    return names


def is_plain(name: str) -> bool:
    """Whether torch's restricted reader allows a name in any file."""
    return name in _PLAIN or _TORCHS.fullmatch(name) is not None


def is_of_yolov5(name: str) -> bool:
    """Whether a name is one of the layers of YOLOv5's own repository."""
    return name.startswith(_YOLOV5)


def _names_of(stream: IO[bytes]) -> Iterator[str]:
    texts: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name in {"GLOBAL", "INST"}:
                yield _of_python3(*str(argument).split(" ", 1))
            elif operation.name == "STACK_GLOBAL":
                yield _of_python3(*texts[-2:])
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception:  # the names only serve a message: what cannot be read is refused by torch
        return


def _of_python3(module: str = "", name: str = "") -> str:
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"
