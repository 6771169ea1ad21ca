"""A data set of unlabelled images that returns two views of each, with the same geometry.

1. An image is loaded, moved and flipped as the run's own options say; mosaic, mixup, random scale and colours are left
   out.
2. That is the weak view, for the teacher, which sees objects at the size they have when it predicts.
3. The strong view, for the student, is the same with colours, blur and cut-out rectangles changed at random.

No label is read, even if a label file lies beside the image. An image that cannot be read is left out with a warning.
The views are part of our reconstruction of SED (see `mlc_yolo.losses.distillation`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2
from ultralytics.data.augment import Compose, LetterBox, RandomFlip, RandomPerspective
from ultralytics.utils import LOCAL_RANK, LOGGER

from mlc_yolo.data.datasets import CheckedDataset
from mlc_yolo.data.listing import image_files, warn_of_blanks

#: Chances and ranges of the strong view; rectangles are shares of the image's area.
JITTER, BLUR, GREY = 0.8, 0.5, 0.2
CUTOUTS = ((0.7, (0.02, 0.1)), (0.5, (0.01, 0.05)), (0.3, (0.01, 0.03)))


class TwoViews:
    """Turns a BGR image into a weak and a strong view, RGB uint8 (3, H, W)."""

    def __init__(self) -> None:
        """Set the changes of the strong view up."""
        self.strong = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)], p=JITTER),
                v2.RandomGrayscale(p=GREY),
                v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=BLUR),
                *(v2.RandomErasing(p=p, scale=scale, ratio=(0.3, 3.3), value="random") for p, scale in CUTOUTS),
            ]
        )

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return `weak`, `strong` and `im_file` of Ultralytics' labels, whose `img` is (H, W, 3) BGR uint8."""
        weak = torch.from_numpy(np.ascontiguousarray(labels["img"][..., ::-1].transpose(2, 0, 1)))
        return {"weak": weak, "strong": self._erased(weak), "im_file": labels["im_file"]}

    def _erased(self, weak: torch.Tensor) -> torch.Tensor:
        strong = self.strong(weak.float() / 255)  # erasing with noise wants floats
        return (strong.clamp(0, 1) * 255).round().to(torch.uint8)


class UnlabeledDataset(CheckedDataset):
    """Images without labels. An item is the result of `TwoViews`."""

    im_files: list[str]

    def __init__(self, *args: Any, warp: bool = False, **kwargs: Any) -> None:
        """Set up as upstream does.

        Args:
            *args: upstream's.
            warp: stretch images to the input's square, as the labelled ones are then; else pad them.
            **kwargs: upstream's.
        """
        self.warp = warp
        super().__init__(*args, **kwargs)

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Return image `i` as loaded for the input, its original size and its size here, both (H, W)."""
        loaded: tuple[np.ndarray, tuple[int, int], tuple[int, int]] = super().load_image(i, rect_mode=not self.warp)
        return loaded

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """List the images; see `image_files`."""
        files = image_files(img_path)
        if LOCAL_RANK in {-1, 0}:
            warn_of_blanks(img_path)
        return files

    def get_label_files(self) -> list[str]:
        """Return names of label files that do not exist."""
        self.label_files = [f"{file}.without-labels" for file in self.im_files]
        return self.label_files

    def result_to_label(self, result: list[Any]) -> tuple[dict[str, Any] | None, int, int, int, int, str]:
        """Count an image that can be read as found: upstream refuses training sets without any label."""
        label, *_, corrupt, message = super().result_to_label(result)
        return label, 0, int(label is not None), 0, corrupt, message

    def scan_summary(self, nf: int, nm: int, ne: int, nc: int) -> str:
        """Return the counts of images read and left out."""
        return f"{nf} images, {nc} corrupt"

    def get_labels(self) -> list[dict[str, Any]]:
        """Check the images, or take the last check from a cache beside their folder.

        Raises:
            RuntimeError: none of them can be read.
            ValueError: the cache is more than data.
        """
        self.get_label_files()
        listed = len(self.im_files)
        file = Path(self.im_files[0]).parent.with_suffix(".unlabeled.cache")
        cache, known = self._load_or_scan_cache(file, self.get_cache_hash())
        if known and cache["msgs"] and LOCAL_RANK in {-1, 0}:  # what a scan has said already
            LOGGER.info("\n".join(cache["msgs"]))
        labels: list[dict[str, Any]] = cache["labels"]
        if not labels:
            raise RuntimeError(self._unreadable())
        self.im_files = [label["im_file"] for label in labels]
        self.say_left_out(listed - len(labels), listed)
        return labels

    def cache_labels(self, path: Path) -> dict[str, Any]:
        """Check the images; see `get_labels`."""
        try:
            checked: dict[str, Any] = super().cache_labels(path)
        except ValueError as error:  # of 8.4.170, which takes them for images without labels
            raise RuntimeError(self._unreadable()) from error
        return checked

    def _unreadable(self) -> str:
        return f"{self.prefix}none of {len(self.im_files)} images can be read"

    def build_transforms(self, hyp: Any) -> Compose:
        """Return the geometry of the run's options, then the two views."""
        size = (self.imgsz, self.imgsz)
        return Compose(
            [
                LetterBox(new_shape=size, scaleup=True),
                RandomPerspective(
                    degrees=hyp.degrees,
                    translate=hyp.translate,
                    scale=0.0,
                    shear=hyp.shear,
                    perspective=hyp.perspective,
                    size=size,
                ),
                RandomFlip(direction="vertical", p=hyp.flipud),
                RandomFlip(direction="horizontal", p=hyp.fliplr),
                TwoViews(),
            ]
        )

    def close_mosaic(self, hyp: Any) -> None:
        """Do nothing: there is no mosaic."""

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Return weak and strong, (U, 3, H, W) uint8 each, and the files' names."""
        views = {name: torch.stack([item[name] for item in batch]) for name in ("weak", "strong")}
        return {**views, "im_file": [item["im_file"] for item in batch]}
