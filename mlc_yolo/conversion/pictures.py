"""What a reader of annotations hands over: pictures with boxes in pixels, and the problems met on the way.

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

#: px; a box that leaves the image by less is cut without a word: files with two decimals do that everywhere.
TOLERANCE = 0.01
#: px; Ultralytics ignores an image with a shorter side.
SMALLEST_SIDE = 10
#: Upstream's replacement of `PIL.Image.open` wants to install pi-heif whenever it meets a damaged file of any format.
_PLAIN_OPEN = getattr(patches, "_image_open", Image.open)


class Kind(Enum):
    """What can be wrong, and what was done about it."""

    ANNOTATION = "annotation unreadable: image left out"
    NO_ANNOTATION = "no annotation: image left out"
    NO_IMAGE = "image missing: left out"
    IMAGE = "image unreadable: left out"
    SIZE = "annotated image size is wrong: the image's own was used"
    CLIPPED = "box reaches outside the image: clipped"
    BOX = "box unusable: left out"
    FLAG = "flag unreadable: taken as false"
    REFERENCE = "annotation of an unknown image or category: left out"
    DUPLICATE = "given twice: used once"
    RENAMED = "name taken: image renamed"


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
        category: class name (VOC) or category id (COCO).
        xyxy: x1 < x2, y1 < y2 in px.
        crowd: a region of many objects rather than one.
        facts: what YOLO labels cannot hold, by name: difficult, truncated, occluded, id, area; flags only where true.
    """

    category: str | int
    xyxy: tuple[float, float, float, float]
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


def image_size(file: Path, problems: list[Problem]) -> tuple[int, int] | None:
    """Read an image's size (W, H) in px from its header; None, with the reason in `problems`, if it cannot be used."""
    if not file.is_file():
        problems.append(Problem(str(file), Kind.NO_IMAGE, "no such file"))
        return None
    try:
        with (Image.open if file.suffix.lower() in {".heic", ".heif"} else _PLAIN_OPEN)(file) as image:
            width, height = exif_size(image)
            kind = str(image.format).lower()
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
    return width, height


def compare_size(annotated: tuple[float, float], size: tuple[int, int], file: Path, what: str) -> list[Problem]:
    """Return the problem of an annotated (W, H) that is not the image's, in a list, else an empty one."""
    if annotated == size:
        return []
    detail = f"{what} is {size[0]} x {size[1]} px, annotated as {annotated[0]:g} x {annotated[1]:g}"
    return [Problem(str(file), Kind.SIZE, detail)]


def inside(
    xyxy: tuple[float, float, float, float], size: tuple[int, int], file: Path, what: str, problems: list[Problem]
) -> tuple[float, float, float, float] | None:
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
        >>> found = []
        >>> inside((-3, 10, 20, 30), (100, 80), Path("a.xml"), "object 1", found)
        (0.0, 10.0, 20.0, 30.0)
        >>> print(found[0])
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
    """Read a yes or no as annotation tools write it; what is neither is a problem and taken as no."""
    text = str(value).strip().lower()
    if text in {"1", "true", "yes"}:
        return True
    if text not in {"0", "false", "no", "", "none", "unspecified"}:
        problems.append(Problem(str(file), Kind.FLAG, f"{what} is {str(value)[:40]!r}"))
    return False
