"""Check a data YAML before Ultralytics reads it.

Ultralytics checks that `train`, `val` and one of `names` and `nc` exist and agree. It would also run a program that the
file holds, follow links in circles, and accept values that fail in the middle of a training. Those are refused here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPLITS = ("train", "val", "test", "minival")
#: More classes than any detector is given; Ultralytics would invent a name for each of 10**9.
MOST_CLASSES = 100_000
#: What Ultralytics downloads; it runs anything else, as a shell command or as Python.
ARCHIVE = re.compile(r"https?://\S+\.(zip|tar|gz|tgz|xz|bz2|txz|tbz2)(\?\S*)?", re.IGNORECASE)


def check_settings(settings: Mapping[str, Any], source: Path, *, split: str = "val") -> None:
    """Refuse settings that would run a program, never end or fail late.

    Args:
        settings: the YAML's content.
        source: where it was read, for messages and relative paths.
        split: the split whose absence makes Ultralytics run the file's `download` program.

    Raises:
        ValueError: names the file, the key and what is wrong with it.
    """
    for key in (*SPLITS, "validation"):
        entry = settings.get(key)
        several = entry if isinstance(entry, list) else [entry] if entry is not None else []
        if not all(isinstance(path, str) and "\0" not in path for path in several):
            raise ValueError(f"{source}: '{key}' must be a path, or a list of paths; got {_short(entry)}.")
    _check_names(settings.get("names"), source)
    if "nc" in settings and not 1 <= _whole(settings["nc"]) <= MOST_CLASSES:
        raise ValueError(
            f"{source}: 'nc' must be a whole number from 1 to {MOST_CLASSES}; got {_short(settings['nc'])}."
        )
    if "channels" in settings and not _whole(settings["channels"]) >= 1:
        raise ValueError(f"{source}: 'channels' must be a whole number, 1 or more; got {_short(settings['channels'])}.")
    if isinstance(settings.get("path"), str | None):
        _refuse_program(settings, source, split)
        _refuse_loops(settings, source)


def _check_names(names: Any, source: Path) -> None:
    if not isinstance(names, list | dict):  # none at all, or what Ultralytics refuses by itself
        return
    if not names:
        raise ValueError(f"{source}: 'names' is empty; expected the name of at least one class.")
    if isinstance(names, dict) and sorted(_whole(label) for label in names) != list(range(len(names))):
        raise ValueError(f"{source}: 'names' must be numbered 0 to {len(names) - 1}; got {_short(list(names))}.")
    for name in names.values() if isinstance(names, dict) else names:
        if name is None or isinstance(name, list | dict):
            raise ValueError(f"{source}: each entry of 'names' must be a word; got {_short(name)}.")


def _refuse_program(settings: Mapping[str, Any], source: Path, split: str) -> None:
    """Refuse `download: <program>` where Ultralytics would run it, which is when images of the split are missing."""
    download = settings.get("download")
    if download is None:
        return
    if not isinstance(download, str):
        raise ValueError(f"{source}: 'download' must be an address; got {_short(download)}.")
    if ARCHIVE.fullmatch(download):
        return
    missing = [path for path in image_paths(settings, source, split) if not os.path.exists(path)]
    if missing and download:
        raise ValueError(
            f"{source}: {missing[0]} does not exist. 'download' holds a program that would fetch it, and mlc-yolo does "
            "not run it: read it and run it yourself, or correct the paths."
        )


def _refuse_loops(settings: Mapping[str, Any], source: Path) -> None:
    from mlc_yolo.data.listing import refuse_loops  # imports ultralytics

    for key in SPLITS:
        for path in image_paths(settings, source, key):
            try:
                refuse_loops(path)
            except ValueError as error:
                raise ValueError(f"{source}: '{key}': {error}") from None


def image_paths(settings: Mapping[str, Any], source: Path, split: str) -> list[str]:
    """Return where the images of a split are, as Ultralytics looks for them.

    Args:
        settings: the YAML's content.
        source: the YAML, for relative paths.
        split: one of `SPLITS`.
    """
    from ultralytics.utils import DATASETS_DIR

    root = settings.get("path") or str(source.parent)
    if not os.path.exists(root) and not os.path.isabs(root):
        root = os.path.join(DATASETS_DIR, root)
    entry = settings.get(split) or []
    if split == "val" and "val" not in settings:
        entry = settings.get("validation") or []
    paths = []
    for listed in entry if isinstance(entry, list) else [entry]:
        path = os.path.join(root, str(listed))
        if isinstance(entry, str) and listed.startswith("../") and not os.path.exists(path):
            path = os.path.join(root, listed[3:])
        paths.append(path)
    return paths


def _whole(value: Any) -> float:
    """Return a whole number written as a number or as text; nan, which no comparison admits, for anything else."""
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
    return number if number.is_integer() else float("nan")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
