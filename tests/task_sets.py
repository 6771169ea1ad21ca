"""A small net and four labelled images for each task beside detection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from nets import SMALL, SMALL_NETS, enliven
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT

HEADS: dict[str, tuple[str, list[Any]]] = {
    "segment": ("Segment", ["nc", 8, 16]),
    "pose": ("Pose", ["nc", "kpt_shape"]),
    "obb": ("OBB", ["nc", 1]),
}
MODELS: dict[str, Any] = {"segment": SegmentationModel, "pose": PoseModel, "obb": OBBModel}


def write_net(folder: Path, task: str, family: int = 11) -> str:
    """Write the YAML of a small net with a family's head (8, 11, 12 or 26) of a task; return its path.

    YOLO12's heads are YOLO11's; its net has the block with attention before them.
    """
    file = folder / f"tiny{family}-{task}.yaml"
    content = yaml.safe_load(Path(SMALL_NETS["yolov8n"] if family == 8 else SMALL).read_text())
    if family == 12:
        content["backbone"][3] = [-1, 1, "A2C2f", [64, True, 1]]
    name, args = HEADS[task]
    newer = {"end2end": True, "reg_max": 1} if family == 26 else {}
    row = [content["head"][-1][0], 1, f"{name}26" if newer else name, args]
    file.write_text(yaml.safe_dump({**content, **newer, "kpt_shape": [2, 3], "head": [row]}))
    return str(file)


def write_lively(folder: Path, task: str, family: int) -> Path:
    """Return a checkpoint, written if it is not there yet, whose scores and boxes differ from anchor to anchor."""
    file = folder / f"lively{family}-{task}.pt"
    if file.exists():
        return file
    torch.manual_seed(0)
    model = MODELS[task](yaml_model_load(write_net(folder, task, family)), nc=2, verbose=False)
    enliven(model, torch.rand(2, 3, 64, 64))
    for layers in getattr(model.model[-1], "one2one_cv2", None) or ():
        layers[-1].bias.data += 2  # distances in strides, or few boxes would meet an object
    write_checkpoint(model, task, file)
    return file


def write_checkpoint(model: DetectionModel, task: str, file: Path) -> None:
    """Write a model of two classes as a finished training leaves it."""
    model.names, model.task, model.args = {0: "a", 1: "b"}, task, {**DEFAULT_CFG_DICT, "task": task}
    if task == "pose":
        model.kpt_shape = model.yaml["kpt_shape"]  # trained models have it; some upstream versions' new ones do not
    torch.save({"model": model, "train_args": {"task": task}}, file)


def write_set(folder: Path, task: str) -> Path:
    """Write four images of 64 px, if they are not there yet: rectangles of two classes, one image without any.

    They lie askew for oriented boxes; one of those is thinner than 2 px.

    Returns:
        The path of their data.yaml.
    """
    root = folder / f"tasks-{task}"
    if root.exists():
        return root / "data.yaml"
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for index, count in enumerate((2, 0, 3, 1)):
        image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        rows: list[str] = []
        for _ in range(count):
            (x, y), (width, height) = rng.uniform(0.05, 0.5, 2), rng.uniform(0.2, 0.45, 2)
            corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
            if task == "obb":
                corners = _askew(corners, angle=rng.uniform(0, np.pi), thin=index == 2 and not rows)
            label = int(rng.integers(2))
            cv2.fillPoly(image, [(corners * 64).astype(np.int32)], (250 * label, 30, 120))
            box = (x + width / 2, y + height / 2, width, height)
            keypoints = [value for corner in corners[[0, 2]] for value in (*corner, 2)]
            values = (*box, *keypoints) if task == "pose" else corners.flatten()
            rows.append(" ".join([str(label), *(f"{value:.4f}" for value in values)]))
        cv2.imwrite(str(root / "images" / f"{index}.png"), image)
        (root / "labels" / f"{index}.txt").write_text("".join(f"{row}\n" for row in rows))
    shape = {"kpt_shape": [2, 3]} if task == "pose" else {}
    content = {"path": str(root), "train": "images", "val": "images", "names": {0: "a", 1: "b"}, **shape}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def _askew(corners: np.ndarray, *, angle: float, thin: bool) -> np.ndarray:
    """Turn a rectangle about its centre, made 1 px thin at 64 px if asked for."""
    centre = corners.mean(0)
    away = (corners - centre) * (0.7, 0.02 if thin else 0.7)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(np.clip(centre + away @ np.array([[cos, sin], [-sin, cos]]), 0.01, 0.99))
