"""Label caches are data, not programs: a restricted reader reads them before Ultralytics opens them.

Ultralytics stores what it read from a folder of labels in a `.cache` beside it, a pickle in NumPy's format, and next
time opens that without restriction. A pickle may call anything, and a data set may come from anywhere. So this reader
opens the cache first. It allows Python's containers and numbers, and stand-ins for three names:

1. `numpy.ndarray` is an argument of `_reconstruct` and never called: by itself it would lay an array over any memory.
2. `numpy.dtype` is of numbers or objects, in the words and with the flags that NumPy writes.
3. An array's state holds as many items as its shape says, objects in a list and numbers in bytes. NumPy takes a shorter
   list and reads on behind it.

The law: where this reader stops without a refusal, NumPy's stops too, so NumPy runs nothing that was not read here.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import MAGIC_LEN, MAGIC_PREFIX
from ultralytics.data.utils import img2label_paths

from mlc_yolo.data.listing import named_images

#: What Ultralytics puts in the place of the folder `images` to find labels: of boxes, of pixels and of depths.
LABEL_FOLDERS = ("labels", "masks", "depth")

#: What NumPy writes for types of numbers and of objects, in either byte order: arguments of `numpy.dtype`, its state.
_WRITTEN: list[Any] = [np.dtype(order + kind).__reduce__()[1:] for kind in "?bBhHiIqQefdO" for order in "<>"]

#: How an archive of arrays begins. NumPy opens it without reading what is in it, and Ultralytics cannot use it.
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06")


class _Refused(Exception):
    """Raised within the reader; names the content that no cache needs."""


class _Array:
    """Stands for `numpy.ndarray` and, where `_reconstruct` made one, for an array."""

    def __new__(cls, *_: Any, **__: Any) -> _Array:
        raise _Refused("a call of numpy.ndarray")

    def __setstate__(self, state: Any) -> None:
        match state:
            case (1, tuple(shape), _DType() as dtype, bool(), list() | bytes() as data):
                whole = all(type(size) is int and size >= 0 for size in shape)
                if whole and type(data) is dtype.holder and len(data) == math.prod(shape) * dtype.width:
                    return
        raise _Refused("a numpy.ndarray whose content is not of its type and shape")


class _DType:
    """Stands for `numpy.dtype` and for what it returns.

    Attributes:
        holder: what an array's content is pickled as.
        width: how many of the holder's items are one of the array's.
    """

    args: tuple[Any, ...]
    holder: type
    width: int

    def __new__(cls, *args: Any) -> _DType:
        if all(args != written for written, _ in _WRITTEN):
            raise _Refused(f"numpy.dtype{repr(args)[:40]}")
        new = super().__new__(cls)
        new.args = args
        real = np.dtype(args[0])
        new.holder, new.width = (list, 1) if real.hasobject else (bytes, real.itemsize)
        return new

    def __setstate__(self, state: Any) -> None:
        if (self.args, state) not in _WRITTEN:
            raise _Refused(f"numpy.dtype{self.args} with the state {repr(state)[:60]}")


class _Reconstruct:
    """Stands for `_reconstruct`, as NumPy calls it."""

    def __new__(cls, *args: Any) -> Any:
        if args != (_Array, (0,), b"b"):
            raise _Refused("a call of numpy's _reconstruct with other arguments than numpy's")
        return object.__new__(_Array)

    def __setstate__(self, _: Any) -> None:  # without it a pickle could write to this class itself
        raise _Refused("a state of numpy's _reconstruct")


#: What NumPy names in the pickle of an array, before and since NumPy 2.
_NAMES = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        """Return the stand-in for an allowed name."""
        if (module, name) not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _NAMES[module, name]


def check_cache(file: str | Path) -> bool:
    """Refuse one cache that is more than data.

    Args:
        file: the cache. It need not be there.

    Returns:
        Whether it could be read to its end. What could not is no cache: Ultralytics reads the labels anew.

    Raises:
        ValueError: names the cache and what it holds.
    """
    try:
        with open(file, "rb") as stream:
            _go_to_pickle(stream)
            _Reader(stream).load()
    except _Refused as error:
        raise _refusal(file, str(error)) from None
    except (OSError, EOFError, pickle.UnpicklingError, ValueError):
        return False  # not there, or no pickle from here on, to NumPy as little
    except Exception as error:  # the stand-ins cannot do it, arrays perhaps can: who knows what comes after
        raise _refusal(file, f"what no cache does ({error})") from error
    return True


def check_label_caches(source: str | Path | Sequence[str | Path], folders: Sequence[str] = LABEL_FOLDERS) -> None:
    """Refuse caches of labels that are more than data, before plain Ultralytics looks for them.

    Args:
        source: a folder of images, a list of paths in a file, or several of these. What is not there is passed over.
        folders: names that may stand in the place of `images` in the path of a label.

    Raises:
        ValueError: names the cache and what it holds; or a folder holds a link that leads back to it.
    """
    for place in [source] if isinstance(source, str | Path) else source:
        try:
            images = named_images(place)
        except OSError:  # Ultralytics will say so
            continue
        # By the names as they are: what ".." means behind a link, only the file system knows.
        labels = {Path(label).parent for name in folders for label in img2label_paths(images, label_dir=name)}
        for folder in sorted(labels):
            if folder.name:
                check_cache(folder.with_suffix(".cache"))


def _refusal(file: str | Path, holds: str) -> ValueError:
    return ValueError(
        f"{file} is refused: it holds {holds}. A cache of labels is data; opening this one could run a program. "
        "Delete it: it is made anew from the labels"
    )


def _go_to_pickle(stream: BinaryIO) -> None:
    """Go to the pickle in NumPy's file; a pickle without one, which NumPy reads as well, begins at once."""
    start = stream.read(MAGIC_LEN)
    if start.startswith(_ARCHIVES):
        raise pickle.UnpicklingError("an archive")
    if not start.startswith(MAGIC_PREFIX):
        stream.seek(0)
        return
    width = 2 if start[-2] == 1 else 4  # of the header's length, by the format's version
    stream.seek(int.from_bytes(stream.read(width), "little"), 1)
