"""Locks on files, where the file system has them.

A lock that another process holds is one thing; a file system without locks, as many network and container mounts are,
is another: there the caller goes on without one. Windows has no such locks either.
"""

from __future__ import annotations

import errno
import logging
from functools import cache
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOGGER = logging.getLogger("ultralytics")
_CONTENTION = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})


def lock(file: IO[Any], *, wait: bool) -> bool:
    """Take the lock of an open file; it lasts until the file is closed or the process ends.

    Args:
        file: opened for writing.
        wait: until another process gives it back.

    Returns:
        Whether the lock is held; False where there are no locks. A file system without them is logged once a folder.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _CONTENTION and not wait:
            raise BlockingIOError(error.errno, f"another process holds the lock of {file.name}") from error
        _say_once(Path(file.name).parent, str(error))
        return False
    return True


@cache
def _say_once(folder: Path, reason: str) -> None:
    _LOGGER.warning(
        f"No locks on the file system of {folder} ({reason}): going on without. "
        "Start no second command on the same files."
    )
