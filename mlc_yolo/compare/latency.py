"""How long models take for one image, measured side by side: `python -m mlc_yolo.compare.latency FILE DEVICE`.

All models are loaded into one process and take turns on the same images at batch 1, after a warm-up, by `predict` with
its own defaults, once nothing else of the comparison runs. Counted are inference and postprocessing (NMS), not reading
the image. The median over the rounds is taken, of each model's own times.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import yaml
from ultralytics.utils.patches import imread

from mlc_yolo import whole_files
from mlc_yolo.compare.parent import end_with_parent
from mlc_yolo.model import MLCYOLO

WARM_UP, ROUNDS = 5, 30


def measure(
    models: dict[str, dict[str, Any]], images: list[str], device: str, trusted: Collection[str] = ()
) -> dict[str, float]:
    """Time models in turn.

    Args:
        models: by name, the arguments of `MLCYOLO.predict` and `model`, its weights.
        images: files, used in turn.
        device: as Ultralytics takes it.
        trusted: names of the models that are opened whatever they hold.

    Returns:
        Milliseconds per image by name.
    """
    loaded = {name: MLCYOLO(arguments["model"], trust=name in trusted) for name, arguments in models.items()}
    settings = {
        name: {key: arguments[key] for key in arguments if key != "model"} for name, arguments in models.items()
    }
    bands = {name: int(getattr(model.model, "yaml", {}).get("channels", 3)) for name, model in loaded.items()}
    pixels = {count: [_pixels(image, count) for image in images] for count in set(bands.values())}
    times: dict[str, list[float]] = {name: [] for name in models}
    for i in range(WARM_UP + ROUNDS):
        for name, model in loaded.items():
            image = pixels[bands[name]][i % len(images)]
            (result,) = model.predict(image, device=device, verbose=False, **settings[name])
            if i >= WARM_UP:
                times[name].append(result.speed["inference"] + result.speed["postprocess"])
    return {name: round(median(values), 3) for name, values in times.items()}


def _pixels(image: str, channels: int) -> np.ndarray:
    """Read an image with a model's number of channels, as its training did: (H, W, channels), uint8.

    Raises:
        ValueError: the file has another number, or is none.
    """
    flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
    pixels = imread(image, flag)
    if pixels is None or np.atleast_3d(pixels).shape[2] != channels:
        got = "no image" if pixels is None else f"{np.atleast_3d(pixels).shape[2]} channels"
        raise ValueError(f"{image}: expected the {channels} channels of the model, got {got}")
    return np.atleast_3d(pixels)


if __name__ == "__main__":
    end_with_parent()
    _file = Path(sys.argv[1])
    _told = yaml.safe_load(_file.read_text())
    _milliseconds = measure(_told["models"], _told["images"], sys.argv[2], _told["trusted"])
    whole_files.write(_file, yaml.safe_dump({**_told, "milliseconds": _milliseconds}))
