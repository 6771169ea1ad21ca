"""Ultralytics' data set with clear errors, and two variants: images warped to the input, and SSD's augmentation.

Ultralytics' builder makes only its own classes, by global names. `build` makes ours from the same arguments.
"""

from __future__ import annotations

import os
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.augment import Compose, Format, LetterBox
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import get_split_fraction
from ultralytics.utils import LOCAL_RANK, LOGGER, colorstr

from mlc_yolo.data.label_cache import check_cache
from mlc_yolo.data.listing import warn_of_blanks
from mlc_yolo.data.ssd_augmentation import SSDAugmentation


class CheckedDataset(YOLODataset):
    """`YOLODataset` that opens no cache but one of data, and says which images it leaves out or cannot decode.

    Upstream's scan reads headers: a file cut short, or with 32-bit pixels, may come up in the middle of an epoch.
    """

    im_files: list[str]

    def get_labels(self) -> list[dict[str, Any]]:
        """Return the labels as upstream does, and say how many images it left out.

        Raises:
            ValueError: the cache of the labels is more than data.
        """
        listed = len(self.im_files)
        labels: list[dict[str, Any]] = super().get_labels()
        self.say_left_out(listed - len(labels), listed)
        return labels

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """List the images as upstream does, and name lists with blanks that hide some."""
        files: list[str] = super().get_img_files(img_path)
        if LOCAL_RANK in {-1, 0}:
            warn_of_blanks(img_path)
        return files

    def say_left_out(self, count: int, listed: int) -> None:
        """Say how many of the images listed are left out, if any; upstream has named them one by one."""
        if count and LOCAL_RANK in {-1, 0}:
            LOGGER.warning(
                f"{self.prefix}{count} of {listed} images are left out because they are damaged or their labels are "
                "invalid; see the messages above"
            )

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        """Return the cache, and whether it was known; again where another process took the old one away meanwhile."""
        try:
            return self._checked_or_scanned(cache_path, cache_hash)
        except FileNotFoundError as error:
            if not str(error.filename).endswith(".cache"):
                raise
            return self._checked_or_scanned(cache_path, cache_hash)

    def _checked_or_scanned(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        if not check_cache(cache_path):
            return self.cache_labels(cache_path), False
        known: tuple[dict[str, Any], bool] = super()._load_or_scan_cache(cache_path, cache_hash)
        return known

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Return image `i` as upstream does.

        Raises:
            ValueError: it cannot be decoded.
            FileNotFoundError: it is not there.
        """
        try:
            loaded: tuple[np.ndarray, tuple[int, int], tuple[int, int]] = super().load_image(i, *args, **kwargs)
        except (FileNotFoundError, cv2.error) as error:  # upstream's word for None; OpenCV's for sizes it will not read
            if not os.path.isfile(self.im_files[i]):
                raise
            raise ValueError(
                f"{self.im_files[i]} cannot be decoded: it is damaged, or OpenCV does not read its format, such as "
                "pixels of 32 bits. Remove it, or save it as 8-bit PNG or JPEG"
            ) from error
        return loaded


class WarpedDataset(CheckedDataset):
    """`YOLODataset` whose images are stretched to the input size as they are loaded.

    Whatever follows finds images that fill the input already: the letterbox of validation leaves them as they are,
    mosaic takes them for squares. `ratio_pad` holds the gain of each side, so upstream maps boxes back exactly.
    """

    def __init__(self, *args: Any, rect: bool = False, **kwargs: Any) -> None:
        """Set up as upstream does, `rect` aside: there is one shape."""
        super().__init__(*args, rect=False, **kwargs)

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
    """

    def __init__(self, *args: Any, warp: bool, rect: bool = False, **kwargs: Any) -> None:
        """Set up as upstream does, `rect` aside: there is one shape.

        Args:
            *args: upstream's.
            warp: stretch to the input's square; else pad to it.
            rect: passed over.
            **kwargs: upstream's.
        """
        self.warp = warp
        super().__init__(*args, rect=False, **kwargs)

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
    source: str | list[str] | None,
    args: Any,
    *,
    data: dict[str, Any],
    stride: int = 32,
    batch: int | None = None,
    mode: str = "train",
    rect: bool = False,
    fraction: float | None = None,
    warp: bool,
    ssd: bool = False,
) -> YOLODataset:
    """Build one of these data sets with the arguments of upstream's `build_yolo_dataset`.

    That function takes its class by a global name, so it cannot make one of these.

    Args:
        source: folders or lists of images, as `data` names them; None where it names none.
        args: upstream's arguments.
        data: the data set's YAML, as upstream has read it.
        stride: of the model, px.
        batch: images a batch.
        mode: "train" augments; any other is for validation.
        rect: batches of rectangular images of similar shapes; `args.rect` asks for them too.
        fraction: the share of the images to use; that of `args` where it is None.
        warp: stretch images to the input's square. Batches are never rectangular then.
        ssd: SSD's augmentation. Batches are never rectangular then.

    Raises:
        ValueError: `classes` names one that the data has not; upstream would drop every label. Or a cache of labels is
            more than data.
    """
    kind: Any = partial(SSDDataset, warp=warp) if ssd else WarpedDataset if warp else CheckedDataset
    training = mode == "train"
    if data.get("complete"):  # as far as it was fetched, the share is taken already
        fraction = 1.0
    elif fraction is None:
        fraction = get_split_fraction(args.fraction, "train" if training else args.split)
    dataset: YOLODataset = kind(
        img_path=source,
        imgsz=args.imgsz,
        batch_size=batch,
        augment=training,
        hyp=args,
        rect=args.rect or rect,
        cache=args.cache or None,
        single_cls=args.single_cls or False,
        stride=stride,
        pad=0.0 if training else 0.5,
        prefix=colorstr(f"{mode}: "),
        task=args.task,
        classes=args.classes,
        data=data,
        fraction=fraction,
    )
    _check_labels(dataset, args)
    return dataset


def _check_labels(dataset: YOLODataset, args: Any) -> None:
    """Refuse classes that the data lacks, and warn of boxes that have no area inside their image."""
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
        f"{dataset.labels[image[0]]['im_file']}: training ignores them, and validation counts them as missed"
    )
