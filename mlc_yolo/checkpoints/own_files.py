"""Remember checkpoints that this process wrote: they need no check before they are opened.

A file is known by its place, its number on the device, its size and the time it was written: one that was exchanged or
changed since is read like any other.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_own", "remember"]

_Fingerprint = tuple[int, int, int, int]
_own: dict[Path, _Fingerprint] = {}


def remember(file: Path) -> None:
    """Note that this process has just written a file."""
    _own[file.resolve()] = _fingerprint(file)


def is_own(file: Path) -> bool:
    """Whether a file is as this process wrote it."""
    known = _own.get(file.resolve())
    return known is not None and file.is_file() and known == _fingerprint(file)


def _fingerprint(file: Path) -> _Fingerprint:
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
