"""Caches of labels are data too: those beside a data set are read restrictedly before Ultralytics opens them.

Ultralytics notes what it found in a folder of labels in a `.cache` beside it, a pickle in NumPy's file, and opens that
unrestricted the next time. A pickle may call anything, and a data set comes from anywhere. So its names are read here
first: arrays, their data types and Python's own containers and numbers are all that such a cache is made of.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from numpy.lib.format import MAGIC_LEN, MAGIC_PREFIX
from ultralytics.data.utils import img2label_paths

#: What NumPy writes into the pickle of an array, before and since NumPy 2.
_NAMES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
}


class _Held:
    """Stands for an array or its type while a cache is looked at: takes anything, does nothing."""

    def __new__(cls, *_: Any) -> _Held:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        return


class _Refused(Exception):
    """Raised within the reader, with the name of what no cache needs."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        """Return the stand-in for an allowed name."""
        if (module, name) not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _Held


def check_label_caches(images: Iterable[str]) -> None:
    """Refuse a cache of labels that is more than data.

    One that is cut off, or of another kind, is let pass: Ultralytics makes it anew.

    Args:
        images: the files that a data set is made of.

    Raises:
        ValueError: names the cache and what it asks for.
    """
    folders = {Path(label).parent for label in img2label_paths(list(images))}
    for file in sorted(folder.with_suffix(".cache") for folder in folders):
        check_cache(file)


def check_cache(file: Path) -> None:
    """Refuse one cache that is more than data; see `check_label_caches`."""
    refused = ""
    try:
        with open(file, "rb") as stream:
            _skip_header(stream)
            _Reader(stream).load()
    except (OSError, EOFError, pickle.UnpicklingError, ValueError):
        return  # not there, or ends here for NumPy as well, with nothing refused before
    except _Refused as error:
        refused = str(error)
    except Exception as error:  # the stand-ins cannot do it, arrays perhaps can: who knows what comes after
        refused = f"what no cache does ({error})"
    if refused:
        raise ValueError(
            f"{file} is refused: it holds {refused}. A cache of labels is data; opening this one could run a program. "
            "Delete it: it is made anew from the labels"
        )


def _skip_header(stream: BinaryIO) -> None:
    """Go to the pickle in NumPy's file; a pickle without one, which NumPy reads as well, begins at once."""
    start = stream.read(MAGIC_LEN)
    if not start.startswith(MAGIC_PREFIX):
        stream.seek(0)
        return
    width = 2 if start[-2] == 1 else 4  # of the header's length, by the format's version
    stream.seek(int.from_bytes(stream.read(width), "little"), 1)
