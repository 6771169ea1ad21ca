"""Data sets that say what is wrong with them; also those of another geometry or augmentation: warped, and SSD's.

Ultralytics' builder settles files, labels, classes and share of the data; it knows its own class only. So it builds,
and what it built becomes one of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import Any

import numpy as np
from ultralytics.data.augment import Compose, Format, LetterBox
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOCAL_RANK, LOGGER
from ultralytics.utils.patches import override_configs

from mlc_yolo.data.label_cache import check_label_caches
from mlc_yolo.data.listing import image_files
from mlc_yolo.data.ssd_augmentation import SSDAugmentation


class CheckedDataset(YOLODataset):
    """`YOLODataset` that tells an image it cannot decode from one that is not there.

    Upstream's scan reads headers: a file cut short, or with 32-bit pixels, may come up in the middle of an epoch.
    """

    im_files: list[str]

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Return image `i` as upstream does.

        Raises:
            ValueError: it cannot be decoded.
            FileNotFoundError: it is not there.
        """
        try:
            loaded: tuple[np.ndarray, tuple[int, int], tuple[int, int]] = super().load_image(i, *args, **kwargs)
        except FileNotFoundError as error:
            if not os.path.isfile(self.im_files[i]):
                raise
            raise ValueError(
                f"{self.im_files[i]} cannot be decoded: it is damaged, or of a kind that OpenCV does not read, such as "
                "pixels of 32 bits. Remove it or save it anew as 8-bit PNG or JPEG"
            ) from error
        return loaded


class WarpedDataset(CheckedDataset):
    """`YOLODataset` whose images are stretched to the input size as they are loaded.

    Whatever follows finds images that fill the input already: the letterbox of validation leaves them as they are,
    mosaic takes them for squares. `ratio_pad` holds the gain of each side, so upstream maps boxes back exactly.
    """

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Return image `i` at the input size, its original size and the input size, both (H, W)."""
        loaded: tuple[np.ndarray, tuple[int, int], tuple[int, int]] = super().load_image(i, rect_mode=False)
        return loaded


class SSDDataset(CheckedDataset):
    """`YOLODataset` with SSD's augmentation in place of Ultralytics'.

    Images are loaded as they are, those larger than twice the input reduced to that: a crop stays sharp, and the canvas
    of the largest expansion stays within memory whatever the photograph. The resize comes last.

    Attributes:
        warp: stretch to the input's square; else pad to it.
    """

    warp = False

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Return image `i`, its original size and the size it has here, both (H, W)."""
        view = copy(self)  # upstream scales the long side to `imgsz`, and caches images in several threads
        view.imgsz = min(2 * self.imgsz, max(self.labels[i]["shape"]))
        loaded: tuple[np.ndarray, tuple[int, int], tuple[int, int]] = super(SSDDataset, view).load_image(i)
        return loaded

    def build_transforms(self, hyp: Any) -> Compose:
        """Return the augmentation, the resize to the input and upstream's format."""
        return Compose(
            [
                SSDAugmentation(),
                LetterBox(self.imgsz, scale_fill=self.warp),
                Format(bbox_format="xywh", normalize=True, batch_idx=True),
            ]
        )


def build(
    make: Callable[[Any], YOLODataset], source: str | list[str] | None, args: Any, *, warp: bool, ssd: bool = False
) -> YOLODataset:
    """Build a data set as upstream does, and make it one of ours where that is asked for.

    Args:
        make: builds upstream's from `source` and `args`.
        source: folders or lists of images, as `data` names them; None where it names none.
        args: upstream's arguments; `cache` is read.
        warp: stretch images to the input's square. Batches are never rectangular then.
        ssd: SSD's augmentation. Batches are never rectangular then.

    Raises:
        ValueError: `classes` names one that the data has not; upstream would drop every label. Or a cache of labels is
            more than data.
    """
    with suppress(FileNotFoundError):  # no images: upstream says so
        check_label_caches(image_files(source or []))
    if not (warp or ssd):
        dataset = _made(make, source)
        if type(dataset) is YOLODataset:  # upstream has others, for other tasks
            dataset.__class__ = CheckedDataset
        _check_labels(dataset, args)
        return dataset
    # Cached images are resized ones: they have to be loaded our way.
    with override_configs(args, {"cache": False, "rect": False}):
        dataset = _made(make, source)
    _check_labels(dataset, args)
    dataset.rect = False  # upstream's trainer asks for it whatever `args` say
    dataset.__class__ = SSDDataset if ssd else WarpedDataset
    dataset.warp = warp
    dataset.transforms = dataset.build_transforms(hyp=copy(args))
    cache = args.cache.lower() if isinstance(args.cache, str) else "ram" if args.cache else None
    dataset.cache = cache
    if (cache == "ram" and dataset.check_cache_ram()) or (cache == "disk" and dataset.check_cache_disk()):
        dataset.cache_images()
    return dataset


def _made(make: Callable[[Any], YOLODataset], source: Any) -> YOLODataset:
    """Build upstream's, again where another process put a cache of labels aside while this one meant to do so."""
    try:
        return make(source)
    except FileNotFoundError as error:
        if not str(error.filename).endswith(".cache"):
            raise
        return make(source)


def _check_labels(dataset: YOLODataset, args: Any) -> None:
    """Refuse classes that the data has not, and say which labels hold boxes without area inside their image."""
    asked = [] if args.classes is None else np.atleast_1d(args.classes).tolist()
    names = dataset.data["names"]
    if unknown := [label for label in asked if label not in names]:
        raise ValueError(
            f"classes={args.classes}: the data has classes 0 to {dataset.data['nc'] - 1}, not {unknown[0]}"
        )
    if LOCAL_RANK not in {-1, 0} or not dataset.labels:
        return
    boxes = np.concatenate([label["bboxes"] for label in dataset.labels])
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    empty = (np.minimum(centre + half, 1) <= np.maximum(centre - half, 0)).any(1)
    if not empty.any():
        return
    image = np.repeat(np.arange(len(dataset.labels)), [len(label["bboxes"]) for label in dataset.labels])[empty]
    LOGGER.warning(
        f"{dataset.prefix}{len(image)} boxes in {len(set(image))} images have no area inside their image, the first in "
        f"{dataset.labels[image[0]]['im_file']}: they train nothing, and validation counts them as never found"
    )
