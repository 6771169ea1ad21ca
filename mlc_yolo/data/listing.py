"""The images that a folder or a list of paths means, found as Ultralytics finds them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ultralytics.data.utils import IMG_FORMATS


def image_files(source: str | Path | Sequence[str | Path]) -> list[str]:
    """List the images that `source` means, as Ultralytics would find them.

    Args:
        source: a folder, searched at every depth; an image; a .txt of paths, those with "./" relative to the file; or
            several of these.

    Returns:
        Absolute paths in sorted order, each once.

    Raises:
        FileNotFoundError: nothing is there, or no image in it.
    """
    several: Sequence[str | Path] = [source] if isinstance(source, str | Path) else source
    found: list[str] = []
    for each in several:
        path = Path(each)
        if path.is_dir():
            files = glob.glob(str(Path(glob.escape(str(path))) / "**" / "*.*"), recursive=True)
        elif path.suffix == ".txt" and path.is_file():
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            files = [str(path.parent / line) if line.startswith("./") else line for line in map(str.strip, lines)]
        elif path.is_file():
            files = [str(path)]
        else:
            raise FileNotFoundError(f"there is no '{each}'. Give a folder of images or a .txt of paths")
        found += [file for file in files if file.rpartition(".")[-1].lower() in IMG_FORMATS]
    if not found:
        raise FileNotFoundError(f"images: none in '{source}'. Expected .jpg, .png or the like")
    return sorted({os.path.abspath(file) for file in found})
