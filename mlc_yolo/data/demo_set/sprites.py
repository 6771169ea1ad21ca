"""The parts of the demo set's scenes: objects with a badge, flat clutter, backgrounds.

Each function draws from the generator it is given and from nothing else.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SUBPIXEL = 3  # fractional bits of the coordinates handed to OpenCV

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Colour = tuple[float, float, float]  # BGR, 0..255


def _circle(radius: float) -> Floats:
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return radius * np.stack([np.cos(turn), np.sin(turn)], 1)


def _bar(y0: float, y1: float, half: float) -> Floats:
    return np.array([[-half, y0], [half, y0], [half, y1], [-half, y1]])


_ARM, _END = 0.25, 0.78
# What the badges show: polygons in the unit disc, filled even-odd, so that a circle within a circle is a ring.
GLYPHS: dict[str, list[Floats]] = {
    "dot": [_circle(0.5)],
    "ring": [_circle(0.8), _circle(0.42)],
    "cross": [
        np.array(
            [
                *((_ARM, _ARM), (_ARM, _END), (-_ARM, _END), (-_ARM, _ARM), (-_END, _ARM), (-_END, -_ARM)),
                *((-_ARM, -_ARM), (-_ARM, -_END), (_ARM, -_END), (_ARM, -_ARM), (_END, -_ARM), (_END, _ARM)),
            ]
        )
    ],
    "bars": [_bar(-0.64, -0.2, 0.68), _bar(0.2, 0.64, 0.68)],
    "triangle": [np.array([(0.82, 0.0), (-0.5, 0.74), (-0.5, -0.74)])],
}


@dataclass(frozen=True)
class Sprite:
    """Something to paint: a patch of the image plane that may reach beyond the image.

    Attributes:
        origin: (x, y) of the patch's first pixel in the image.
        alpha: (h, w) uint8, 255 where opaque. The silhouette is `alpha >= 128`.
        colour: (h, w, 3) uint8, BGR.
        badge: (h, w) bool, the badge's pixels; None for what is no object.
    """

    origin: tuple[int, int]
    alpha: Image
    colour: Image
    badge: npt.NDArray[np.bool_] | None = None


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return 255 * blue, 255 * green, 255 * red


def _any_colour(rng: np.random.Generator) -> Colour:
    return _hsv(rng.random(), rng.uniform(0.2, 0.75), rng.uniform(0.3, 0.9))


def _badge_colour(label: int, num_classes: int, rng: np.random.Generator) -> Colour:
    """A hue around the class's own, to tell badges of a few pixels apart; bodies and clutter have any hue."""
    return _hsv((label + rng.uniform(-0.15, 0.15)) / num_classes, rng.uniform(0.75, 1.0), rng.uniform(0.6, 0.85))


