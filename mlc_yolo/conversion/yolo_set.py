"""Writes a data set in the layout of Ultralytics, and its sidecars.

Difficult objects are in the labels, and flagged; crowd regions are no objects to train on and only in the flags. Of
objects with one class and one box the first is kept, difficult only if all are: Ultralytics would drop the others when
it reads the labels, and reorder the rest.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ultralytics.utils import TQDM

from mlc_yolo.conversion.pictures import Kind, Picture, Problem
from mlc_yolo.data.flags import write_flags
from mlc_yolo.faults import begin_work

#: What splits serve as in data.yaml, by position.
ROLES = ("train", "val", "test")
#: Decimals of a label: 0.005 px of a million.
DECIMALS = 8


@dataclass(frozen=True)
class Labelled:
    """An image of the output.

    Attributes:
        picture: what was read.
        name: of the image file in the output.
        rows: lines of the label file.
        flags: its entry in the sidecar.
    """

    picture: Picture
    name: str
    rows: list[str]
    flags: dict[str, Any]


def label_pictures(pictures: list[Picture], labels: dict[str, int], problems: list[Problem]) -> list[Labelled]:
    """Give pictures of one split their names and rows; no two share a stem, as they would share a label file.

    Args:
        pictures: as read.
        labels: class name -> label.
        problems: gets what had to be changed.
    """
    entries = []
    taken: set[str] = set()
    for picture in pictures:
        base = Path(picture.name)
        first = stem = base.stem.lstrip(".") or "image"  # Ultralytics does not see names that begin with a dot
        number = 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{first}-{number}"
        taken.add(stem.casefold())
        if stem != base.stem:
            detail = f"{picture.name} is {stem}{base.suffix} in the output"
            problems.append(Problem(str(picture.annotation), Kind.RENAMED, detail))
        entries.append(_labelled(picture, stem + base.suffix, labels, problems))
    return entries


def _labelled(picture: Picture, name: str, labels: dict[str, int], problems: list[Problem]) -> Labelled:
    width, height = picture.size
    objects: dict[bytes, dict[str, Any]] = {}
    crowd: list[dict[str, Any]] = []
    rows = []
    for box in picture.boxes:
        x1, y1, x2, y2 = box.xyxy
        fractions = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        row = [labels[box.category], *(round(value, DECIMALS) for value in fractions)]
        content = {"row": row, **box.facts}
        key = struct.pack("=i4f", *row)  # as Ultralytics compares rows, in float32
        if box.crowd:
            crowd.append(content)
        elif key in objects:
            first = objects[key]
            if not content.get("difficult"):
                first.pop("difficult", None)
            detail = f"two objects of {picture.name} have label and box {' '.join(map(str, row))}"
            problems.append(Problem(str(picture.annotation), Kind.DUPLICATE, detail))
        elif min(row[3:]) <= 0:
            detail = f"a box of {picture.name} is {x2 - x1:g} x {y2 - y1:g} px, too small for a label"
            problems.append(Problem(str(picture.annotation), Kind.BOX, detail))
        else:
            objects[key] = content
            rows.append(" ".join([str(row[0]), *(f"{value:.{DECIMALS}f}" for value in row[1:])]))
    identity = {} if picture.id is None else {"id": picture.id}
    flags = {"file": picture.name, **identity, "objects": list(objects.values()), "crowd": crowd}
    return Labelled(picture, name, rows, flags)


def write_set(root: Path, splits: dict[str, list[Labelled]], names: list[str], link: bool) -> Counter[str]:
    """Write data.yaml, images, labels and flags.

    Args:
        root: an empty folder.
        splits: the images by split; see `ROLES`. A single one is both trained and validated on.
        names: class names by label.
        link: see `mlc_yolo.conversion.convert.convert`.

    Returns:
        how the images got there -> their number.

    Raises:
        OSError: something cannot be written.
    """
    begin_work()
    how: Counter[str] = Counter()
    for split, labelled in splits.items():
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for entry in TQDM(labelled, desc=f"Writing {split}", unit=" images"):
            how[_place(entry.picture.file, images / entry.name, link)] += 1
            text = "".join(f"{row}\n" for row in entry.rows)
            (labels / entry.name).with_suffix(".txt").write_text(text, encoding="ascii")
        write_flags(root, split, {Path(entry.name).stem: entry.flags for entry in labelled})
    folders = [f"images/{split}" for split in splits]
    roles = dict(zip(ROLES, folders if len(folders) > 1 else folders * 2, strict=False))
    text = yaml.safe_dump({**roles, "names": dict(enumerate(names))}, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return how


def count(labelled: list[Labelled]) -> Counter[str]:
    """Count the content of a split."""
    counts = Counter({"images": 0, "without objects": 0, "objects": 0, "difficult": 0, "crowd regions": 0})
    for entry in labelled:
        objects = entry.flags["objects"]
        counts["images"] += 1
        counts["without objects"] += not objects
        counts["objects"] += len(objects)
        counts["difficult"] += sum("difficult" in content for content in objects)
        counts["crowd regions"] += len(entry.flags["crowd"])
    return counts


def class_counts(labelled: list[Labelled]) -> Counter[int]:
    """Count the objects of a split by label; labels without any are not in it."""
    return Counter(content["row"][0] for entry in labelled for content in entry.flags["objects"])


def _place(file: Path, target: Path, link: bool) -> str:
    """Put an image there, and say how."""
    file = file.resolve()  # a link to a relative link would lead nowhere
    if link:
        with suppress(OSError):  # another file system, or one without such links
            os.link(file, target)
            return "are hard links"
        with suppress(OSError):
            target.symlink_to(file)
            return "are symbolic links"
    shutil.copyfile(file, target)
    return "were copied"
