"""Images of any number of bands as a picture shows them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def displayed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what a picture shows of an image: three bands as they are, of more the first three, of fewer one as grey.

    Ultralytics' own plots show the same three; matplotlib would take a fourth band for transparency.

    Args:
        image: (H, W, C) or (H, W), C >= 1; RGB where C is 3.

    Returns:
        (H, W, 3).

    Example:
        >>> displayed(np.arange(8, dtype=np.uint8).reshape(1, 2, 4)).tolist()
        [[[0, 1, 2], [4, 5, 6]]]
    """
    bands = image if image.ndim == 3 else image[..., None]
    return bands[..., :3] if bands.shape[-1] >= 3 else np.repeat(bands[..., :1], 3, axis=-1)
