"""Data that a model finds easy: its own detections, moved a little."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mlc_yolo import MLCYOLO


def noise(size: int) -> list[np.ndarray]:
    """Two square images of noise."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(2)]


def labelled_by(net: MLCYOLO, folder: Path, images: list[np.ndarray]) -> Path:
    """Return the data YAML of square images whose objects lie a few pixels beside a model's own detections."""
    rng = np.random.default_rng(6)
    for kind in ("images", "labels"):
        (folder / "data" / kind).mkdir(parents=True)
    for i, image in enumerate(images):
        size = len(image)
        cv2.imwrite(str(folder / "data" / "images" / f"{i}.png"), image)
        boxes = net.predict(image, imgsz=size, conf=0.3, iou=0.3, verbose=False)[0].boxes
        corners = (boxes.xyxy.numpy() + rng.normal(0, 1.5, (len(boxes), 4))).clip(0, size)
        rows = [
            f"{int(c)} {(x0 + x1) / 2 / size} {(y0 + y1) / 2 / size} {(x1 - x0) / size} {(y1 - y0) / size}"
            for c, (x0, y0, x1, y1) in zip(boxes.cls, corners, strict=True)
            if x1 - x0 > 8 and y1 - y0 > 8
        ]
        assert len(rows) > 1
        (folder / "data" / "labels" / f"{i}.txt").write_text("\n".join(rows))
    data = folder / "data.yaml"
    place = (folder / "data" / "images").as_posix()
    data.write_text(f"train: {place}\nval: {place}\nnames: [square, disc, cross]\n")
    return data
