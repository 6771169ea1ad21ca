"""Find images that two lists share under any name: links, hard links and copies."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from mlc_yolo import whole_files


@dataclass(frozen=True)
class SharedImages:
    """The result of `find_shared` on its `files`.

    Attributes:
        same: those that are one file with an image of the other list: by the same path, a link or a hard link.
        copies: those with the content of an image of the other list.
    """

    same: list[str]
    copies: list[str]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.same) + len(self.copies)

    @property
    def first(self) -> str:
        """One of them."""
        return (self.same or self.copies)[0]


def find_shared(files: Iterable[str], others: Iterable[str]) -> SharedImages:
    """Find the files that are images of another list too.

    1. Device and inode say what is one file. 2. Of the rest, those as large as an image of the other list are compared
    with it by the hash of their content. An image that was saved anew is another one to both steps.

    Args:
        files: paths. Those that are not there, and empty ones, are passed over.
        others: paths, the same.

    Returns:
        Those of `files`, in their order.
    """
    identities: set[tuple[int, int]] = set()
    by_size: dict[int, list[str]] = {}
    for other in others:
        status = _status(other)
        if status is not None:
            identities.add((status.st_dev, status.st_ino))
            by_size.setdefault(status.st_size, []).append(other)
    digests: dict[int, set[str]] = {}
    same, copies = [], []
    for file in files:
        status = _status(file)
        if status is None:
            continue
        if (status.st_dev, status.st_ino) in identities:
            same.append(file)
        elif status.st_size in by_size:
            size = status.st_size
            if size not in digests:
                digests[size] = {digest for other in by_size[size] if (digest := _digest(other))}
            if _digest(file) in digests[size]:
                copies.append(file)
    return SharedImages(same, copies)


def _status(file: str) -> os.stat_result | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status if status.st_size else None


def _digest(file: str) -> str:
    """Hash a file's content; empty where it cannot be read."""
    try:
        return whole_files.sha256(file)
    except OSError:
        return ""
