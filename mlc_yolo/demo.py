"""Train with mutual labelling, validate and predict on the demo set, and log where the pictures are."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

#: Small enough for two CPU cores in a few minutes; any of them can be given on the command line.
DEFAULTS: dict[str, Any] = {
    "data": "demo.yaml",
    "assigner": "mlc",
    "epochs": 16,
    "imgsz": 224,
    "batch": 16,
    "nbs": 16,  # upstream's 64 would leave 5 optimiser steps an epoch
    "warmup_epochs": 1.0,
    "close_mosaic": 4,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "name": "demo",
}


def run_demo(model: Any = "yolo11n.yaml", *, trust: bool = False, **overrides: Any) -> Path:
    """Train, validate and predict on the built-in demo set, or on `data` of one's own.

    Args:
        model: an `MLCYOLO`, or what it loads.
        trust: open checkpoints whatever they hold.
        **overrides: any argument of `MLCYOLO.train`.

    Returns:
        The run's folder.
    """
    from ultralytics.utils import LOGGER, colorstr

    from mlc_yolo.data.resolve import resolve_data
    from mlc_yolo.figures.assignments import draw_assignments
    from mlc_yolo.model import MLCYOLO

    arguments = {**DEFAULTS, **overrides}
    arguments["data"] = resolve_data(arguments["data"])
    if not isinstance(model, MLCYOLO):
        model = MLCYOLO(model, trust=trust)
    LOGGER.info(f"{colorstr('1/4 train:')} assigner={arguments['assigner']}, epochs={arguments['epochs']}")
    model.train(**arguments)
    run = Path(model.trainer.save_dir)

    common = {"data": arguments["data"], "imgsz": arguments["imgsz"], "project": str(run), "exist_ok": True}
    LOGGER.info(f"{colorstr('2/4 validate:')} {model.trainer.best}")
    metrics = model.val(coco_eval=True, name="val", **common)

    images = validation_images(arguments["data"], 8)
    LOGGER.info(f"{colorstr('3/4 predict:')} {len(images)} validation images")
    del common["data"]
    # After so short a training few scores pass the usual 0.25.
    model.predict(images, conf=0.1, save=True, name="predict", verbose=False, **common)

    LOGGER.info(f"{colorstr('4/4 who learns what:')} task-aligned and mutual labelling side by side")
    best = MLCYOLO(run / "weights" / "best.pt", trust=model.trust)
    draw_assignments(best, data=arguments["data"], assigner=["tal", "mlc"], name="assignments", **common)

    program = "mlc-yolo" if shutil.which("mlc-yolo") else Path(sys.executable).with_name("mlc-yolo")
    LOGGER.info(
        f"\nA toy run of {arguments['epochs']} epochs: mAP50-95 {metrics.box.map:.3f}, AP75 {metrics.box.map75:.3f}, "
        f"Spearman(score, IoU) {metrics.spearman:.3f}\n"
        f"  training curves           {run / 'results.png'}\n"
        f"  score against IoU         {run / 'val' / 'score_iou.png'}\n"
        f"  predictions (conf=0.1)    {run / 'predict'}\n"
        f"  who learns what           {run / 'assignments'}\n"
        f"  best weights              {run / 'weights' / 'best.pt'}\n"
        f"Now with images of your own: {program} train model=yolo11n.pt data=path/to/your.yaml"
    )
    return run


def validation_images(data: str, count: int) -> list[str]:
    """Return the first images of the validation split, whether it is a folder, a list in a file, or several.

    Args:
        data: as `data=` takes it.
        count: how many at most.
    """
    from mlc_yolo.data.listing import image_files
    from mlc_yolo.data.resolve import open_data

    return image_files(open_data(data)["val"])[:count]
