"""The demo set: scenes in which an object's class and its extent are told by different pixels.

Every object is a textured body with limbs that carries one small badge near one end. The badge alone tells the class;
the body and its limbs, drawn without regard to the class, alone set the box. The anchors that classify best therefore
lie over the badge and those that localise best over the body: the conflict that one answer per task resolves.

1. A background of fractal noise is strewn with flat clutter and with pieces of badges that belong to no body.
2. Objects are painted one over the other, many of them beside an earlier one.
3. Blades and blobs are painted over everything.

A thing that would hide an earlier badge, or leave too little of an earlier object, is not painted at all: every object
in the picture is labelled and every label can be seen. A box is the object's full extent, hidden parts included,
clipped to the image. Each image has a random generator of its own and depends on the parameters, its split and its
index, nothing else. Bytes are reproducible within one installation; another OpenCV may encode a JPEG differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from mlc_yolo.data.demo_set.labels import ROWS
from mlc_yolo.data.demo_set.sprites import (
    GLYPHS,
    Floats,
    Image,
    Sprite,
    background,
    badge_piece,
    blade,
    blob,
    object_sprite,
)

VERSION = 1  # raise it whenever the same parameters draw other pixels: files of two versions never mix
SPLITS = ("train", "val")
EMPTY_EVERY = 16  # one image in so many has no object

MIN_VISIBLE = 0.4  # of a silhouette's area; what lies outside the image counts as hidden
MIN_BADGE_VISIBLE = 0.8
SIDES = (28.0, 180.0)  # longer side of an object's extent, px


@dataclass(frozen=True)
class DemoSpec:
    """Parameters of a demo set; with `VERSION` they determine every file of it.

    Attributes:
        names: the classes in label order, each a key of `GLYPHS`.
        seed: non-negative integer.
        train_images: images of the training split, at least 1.
        val_images: images of the validation split, at least 1.
        imgsz: side of the square images in px, at least 64.
        task: what is labelled, a key of `labels.ROWS`; the pictures are the same.

    Raises:
        ValueError: a parameter outside its domain, named with what was expected.
    """

    names: tuple[str, ...] = tuple(GLYPHS)
    seed: int = 0
    train_images: int = 320
    val_images: int = 60
    imgsz: int = 320
    task: str = "detect"

    def __post_init__(self) -> None:
        if self.task not in ROWS:
            raise ValueError(f"task of a demo set is one of {', '.join(ROWS)}; got {self.task!r}.")
        unknown = [name for name in self.names if name not in GLYPHS]
        if unknown or not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names of a demo set are different ones of {', '.join(GLYPHS)}; got {list(self.names)}.")
        for key, low in {"seed": 0, "train_images": 1, "val_images": 1, "imgsz": 64}.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{key} of a demo set is an integer of at least {low}; got {value!r}.")


@dataclass(frozen=True)
class Scene:
    """One image and its GT.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        labels: (M,) int64 in [0, K).
        boxes: (M, 4) float64, xyxy in px, within the image; edges lie between pixels, so a box of one pixel has side 1.
        silhouettes: (M, H, W) bool, an object's pixels in the image, hidden ones included.
        badges: (M, H, W) bool, those of its badge.
    """

    image: Image
    labels: npt.NDArray[np.int64]
    boxes: Floats
    silhouettes: npt.NDArray[np.bool_]
    badges: npt.NDArray[np.bool_]


@dataclass
class _Painted:
    """An object on the canvas with all of its pixels, and those that can still be seen."""

    label: int
    box: Floats
    area: int
    badge_area: int
    visible: npt.NDArray[np.bool_]
    badge: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        self.whole, self.whole_badge = self.visible.copy(), self.badge.copy()

    def survives(self, cover: npt.NDArray[np.bool_], there: tuple[slice, slice]) -> bool:
        """Whether enough can still be seen once the pixels `cover` of the window `there` are hidden."""
        seen = np.count_nonzero(self.visible) - np.count_nonzero(self.visible[there] & cover)
        badge = np.count_nonzero(self.badge) - np.count_nonzero(self.badge[there] & cover)
        return bool(seen >= MIN_VISIBLE * self.area and badge >= MIN_BADGE_VISIBLE * self.badge_area)


class Canvas:
    """An image being painted, back to front, that refuses whatever would hide an object painted before.

    Args:
        image: (H, W, 3) uint8, BGR; painted in place.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self.objects: list[_Painted] = []

    def paint(self, sprite: Sprite, label: int | None = None) -> bool:
        """Paint a sprite, as an object of class `label` unless that is None. Returns False if it was refused."""
        height, width = self.image.shape[:2]
        (x, y), (h, w) = sprite.origin, sprite.alpha.shape
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if left >= right or top >= bottom:
            return False
        there = np.s_[top:bottom, left:right]
        here = np.s_[top - y : bottom - y, left - x : right - x]
        silhouette = sprite.alpha >= 128
        cover = silhouette[here]
        if not all(item.survives(cover, there) for item in self.objects):
            return False
        if label is not None:
            assert sprite.badge is not None
            visible, badge = np.zeros((2, height, width), bool)
            visible[there], badge[there] = cover, sprite.badge[here]
            xs, ys = np.flatnonzero(silhouette.any(0)), np.flatnonzero(silhouette.any(1))
            box = np.array([x + xs[0], y + ys[0], x + xs[-1] + 1, y + ys[-1] + 1], float)
            item = _Painted(
                label=label,
                box=box.clip(0, [width, height, width, height]),
                area=int(silhouette.sum()),
                badge_area=int(sprite.badge.sum()),
                visible=visible,
                badge=badge,
            )
            if not item.survives(np.zeros_like(cover), there):  # too much of it lies outside the image
                return False
            shadow = cv2.GaussianBlur(sprite.alpha, (0, 0), 3)[here].astype(np.float32) / 255
            self.image[there] = (self.image[there] * (1 - 0.45 * shadow[..., None])).astype(np.uint8)
        alpha = sprite.alpha[here].astype(np.float32)[..., None] / 255
        mixed = self.image[there] * (1 - alpha) + sprite.colour[here] * alpha
        self.image[there] = mixed.astype(np.uint8)
        for other in self.objects:
            other.visible[there] &= ~cover
            other.badge[there] &= ~cover
        if label is not None:
            self.objects.append(item)
        return True

    def scene(self) -> Scene:
        """The image so far with its GT, in the order of painting."""
        labels = np.array([item.label for item in self.objects], np.int64)
        boxes = np.array([item.box for item in self.objects], float).reshape(-1, 4)
        shape = (-1, *self.image.shape[:2])
        silhouettes, badges = (
            np.array(masks, bool).reshape(shape)
            for masks in ([item.whole for item in self.objects], [item.whole_badge for item in self.objects])
        )
        return Scene(self.image, labels, boxes, silhouettes, badges)