def _fill(canvas: Image, polygons: list[Floats], colour: Colour | float) -> None:
    """Fill polygons [(n, 2) xy, edges between pixels] even-odd and anti-aliased."""
    points = [np.round((polygon - 0.5) * 2**SUBPIXEL).astype(np.int32) for polygon in polygons]
    cv2.fillPoly(canvas, points, colour if isinstance(colour, tuple) else (colour,), cv2.LINE_AA, SUBPIXEL)


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> npt.NDArray[np.float32]:
    """(height, width) float32, smooth noise in 0..1 with `cells` bumps a side."""
    grid = rng.random((cells, cells), dtype=np.float32)
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _blend(first: Colour, second: Colour, share: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(h, w, 3) float32: `first` where share (h, w) is 0, `second` where it is 1."""
    low, high = np.array(first, np.float32), np.array(second, np.float32)
    return np.asarray(low + (high - low) * share[..., None].astype(np.float32), np.float32)


def _outline(rng: np.random.Generator) -> Floats:
    """A closed curve (n, 2) about the origin, roughly of half-lengths 1: an egg, a rounded box or a rounded polygon."""
    corners = int(rng.integers(5, 9))
    rounded = rng.random() < 0.65
    turn = np.linspace(0, 2 * np.pi, 64 if rounded else corners, endpoint=False)
    cos, sin, squareness = np.cos(turn), np.sin(turn), rng.uniform(0.6, 1.0)
    points = np.stack([np.sign(cos) * abs(cos) ** squareness, np.sign(sin) * abs(sin) ** squareness], 1)
    points[:, 1] *= 1 + rng.uniform(-0.3, 0.3) * points[:, 0]
    waves = [0.05 * rng.random() * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
    points *= 1 + np.sum(waves, 0)[:, None]
    for _ in range(0 if rounded else 2):  # cut the corners
        after = np.roll(points, -1, 0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1).reshape(-1, 2)
    return points


def _limb(rng: np.random.Generator, outline: Floats, longest: float) -> list[Floats]:
    """A fin, leg or tail that leaves the outline anywhere, and its rounded tip."""
    root = outline[rng.integers(len(outline))]
    angle = np.arctan2(root[1], root[0]) + rng.uniform(-0.5, 0.5)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    base, tip = rng.uniform(0.12, 0.35), rng.uniform(0.06, 0.12)
    start, end = 0.8 * root, root + rng.uniform(0.3, 1.0) * longest * along
    shaft = np.stack([start - base * across, start + base * across, end + tip * across, end - tip * across])
    return [shaft, _circle(tip) + end]


def _paint_badge(
    rng: np.random.Generator,
    patch: Image,
    centre: Floats,
    radius: float,
    label: int,
    names: tuple[str, ...],
) -> None:
    """Paint a badge into a colour patch (h, w, 3), turned at random: rim, plate and glyph."""
    glyph = _badge_colour(label, len(names), rng)
    light = rng.random() < 0.75
    plate: Colour = _hsv(rng.random(), 0.08, rng.uniform(0.88, 1.0) if light else rng.uniform(0.08, 0.18))
    rim: Colour = (30.0, 30.0, 30.0) if light else (225.0, 225.0, 225.0)
    turn = _rotation(rng.uniform(0, 2 * np.pi))
    _fill(patch, [_circle(radius) + centre], rim)
    _fill(patch, [_circle(radius - max(0.8, 0.1 * radius)) + centre], plate)
    _fill(patch, [radius * (polygon @ turn) + centre for polygon in GLYPHS[names[label]]], glyph)


def _rotation(angle: float) -> Floats:
    """(2, 2), to be multiplied from the right."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _patch(points: Floats) -> tuple[tuple[int, int], tuple[int, int]]:
    """Origin (x, y) and shape (h, w) of a patch around the points, wide enough for a soft shadow."""
    low, high = np.floor(points.min(0)).astype(int) - 8, np.ceil(points.max(0)).astype(int) + 8
    return (int(low[0]), int(low[1])), (int(high[1] - low[1]), int(high[0] - low[0]))


def object_sprite(rng: np.random.Generator, centre: Floats, side: float, label: int, names: tuple[str, ...]) -> Sprite:
    """Draw one object.

    Args:
        rng: source of everything that is not an argument; only the badge's pixels depend on `label` and `names`.
        centre: (2,) xy in px of the middle of its extent.
        side: the longer side of its extent, px.
        label: in [0, K).
        names: the K classes.

    Returns:
        The sprite, its badge marked.
    """
    aspect = rng.uniform(max(0.42, 0.85 - side / 150), 0.95)  # thin small bodies would have no room for a badge
    outline = _outline(rng) * [1.0, aspect]
    seat = np.array([rng.uniform(0.45, 0.58), rng.uniform(-0.12, 0.12) * aspect])
    longest = 1.1 if side > 60 else 0.45
    limbs = [_limb(rng, outline, longest) for _ in range(rng.integers(0, 6))]
    angle = rng.uniform(0, 2 * np.pi)
    turn = _rotation(angle)
    everything = np.concatenate([outline, *(part for limb in limbs for part in limb)])
    low, high = (everything @ turn).min(0), (everything @ turn).max(0)
    scale = side / (high - low).max()

    def place(points: Floats) -> Floats:
        return np.asarray((points @ turn - (low + high) / 2) * scale + centre)

    origin, (h, w) = _patch(place(everything))
    corner = np.array(origin, float)
    body, alpha = np.zeros((h, w), np.uint8), np.zeros((h, w), np.uint8)
    for limb in limbs:
        for part in limb:
            _fill(alpha, [place(part) - corner], 255.0)
    _fill(body, [place(outline) - corner], 255.0)
    alpha = np.maximum(alpha, body)

    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    along = (xs * np.float32(np.cos(angle)) + ys * np.float32(np.sin(angle))) / np.float32(scale)
    texture = _noise(rng, h, w, int(rng.integers(4, 14)))
    if rng.random() < 0.5:  # wavy stripes across the body
        texture = 0.5 + 0.5 * np.sin(along * np.float32(rng.uniform(6, 16)) + 3 * texture)
    hue, saturation, value = rng.random(), rng.uniform(0.25, 0.7), rng.uniform(0.45, 0.9)
    other = _hsv(hue + rng.uniform(-0.12, 0.12), saturation, value * rng.uniform(0.45, 0.75))
    inside = cv2.distanceTransform((body >= 128).astype(np.uint8), cv2.DIST_L2, 3)
    light = 0.62 + 0.38 * np.minimum(inside / np.float32(0.08 * side), 1)  # darker rim, dark limbs
    patch = (_blend(_hsv(hue, saturation, value), other, texture) * light[..., None]).clip(0, 255).astype(np.uint8)

    middle = place(seat[None]) - corner
    radius = max(0.44 * aspect * scale, 4.5)
    _paint_badge(rng, patch, middle, radius, label, names)
    badge = np.hypot(xs + 0.5 - middle[0, 0], ys + 0.5 - middle[0, 1]) <= radius
    return Sprite(origin, alpha, patch, badge & (alpha >= 128))


def _flat_sprite(rng: np.random.Generator, polygons: list[Floats]) -> Sprite:
    """Clutter: polygons of one mottled colour."""
    origin, (h, w) = _patch(np.concatenate(polygons))
    alpha = np.zeros((h, w), np.uint8)
    _fill(alpha, [polygon - origin for polygon in polygons], 255.0)
    first = _any_colour(rng)
    second: Colour = (0.7 * first[0], 0.7 * first[1], 0.7 * first[2])
    return Sprite(origin, alpha, _blend(first, second, _noise(rng, h, w, 6)).astype(np.uint8))


def blob(rng: np.random.Generator, size: int) -> Sprite:
    """A flat round spot somewhere in a scene of `size` px."""
    half = np.exp(rng.uniform(np.log(3), np.log(0.1 * size)))
    return _flat_sprite(rng, [half * _outline(rng) * [1, rng.uniform(0.4, 1)] + rng.uniform(0, size, 2)])


def blade(rng: np.random.Generator, size: int) -> Sprite:
    """A long tapering, bent stroke, like a blade of grass."""
    t = np.linspace(0, 1, 12)[:, None]
    start, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.2, 0.7) * size
    across = np.array([-along[1], along[0]])
    spine = start + t * along + rng.uniform(-0.35, 0.35) * t * (1 - t) * across
    side = across / np.hypot(*across) * rng.uniform(0.004, 0.014) * size * (1.05 - t)
    return _flat_sprite(rng, [np.concatenate([spine + side, (spine - side)[::-1]])])


