"""What one validation saw: every object and every detection of every image, kept in one file.

Everything that is said about a model afterwards (AP, its uncertainty, kinds of errors, pictures) is computed from
these, so that models can be compared image by image without running them again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlc_yolo import whole_files

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """Objects and detections of I images; boxes are xyxy pixels of the original image.

    Attributes:
        images: image files, in the order their index counts.
        sizes: (I, 2) int64 height, width.
        gt_image: (G,) int64 index of the object's image, in 0..I-1.
        gt_boxes: (G, 4) float32.
        gt_labels: (G,) int64 in 0..K-1.
        image: (N,) int64 index of the detection's image.
        boxes: (N, 4) float32.
        scores: (N,) float32 in [0, 1], what the detections are ranked by.
        labels: (N,) int64 in 0..K-1.
        names: class name by label.
        spearman: (G,) float32 rank correlation of score and IoU over the object's candidates (see
            `metrics.divergence`), nan where undefined; None where it was not measured.
        reach: (G,) float32 IoU of the object with its best-placed candidate before NMS (see `metrics.reach`), 0 without
            one; None where outputs before NMS are not to be had.
        digest: of the options of the run they come from; empty where they come from no such run.

    Raises:
        ValueError: arrays whose lengths do not agree.
    """

    images: list[str]
    sizes: Int64Array
    gt_image: Int64Array
    gt_boxes: Float32Array
    gt_labels: Int64Array
    image: Int64Array
    boxes: Float32Array
    scores: Float32Array
    labels: Int64Array
    names: dict[int, str]
    spearman: Float32Array | None = None
    reach: Float32Array | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        images, objects, detections = len(self.images), len(self.gt_image), len(self.image)
        expected = {
            "sizes": (images, 2),
            "gt_boxes": (objects, 4),
            "gt_labels": (objects,),
            "boxes": (detections, 4),
            "scores": (detections,),
            "labels": (detections,),
        }
        expected |= {name: (objects,) for name in _OPTIONAL if getattr(self, name) is not None}
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(
                    f"{name} is {got}, expected {shape}: {images} images, {objects} objects, {detections} detections"
                )

    def same_images(self, other: Records) -> bool:
        """Whether both saw the same images with the same objects, which is what makes them comparable in pairs."""
        return self.images == other.images and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("gt_image", "gt_boxes", "gt_labels")
        )

    def with_detections(
        self, image: Int64Array, boxes: Float32Array, scores: Float32Array, labels: Int64Array
    ) -> Records:
        """Return records of the same images and objects with other detections; see the attributes."""
        return replace(
            self, image=image, boxes=boxes, scores=scores, labels=labels, spearman=None, reach=None, digest=""
        )

    def save(self, path: Path) -> None:
        """Write a compressed npz. It is there whole or, if the process is killed meanwhile, not at all."""
        known = {name: getattr(self, name) for name in (*_ARRAYS, *_OPTIONAL)}
        arrays = {name: array for name, array in known.items() if array is not None}
        content = io.BytesIO()
        np.savez_compressed(
            content,
            **arrays,
            images=np.array(self.images, dtype=np.str_),
            name_labels=np.array(list(self.names), dtype=np.int64),
            names=np.array(list(self.names.values()), dtype=np.str_),
            digest=np.array(self.digest),
        )
        whole_files.write(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Records:
        """Read what `save` wrote.

        Raises:
            OSError: no such file.
            ValueError: no records in it.
        """
        with np.load(path, allow_pickle=False) as read:
            missing = {*_ARRAYS, "images", "names", "name_labels", "digest"} - set(read)
            if missing:
                raise ValueError(f"{path} holds no records: {', '.join(sorted(missing))} missing")
            return cls(
                **{name: read[name] for name in _ARRAYS},
                images=read["images"].tolist(),
                names=dict(zip(read["name_labels"].tolist(), read["names"].tolist(), strict=True)),
                **{name: read.get(name) for name in _OPTIONAL},
                digest=str(read["digest"]),
            )


_ARRAYS = ("sizes", "gt_image", "gt_boxes", "gt_labels", "image", "boxes", "scores", "labels")
#: Arrays of objects that records may lack.
_OPTIONAL = ("spearman", "reach")


def saved_digest(path: Path) -> str | None:
    """Return the digest of the records in a file without reading the rest; None where there is no such file."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as read:
        return str(read["digest"])
