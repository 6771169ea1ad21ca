"""List the images of a folder or of a list of paths, as Ultralytics finds them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import LOGGER


def image_files(source: str | Path | Sequence[str | Path]) -> list[str]:
    """List the images that `source` means, as Ultralytics would find them.

    Args:
        source: a folder, searched at every depth; an image; any other file, a list of paths, those with "./" relative
            to it; or several of these.

    Returns:
        Absolute paths in sorted order, each once.

    Raises:
        FileNotFoundError: nothing is there, or no image in it.
        ValueError: a folder holds a link that leads back to it.
    """
    files = [file for place in _several(source) for file in named_images(place)]
    if not files:
        raise FileNotFoundError(f"no images in '{source}'. Expected .jpg, .png or similar files")
    return sorted({os.path.abspath(file) for file in files})


def named_images(source: str | Path) -> list[str]:
    """List images by the names that Ultralytics opens them by: as they stand in a list, or as a folder's search gives.

    Args:
        source: one of those of `image_files`.

    Raises:
        FileNotFoundError: nothing is there, or a file that is neither an image nor text.
        ValueError: a folder holds a link that leads back to it.
    """
    path = Path(source)
    if path.is_dir():
        refuse_loops(path)
        files = glob.glob(str(Path(glob.escape(str(path))) / "**" / "*.*"), recursive=True)
    elif not path.is_file():
        raise FileNotFoundError(f"there is no '{source}'. Give a folder of images or a list of paths")
    elif _is_image(path.name):
        files = [str(path)]
    else:
        here = f"{path.parent}{os.sep}"
        files = [line.replace("./", here, 1) if line.startswith("./") else line for line in _lines(path)]
    return [file.replace("/", os.sep) for file in files if _is_image(file)]


def warn_of_blanks(source: str | Path | Sequence[str | Path]) -> None:
    """Name the lists in which blanks before or behind a path hide an image: Ultralytics reads a line as it stands.

    Args:
        source: one that `image_files` has listed.
    """
    for place in _several(source):
        if not os.path.isfile(place) or _is_image(str(place)):
            continue
        hidden = [line for line in _lines(Path(place)) if line != line.strip() and _is_image(line.strip())]
        if hidden:
            LOGGER.warning(
                f"{place}: {len(hidden)} paths begin or end with blanks, such as {hidden[0]!r}: Ultralytics does not "
                "find those images. Remove the blanks"
            )


def printable(text: str) -> str:
    r"""Return a text that can be shown and written: names that are not in UTF-8 get their bytes as numbers.

    Example:
        >>> printable(os.fsdecode(b"caf\xe9.png"))
        'caf\\udce9.png'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _several(source: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [source] if isinstance(source, str | Path) else source


def _lines(file: Path) -> list[str]:
    """Read the lines of a list as Ultralytics does, blanks included but those of the file's two ends."""
    try:
        return file.read_text(encoding="utf-8-sig").strip().splitlines()
    except UnicodeDecodeError as error:
        raise FileNotFoundError(f"'{file}' is not a list of image paths: expected text in UTF-8") from error


def _is_image(file: str) -> bool:
    return file.rpartition(".")[-1].lower() in IMG_FORMATS


def refuse_loops(folder: str | Path) -> None:
    """Refuse a folder with a link that leads back to where it lies: Ultralytics' search follows links at every depth.

    With one such link it would find every image forty times, most of them without labels; with two it would not end.

    Args:
        folder: searched as `image_files` does; anything else is let pass.

    Raises:
        ValueError: names the link and where it leads; or the folder is the root of the file system.
    """
    if os.path.dirname(os.path.abspath(folder)) == os.path.abspath(folder):
        raise ValueError(f"{folder} is the root of a file system: give a folder of images")
    pending: list[tuple[str, tuple[str, ...]]] = [(str(folder), (os.path.realpath(folder),))]
    while pending:
        path, above = pending.pop()
        with suppress(OSError), os.scandir(path) as entries:  # what cannot be listed is not searched either
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_dir():
                    continue
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                if any(outer == real or outer.startswith(os.path.join(real, "")) for outer in above):
                    raise ValueError(
                        f"the link {entry.path} leads back to {real}, which contains it: the search for images "
                        "would never end. Remove the link"
                    )
                pending.append((entry.path, (*above, real)))
