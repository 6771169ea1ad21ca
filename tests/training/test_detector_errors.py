"""What a detector cannot have or take is said clearly, where it can be before any file is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detector_runs import TINY, detector_yaml
from nets import SMALL
from torchvision.models import resnet18

from mlc_yolo import MLCYOLO
from mlc_yolo.figures.assignments import draw_assignments
from mlc_yolo.heads.iou_aware import add_iou_channel

pytestmark = pytest.mark.usefixtures("narrow_backbones")


def _model(kind: str, folder: Path) -> MLCYOLO:
    return MLCYOLO(SMALL if kind == "yolo" else detector_yaml(folder, kind))


def _checkpoint(kind: str, folder: Path) -> Path:
    model = _model("yolo" if kind == "yolo with IoU" else kind, folder)
    if kind == "yolo with IoU":
        add_iou_channel(model.model.model[-1])
    model.save(folder / f"{kind}.pt")
    return folder / f"{kind}.pt"


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("retinanet", {"quality": "centerness"}, ValueError, "iou, none"),
        ("rpn", {"quality": "centerness", "single_cls": True}, ValueError, "iou, none"),
        ("yolo", {"quality": "centerness"}, ValueError, "quality=centerness is for the ported detectors"),
        ("yolo", {"align_gain": 1.0}, ValueError, "align_gain"),
        ("yolo", {"assigner": "mlc", "mlc_candidates": "own"}, ValueError, "mlc_candidates=own is for the ported"),
        ("yolo", {"quality": "none"}, ValueError, "a YOLO takes iou_head=True or iou_head=False"),
        ("fcos", {"iou_head": False}, ValueError, "iou_head is for YOLO: .* quality=none"),
        ("fcos", {"quality": "centreness"}, ValueError, "Did you mean 'centerness'"),
        ("fcos", {"lr_steps": [1, 2]}, ValueError, "must lie within the run of epochs=2"),
        ("fcos", {"lr_steps": "2,1"}, ValueError, "rising epochs"),
        ("fcos", {"lr_steps": [0]}, ValueError, "rising epochs from 1"),
        ("fcos", {"lr_steps": "soon"}, TypeError, "must be epochs"),
        ("fcos", {"align_gain": -1}, ValueError, "0 or more"),
        ("fcos", {"iou_warmup": 1.5}, ValueError, "whole epochs"),
        ("fcos", {"nms_by": "uio"}, ValueError, "standard, iou"),
        ("rpn", {}, ValueError, "single_cls=True"),
        ("fcos", {"pretrained": "nowhere.pth"}, FileNotFoundError, "no such file"),
    ],
)
def test_options_a_model_cannot_have_touch_no_file(
    kind: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    tiny_data: Path,
    run_dir: Path,
    tmp_path: Path,
) -> None:
    model = _model(kind, tmp_path)
    with pytest.raises(error, match=message):
        model.train(data=str(tiny_data), project=str(run_dir), **{**TINY, "epochs": 2, **options})
    assert not list(run_dir.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "weights", "message"),
    [
        ("fcos", "retinanet", "expected weights of a fcos, got those of a retinanet"),
        ("rpn", "fcos", "expected weights of a rpn, got those of a fcos"),
        ("fcos", "yolo", "expected weights of a fcos"),
        ("fcos", "yolo with IoU", "expected weights of a fcos"),
        ("yolo", "fcos", "fcos"),
    ],
)
def test_weights_of_another_detector_are_refused(
    kind: str, weights: str, message: str, tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    given = _checkpoint(weights, tmp_path)
    with pytest.raises(ValueError, match=message):
        _model(kind, tmp_path).load(given)
    single = {"single_cls": True} if kind == "rpn" else {}
    with pytest.raises(ValueError, match=message):
        _model(kind, tmp_path).train(
            data=str(tiny_data), project=str(run_dir), pretrained=str(given), **{**TINY, "epochs": 1, **single}
        )
    assert not list(run_dir.rglob("*.pt"))


@pytest.mark.slow
def test_torchvision_weights_are_for_fresh_detectors_they_fit(tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    options = {**TINY, "data": str(tiny_data), "project": str(run_dir), "pretrained": str(tmp_path / "resnet18.pth")}
    deeper = detector_yaml(tmp_path, "retinanet", backbone="resnet50")
    for model, message in (
        (MLCYOLO(SMALL), "holds torchvision weights"),
        (MLCYOLO(_checkpoint("fcos", tmp_path)), "this model has weights"),
        (MLCYOLO(deeper), "does not fit backbone=resnet50"),
    ):
        with pytest.raises(ValueError, match=message):
            model.train(**options)
    assert not list(run_dir.iterdir())


@pytest.mark.parametrize(("kind", "keys"), [("fcos", {"nc": 2}), ("rpn", {})])
def test_data_with_more_classes_than_the_model_is_refused_in_validation(
    kind: str, keys: dict[str, Any], tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    model = MLCYOLO(detector_yaml(tmp_path, kind, **keys))
    place = {"project": str(run_dir), "plots": False, "verbose": False, "imgsz": 64}
    with pytest.raises(ValueError, match="the data has 3 classes"):
        model.val(data=str(tiny_data), **place)
    if kind == "rpn":
        assert model.val(data=str(tiny_data), single_cls=True, **place).nt_per_class.tolist() == [10]


@pytest.mark.parametrize("quality", ["centerness", "none"])
def test_ranking_by_a_predicted_iou_needs_one(quality: str, tmp_path: Path) -> None:
    model = MLCYOLO(detector_yaml(tmp_path, "fcos", quality=quality))
    with pytest.raises(ValueError, match="no such layer"):
        model.predict(torch.rand(1, 3, 64, 64), nms_by="iou", verbose=False)


def test_exported_models_have_no_predicted_iou_to_rank_by(tmp_path: Path) -> None:
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"")
    with pytest.raises(ValueError, match="nms_by=iou"):
        MLCYOLO(exported, task="detect").predict("nothing.jpg", nms_by="iou")


@pytest.mark.parametrize("options", [{"format": "stock"}, {"format": "imx"}, {"format": "onnx", "dynamic": True}])
def test_exports_a_detector_has_no_form_for_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is for YOLO\. Export fcos models"):
        MLCYOLO(detector_yaml(tmp_path, "fcos")).export(**options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_assignments_of_a_detector_are_drawn(kind: str, tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    model = MLCYOLO(detector_yaml(tmp_path, kind))
    own = "max_iou" if kind == "retinanet" else "fcos"
    paths = draw_assignments(
        model, data=str(tiny_data), assigner=f"{own},mlc", imgsz=96, count=1, project=str(run_dir), device="cpu"
    )
    assert len(paths) == 1 and paths[0].stat().st_size > 10_000


@pytest.mark.slow
def test_a_detector_is_tuned(tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    model = MLCYOLO(detector_yaml(tmp_path, "fcos"))
    model.tune(
        data=str(tiny_data),
        iterations=1,
        project=str(run_dir),
        name="tune",
        assigner="mlc",
        quality="none",
        **{**TINY, "epochs": 1, "val": False, "optimizer": "AdamW"},
    )
    assert list(run_dir.rglob("best_hyperparameters.yaml"))
