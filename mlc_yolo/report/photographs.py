"""Photographs on a page: made small, as data URIs, with boxes and captions as SVG over them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from ultralytics.utils.patches import imread

from mlc_yolo.plots.bands import displayed

LONGEST = 480  # px, the longer side of a photograph on the page
JPEG_QUALITY = 78


def photograph_of(path: str, region: tuple[int, int, int, int] | None = None) -> str:
    """Return an image as a data URI, made small.

    Args:
        path: of the image.
        region: x1, y1, x2, y2 of the part to show, in px; None is all of it.

    Returns:
        The URI; empty if there is no such image any more.
    """
    photo = _read(path) if Path(path).is_file() else None
    if photo is None:
        return ""
    if region is not None:
        x1, y1, x2, y2 = region
        photo = photo[y1:y2, x1:x2]
    scale = LONGEST / max(photo.shape[:2])
    if region is None:
        scale = min(1.0, scale)
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _read(path: str) -> NDArray[np.uint8] | None:
    """Return an image as (H, W, 3) BGR, of more bands the first three as figures show them; None if it is none."""
    photo: NDArray[np.uint8] | None = imread(path)
    if photo is None or not path.lower().endswith((".tif", ".tiff")):
        return photo
    # The grey pages of a TIFF are bands, of which `photo` is the first; a page of colours is BGR already, alpha last.
    bands = imread(path, cv2.IMREAD_UNCHANGED)
    if bands.shape[-1] <= 3 or np.array_equal(bands[..., :3], photo):
        return photo
    return np.ascontiguousarray(displayed(bands)[..., ::-1])


def box_markup(box: NDArray[np.floating], class_: str) -> Markup:
    """Return a box, in px of the image, as SVG of that class of the style sheet.

    Args:
        box: (4,) xyxy, or (5,) of an oriented one: centre, width, height, and its angle in radians.
        class_: of the style sheet.
    """
    values = [float(v) for v in box]
    turn = ""
    if len(values) == 5:
        x, y, across, down, angle = values
        turn = f' transform="rotate({np.degrees(angle):.1f} {x:.1f} {y:.1f})"'
        values = [x - across / 2, y - down / 2, x + across / 2, y + down / 2]
    x1, y1, x2, y2 = values
    place = f'x="{x1:.1f}" y="{y1:.1f}" width="{max(0.0, x2 - x1):.1f}" height="{max(0.0, y2 - y1):.1f}"{turn}'
    return Markup(f'<rect {place} class="halo {class_}"/><rect {place} class="{class_}"/>')


def caption_markup(captions: Sequence[tuple[NDArray[np.floating], str, str]], width: int, size: float) -> list[Markup]:
    """Return texts inside the upper left corners of their boxes; one that would cover an earlier one is left out.

    Args:
        captions: (4,) box, text and class of each, the most telling first.
        width: of the image, in px.
        size: of the texts, in px of the image.
    """
    taken: list[tuple[float, float, float]] = []
    drawn = []
    for box, text, class_ in captions:
        long = 0.66 * size * len(text)  # about, in the usual fonts
        x = max(0.0, min(float(box[0]) + size / 4, width - long))
        y = max(float(box[1]), 0.0) + size
        if all(abs(y - other_y) >= size or x + long < left or right < x for left, right, other_y in taken):
            taken.append((x, x + long, y))
            drawn.append(Markup(f'<text x="{x:.1f}" y="{y:.1f}" class="{class_}">{escape(text)}</text>'))
    return drawn
