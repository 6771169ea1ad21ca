"""Results whose boxes also say how well they sit. To whoever does not ask, they are Ultralytics' own."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.engine.results import Boxes, Results
from ultralytics.utils.ops import clip_boxes

from mlc_yolo.heads.placed import IOU, SIGMAS
from mlc_yolo.plots.bands import displayed

Array = Tensor | NDArray[np.floating]

#: Columns of a data frame, in the order in which they are kept.
COLUMNS = (IOU, *SIGMAS)
#: Colour (BGR) and opacity of the bands that `show_sigma` draws.
BAND, OPACITY = (0, 255, 255), 0.5


class PlacedBoxes(Boxes):
    """`Boxes` that also know their predicted IoU and how sure each side is.

    Attributes:
        data: (N, 6) xyxy px of the original image, score, class; (N, 7) with a track's number before the score.
        placement: (N, 5) predicted IoU, then the standard deviation of left, top, right, bottom in the same px; nan
            where it is not known. A voted box keeps what its own anchor says.
    """

    def __init__(self, boxes: Array, orig_shape: tuple[int, int], placement: Array | None = None) -> None:
        """Take upstream's arguments, and what is known; None is nothing."""
        super().__init__(boxes, orig_shape)
        if placement is None:
            rows = torch.full((len(self.data), len(COLUMNS)), torch.nan)
            placement = rows.to(self.data) if isinstance(self.data, Tensor) else rows.numpy()
        self.placement = placement.reshape(-1, len(COLUMNS))

    @property
    def iou(self) -> Array:
        """Predicted IoU of box and object: (N,) in [0, 1], nan where the head does not predict it."""
        return self.placement[:, 0]

    @property
    def sigma(self) -> Array:
        """Standard deviation of left, top, right, bottom: (N, 4) px of the original image, nan where not known."""
        return self.placement[:, 1:]

    def cpu(self) -> PlacedBoxes:
        """Return it in the CPU's memory."""
        return self if isinstance(self.data, np.ndarray) else self._mapped(lambda rows: rows.cpu())

    def numpy(self) -> PlacedBoxes:
        """Return it as NumPy arrays."""
        return self if isinstance(self.data, np.ndarray) else self._mapped(lambda rows: rows.cpu().numpy())

    def cuda(self) -> PlacedBoxes:
        """Return it in the GPU's memory."""
        return self._mapped(lambda rows: torch.as_tensor(rows).cuda())

    def to(self, *args: Any, **kwargs: Any) -> PlacedBoxes:
        """Return it on a device or in a dtype, as tensors take them."""
        return self._mapped(lambda rows: torch.as_tensor(rows).to(*args, **kwargs))

    def __getitem__(self, idx: Any) -> PlacedBoxes:
        """Return some of the rows."""
        return self._mapped(lambda rows: rows[idx])

    def _mapped(self, function: Any) -> PlacedBoxes:
        return type(self)(function(self.data), self.orig_shape, function(self.placement))


