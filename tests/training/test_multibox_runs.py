"""Every bundled model of Mutual Guidance from its YAML to its exports."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from detector_runs import rows, stop_after, train
from detectors.lively import image
from torch import nn

from mlc_yolo import MLCYOLO
from mlc_yolo.assigners import MaxIoU, MutualGuidance, Role, Schedule, build_assigner
from mlc_yolo.detectors.config import bundled, complete, find_config
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.multibox import PYRAMIDS
from mlc_yolo.detectors.pafpn import PooledNorm
from mlc_yolo.options import specification as options
from mlc_yolo.resources import resource_dir
from mlc_yolo.training.detector_criterion import DetectorLoss

#: A model of each pyramid, and the task that its run guides.
RUNS = {"fssd-r18": "both", "retinanet-fssd-vgg16": "l2c", "rfbnet-vgg16": "c2l", "pafpn-r18": "both"}
ASSIGNERS = [
    {"assigner": "max_iou"},
    *({"assigner": "mutual_guidance", "mg_tasks": tasks} for tasks in ("both", "l2c", "c2l")),
]
#: Every bundled model; four and five levels on every pyramid.
LEVELS = [(f"{pyramid}-vgg16", 4) for pyramid in ("fssd", "retinanet-fssd", "rfbnet", "pafpn")]
LEVELS += [("rfbnet-vgg16", 5), *((f"{pyramid}-r18", 5) for pyramid in ("fssd", "retinanet-fssd", "pafpn"))]
#: Those that are exported: each pyramid, and both numbers.
EXPORTED = [("fssd-vgg16", 4), ("retinanet-fssd-r18", 5), ("rfbnet-vgg16", 5), ("pafpn-vgg16", 4)]
# Measured at most: 1.3e-5 in scores and 1.3e-3 px in boxes.
SCORE, PIXELS = 1e-4, 1e-2
STILL = dict.fromkeys(("mosaic", "fliplr", "hsv_h", "hsv_s", "hsv_v", "translate", "scale"), 0.0)
SIZE = (96, 160)
#: Image, class, centre and sides in fractions of the image; the second image has no object.
OBJECTS = torch.tensor([[0, 0, 0.3, 0.4, 0.4, 0.5], [0, 2, 0.7, 0.6, 0.3, 0.6], [0, 1, 0.5, 0.5, 0.9, 0.9]])
BATCH = {"batch_idx": OBJECTS[:, 0], "cls": OBJECTS[:, 1:2], "bboxes": OBJECTS[:, 2:]}

pytestmark = pytest.mark.usefixtures("narrow_backbones")


def _said(chosen: tuple[str, int]) -> str:
    return f"{chosen[0]}-{chosen[1]}"


def _small(name: str, **keys: Any) -> dict[str, Any]:
    """The bundled YAML's content, with narrow pyramids and three classes."""
    content = yaml.safe_load((resource_dir("cfg") / "models" / f"{name}.yaml").read_text())
    return {**content, "width": 32, "nc": 3, **keys}


def _write(folder: Path, name: str, **keys: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(_small(name, **keys)))
    return path


@pytest.fixture(scope="module", params=LEVELS, ids=_said)
def lively(request: pytest.FixtureRequest, narrow_backbones: None) -> DetectorModel:
    """Each model, untrained, with normalised features and with outputs that vary over anchors."""
    name, levels = request.param
    torch.manual_seed(0)
    model, images = DetectorModel(complete(_small(name, levels=levels)), verbose=False), image(160, 224, count=4)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0  # one batch sets the statistics
        model.train()(images)
        for norm in norms:
            if isinstance(norm, PooledNorm):
                norm.running_var *= 25  # four like images; the average of another one is six deviations away
        features = model.eval().model[1](model.model[0](images))
        for feature, level in zip(features, model.head.levels, strict=True):
            for conv, wanted_mean, wanted_deviation in ((level.cls_logits, -2.0, 1.0), (level.bbox_reg, 0.0, 1.0)):
                nn.init.normal_(conv.weight)
                nn.init.zeros_(conv.bias)
                deviation, mean = torch.std_mean(conv(feature), (0, 2, 3))
                conv.weight *= (wanted_deviation / deviation)[:, None, None, None]
                conv.bias.copy_(wanted_mean - mean * wanted_deviation / deviation)
    return model


