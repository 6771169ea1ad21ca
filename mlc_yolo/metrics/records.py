"""What one validation saw: every object and every detection of every image, kept in one file.

Everything that is said about a model afterwards (AP, its uncertainty, kinds of errors, pictures) is computed from
these, so that models can be compared image by image without running them again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mlc_yolo import whole_files

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]

#: Least similarity that is kept: below it, a detection and an object have nothing to do with each other.
LEAST_SIMILARITY = 0.1


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
        task: Ultralytics' word: "detect", "segment", "pose" or "obb". Of oriented boxes `gt_boxes` and `boxes` are the
            upright ones around them.
        pair_detection: (P,) int64 detection of each pair that has a similarity of `LEAST_SIMILARITY` or more, whatever
            the classes: IoU of masks, OKS of keypoints, probiou of oriented boxes. None for detection.
        pair_object: (P,) int64 object of each.
        pair_similarity: (P,) float32 in [0, 1].

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
    task: str = "detect"
    pair_detection: Int64Array | None = None
    pair_object: Int64Array | None = None
    pair_similarity: Float32Array | None = None

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
        pairs = [getattr(self, name) for name in _PAIRS]
        if any(array is not None for array in pairs):
            count = len(next(array for array in pairs if array is not None))
            expected |= {name: (count,) for name in _PAIRS}
        for name, shape in expected.items():
            got = np.shape(getattr(self, name))
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
        self,
        image: Int64Array,
        boxes: Float32Array,
        scores: Float32Array,
        labels: Int64Array,
        **pairs: NDArray[np.generic],
    ) -> Records:
        """Return records of the same images and objects with other detections, and their pairs; see the attributes."""
        known: dict[str, Any] = {**dict.fromkeys((*_OPTIONAL, *_PAIRS)), **pairs}
        return replace(self, image=image, boxes=boxes, scores=scores, labels=labels, digest="", **known)

    def similarities(self) -> csr_array:
        """Return the similarity of every detection with every object, (N, G) sparse; 0 where they are no pair.

        Raises:
            ValueError: records of detection, which have none.
        """
        if self.pair_similarity is None:
            raise ValueError(f"these records of task {self.task} hold no similarities")
        places = self.pair_detection, self.pair_object
        return csr_array((self.pair_similarity.astype(np.float64), places), (len(self.image), len(self.gt_image)))

    def save(self, path: Path) -> None:
        """Write a compressed npz. It is there whole or, if the process is killed meanwhile, not at all."""
        known = {name: getattr(self, name) for name in (*_ARRAYS, *_OPTIONAL, *_PAIRS)}
        arrays = {name: array for name, array in known.items() if array is not None}
        content = io.BytesIO()
        np.savez_compressed(
            content,
            **arrays,
            images=np.array(self.images, dtype=np.str_),
            name_labels=np.array(list(self.names), dtype=np.int64),
            names=np.array(list(self.names.values()), dtype=np.str_),
            digest=np.array(self.digest),
            task=np.array(self.task),
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
                **{name: read.get(name) for name in (*_OPTIONAL, *_PAIRS)},
                digest=str(read["digest"]),
                task=str(read["task"]) if "task" in read else "detect",  # records from before there were others
            )


_ARRAYS = ("sizes", "gt_image", "gt_boxes", "gt_labels", "image", "boxes", "scores", "labels")
#: Arrays of objects that records may lack.
_OPTIONAL = ("spearman", "reach")
_PAIRS = ("pair_detection", "pair_object", "pair_similarity")


def saved_digest(path: Path) -> str | None:
    """Return the digest of the records in a file without reading the rest; None where there is no such file."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as read:
        return str(read["digest"])
