"""The result of reading annotations: pictures with boxes in pixels, and the problems in the source.

Frame: x right and y down from the top left corner of the image as it is shown (EXIF rotation applied, as Ultralytics
loads it), in pixels between edges: the whole image is (0, 0, W, H).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from PIL import Image
from ultralytics.data.utils import IMG_FORMATS, exif_size
from ultralytics.utils import patches

from mlc_yolo.conversion.turns import as_shown, hull

#: px; a box that leaves the image by less is cut without a word: files with two decimals do that everywhere.
TOLERANCE = 0.01
#: px; Ultralytics ignores an image with a shorter side.
SMALLEST_SIDE = 10
#: EXIF's tag of how an image is turned.
_ORIENTATION = 274
#: Upstream's replacement of `PIL.Image.open` wants to install pi-heif whenever it meets a damaged file of any format.
_PLAIN_OPEN = getattr(patches, "_image_open", Image.open)


Corners = tuple[float, float, float, float]


class Kind(Enum):
    """Kinds of problems, and how each was handled."""

    ANNOTATION = "annotation unreadable: image left out"
    NO_ANNOTATION = "no annotation: image left out"
    NO_IMAGE = "image missing: left out"
    IMAGE = "image unreadable: left out"
    SIZE = "annotated image size is wrong: the image's own was used"
    TURNED = "annotated before EXIF turned the image: its boxes were turned as well"
    SIDEWAYS = "annotated width and height have changed places: image left out, its boxes lie elsewhere"
    CLIPPED = "box reaches outside the image: clipped"
    BOX = "box unusable: left out"
    ROTATED = "box rotated: the upright box around it was used"
    FLAG = "flag unreadable: taken as false"
    REFERENCE = "annotation of an unknown image or category: left out"
    DUPLICATE = "given twice: used once"
    RENAMED = "name taken: image renamed"
    GROUP = "category only groups others: it is no class"
    NAMESAKE = "categories of one name: they are one class"
    UNTRAINED = "class without an object to train on"
    EMPTY = "split without objects: it judges nothing"
    CROWDS = "more crowd regions than objects: crowds are not trained on"


@dataclass(frozen=True)
class Problem:
    """One thing that was wrong.

    Attributes:
        file: the file to look at.
        kind: what is wrong, and what was done about it.
        detail: where in the file, and the values.
    """

    file: str
    kind: Kind
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind.value}: {self.detail}"


@dataclass(frozen=True)
class Box:
    """One annotated box inside its image.

    Attributes:
        category: class name.
        xyxy: x1 < x2, y1 < y2 in px.
        crowd: a region of many objects rather than one.
        facts: what YOLO labels cannot hold, by name: difficult, truncated, occluded, id, area; flags only where true.
    """

    category: str
    xyxy: Corners
    crowd: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """One annotated image.

    Attributes:
        file: the image.
        name: its path in the source, with "/".
        size: (W, H) px.
        annotation: the file its boxes come from.
        boxes: in the order of that file.
        id: the source's own id of the image, if it has one.
    """

    file: Path
    name: str
    size: tuple[int, int]
    annotation: Path
    boxes: list[Box]
    id: str | int | None = None


@dataclass(frozen=True)
class Header:
    """The content of an image's header.

    Attributes:
        size: (W, H) px of the image as shown.
        orientation: EXIF's, 1 to 8; 1 where there is none.
    """

    size: tuple[int, int]
    orientation: int = 1


def read_header(file: Path, problems: list[Problem]) -> Header | None:
    """Read an image's header; None, with the reason in `problems`, if the image cannot be used."""
    if not file.is_file():
        problems.append(Problem(str(file), Kind.NO_IMAGE, "no such file"))
        return None
    try:
        with (Image.open if file.suffix.lower() in {".heic", ".heif"} else _PLAIN_OPEN)(file) as image:
            width, height = exif_size(image)
            kind = str(image.format).lower()
            orientation = image.getexif().get(_ORIENTATION, 1) if (width, height) != image.size else 1
    except Exception as error:  # Pillow's readers raise whatever a damaged header leads them to
        reason = str(error) if file.stat().st_size else "the file is empty"
        problems.append(Problem(str(file), Kind.IMAGE, reason))
        return None
    if file.suffix[1:].lower() not in IMG_FORMATS or kind not in IMG_FORMATS | {"jpeg2000"}:
        detail = f"a {kind} file named *{file.suffix}; Ultralytics reads {', '.join(sorted(IMG_FORMATS))}"
        problems.append(Problem(str(file), Kind.IMAGE, detail))
        return None
    if min(width, height) < SMALLEST_SIDE:
        detail = f"{width} x {height} px; Ultralytics ignores images with a side below {SMALLEST_SIDE}"
        problems.append(Problem(str(file), Kind.IMAGE, detail))
        return None
    return Header((width, height), orientation)


