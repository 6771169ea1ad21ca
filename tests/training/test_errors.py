"""Bad input gets a clear error before any file is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import SMALL
from ultralytics import YOLO
from ultralytics.nn.modules.head import v10Detect

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints.marker import read_marker
from mlc_yolo.options.specification import defaults
from mlc_yolo.training.semi_trainer import SemiTrainer

TINY = {"imgsz": 64, "batch": 8, "epochs": 2, "plots": False}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"assigner": "mcl"}, ValueError, "Did you mean 'mlc'"),
        ({"assigner": "mutual_guidence"}, ValueError, "Did you mean 'mutual_guidance'"),
        ({"assigner_base": "mlc"}, ValueError, "must be one of tal, max_iou, fcos, atss"),
        ({"mlc_alpha": -1}, ValueError, "mlc_alpha=-1 must be 0 or more"),
        ({"mlc_alpha": "big"}, TypeError, "must be a number"),
        ({"mg_sigma": 1}, ValueError, "mg_sigma=1 must be above 1"),
        ({"mg_sigma": float("nan")}, ValueError, "finite"),
        ({"assigner_warmup": -1}, ValueError, "0 or more"),
        ({"assigner": "mlc", "assigner_warmup": 2}, ValueError, "must end before the run of epochs=2"),
        ({"assigner": "mlc", "assigner_warmup": 1.5}, ValueError, "whole epochs"),
        ({"iou_head": "yes"}, TypeError, "True or False"),
        ({"iou_gain": -0.1}, ValueError, "0 or more"),
        ({"mlc_candidates": "boxes"}, ValueError, "tal, own, level, inside"),
        ({"assginer": "mlc"}, SyntaxError, "assigner"),
        ({"batch": 0}, TypeError, "batch=0 .* above 0; -1 or a fraction"),
    ],
)
def test_wrong_options_are_named_and_touch_no_file(
    options: dict[str, Any], error: type[Exception], message: str, tiny_data: Path, run_dir: Path
) -> None:
    model = MLCYOLO("yolo11n.yaml")
    with pytest.raises(error, match=message):
        model.train(data=str(tiny_data), project=str(run_dir), **{**TINY, **options})
    assert not list(run_dir.iterdir())


@pytest.mark.parametrize(
    ("name", "task", "options"),
    [
        *(("cls", "classify", options) for options in ({"assigner": "mlc"}, {"assigner": lambda *a: None})),
        ("cls", "classify", {"iou_head": True}),
        ("obb", "obb", {"ssl": "sed"}),
    ],
)
def test_a_model_of_a_task_that_an_option_is_not_for_refuses_it(
    name: str, task: str, options: dict[str, Any], tiny_data: Path, run_dir: Path
) -> None:
    model = MLCYOLO(f"yolo11n-{name}.yaml")
    with pytest.raises(ValueError, match=f"{task} model"):
        model.train(data=str(tiny_data), project=str(run_dir), **TINY, **options)
    assert not list(run_dir.iterdir())


def test_a_head_without_room_for_the_channel_is_refused_by_name(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO("yolov10n.yaml")
    with pytest.raises(TypeError, match="v10Detect"):
        model.train(data=str(tiny_data), project=str(run_dir), iou_head=True, **TINY)
    assert not list(run_dir.iterdir())


@pytest.mark.slow
def test_a_head_without_room_for_its_weights_channel_trains_without_it_and_says_what_has_no_effect(
    tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture, iou_aware: Callable[..., Any]
) -> None:
    weights = run_dir.parent / "aware.pt"
    torch.save({"model": iou_aware("yolov8n", torch.rand(1, 3, 64, 64)), "train_args": {}}, weights)
    chosen = {"pretrained": str(weights), "iou_gain": 2.0, "epochs": 1}
    net = run_dir / "small10.yaml"
    net.write_text(Path(SMALL).read_text().replace("Detect", "v10Detect"))
    with caplog.at_level("INFO"):
        MLCYOLO(net).train(data=str(tiny_data), project=str(run_dir), name="run", **{**TINY, **chosen})
    assert "v10Detect has no place for the weights' IoU channel: training without it" in caplog.text
    assert "iou_gain: no effect without a predicted-IoU channel. Add one with iou_head=True" in caplog.text
    assert "iou_warmup: no effect" not in caplog.text
    saved = YOLO(run_dir / "run" / "weights" / "best.pt").model
    assert type(saved.model[-1]) is v10Detect and read_marker(saved)["iou_head"] is False


def test_options_of_a_teacher_or_of_unlabeled_images_without_any_are_named(
    tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = {"model": SMALL, "data": str(tiny_data), "project": str(run_dir)}
    idle = {"teacher_weight": 2.0, "ssl_ratio": 2.0, "unlabeled": "photographs", "ssl_weight": defaults()["ssl_weight"]}
    SemiTrainer(overrides={**common, **idle})
    assert "teacher_weight: no effect without a teacher. Name one with teacher=big.pt" in caplog.text
    assert "unlabeled, ssl_ratio: no effect, as ssl=none trains on labelled images alone" in caplog.text
    caplog.clear()
    SemiTrainer(overrides=common)
    assert "no effect" not in caplog.text


@pytest.mark.parametrize(("name", "family"), [("rtdetr-l.yaml", "another family"), ("yolov8s-world.yaml", "YOLOWorld")])
def test_other_families_are_refused_by_name(name: str, family: str) -> None:
    with pytest.raises(TypeError, match=family):
        MLCYOLO(name)


def test_the_yaml_of_a_data_set_is_no_model(tiny_data: Path) -> None:
    with pytest.raises(ValueError, match=r"has no 'backbone': expected a model.*If it is the YAML of a data set"):
        MLCYOLO(tiny_data)


def test_a_mistyped_model_is_answered_with_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "cells_small.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'cells_small\.pt'\?"):
        MLCYOLO(tmp_path / "cell_small.pt")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*yolo11m\.pt"):
        MLCYOLO(tmp_path / "yolo11mm.pt")


def test_rescore_cannot_be_changed_in_an_exported_model(tmp_path: Path) -> None:
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"")
    model = MLCYOLO(exported, task="detect")
    with pytest.raises(ValueError, match="export again"):
        model.predict("nothing.jpg", rescore=False)


def test_a_missing_dataset_is_named(run_dir: Path) -> None:
    with pytest.raises(RuntimeError, match=r"nowhere\.yaml"):
        MLCYOLO("yolo11n.yaml").train(data="nowhere.yaml", project=str(run_dir), **TINY)


def _dataset(root: Path, label: str | None) -> Path:
    import cv2
    import numpy as np

    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i in range(2) if label is not None else ():
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), np.full((64, 64, 3), 90 + i, np.uint8))
            (root / "labels" / split / f"{i}.txt").write_text(label)
    data = root / "data.yaml"
    data.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [one, two]\n")
    return data


def test_an_empty_dataset_is_named(tmp_path: Path, run_dir: Path) -> None:
    data = _dataset(tmp_path / "empty", None)
    with pytest.raises((FileNotFoundError, RuntimeError), match="images"):
        MLCYOLO("yolo11n.yaml").train(data=str(data), project=str(run_dir), **TINY)


def test_labels_out_of_range_are_named_by_file(tmp_path: Path, run_dir: Path) -> None:
    data = _dataset(tmp_path / "range", "7 0.5 0.5 0.4 0.4\n")
    with pytest.raises(RuntimeError, match=r"(?s)train/0\.png.*class 7 exceeds dataset class count 2"):
        MLCYOLO("yolo11n.yaml").train(data=str(data), project=str(run_dir), **TINY)


# Some upstream versions average nothing where no label is.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("label", ["", "0 0.5 0.5 0 0.4\n"])
def test_images_without_objects_and_boxes_without_area_train(label: str, tmp_path: Path, run_dir: Path) -> None:
    data = _dataset(tmp_path / "none", label)
    model = MLCYOLO(SMALL)
    model.train(data=str(data), assigner="mlc", project=str(run_dir), name="run", **TINY)
    assert (run_dir / "run" / "weights" / "best.pt").exists()
