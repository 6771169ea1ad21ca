"""SSD's training augmentation (Liu et al., ECCV 2016, section 2.2), out of torchvision's transforms.

1. Distort: brightness, contrast, saturation, hue and the order of the channels, each with probability 0.5.
2. Expand: with probability 0.6 put the image on a grey canvas of up to four times its sides. 3. Crop: a part that
overlaps some object by at least a drawn IoU, of 0.3 to 1 of each side; objects whose centre is outside are dropped.
4. Mirror with probability 0.5. The caller resizes last.

Known differences from SSD's code, none of them measured: colours are kept as 8-bit integers, so each distortion clips;
the canvas has the grey of Ultralytics' letterbox, 114, not ImageNet's mean (124, 116, 104); an image without objects is
not cropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from ultralytics.utils.instance import Instances

#: Grey of the canvas: what Ultralytics pads with.
GREY = 114

#: Shortest side, in pixels, of which 0.3 is still a pixel: torchvision's crop divides by the side it draws.
_CROPPABLE = 4


class SSDAugmentation:
    """Distort, expand, crop and mirror an image with its boxes.

    Draws from torch's global generator alone, which Ultralytics seeds in the process and, through the loader, in its
    workers.
    """

    def __init__(self) -> None:
        """Set the transforms up, with the probabilities and ranges of the paper's code."""
        self._distort = v2.RandomPhotometricDistort(p=0.5)
        self._expand = v2.RandomZoomOut(fill=GREY, side_range=(1.0, 4.0), p=0.6)
        self._crop = v2.RandomIoUCrop()
        self._finish = v2.Compose([v2.RandomHorizontalFlip(p=0.5), v2.SanitizeBoundingBoxes(labels_getter=_labels)])

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Augment one sample of an Ultralytics data set.

        Args:
            labels: `img` (H, W, 3) uint8 BGR; `cls` (M, 1); `instances`, M boxes in any format of theirs. Other entries
                pass through.

        Returns:
            The same dict with another `img` (H', W', 3), and of `cls` and `instances` those objects that are still
            there: centre inside the crop, sides of 1 px and more after clipping. Boxes are xyxy px; polygons are gone.
        """
        height, width = labels["img"].shape[:2]
        boxes = labels["instances"]
        boxes.convert_bbox(format="xyxy")
        boxes.denormalize(width, height)
        image = torch.from_numpy(np.ascontiguousarray(labels["img"][..., ::-1].transpose(2, 0, 1)))  # to RGB
        sample = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes.bboxes), format="XYXY", canvas_size=(height, width)
            ),
            "labels": torch.from_numpy(labels["cls"]),
        }
        sample = self._expand(self._distort(sample))
        if len(sample["boxes"]) and min(sample["image"].shape[-2:]) >= _CROPPABLE:
            sample = self._crop(sample)  # without objects it would try in vain, and give the whole image
        sample = self._finish(sample)
        labels["img"] = np.ascontiguousarray(sample["image"].numpy().transpose(1, 2, 0)[..., ::-1])
        labels["cls"] = sample["labels"].numpy()
        labels["instances"] = Instances(sample["boxes"].numpy(), bbox_format="xyxy", normalized=False)
        return labels


def _labels(sample: dict[str, Any]) -> torch.Tensor:
    labels: torch.Tensor = sample["labels"]
    return labels
