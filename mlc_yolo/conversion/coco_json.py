"""COCO's JSON annotations of boxes: `bbox` is x, y, width, height in px between edges.

Regions marked `iscrowd` are read as crowds: they are no training objects.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from ultralytics.utils import TQDM

from mlc_yolo.conversion.pictures import Box, Kind, Picture, Problem, compare_size, flag, image_size, inside

Id = int | str


def load_coco(file: Path) -> dict[str, list[Any]]:
    """Load a file and check that it holds boxes, before anything heavy is done.

    Raises:
        ValueError: not COCO's detection format; says in what.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise ValueError("the file is empty")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    missing = [part for part in parts if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise ValueError(
            f"{file} is not COCO's detection format: it lacks the list{'s' * (len(missing) > 1)} {', '.join(missing)}."
        )
    found = {part: content[part] for part in parts}
    if found["annotations"] and not any(isinstance(each, dict) and "bbox" in each for each in found["annotations"]):
        raise ValueError(
            f"{file}: no annotation has a bbox (segmentations or captions only), so there is no box to take."
        )
    return found


def read_categories(file: Path, categories: list[Any], problems: list[Problem]) -> dict[Id, str]:
    """Read categories, ordered by id.

    Returns:
        category id -> class name.

    Raises:
        ValueError: one without id or name, or an id with two names: no class could be told for sure.
    """
    names: dict[Id, str] = {}
    for each in categories:
        key = _id(each, "id")
        name = str(each.get("name") or "").strip() if isinstance(each, dict) else ""
        if key is None or not name:
            raise ValueError(f"{file}: the category {str(each)[:80]} has no id or no name.")
        if key in names:
            if names[key] != name:
                raise ValueError(f"{file}: category id {key!r} is both {names[key]!r} and {name!r}.")
            problems.append(Problem(str(file), Kind.DUPLICATE, f"category {key!r} ({name})"))
        names[key] = name
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


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
        The pictures, their categories being category ids.

    Raises:
        ValueError: the folder of images does not exist.
    """
    folder = images or file.parent
    if not folder.is_dir():
        raise ValueError(f"The folder of images {folder} does not exist: name it with images=FOLDER.")
    pictures: dict[Id, Picture] = {}
    known: set[Id] = set()  # ids of images, those left out too
    used: dict[Path, Id] = {}
    for each in TQDM(content["images"], desc=f"Reading {file.name}", unit=" images"):
        key = _id(each, "id")
        name = each.get("file_name") if isinstance(each, dict) else None
        if key is None or not isinstance(name, str) or not name:
            problems.append(Problem(str(file), Kind.NO_IMAGE, f"the image {str(each)[:80]} has no id or no file_name"))
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
        size = image_size(image, problems)
        if size is None:
            continue
        if "width" in each and "height" in each:
            annotated = _number(each["width"]), _number(each["height"])
            problems += compare_size(annotated, size, file, f"image {key!r} ({name})")
        pictures[key] = Picture(image, image.relative_to(folder).as_posix(), size, file, [], key)
    _add_boxes(file, content["annotations"], pictures, known, names, problems)
    return list(pictures.values())


def _add_boxes(
    file: Path,
    annotations: list[Any],
    pictures: dict[Id, Picture],
    known: set[Id],
    names: dict[Id, str],
    problems: list[Problem],
) -> None:
    seen: set[Id] = set()
    for number, each in enumerate(annotations, start=1):
        key, image, category = _id(each, "id"), _id(each, "image_id"), _id(each, "category_id")
        what = f"annotation {number} in the list" if key is None else f"annotation {key!r}"
        if not isinstance(each, dict):
            problems.append(Problem(str(file), Kind.BOX, f"{what} is {str(each)[:40]!r}"))
            continue
        if image not in known or category not in names:
            unknown = f"image_id {each.get('image_id')!r}" if image not in known else None
            unknown = unknown or f"category_id {each.get('category_id')!r}"
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
        bbox = each.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4:
            detail = "a segmentation but no bbox" if "segmentation" in each and not bbox else f"bbox {str(bbox)[:40]}"
            problems.append(Problem(str(file), Kind.BOX, f"{what} has {detail}"))
            continue
        x, y, width, height = map(_number, bbox)
        xyxy = inside((x, y, x + width, y + height), picture.size, file, what, problems)
        if xyxy:
            crowd = flag(each.get("iscrowd", 0), file, f"{what}: iscrowd", problems)
            area = _number(each.get("area"))
            facts = {"id": key} if key is not None else {}
            picture.boxes.append(Box(category, xyxy, crowd, facts | ({"area": area} if isfinite(area) else {})))


def _find(folder: Path, name: str, file: Path, problems: list[Problem]) -> Path | None:
    """Find an image by `file_name`, else by the last part of it: the folder given may be an inner one."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        problems.append(Problem(str(file), Kind.NO_IMAGE, f"file_name {name[:80]!r} is outside {folder}"))
        return None
    image = folder / path if (folder / path).is_file() else folder / path.name
    if not image.is_file():
        problems.append(Problem(str(file), Kind.NO_IMAGE, f"no {name[:200]} in {folder}"))
        return None
    return image


def _id(each: Any, name: str) -> Id | None:
    key = each.get(name) if isinstance(each, dict) else None
    return key if isinstance(key, (int, str)) and not isinstance(key, bool) else None


def _number(value: Any) -> float:
    """A number, or nan for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
