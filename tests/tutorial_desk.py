"""A folder as a reader of a tutorial has it: a data set, photographs, weights; and what makes its trainings tiny."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import torch
import yaml
from nets import SMALL, enliven

from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.model import MLCYOLO
from mlc_yolo.resources import resource_dir

TINY = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False}
#: What a page says -> what the test runs: as written, but smaller.
SMALLER = (
    (r"teacher_imgsz=960", "teacher_imgsz=96"),
    (r"(?<=, )epochs=50", ", ".join(f"{name}={value}" for name, value in TINY.items())),
    (r"(?<= )epochs=50", " ".join(f"{name}={value}" for name, value in TINY.items())),
    (r"seed=0,1,2", "seed=0"),
    (r"seed=\[0, 1, 2\]", "seed=[0]"),
    (
        r"epochs=10 batch=8",
        "epochs=3 assigner_warmup=1 lr_steps=[1,2] warmup_epochs=0 batch=2 imgsz=64 scale=0.25 workers=0 plots=False",
    ),
    (r"epochs=10, imgsz=192, batch=16", "epochs=1, imgsz=64, batch=4, workers=0"),
    (r"\"demo\.yaml\"", '"mine.yaml"'),
    (r"\"yolo11n\.yaml\"", '"yolo11n.pt"'),
)


def smaller(text: str) -> str:
    """A page with the budget of its trainings cut."""
    for wanted, cut in SMALLER:
        text = re.sub(wanted, cut, text)
    return text


def lay_out(folder: Path) -> None:
    """Write mine.yaml, photos/, annotations as COCO JSON, yolo11n.pt (untrained) and best.pt, whose boxes differ."""
    demo = yaml.safe_load((resource_dir("datasets") / "demo.yaml").read_text(encoding="utf-8"))
    own = folder / "drawn.yaml"
    own.write_text(yaml.safe_dump({**demo, "train_images": 8, "val_images": 4, "imgsz": 128, "seed": 7}))
    drawn = Path(resolve_data(str(own)))
    shutil.copytree(drawn.parent, folder / "mine", ignore=shutil.ignore_patterns("*.cache"))
    content = {"path": str(folder / "mine"), "train": "images/train", "val": "images/val", "names": demo["names"]}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    images = {split: sorted((folder / "mine" / "images" / split).iterdir()) for split in ("train", "val")}
    (folder / "photos").mkdir()
    for image in images["val"][:2]:  # mirrored: images of the validation set are refused as images without labels
        assert cv2.imwrite(str(folder / "photos" / image.name), cv2.flip(cv2.imread(str(image)), 1))
    for split, files in images.items():
        shutil.copytree(files[0].parent, folder / split)
        (folder / f"{split}.json").write_text(json.dumps(_coco(files[:2], demo["names"])))
    MLCYOLO(SMALL).save(folder / "yolo11n.pt")
    model = MLCYOLO(folder / "yolo11n.pt")
    model.train(data=str(folder / "mine.yaml"), **TINY, val=False, project=str(folder / "before"))
    model = MLCYOLO(model.trainer.last)
    enliven(
        model.model.float(), torch.rand(1, 3, TINY["imgsz"], TINY["imgsz"], generator=torch.Generator().manual_seed(0))
    )
    for branch in model.model.model[-1].cv2:  # boxes that end inside the image
        branch[-1].bias.data.view(4, -1)[:, 3:] -= 6
    model.save(folder / "best.pt")
    # So that some detections are right, it has said itself what is to be seen.
    for result in model.predict(images["val"], conf=0.1, max_det=6, verbose=False):
        rows = torch.column_stack((result.boxes.cls, result.boxes.xywhn)).tolist()
        lines = [" ".join([str(int(label)), *(f"{value:.6f}" for value in box)]) for label, *box in rows]
        labels = folder / "mine" / "labels" / "val" / f"{Path(result.path).stem}.txt"
        labels.write_text("".join(f"{line}\n" for line in lines))
    (folder / "mine" / "labels" / "val.cache").unlink(missing_ok=True)


def _coco(files: list[Path], names: dict[int, str]) -> dict[str, list[dict[str, object]]]:
    pictures = [{"id": number, "file_name": file.name} for number, file in enumerate(files)]
    boxes: list[dict[str, object]] = []
    for number, file in enumerate(files):
        height, width = cv2.imread(str(file)).shape[:2]
        labels = file.parents[2] / "labels" / file.parent.name / f"{file.stem}.txt"
        for line in labels.read_text().splitlines():
            label, x, y, w, h = map(float, line.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            boxes.append({"id": len(boxes), "image_id": number, "category_id": int(label), "bbox": box})
    return {
        "images": pictures,
        "categories": [{"id": label, "name": name} for label, name in names.items()],
        "annotations": boxes,
    }