def draw_scene(spec: DemoSpec, split: str, index: int) -> Scene:
    """Draw one image of the set.

    Args:
        spec: parameters of the set.
        split: "train" or "val".
        index: of the image in its split, from 0. Every `EMPTY_EVERY`-th image has no object.

    Returns:
        The scene; the same arguments give the same pixels.
    """
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    size = spec.imgsz
    canvas = Canvas(background(rng, size))
    for _ in range(rng.integers(5, 14)):
        canvas.paint((blob if rng.random() < 0.6 else blade)(rng, size))
    for _ in range(rng.integers(0, 4)):
        canvas.paint(badge_piece(rng, size, spec.names))
    wanted = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(3, 10))
    for _ in range(wanted):
        side = SIDES[0] * (SIDES[1] / SIDES[0]) ** rng.random() ** 0.7 * size / 320  # median 90 px of 320
        centre = rng.uniform(0.04, 0.96, 2) * size
        if canvas.objects and rng.random() < 0.4:  # beside an earlier object, so that the two overlap
            box = canvas.objects[rng.integers(len(canvas.objects))].box
            angle, reach = rng.uniform(0, 2 * np.pi), (box[2:] - box[:2] + side) / 2
            centre = (box[:2] + box[2:]) / 2 + 0.75 * reach * [np.cos(angle), np.sin(angle)]
        label = int(rng.integers(len(spec.names)))
        canvas.paint(object_sprite(rng, centre, side, label, spec.names), label)
    for _ in range(rng.integers(2, 8)):
        canvas.paint((blade if rng.random() < 0.7 else blob)(rng, size))
    return canvas.scene()


def write_demo(spec: DemoSpec, folder: Path) -> None:
    """Draw the whole set into `folder`, which exists: images/{train,val}/*.jpg, labels/{train,val}/*.txt (YOLO format).

    Raises:
        OSError: a file could not be written.
    """
    for split, count in {"train": spec.train_images, "val": spec.val_images}.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            scene = draw_scene(spec, split, index)
            done, data = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            assert done
            (images / f"{index:04d}.jpg").write_bytes(data.tobytes())
            objects = zip(scene.labels, scene.boxes, scene.silhouettes, scene.badges, strict=True)
            row = ROWS[spec.task]
            text = [f"{label} {row(box, whole, badge, spec.imgsz)}\n" for label, box, whole, badge in objects]
            (labels / f"{index:04d}.txt").write_text("".join(text), encoding="ascii")
