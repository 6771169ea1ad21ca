"""Files that are the old ones or the new ones, never half: written beside their place, then moved there in one step."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["move", "save", "write"]


def write(file: Path, content: bytes) -> None:
    """Write a file in one step. Killed or out of space, it leaves what was there, and nothing beside it when it raises.

    Args:
        file: the file.
        content: what it shall hold.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(content)
        move(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        kept = f"; {file.name} is as it was" if file.exists() else ""
        raise OSError(error.errno, f"{file} could not be written: {error.strerror or error}{kept}") from error


def save(file: Path, content: Any) -> None:
    """Write what `torch.save` makes of `content` in one step; see `write`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(file, buffer.getvalue())


def move(source: Path, target: Path) -> None:
    """Move a file that has been written within its file system, once the disk holds it all.

    Args:
        source: the file.
        target: where it shall be; what was there goes.
    """
    _sync(source)
    source.replace(target)
    if os.name == "posix":  # where folders can be opened, the name is a change of the folder
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
