"""Files and folders that are the old ones or the new ones, never half: written beside their place, then moved there.

JSON is written here too, so that all of it is JSON: a number that is not finite becomes null.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["folder", "json_text", "move", "save", "sha256", "write", "write_json"]


def write(file: Path, content: bytes | str, *, shared: bool = False) -> None:
    """Write a file in one step. If killed or out of space, it keeps the old file; if it raises, it removes its own.

    Args:
        file: the file.
        content: what it shall hold; text is written in UTF-8, its line ends as they are.
        shared: several processes may write the file at once. Each of them then writes beside it under a name of its
            own, which stays if the process is killed.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    part = file.with_name(f".{os.getpid()}-{file.name}.part" if shared else f".{file.name}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        move(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        kept = f"; {file.name} is as it was" if file.exists() else ""
        raise OSError(error.errno, f"{file} could not be written: {error.strerror or error}{kept}") from error


def save(file: Path, content: Any) -> None:
    """Save `content` by `torch.save` in one step; see `write`."""
    import torch  # not needed for other files, and slow to import

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(file, buffer.getvalue())


def write_json(file: Path, content: Any, *, indent: int | None = None) -> None:
    """Write `json_text(content)` in one step; see `write`."""
    write(file, json_text(content, indent=indent))


def json_text(
    content: Any,
    *,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """Return JSON that any reader accepts: NaN and the infinities, which JSON does not have, become null.

    Args:
        content: dicts, lists, tuples, texts, numbers, booleans and None.
        indent: as `json.dumps` takes it.
        separators: as `json.dumps` takes them.
        default: makes one of these of any other object.

    Raises:
        TypeError: it holds something else, and there is no `default`.

    Example:
        >>> json_text({"AP": 0.5, "AR": float("nan"), "range": (0, float("inf"))})
        '{"AP": 0.5, "AR": null, "range": [0, null]}'
    """

    def known(value: Any) -> Any:
        return _finite(default(value)) if default else json.JSONEncoder().default(value)

    return json.dumps(_finite(content), indent=indent, separators=separators, default=known, allow_nan=False)


def sha256(file: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; hashlib's own function for it needs Python 3.11."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _finite(value: Any) -> Any:
    """Return a copy with None in place of floats that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _key(key: Any) -> Any:
    return str(key) if isinstance(key, float) and not math.isfinite(key) else key


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


@contextmanager
def folder(target: Path) -> Iterator[Path]:
    """Make a folder in one step: it is filled beside its place and moved there when the block ends.

    A process that is killed leaves the unfinished one, in a folder `.NAME-*` beside the target.

    Args:
        target: where it shall be. Nothing, or an empty folder, may be there at the end.

    Yields:
        The empty folder to fill. Its parent goes with the block: what stands in the way may be moved there.

    Raises:
        OSError: it cannot be written, or something has been put there since.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        if target.exists():
            target.rmdir()  # refuses if it holds anything
        new.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
