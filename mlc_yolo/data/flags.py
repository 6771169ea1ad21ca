"""Flags of objects that YOLO labels cannot hold: flags/<split>.json, beside images/<split> and labels/<split>.

    {"version": 1, "images": {stem: {"file": name in the source, "id": the source's id of the image, if any,
      "objects": [{"row": [class, cx, cy, w, h], ...}], "crowd": [{"row": [...], ...}]}}}

`objects` are the rows of the label file in its order, `crowd` the regions that are not in it. Beside its row each may
have "difficult", "truncated", "occluded" (only where true), "id" and "area" (px^2, as in the source).

Objects are matched by their boxes, not by their row numbers: Ultralytics sorts the rows of a label file in which it
finds duplicates, `classes=` drops rows, and labels are edited by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from ultralytics.utils import YAML

from mlc_yolo import whole_files

FOLDER = "flags"
VERSION = 1


class ImageFlags(TypedDict):
    """The sidecar of one image; boxes are class, cx, cy, w, h, the last four as fractions of the image.

    rows: (M, 5) float64, the objects in the order of the label file.
    difficult: (M,) bool, of each.
    crowd: (C, 5) float64, regions with many objects of a class, not in the label file.
    """

    rows: NDArray[np.float64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.float64]


def write_flags(root: Path, split: str, images: dict[str, dict[str, Any]]) -> None:
    """Write the sidecar of a split.

    Args:
        root: the data set's folder.
        split: name of the split's folders in images/ and labels/.
        images: stem -> content, as the head of this file says.
    """
    (root / FOLDER).mkdir(exist_ok=True)
    whole_files.write_json(root / FOLDER / f"{split}.json", {"version": VERSION, "images": images}, indent=0)


def read_flags(source: str | Path | Sequence[str | Path], split: str = "val") -> dict[str, ImageFlags]:
    """Read the sidecars of a split.

    Args:
        source: a data.yaml; or a folder images/<split> or labels/<split>, or several, as Ultralytics resolves them.
        split: which key of the data.yaml: train, val or test.

    Returns:
        image stem -> its flags; empty for a data set without sidecar, such as any that was not converted.

    Raises:
        ValueError: a sidecar cannot be read, or two of them hold an image of the same stem.
        OSError: the data.yaml cannot be read.
    """
    if isinstance(source, (str, Path)):
        folders = _folders(Path(source), split) if Path(source).suffix in {".yaml", ".yml"} else [Path(source)]
    else:
        folders = [Path(folder) for folder in source]
    flags: dict[str, ImageFlags] = {}
    for folder in folders:
        file = folder.parent.parent / FOLDER / f"{folder.name}.json"
        if folder.parent.name in {"images", "labels"} and file.is_file():
            images = _read(file)
            if twice := sorted(flags.keys() & images.keys()):
                raise ValueError(f"{file}: two folders of this split hold an image {twice[0]!r}. Rename one.")
            flags |= images
    return flags


def difficult_rows(flags: ImageFlags | None, rows: NDArray[Any], tolerance: float = 1e-5) -> NDArray[np.bool_]:
    """Tell which of an image's label rows are difficult objects.

    Args:
        flags: of the image; None if it has none.
        rows: (N, 5) class, cx, cy, w, h, fractions of the image, in any order, from the label file.
        tolerance: largest difference in a fraction for a box to be the same. Labels are float32 in Ultralytics.

    Returns:
        (N,) bool: an object has this box and is difficult. Of several with the box, those of the row's class count, or
        all if none is (`single_cls`), and every one must be difficult.

    Example:
        >>> rows = np.array([[3, 0.5, 0.5, 0.2, 0.2], [1, 0.3, 0.3, 0.1, 0.1]])
        >>> known = ImageFlags(rows=rows, difficult=np.array([True, False]), crowd=np.empty((0, 5)))
        >>> difficult_rows(known, rows[::-1].astype(np.float32)).tolist()
        [False, True]
    """
    if flags is None or not len(rows):
        return np.zeros(len(rows), bool)
    known = flags["rows"]
    same_box = (abs(rows[:, None, 1:] - known[None, :, 1:]) <= tolerance).all(-1)  # (N, M)
    same = same_box & (rows[:, None, 0] == known[None, :, 0])
    same = np.where(same.any(1, keepdims=True), same, same_box)
    hard = flags["difficult"]
    return np.asarray((same & hard).any(1) & ~(same & ~hard).any(1))


def _folders(data: Path, split: str) -> list[Path]:
    settings = YAML.load(data)
    entry = settings.get(split) or []
    root = data.parent / str(settings.get("path") or "")
    return [(root / str(folder)).resolve() for folder in (entry if isinstance(entry, list) else [entry])]


def _read(file: Path) -> dict[str, ImageFlags]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']} is not {VERSION}")
        return {
            stem: ImageFlags(
                rows=_rows(entry["objects"]),
                difficult=np.array([bool(box.get("difficult")) for box in entry["objects"]], bool),
                crowd=_rows(entry["crowd"]),
            )
            for stem, entry in content["images"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a sidecar of flags: {error!r}. Convert the data set again.") from error


def _rows(objects: list[dict[str, Any]]) -> NDArray[np.float64]:
    return np.array([box["row"] for box in objects], np.float64).reshape(-1, 5)