@dataclass(frozen=True)
class Frame:
    """The frame that an image's boxes are written in.

    Attributes:
        size: (W, H) px of the image as shown.
        orientation: EXIF's, where boxes count in the image as stored; else 1.
    """

    size: tuple[int, int]
    orientation: int = 1

    def place(
        self, xyxy: Corners, file: Path, what: str, problems: list[Problem], rotation: float = 0.0
    ) -> Corners | None:
        """Return a box in the image as shown, cut to it, or None if nothing is left.

        Args:
            xyxy: box in px as annotated, any four numbers.
            file: where the box is written.
            what: which box of that file.
            problems: gets what is wrong with the box.
            rotation: of the box about its centre, in degrees.
        """
        x1, y1, x2, y2 = xyxy
        if rotation % 180 and x1 < x2 and y1 < y2:
            problems.append(Problem(str(file), Kind.ROTATED, f"{what}, by {rotation:g} degrees"))
            xyxy = hull(xyxy, rotation)
        return inside(as_shown(xyxy, self.size, self.orientation), self.size, file, what, problems)


def find_frame(
    annotated: tuple[float, float] | None, header: Header, file: Path, what: str, problems: list[Problem]
) -> Frame | None:
    """Find out which frame an image's boxes count in, by the annotated size.

    Args:
        annotated: (W, H) px; None where none is given.
        header: of the image.
        file: where the size is written.
        what: which image of that file.
        problems: gets a size that is not the image's.

    Returns:
        The frame; None where width and height have changed places and EXIF does not say how the image was turned.
    """
    size = header.size
    if annotated is None or annotated == size:
        return Frame(size)
    detail = f"{what} is {size[0]} x {size[1]} px, annotated as {annotated[0]:g} x {annotated[1]:g}"
    if annotated != size[::-1]:
        problems.append(Problem(str(file), Kind.SIZE, detail))
        return Frame(size)
    if header.orientation == 1:
        problems.append(Problem(str(file), Kind.SIDEWAYS, detail))
        return None
    problems.append(Problem(str(file), Kind.TURNED, detail))
    return Frame(size, header.orientation)


def inside(xyxy: Corners, size: tuple[int, int], file: Path, what: str, problems: list[Problem]) -> Corners | None:
    """Cut a box to its image.

    Args:
        xyxy: box in px, any four numbers.
        size: (W, H) px.
        file: where the box is written.
        what: which box of that file.
        problems: gets what is wrong with the box.

    Returns:
        x1 < x2, y1 < y2 within the image, or None if nothing is left.

    Example:
        >>> problems = []
        >>> inside((-3, 10, 20, 30), (100, 80), Path("a.xml"), "object 1", problems)
        (0.0, 10.0, 20.0, 30.0)
        >>> print(problems[0])
        a.xml: box reaches outside the image: clipped: object 1, (-3, 10, 20, 30) in 100 x 80 px
    """
    width, height = size
    detail = f"{what}, ({', '.join(f'{value:g}' for value in xyxy)}) in {width} x {height} px"
    x1, y1, x2, y2 = xyxy
    reason = None
    cut = xyxy
    if not all(map(math.isfinite, xyxy)):
        reason = "not finite"
    elif x2 < x1 or y2 < y1:
        reason = "reversed"
    elif x2 == x1 or y2 == y1:
        reason = "empty"
    else:
        cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            reason = "outside the image"
    if reason:
        problems.append(Problem(str(file), Kind.BOX, f"{detail}, is {reason}"))
        return None
    if max(abs(before - after) for before, after in zip(xyxy, cut, strict=True)) > TOLERANCE:
        problems.append(Problem(str(file), Kind.CLIPPED, detail))
    left, top, right, bottom = map(float, cut)
    return left, top, right, bottom


def flag(value: Any, file: Path, what: str, problems: list[Problem]) -> bool:
    """Read a yes or no as annotation tools write it. Anything else is a problem and counts as no."""
    text = str(value).strip().lower()
    if text in {"1", "true", "yes"}:
        return True
    if text not in {"0", "false", "no", "", "none", "unspecified"}:
        problems.append(Problem(str(file), Kind.FLAG, f"{what} is {str(value)[:40]!r}"))
    return False