def badge_piece(rng: np.random.Generator, size: int, names: tuple[str, ...]) -> Sprite:
    """A part of a badge, little more than half the disc at most, with no body to it."""
    radius, centre = rng.uniform(5, 16), rng.uniform(0, size, 2)
    origin, (h, w) = _patch(_circle(radius) + centre)
    middle = centre - origin
    patch = np.zeros((h, w, 3), np.uint8)
    _paint_badge(rng, patch, middle[None], radius, int(rng.integers(len(names))), names)
    turn = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.6, 1.15) * np.pi, 16)
    alpha = np.zeros((h, w), np.uint8)
    _fill(alpha, [radius * np.stack([np.cos(turn), np.sin(turn)], 1) + middle], 255.0)
    return Sprite(origin, alpha, patch)


def background(rng: np.random.Generator, size: int) -> Image:
    """(size, size, 3) uint8: two muted colours mixed by fractal noise, patches of a third, grain over all."""
    muted = [_hsv(rng.random(), rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.75)) for _ in range(3)]
    octaves = ((4, 0.4), (9, 0.3), (23, 0.2), (60, 0.1))
    fractal = sum(_noise(rng, size, size, cells) * weight for cells, weight in octaves)
    patches = np.clip((_noise(rng, size, size, 7) - 0.5) * 5, 0, 1)
    image = _blend(muted[0], muted[1], np.asarray(fractal))
    image += (np.array(muted[2], np.float32) - image) * np.float32(0.7) * patches[..., None]
    image += rng.integers(-7, 8, (size, size, 1), np.int8)
    return image.clip(0, 255).astype(np.uint8)
