"""Pascal VOC's XML annotations: a VOC folder, or a folder of XML files beside their images.

Coordinates. VOC's own files count pixels from 1 and name the first and the last pixel of an object: between edges that
is xmin - 1, ymin - 1, xmax, ymax. Annotation tools write edges under the same tags. A file is read VOC's way if it says
that it is from VOC's database (source/database: "The VOC2007 Database"), else as edges.

Files are parsed by the standard library's expat, which fetches no external entity; one with a document type definition,
which could define entities that grow without bounds, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from xml.etree import ElementTree

from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import TQDM

from mlc_yolo.conversion.pictures import Box, Frame, Kind, Picture, Problem, find_frame, flag, read_header

#: VOC's classes in their usual order.
NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
FLAGS = ("difficult", "truncated", "occluded")


def class_names(used: Iterable[str], *, official: bool) -> list[str]:
    """Order class names: VOC's twenty for its own files if all of `used` are among them, else `used` sorted.

    Args:
        used: names that objects have.
        official: whether a file says that it is from VOC's database. A set of one's own may have a class "person" too.

    Example:
        >>> class_names(["dog", "cat"], official=False), class_names(["dog"], official=True)[11]
        (['cat', 'dog'], 'dog')
    """
    names = set(used)
    return list(NAMES) if official and names <= set(NAMES) else sorted(names)


@dataclass(frozen=True)
class Layout:
    """Where things are.

    Attributes:
        annotations: XML files to read, within `root`; some may not exist.
        root: the folder they are named from.
        images: the folder of images, laid out like `root`.
        whole: every image there should have an annotation; False for a split that lists some.
    """

    annotations: list[Path]
    root: Path
    images: Path
    whole: bool


def find_layout(source: Path, images: Path | None, split: str | None) -> Layout:
    """Find the annotation files of a split.

    Args:
        source: a VOC folder (Annotations, JPEGImages, ImageSets/Main), or a folder of XML files.
        images: the folder of images, if not JPEGImages or the XML files' own; of a plain folder's split, its parent.
        split: the name of a list in ImageSets/Main, or of a subfolder of a plain folder; None for everything.

    Raises:
        ValueError: nothing is there, or no such split; the message says what there is.
    """
    root = source / "Annotations"
    if not root.is_dir():
        root = _subfolder(source, split)
        images = images / split if images and split and (images / split).is_dir() else images or root
        return Layout(_xml_files(root), root, images, whole=True)
    images = images or source / "JPEGImages"
    if split is None:
        return Layout(_xml_files(root), root, images, whole=True)
    lists = source / "ImageSets" / "Main"
    chosen = lists / f"{split}.txt"
    if not chosen.is_file():
        known = sorted(file.stem for file in lists.glob("*.txt") if "_" not in file.stem)  # others are of one class
        raise ValueError(f"split={split} is not in {lists}; there are: {', '.join(known) or 'none'}.")
    text = chosen.read_text(encoding="utf-8-sig", errors="replace")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{chosen} lists no image.")
    if leaving := next((name for name in names if ".." in PurePath(name).parts or PurePath(name).is_absolute()), None):
        raise ValueError(f"{chosen} lists {leaving!r}, which is outside {root}.")
    files = [root / f"{name}.xml" for name in names]
    # A name may hold blanks; else a second column, which lists of one class have, is none of it.
    firsts = [root / f"{name.split()[0]}.xml" for name in names]
    files = [file if file.is_file() else first for file, first in zip(files, firsts, strict=True)]
    return Layout(files, root, images, whole=False)


def _subfolder(source: Path, split: str | None) -> Path:
    if split is None:
        return source
    if not (source / split).is_dir():
        known = sorted(child.name for child in source.iterdir() if child.is_dir() and any(child.glob("*.xml")))
        raise ValueError(
            f"split={split}: {source} has no ImageSets/Main as a VOC folder has, and of its subfolders these hold XML "
            f"files: {', '.join(known) or 'none'}."
        )
    return source / split


def _xml_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".xml")
    if not files:
        inner = sorted(child.name for child in folder.iterdir() if (child / "Annotations").is_dir())
        raise ValueError(f"{folder} holds no XML file." + (f" Take one of its {', '.join(inner)}." if inner else ""))
    return files


def read_voc(
    source: Path, images: Path | None, split: str | None, problems: list[Problem]
) -> tuple[list[Picture], int]:
    """Read annotated images.

    Args:
        source: see `find_layout`.
        images: see `find_layout`.
        split: see `find_layout`.
        problems: gets what is wrong, by file.

    Returns:
        The pictures, and how many of them are VOC's own, which count pixels from 1.

    Raises:
        ValueError: see `find_layout`; or the folder of images does not exist.
    """
    layout = find_layout(source, images, split)
    if not layout.images.is_dir():
        raise ValueError(f"The folder of images {layout.images} does not exist: name it with images=FOLDER.")
    shelf = _Shelf(layout.images)
    pictures: list[Picture] = []
    from_one = 0
    described: dict[Path, Path] = {}  # image -> annotation
    names = dict.fromkeys(layout.annotations)
    if len(names) < len(layout.annotations):
        detail = f"split {split} lists {len(layout.annotations) - len(names)} images again"
        problems.append(Problem(str(source), Kind.DUPLICATE, detail))
    for file in TQDM(names, desc=f"Reading {split or source.name}", unit=" files"):
        root = _parse(file, problems)
        if root is None:
            continue
        image = shelf.find(file.relative_to(layout.root), file, root.findtext("filename"), problems)
        if image is None:
            continue
        if image in described:
            detail = f"{image.name} has boxes from {described[image]}; those of this file were not used"
            problems.append(Problem(str(file), Kind.DUPLICATE, detail))
            continue
        described[image] = file
        header = read_header(image, problems)
        frame = None if header is None else find_frame(_annotated_size(root), header, file, "the image", problems)
        if frame is None:
            continue
        counts_from_one = re.search(r"\bVOC ?20\d\d\b", root.findtext("source/database") or "") is not None
        from_one += counts_from_one
        boxes = _boxes(root, frame, file, problems, 1.0 if counts_from_one else 0.0)
        pictures.append(Picture(image, image.relative_to(layout.images).as_posix(), frame.size, file, boxes))
    if layout.whole:
        stems = {file.stem for file in names}
        for image in shelf.images():
            if image not in described and image.stem not in stems:
                problems.append(Problem(str(image), Kind.NO_ANNOTATION, f"no {image.stem}.xml in {layout.root}"))
    return pictures, from_one


class _Shelf:
    """The images of a folder by name without suffix; a folder within it is listed when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def images(self, folder: Path | None = None) -> list[Path]:
        """Images directly in the folder, sorted."""
        return [image for same in self._stems(folder or self.folder).values() for image in same]

    def find(self, relative: Path, file: Path, named: str | None, problems: list[Problem]) -> Path | None:
        """Find the image of annotation `file`: the one of its name, else the one it names itself."""
        folder = (self.folder / relative).parent
        name = re.split(r"[\\/]", (named or "").strip())[-1]  # tools write whole paths, of Windows too
        same = self._stems(folder).get(relative.stem, [])
        if len(same) == 1:
            return same[0]
        if name and (folder / name) in (same or self.images(folder)):
            return folder / name
        if same:
            detail = f"{', '.join(image.name for image in same)} all bear its name"
            problems.append(Problem(str(file), Kind.NO_IMAGE, detail))
        else:
            wanted = f"{relative.stem}.*" + (f" or {name}" if name else "")
            problems.append(Problem(str(file), Kind.NO_IMAGE, f"no image {wanted} in {folder}"))
        return None

    def _stems(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listed:
            stems: dict[str, list[Path]] = {}
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                if file.suffix[1:].lower() in IMG_FORMATS:
                    stems.setdefault(file.stem, []).append(file)
            self._listed[folder] = stems
        return self._listed[folder]


def _parse(file: Path, problems: list[Problem]) -> ElementTree.Element | None:
    if not file.is_file():
        problems.append(Problem(str(file), Kind.NO_ANNOTATION, "no such file"))
        return None
    try:
        content = file.read_bytes()
        if not content.strip():
            raise ValueError("the file is empty")
        if b"<!DOCTYPE" in content:
            raise ValueError("it has a document type definition, which no annotation needs")
        root = ElementTree.fromstring(content)
        if root.tag != "annotation":
            raise ValueError(f"its root is <{root.tag}>, not <annotation>")
    except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:  # LookupError: an unknown encoding
        problems.append(Problem(str(file), Kind.ANNOTATION, str(error)))
        return None
    return root


def _number(element: ElementTree.Element | None, tag: str) -> float:
    return float((element.findtext(tag) if element is not None else None) or "nan")


def _annotated_size(root: ElementTree.Element) -> tuple[float, float] | None:
    size = root.find("size")
    if size is None:
        return None
    try:
        return _number(size, "width"), _number(size, "height")
    except ValueError:
        return float("nan"), float("nan")


def _rotation(element: ElementTree.Element) -> float:
    """The angle that CVAT writes beside the box before its rotation, in degrees."""
    for attribute in element.iterfind("attributes/attribute"):
        if attribute.findtext("name") == "rotation":
            with suppress(ValueError):
                degrees = _number(attribute, "value")
                return degrees if math.isfinite(degrees) else 0.0
    return 0.0


def _boxes(root: ElementTree.Element, frame: Frame, file: Path, problems: list[Problem], first: float) -> list[Box]:
    """Read the objects; `first` is the coordinate of the first pixel where pixels are counted, 0 where edges are."""
    boxes = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        what = f"object {number} ({name or 'without a name'})"
        bounds = element.find("bndbox")
        if not name or bounds is None:
            problems.append(Problem(str(file), Kind.BOX, f"{what} has no {'bndbox' if name else 'name'}"))
            continue
        try:
            x1, y1, x2, y2 = (_number(bounds, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            problems.append(Problem(str(file), Kind.BOX, f"{what}: {error}"))
            continue
        corners = (x1 - first, y1 - first, x2, y2)
        xyxy = frame.place(corners, file, what, problems, rotation=_rotation(element))
        if xyxy:
            flags = {tag: flag(element.findtext(tag), file, f"{what}: {tag}", problems) for tag in FLAGS}
            boxes.append(Box(name, xyxy, facts={tag: True for tag, value in flags.items() if value}))
    return boxes
