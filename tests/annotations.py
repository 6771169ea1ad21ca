"""Annotations that tests convert: a few boxes in Pascal VOC's XML or COCO's JSON, and the labels they became."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mlc_yolo.conversion.convert import Report
from mlc_yolo.conversion.pictures import Kind

WIDTH, HEIGHT = 100, 80

Box = tuple[float, float, float, float]


def write_image(file: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.full((height, width, 3), 127, np.uint8))
    return file


def xml_object(box: Sequence[float], name: str = "dog", **flags: object) -> str:
    bounds = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in flags.items())
    # As in VOC: a part has a name and a box of its own, which are not the object's.
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    return f"<object><name>{name}</name>{tags}<bndbox>{bounds}</bndbox>{part}</object>"


def xml(*objects: str, size: tuple[int, int] = (WIDTH, HEIGHT), database: str = "Unknown", filename: str = "") -> str:
    return (
        f"<annotation><filename>{filename}</filename><source><database>{database}</database></source>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
    )


def write_pair(folder: Path, stem: str, text: str) -> Path:
    """An image and its XML beside it."""
    write_image(folder / f"{stem}.png")
    (folder / f"{stem}.xml").write_text(text)
    return folder / f"{stem}.xml"


def write_voc(folder: Path, splits: dict[str, dict[str, str]]) -> Path:
    """A VOC folder: split -> image id -> XML."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, texts in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in texts))
        for name, text in texts.items():
            write_image(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations" / f"{name}.xml").write_text(text)
    return folder


def write_coco(file: Path, annotations: list[Any], **parts: Any) -> Path:
    """A JSON file of one image, a.png, of id 7, with categories 18 and 3; `parts` replace lists of it."""
    write_image(file.parent / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": annotations,
        **parts,
    }
    file.write_text(json.dumps(content))
    return file


def coco_box(bbox: Any, number: int = 1, **parts: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 7, "category_id": 18, "bbox": bbox, "iscrowd": 0, **parts}


def labels_of(output: Path, stem: str, split: str = "train") -> list[tuple[int, Box]]:
    """Decode a label file to (class, xyxy px)."""
    decoded = []
    for line in (output / "labels" / split / f"{stem}.txt").read_text().splitlines():
        label, x, y, w, h = (float(word) for word in line.split())
        decoded.append(
            (int(label), ((x - w / 2) * WIDTH, (y - h / 2) * HEIGHT, (x + w / 2) * WIDTH, (y + h / 2) * HEIGHT))
        )
    return decoded


def assert_labels(output: Path, stem: str, expected: list[tuple[int, Box]], split: str = "train") -> None:
    rows = labels_of(output, stem, split)
    assert [label for label, _ in rows] == [label for label, _ in expected]
    assert np.allclose([box for _, box in rows], [box for _, box in expected], rtol=0, atol=1e-5)


def only(report: Report, kind: Kind) -> tuple[str, str]:
    """File name and detail of the only problem, which is of that kind."""
    assert [problem.kind for problem in report.problems] == [kind], report
    return Path(report.problems[0].file).name, report.problems[0].detail
