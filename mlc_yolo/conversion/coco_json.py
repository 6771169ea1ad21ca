"""COCO's JSON annotations of boxes: `bbox` is x, y, width, height in px between edges.

Regions marked `iscrowd` are read as crowds: they are no training objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from ultralytics.utils import TQDM

from mlc_yolo.conversion.pictures import Box, Frame, Kind, Picture, Problem, find_frame, flag, read_header

Id = int | str


def load_coco(file: Path) -> dict[str, list[Any]]:
    """Load a file and check that it holds boxes, before anything heavy is done.

    Raises:
        ValueError: not COCO's detection format; says in what.
    """
    try:
        text = file.read_bytes()
        if not text.strip():
            raise ValueError("the file is empty")
        content = json.loads(text)  # in UTF-8, UTF-16 or UTF-32
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    missing = [part for part in parts if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise ValueError(
            f"{file} is not COCO's detection format: it lacks the list{'s' * (len(missing) > 1)} {', '.join(missing)}."
        )
    annotations = content["annotations"]
    if annotations and not any(isinstance(entry, dict) and "bbox" in entry for entry in annotations):
        raise ValueError(
            f"{file}: no annotation has a bbox (segmentations or captions only), so there is no box to take."
        )
    return {part: content[part] for part in parts}


def read_categories(file: Path, content: dict[str, list[Any]], problems: list[Problem]) -> dict[Id, str]:
    """Read categories, ordered by id.

    A category that no annotation uses and that others name as their `supercategory` groups those: it is no class.
    Roboflow writes one for every project, often with the name of its only class.

    Args:
        file: the JSON file.
        content: what `load_coco` returned.
        problems: gets what is wrong, by file.

    Returns:
        category id -> class name. Two ids may have one name: they are one class.

    Raises:
        ValueError: one without id or name, or an id with two names: no class could be told for sure.
    """
    names: dict[Id, str] = {}
    parents: dict[Id, str] = {}  # category id -> the name of its group
    for entry in content["categories"]:
        key = _id(entry, "id")
        name = str(entry.get("name") or "").strip() if isinstance(entry, dict) else ""
        if key is None or not name:
            raise ValueError(f"{file}: the category {str(entry)[:80]} has no id or no name.")
        if key in names:
            if names[key] != name:
                raise ValueError(f"{file}: category id {key!r} is both {names[key]!r} and {name!r}.")
            problems.append(Problem(str(file), Kind.DUPLICATE, f"category {key!r} ({name})"))
        names[key] = name
        parents[key] = str(entry.get("supercategory") or "").strip()
    used = {_id(entry, "category_id") for entry in content["annotations"]}
    for key, name in list(names.items()):
        if key not in used and any(parent == name and child != key for child, parent in parents.items()):
            problems.append(Problem(str(file), Kind.GROUP, f"category {key!r} ({name})"))
            del names[key]
    namesakes: dict[str, list[Id]] = {}
    for key, name in names.items():
        namesakes.setdefault(name, []).append(key)
    for name, keys in namesakes.items():
        if len(keys) > 1:
            problems.append(Problem(str(file), Kind.NAMESAKE, f"{name!r} has ids {', '.join(map(repr, keys))}"))
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def class_names(files: Sequence[dict[Id, str]], used: set[str]) -> list[str]:
    """Order class names: those of the first file by id, then those that only later files use.

    Args:
        files: what `read_categories` returned, of each file.
        used: names that objects or crowd regions have.

    Example:
        >>> class_names([{3: "car", 18: "dog"}, {0: "dog", 1: "cat", 2: "cow"}], {"dog", "cat"})
        ['car', 'dog', 'cat']
    """
    later = [name for names in files[1:] for name in names.values() if name in used]
    return list(dict.fromkeys([*files[0].values(), *later]))


def read_coco(
    file: Path, content: dict[str, list[Any]], images: Path | None, names: dict[Id, str], problems: list[Problem]
) -> list[Picture]:
    """Read annotated images; one without annotations is an image without objects. Images it does not list are ignored.

    Args:
        file: the JSON file.
        content: what `load_coco` returned.
        images: folder from which `file_name` counts; default the JSON file's own.
        names: what `read_categories` returned.
        problems: gets what is wrong, by file.

    Returns:
        The pictures.

    Raises:
        ValueError: the folder of images does not exist.
    """
    folder = images or file.parent
    if not folder.is_dir():
        raise ValueError(f"The folder of images {folder} does not exist: name it with images=FOLDER.")
    pictures: dict[Id, Picture] = {}
    known: set[Id] = set()  # ids of images, those left out too
    used: dict[Path, Id] = {}
    frames: dict[Id, Frame] = {}
    for entry in TQDM(content["images"], desc=f"Reading {file.name}", unit=" images"):
        key = _id(entry, "id")
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if key is None or not isinstance(name, str) or not name:
            detail = f"the image {str(entry)[:80]} has no id or no file_name"
            problems.append(Problem(str(file), Kind.NO_IMAGE, detail))
            continue
        if key in known:
            detail = f"image id {key!r}, here for {name}; the first image of that id has all its boxes"
            problems.append(Problem(str(file), Kind.DUPLICATE, detail))
            continue
        known.add(key)
        image = _find(folder, name, file, problems)
        if image is None:
            continue
        if image in used:
            detail = f"{name} is image {used[image]!r} and again image {key!r}, whose boxes were not used"
            problems.append(Problem(str(file), Kind.DUPLICATE, detail))
            continue
        used[image] = key
        header = read_header(image, problems)
        if header is None:
            continue
        annotated = None
        if "width" in entry and "height" in entry:
            annotated = _number(entry["width"]), _number(entry["height"])
        frame = find_frame(annotated, header, file, f"image {key!r} ({name})", problems)
        if frame is None:
            continue
        frames[key] = frame
        pictures[key] = Picture(image, image.relative_to(folder).as_posix(), header.size, file, [], key)
    _add_boxes(file, content["annotations"], pictures, frames, known, names, problems)
    return list(pictures.values())


def _add_boxes(
    file: Path,
    annotations: list[Any],
    pictures: dict[Id, Picture],
    frames: dict[Id, Frame],
    known: set[Id],
    names: dict[Id, str],
    problems: list[Problem],
) -> None:
    seen: set[Id] = set()
    for number, entry in enumerate(annotations, start=1):
        key, image, category = _id(entry, "id"), _id(entry, "image_id"), _id(entry, "category_id")
        what = f"annotation {number} in the list" if key is None else f"annotation {key!r}"
        if not isinstance(entry, dict):
            problems.append(Problem(str(file), Kind.BOX, f"{what} is {str(entry)[:40]!r}"))
            continue
        if image not in known or category not in names:
            unknown = f"image_id {entry.get('image_id')!r}" if image not in known else None
            unknown = unknown or f"category_id {entry.get('category_id')!r}"
            problems.append(Problem(str(file), Kind.REFERENCE, f"{what}: no {unknown[:60]}"))
            continue
        if image is None or category is None or image not in pictures:  # the image was left out, as its problem says
            continue
        picture = pictures[image]
        what += f" ({names[category]}) of {picture.name}"
        if key is not None and key in seen:
            detail = f"the id of {what}; both boxes were used, unless they are one"
            problems.append(Problem(str(file), Kind.DUPLICATE, detail))
        elif key is not None:
            seen.add(key)
        bbox = entry.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4:
            detail = "a segmentation but no bbox" if "segmentation" in entry and not bbox else f"bbox {str(bbox)[:40]}"
            problems.append(Problem(str(file), Kind.BOX, f"{what} has {detail}"))
            continue
        x, y, width, height = map(_number, bbox)
        corners = (x, y, x + width, y + height)
        xyxy = frames[image].place(corners, file, what, problems, rotation=_rotation(entry))
        if xyxy:
            crowd = flag(entry.get("iscrowd", 0), file, f"{what}: iscrowd", problems)
            area = _number(entry.get("area"))
            facts: dict[str, Any] = {"id": key} if key is not None else {}
            facts |= {"area": area} if isfinite(area) else {}
            picture.boxes.append(Box(names[category], xyxy, crowd, facts))


def _rotation(entry: dict[str, Any]) -> float:
    """The angle that CVAT writes beside the box before its rotation, in degrees."""
    attributes = entry.get("attributes")
    degrees = _number(attributes.get("rotation")) if isinstance(attributes, dict) else 0.0
    return degrees if isfinite(degrees) else 0.0


def _find(folder: Path, name: str, file: Path, problems: list[Problem]) -> Path | None:
    """Find an image by the longest end of `file_name` that is in the folder: tools write whole paths, of Windows too.

    No end holds "..", so nothing outside the folder is read.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    within = parts[max((i + 1 for i, part in enumerate(parts) if part in {"..", "/"}), default=0) :]
    if "\0" not in name:
        for start in range(len(within)):
            image = folder.joinpath(*within[start:])
            if image.is_file():
                return image
    problems.append(Problem(str(file), Kind.NO_IMAGE, f"no {name[:200]} in {folder}"))
    return None


def _id(entry: Any, name: str) -> Id | None:
    """Read an id; a whole number as a text or a float, as tables write them, is that number."""
    key = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(key, str) and re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.0+)?", key):
        return int(key.partition(".")[0])
    if isinstance(key, float) and key.is_integer():
        return int(key)
    return key if isinstance(key, (int, str)) and not isinstance(key, bool) else None


def _number(value: Any) -> float:
    """Return a number, or nan for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
