"""Turn boxes upright: in images that EXIF rotates, and of rotated rectangles.

1. A camera held upright writes a lying image and an EXIF orientation. Ultralytics, like any viewer, turns the image.
   Some annotation tools do not: their boxes count in the image as stored. The annotated size tells which, where width
   and height change places.
2. CVAT writes a rotated rectangle as the box before its rotation, and the angle beside it. Detectors learn upright
   boxes, so the hull is taken: the smallest upright box around the rotated one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Box = tuple[float, float, float, float]

#: EXIF orientation -> a point (x, y) of the stored image in the shown one, of (W, H) px, where W and H change places.
_SHOWN: dict[int, Callable[[float, float, float, float], tuple[float, float]]] = {
    5: lambda x, y, width, height: (y, x),
    6: lambda x, y, width, height: (width - y, x),
    7: lambda x, y, width, height: (width - y, height - x),
    8: lambda x, y, width, height: (y, height - x),
}


def as_shown(xyxy: Box, size: tuple[int, int], orientation: int) -> Box:
    """Return a box of the stored image in the image as shown.

    Args:
        xyxy: box in px of the stored image.
        size: (W, H) px of the image as shown.
        orientation: EXIF's, 5 to 8: those of a quarter turn. Any other leaves the box as it is.

    Returns:
        xyxy in px of the image as shown.

    Example:
        Orientation 6 turns the stored 80 x 100 px clockwise: its lower left corner becomes the upper left one.

        >>> as_shown((0, 80, 20, 100), (100, 80), 6)
        (0, 0, 20, 20)
    """
    if orientation not in _SHOWN:
        return xyxy
    (x1, y1), (x2, y2) = (_SHOWN[orientation](x, y, *size) for x, y in (xyxy[:2], xyxy[2:]))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def hull(xyxy: Box, degrees: float) -> Box:
    """Return the smallest upright box around a box rotated about its centre.

    Args:
        xyxy: box in px before its rotation.
        degrees: the rotation; its sense does not matter to the hull.

    Example:
        >>> hull((0.0, 0.0, 20.0, 10.0), 90.0)
        (5.0, -5.0, 15.0, 15.0)
    """
    x1, y1, x2, y2 = xyxy
    turn = math.radians(degrees)
    cosine, sine = abs(round(math.cos(turn), 12)), abs(round(math.sin(turn), 12))
    width, height = x2 - x1, y2 - y1
    across, down = width * cosine + height * sine, width * sine + height * cosine
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - across / 2, y - down / 2, x + across / 2, y + down / 2
