"""An object of the demo set as a row of labels, as each task has them: box, outline, keypoints or box askew.

Coordinates are parts of the image, in [0, 1], as Ultralytics' formats have them.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

#: Keypoints of an object and their values: the middles of its badge and of its body, with visibility.
KEYPOINTS = (2, 3)


def box_row(box: Floats, silhouette: Mask, badge: Mask, imgsz: int) -> str:
    """Return centre and sides of the extent."""
    return _text(np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]) / imgsz)


def outline_row(box: Floats, silhouette: Mask, badge: Mask, imgsz: int) -> str:
    """Return the corners of the silhouette's outline, of its largest part if it has several."""
    return _text(_outline(silhouette) / imgsz)


def keypoints_row(box: Floats, silhouette: Mask, badge: Mask, imgsz: int) -> str:
    """Return the extent, then the middles of badge and body: x, y, 2; zeros for a badge outside the image."""
    points = [(*_middle(mask) / imgsz, 2) if mask.any() else (0, 0, 0) for mask in (badge, silhouette)]
    return f"{box_row(box, silhouette, badge, imgsz)} {' '.join(_text(np.array(p[:2])) + f' {p[2]}' for p in points)}"


def askew_row(box: Floats, silhouette: Mask, badge: Mask, imgsz: int) -> str:
    """Return the four corners of the least box around the silhouette, at any angle, clipped to the image."""
    rows, columns = np.nonzero(silhouette)
    # A pixel is a square: all of its corners are to be inside.
    corners = np.concatenate([np.stack([columns + x, rows + y], 1) for x in (0, 1) for y in (0, 1)])
    least = cv2.boxPoints(cv2.minAreaRect(corners.astype(np.float32)))
    return _text((least / imgsz).clip(0, 1))


#: Task -> (box (4,) xyxy px, silhouette and badge (H, W), image side) -> what follows the class in a row of labels.
ROWS: dict[str, Callable[[Floats, Mask, Mask, int], str]] = {
    "detect": box_row,
    "segment": outline_row,
    "pose": keypoints_row,
    "obb": askew_row,
}


def _outline(silhouette: Mask) -> Floats:
    """Return the outline's corners (n, 2) px, three at least."""
    # Drawn at twice the size and shifted back, it runs along the outer edges of the pixels to half a pixel.
    large = silhouette.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    parts, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray((max(parts, key=cv2.contourArea).reshape(-1, 2) + 0.5) / 2, np.float64)


def _middle(mask: Mask) -> Floats:
    """Return the mean x, y of a mask's pixels, px."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def _text(values: npt.NDArray[np.floating]) -> str:
    return " ".join(f"{value:.6f}" for value in values.ravel())
