"""Data sets with another geometry or another augmentation than Ultralytics': warped to a square, and SSD's.

Ultralytics' builder settles files, labels, classes and share of the data; it knows its own class only. So it builds,
and what it built becomes one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from ultralytics.data.augment import Compose, Format, LetterBox
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.patches import override_configs

from mlc_yolo.data.ssd_augmentation import SSDAugmentation


class WarpedDataset(YOLODataset):
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


class SSDDataset(YOLODataset):
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


def build(make: Callable[[], YOLODataset], args: Any, *, warp: bool, ssd: bool = False) -> YOLODataset:
    """Build a data set as upstream does, and make it one of ours where that is asked for.

    Args:
        make: builds upstream's from `args`.
        args: upstream's arguments; `cache` is read.
        warp: stretch images to the input's square. Batches are never rectangular then.
        ssd: SSD's augmentation. Batches are never rectangular then.
    """
    if not (warp or ssd):
        return make()
    # Cached images are resized ones: they have to be loaded our way.
    with override_configs(args, {"cache": False, "rect": False}):
        dataset = make()
    dataset.rect = False  # upstream's trainer asks for it whatever `args` say
    dataset.__class__ = SSDDataset if ssd else WarpedDataset
    dataset.warp = warp
    dataset.transforms = dataset.build_transforms(hyp=copy(args))
    cache = args.cache.lower() if isinstance(args.cache, str) else "ram" if args.cache else None
    dataset.cache = cache
    if (cache == "ram" and dataset.check_cache_ram()) or (cache == "disk" and dataset.check_cache_disk()):
        dataset.cache_images()
    return dataset