class PlacedResults(Results):
    """`Results` with `PlacedBoxes`.

    Attributes:
        show_sigma: whether `plot` draws how sure the sides are unless it is told otherwise.
    """

    boxes: PlacedBoxes | None
    show_sigma = False

    def __init__(
        self,
        orig_img: NDArray[np.uint8],
        path: str,
        names: dict[int, str],
        boxes: Tensor | None = None,
        *,
        placement: Tensor | None = None,
        **others: Any,
    ) -> None:
        """Take upstream's arguments, and what is known of the boxes: (N, 5), as in `PlacedBoxes`."""
        super().__init__(orig_img, path, names, **others)
        if boxes is not None:
            self.boxes = PlacedBoxes(boxes, self.orig_shape, placement)

    def new(self) -> PlacedResults:
        """Return one of the same image without boxes."""
        result = type(self)(orig_img=self.orig_img, path=self.path, names=self.names, speed=self.speed)
        result.save_dir, result.show_sigma = self.save_dir, self.show_sigma
        return result

    def update(self, boxes: Tensor | None = None, **others: Any) -> None:
        """Replace what is given, as upstream does.

        Boxes with track numbers, as many as there were, are those boxes followed: they keep what is known of them.
        """
        super().update(**others)
        if boxes is not None:
            followed = self.boxes is not None and boxes.shape == (len(self.boxes), 7)
            known = self.boxes.placement if self.boxes is not None and followed else None
            self.boxes = PlacedBoxes(clip_boxes(boxes, self.orig_shape), self.orig_shape, known)

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """Return a dict for each detection: upstream's entries, then `COLUMNS`, None where one is not known.

        Args:
            normalize: give px as fractions of the image's width or height.
            decimals: places that numbers are rounded to.
        """
        rows: list[dict[str, Any]] = super().summary(normalize, decimals)
        if rows and self.boxes is not None:
            for row, known in zip(rows, self._known(normalize).tolist(), strict=True):
                values = (round(value, decimals) if value == value else None for value in known)
                row.update(zip(COLUMNS, values, strict=True))
        return rows

    def save_txt(self, txt_file: str | Path, save_conf: bool = False, *, placement: bool = False) -> str:
        """Append a line for each detection to a text file.

        Args:
            txt_file: the file.
            save_conf: add the score.
            placement: add the predicted IoU and the four standard deviations, as fractions of the image's size, at the
                end of upstream's line; "nan" where one is not known.

        Returns:
            Its path.
        """
        if not placement or not self.boxes:
            return str(super().save_txt(txt_file, save_conf))
        file = Path(txt_file)
        before = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        super().save_txt(txt_file, save_conf)
        lines = file.read_text(encoding="utf-8").splitlines()[len(before) :]
        known = (" ".join(f"{value:g}" for value in row) for row in self._known(normalize=True).tolist())
        added = [f"{line} {more}" for line, more in zip(lines, known, strict=True)]
        file.write_text("".join(f"{line}\n" for line in [*before, *added]), encoding="utf-8")
        return str(txt_file)

    def plot(self, *args: Any, show_sigma: bool | None = None, **kwargs: Any) -> Any:
        """Draw the detections as upstream does.

        Args:
            *args: upstream's.
            show_sigma: also draw, below each side, the band of one standard deviation to either side of it; None is as
                the prediction was asked.
            **kwargs: upstream's.
        """
        wanted = self.show_sigma if show_sigma is None else show_sigma
        if wanted and self.boxes is not None and kwargs.get("img") is None and len(args) < 6:
            kwargs["img"] = with_bands(displayed(self.orig_img), self.boxes.cpu().numpy())
        return super().plot(*args, **kwargs)

    def save_crop(self, save_dir: str | Path, file_name: str | Path = Path("im.jpg")) -> None:
        """Save each detection's part of the image as upstream does; of more than three bands the first three.

        Args:
            save_dir: a folder for each class is made in it.
            file_name: of the crops.
        """
        shown = copy(self)
        shown.orig_img = displayed(self.orig_img)
        super(PlacedResults, shown).save_crop(save_dir, file_name)

    def _known(self, normalize: bool) -> NDArray[np.float64]:
        """Return what is known of the boxes as float64 rows (N, 5)."""
        assert self.boxes is not None
        height, width = self.orig_shape if normalize else (1, 1)
        known: NDArray[np.float64] = np.asarray(self.boxes.cpu().placement, dtype=np.float64)
        return known / (1, width, height, width, height)


def with_bands(image: NDArray[np.uint8], boxes: PlacedBoxes) -> NDArray[np.uint8]:
    """Return a copy of an image with a band along each side: from one standard deviation outside it to one inside.

    Args:
        image: (H, W, 3) BGR.
        boxes: N of them, as NumPy arrays; sides that are not known have no band.
    """
    painted = image.copy()
    for box, sigmas in zip(np.asarray(boxes.xyxy), np.asarray(boxes.sigma), strict=True):
        for side, sigma in enumerate(sigmas):
            if np.isfinite(sigma):
                corners, axis = box.copy(), side % 2  # a side is the box without extent along its axis
                corners[axis], corners[axis + 2] = box[side] - sigma, box[side] + sigma
                x0, y0, x1, y1 = np.rint(corners).astype(int).tolist()
                cv2.rectangle(painted, (x0, y0), (x1, y1), BAND, cv2.FILLED)
    return np.asarray(cv2.addWeighted(painted, OPACITY, image, 1 - OPACITY, 0), dtype=np.uint8)