def _criterion(model: DetectorModel, **chosen: Any) -> DetectorLoss:
    ours = options.settle({**options.defaults(), **chosen}, model.kind)
    assigner = build_assigner(ours["assigner"], ours, own=model.head.own_assigner)
    return DetectorLoss(model, schedule=Schedule(assigner, assigner, 0))


def _photograph() -> np.ndarray:
    """97 x 131 px BGR: sides that fit no stride."""
    smooth = image(96, 128)[0].permute(1, 2, 0).mul(255).byte().numpy()
    return cv2.resize(smooth, (131, 97))


def test_every_bundled_multibox_model_is_run_here() -> None:
    kinds = {path.removesuffix(".yaml"): (find_config(path) or {})["detector"] for path in bundled()}
    assert {name for name, kind in kinds.items() if kind in PYRAMIDS} == {name for name, _ in LEVELS}
    assert {kinds[name] for name in RUNS} == {kinds[name] for name, _ in EXPORTED} == set(PYRAMIDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_model_trains_resumes_validates_and_predicts(name: str, tiny_data: Path, run_dir: Path) -> None:
    """The first epoch trains by static matching, the second by Mutual Guidance; one image has no object."""
    chosen = {**STILL, "epochs": 2, "assigner": "mutual_guidance", "assigner_warmup": 1, "mg_tasks": RUNS[name]}
    model = MLCYOLO(_write(run_dir, name))
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(model, tiny_data, run_dir / "cut", **chosen)
    assert len(rows(run_dir / "cut")) == 1
    resumed = MLCYOLO(run_dir / "cut" / "weights" / "last.pt")
    resumed.train(resume=True)

    schedule = resumed.trainer.schedule()
    assert isinstance(schedule.at(0), MaxIoU) and isinstance(schedule.at(1), MutualGuidance)
    assert schedule.at(1).tasks == RUNS[name]
    table = rows(run_dir / "cut")
    assert [row["epoch"] for row in table] == [1, 2]
    for row in table:
        assert all(np.isfinite(value) for key, value in row.items() if "loss" in key)
        assert row["train/pos_cls"] > 0 and row["train/pos_loc"] > 0
    assert table[1]["train/cls_loss"] != table[0]["train/cls_loss"]

    best = MLCYOLO(run_dir / "cut" / "weights" / "best.pt")
    metrics = best.val(
        project=str(run_dir), name="val", imgsz=96, rect=True, batch=2, half=True, plots=False, verbose=False
    )
    assert np.isfinite(metrics.box.map) and metrics.nt_per_class.sum() == 10
    (result,) = best.predict(_photograph(), imgsz=128, conf=0.0001, verbose=False)
    boxes = result.boxes.xyxy
    assert result.orig_shape == (97, 131) and len(boxes) > 0
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 131 and boxes[:, 3].max() <= 97


@pytest.mark.slow
def test_the_resumed_epoch_is_that_of_a_run_without_interruption(tiny_data: Path, run_dir: Path) -> None:
    chosen = {**STILL, "val": False, "epochs": 2, "assigner": "mutual_guidance", "assigner_warmup": 1}
    path = _write(run_dir, "fssd-r18", levels=5)
    train(path, tiny_data, run_dir / "whole", **chosen)
    model = MLCYOLO(path)
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(model, tiny_data, run_dir / "cut", **chosen)
    MLCYOLO(run_dir / "cut" / "weights" / "last.pt").train(resume=True)
    for whole, cut in zip(rows(run_dir / "whole"), rows(run_dir / "cut"), strict=True):
        # Upstream resumes from the average, kept in half precision.
        for column in ("train/box_loss", "train/cls_loss", "train/pos_cls", "train/pos_loc", "lr/pg0"):
            assert cut[column] == pytest.approx(whole[column], rel=1e-2), (column, whole["epoch"])


@pytest.mark.slow
def test_every_assigner_trains_what_it_assigns_and_nothing_else(lively: DetectorModel) -> None:
    with torch.no_grad():
        raw = lively(image(*SIZE, count=2))[1]
    for chosen in ASSIGNERS:
        criterion = _criterion(lively, **chosen)
        leaves = {key: raw[key].clone().requires_grad_() for key in ("boxes", "scores")}
        losses, items = criterion({**raw, **leaves}, BATCH)
        losses.sum().backward()
        boxes, classes = leaves["boxes"].grad, leaves["scores"].grad
        assert boxes is not None and classes is not None
        priors = lively.head.priors(raw["feats"], scale=1.0)
        cls, loc = criterion._assign(raw, priors, criterion._targets(raw, BATCH))
        assert torch.equal(boxes.any(-1), loc.role == Role.POSITIVE), chosen
        assert torch.equal(classes.any(-1), cls.role != Role.IGNORED), chosen
        assert items["pos_cls"] > 0 and items["pos_loc"] > 0
        assert bool((classes[1] >= 0).all()) and not boxes[1].any(), "the image without objects is all background"


@pytest.mark.slow
def test_half_precision_detects_and_trains_as_single_does(lively: DetectorModel) -> None:
    images = image(*SIZE, count=2)
    criterion = _criterion(lively, assigner="max_iou")  # by boxes alone: rounding moves no anchor to another object
    with torch.no_grad():
        detections, raw = lively(images)
        losses = criterion(raw, BATCH)[0]
        in_half, half = copy.deepcopy(lively).half()(images.half())
        with torch.autocast("cpu", torch.bfloat16):
            in_rough, rough = lively(images)
            rough_losses = criterion(rough, BATCH)[0]
    # Measured at most, in parts of the scores' spread: 0.03 and 0.16.
    outcomes = ((half, in_half, torch.float16, 0.06), (rough, in_rough, torch.bfloat16, 0.35))
    spread = float(raw["scores"].sigmoid().std())
    assert spread > 0.1
    for got, found, dtype, tolerance in outcomes:
        assert got["scores"].dtype == got["boxes"].dtype == dtype
        assert found.dtype == torch.float32 and found.shape == detections.shape
        error = (got["scores"].float().sigmoid() - raw["scores"].sigmoid()).abs()
        assert float(error.mean()) < tolerance * spread
    torch.testing.assert_close(rough_losses, losses, rtol=0.07, atol=0)  # measured at most: 0.035

    learner = copy.deepcopy(lively).train()
    with torch.autocast("cpu", torch.bfloat16):
        total = _criterion(learner, assigner="mutual_guidance")(learner(images), BATCH)[0].sum()
    total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learner.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("lively", EXPORTED, indirect=True, ids=_said)
def test_exports_detect_what_pytorch_detects(lively: DetectorModel, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": lively, "train_args": {"task": "detect", "imgsz": list(SIZE)}}, path)
    chosen = {"imgsz": list(SIZE), "rect": False, "conf": 0.25, "max_det": 3000, "iou": 0.6, "verbose": False}
    (wanted,) = MLCYOLO(path).predict(_photograph(), **chosen)
    assert 50 < len(wanted.boxes) < chosen["max_det"], "a cut would make near ties change places"
    assert wanted.boxes.conf.std() > 0.05 and len(wanted.boxes.cls.unique()) == 3
    for format in ("onnx", "torchscript"):
        if format == "onnx":
            pytest.importorskip("onnxruntime")
        exported = MLCYOLO(path).export(format=format, imgsz=list(SIZE), verbose=False)
        (got,) = MLCYOLO(exported, task="detect").predict(_photograph(), **chosen)
        gap = (_scaled(got)[:, None] - _scaled(wanted)).abs().amax(-1)  # like scores may change places
        for nearest in (gap.amin(0), gap.amin(1)):  # one in a hundred may overlap by NMS' threshold, but for rounding
            assert int((nearest >= 1).sum()) <= len(wanted.boxes) // 100, format


def _scaled(result: Any) -> torch.Tensor:
    """Detections (N, 6) in units of what they may differ by; classes are apart by more."""
    boxes = result.boxes
    return torch.cat((boxes.xyxy / PIXELS, boxes.conf[:, None] / SCORE, boxes.cls[:, None] * 2), 1).double()
