"""`voc_eval=True`: VOC's AP of any validation, with the difficult objects of a converted data set left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from nets import SMALL
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.conversion.convert import convert
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.metrics.voc import NAMES, voc_evaluate

#: name, difficult, box; image 1 is letterboxed, image 2 is empty.
IMAGES = {
    "0": ((96, 96), [("circle", 0, (8, 8, 40, 40)), ("star", 1, (50, 50, 90, 80)), ("star", 0, (48, 4, 90, 44))]),
    "1": ((64, 96), [("star", 1, (4, 4, 60, 60))]),
    "2": ((96, 96), []),
}


class Recorder(MLCValidator):
    """Keeps each image's statistics, which the metrics forget once they are computed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen_stats: list[dict[str, np.ndarray]] = []

    def _process_batch(self, preds: Any, batch: Any) -> dict[str, np.ndarray]:
        self.seen_stats.append(super()._process_batch(preds, batch))
        return self.seen_stats[-1]

    def kept(self, name: str) -> list[np.ndarray]:
        return [stat[name] for stat in self.seen_stats]


@pytest.fixture(scope="module")
def voc_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("voc")
    for stem, ((height, width), objects) in IMAGES.items():
        cv2.imwrite(str(source / f"{stem}.png"), np.full((height, width, 3), 127, np.uint8))
        rows = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
            + "".join(
                f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            )
            + "</bndbox></object>"
            for name, difficult, box in objects
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (source / f"{stem}.xml").write_text(f"<annotation>{size}{rows}</annotation>")
    convert(source, source / "out")
    return source / "out" / "data.yaml"


def _validate(data: Path, run_dir: Path, **options: bool) -> Recorder:
    torch.manual_seed(0)
    model = DetectionModel(SMALL, nc=2, verbose=False).eval()
    model.names = {0: "circle", 1: "star"}
    arguments = {"data": str(data), "imgsz": 96, "batch": 2, "plots": False, "device": "cpu", "mode": "val"}
    validator = Recorder(args={**arguments, "model": "x.pt", "project": str(run_dir), "conf": 0.0001, **options})
    validator(model=model)
    return validator


def test_the_numbers_are_the_metrics_on_what_was_validated_difficult_objects_left_out(
    voc_set: Path, run_dir: Path
) -> None:
    validator = _validate(voc_set, run_dir, voc_eval=True)
    objects = [
        (int(row[4]), *(round(float(v)) for v in row[:4]), bool(hard))
        for rows, flags in zip(validator.kept("coco_objects"), validator.kept("difficult"), strict=True)
        for row, hard in zip(rows, flags, strict=True)
    ]
    told = [(("circle", "star").index(n), *box, bool(hard)) for _, o in IMAGES.values() for n, hard, box in o]
    assert sorted(objects) == sorted(told)
    found, boxes = validator.kept("coco_detections"), validator.kept("coco_objects")
    expected = voc_evaluate(found, boxes, 2, difficult=validator.kept("difficult"))
    assert validator.metrics.voc == {f"metrics/voc_{name}": expected[name] for name in NAMES}
    assert expected != voc_evaluate(found, boxes, 2)


def test_the_numbers_stand_in_the_row_all_only_when_asked_for(voc_set: Path, run_dir: Path) -> None:
    keys = {f"metrics/voc_{name}" for name in NAMES}
    assert keys <= set(_validate(voc_set, run_dir, voc_eval=True).metrics.results_dict)
    assert not keys & set(_validate(voc_set, run_dir).metrics.results_dict)


@pytest.mark.slow
def test_a_data_set_without_flags_has_no_difficult_objects(tiny_data: Path, run_dir: Path) -> None:
    model = DetectionModel(SMALL, nc=3, verbose=False).eval()
    model.names = dict(enumerate(("square", "disc", "cross")))
    arguments = {"data": str(tiny_data), "imgsz": 96, "plots": False, "device": "cpu", "mode": "val", "voc_eval": True}
    validator = Recorder(args={**arguments, "model": "x.pt", "project": str(run_dir)})
    validator(model=model)
    assert [len(flags) for flags in validator.kept("difficult")] == [2, 0, 5, 3]
    assert not np.concatenate(validator.kept("difficult")).any()
