"""How long models take for one image, measured side by side: `python -m mlc_yolo.compare.latency FILE DEVICE`.

All models are loaded into one process and take turns on the same images at batch 1, after a warm-up, by `predict` with
its own defaults, once nothing else of the comparison runs. Counted are inference and postprocessing (NMS), not reading
the image. The median over the rounds is taken, of each model's own times.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import yaml

from mlc_yolo import whole_files
from mlc_yolo.compare.parent import end_with_parent
from mlc_yolo.model import MLCYOLO

WARM_UP, ROUNDS = 5, 30


def measure(models: dict[str, dict[str, Any]], images: list[str], device: str) -> dict[str, float]:
    """Time models in turn.

    Args:
        models: by name, the arguments of `MLCYOLO.predict` and `model`, its weights.
        images: files, used in turn.
        device: as Ultralytics takes it.

    Returns:
        Milliseconds per image by name.
    """
    pixels = [cv2.imread(image) for image in images]
    loaded = {
        name: MLCYOLO(arguments.pop("model"), trust=bool(arguments.get("trust", False)))
        for name, arguments in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for i in range(WARM_UP + ROUNDS):
        for name, model in loaded.items():
            (result,) = model.predict(pixels[i % len(pixels)], device=device, verbose=False, **models[name])
            if i >= WARM_UP:
                times[name].append(result.speed["inference"] + result.speed["postprocess"])
    return {name: round(median(values), 3) for name, values in times.items()}


if __name__ == "__main__":
    end_with_parent()
    _file = Path(sys.argv[1])
    _told = yaml.safe_load(_file.read_text())
    _found = measure(_told["models"], _told["images"], sys.argv[2])
    whole_files.write(_file, yaml.safe_dump({**_told, "milliseconds": _found}))
