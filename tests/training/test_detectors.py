"""The ported detectors in the engine: train, validate, predict, track, resume, retrain, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detector_runs import KINDS, QUALITIES, TINY, detector_yaml, rows, stop_after, train
from detectors.lively import lively_detector
from torch import nn

from mlc_yolo import MLCYOLO, cli
from mlc_yolo.assigners import MutualLabeling, StaticAssigner
from mlc_yolo.detectors import parts
from mlc_yolo.evaluation.detection_metrics import MLCMetrics
from mlc_yolo.metrics.proposals import NAMES
from mlc_yolo.training.detector_criterion import DetectorLoss
from mlc_yolo.training.trainer import MLCTrainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow_backbones")]

#: 61 x 97 px: neither side fits a stride.
ODD = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)


def _best(run: Path) -> MLCYOLO:
    return MLCYOLO(run / "weights" / "best.pt")


def _layers(model: MLCYOLO) -> set[str]:
    """Which quality layers a model has."""
    return {part for name in model.model.state_dict() for part in ("cv_iou", "bbox_ctrness") if part in name}


@pytest.mark.parametrize(("kind", "quality"), QUALITIES)
def test_a_detector_trains_validates_predicts_and_tracks(
    kind: str, quality: str, tiny_data: Path, run_dir: Path
) -> None:
    """The log, the outputs of the checkpoint, which are the average's, a validation, and tracks within the image."""
    run = run_dir / "run"
    trained = train(detector_yaml(run_dir, kind), tiny_data, run, quality=quality, assigner="mlc", epochs=2)
    table = rows(run)
    losses = {
        "iou": {"train/iou_loss", "val/iou_loss"},
        "centerness": {"train/ctr_loss", "val/ctr_loss"},
        "none": set(),
    }
    found = {name for name in table[0] if name.endswith(("iou_loss", "ctr_loss"))}
    assert found == losses[quality] and all(row["train/pos_cls"] > 0 for row in table)
    assert set(trained.trainer.validator.metrics.keys) <= table[0].keys()
    average = trained.trainer.ema
    assert average.updates == 2
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = average.ema.eval().half().float()(picture)[1]  # as saved
        got = MLCYOLO(run / "weights" / "last.pt").model.eval()(picture)[1]
    for name in {"boxes", "scores", "quality"} & set(expected):
        torch.testing.assert_close(got[name], expected[name])

    model = _best(run)
    assert _layers(model) == {"iou": {"cv_iou"}, "centerness": {"bbox_ctrness"}, "none": set()}[quality]
    assert set(model.names.values()) == ({"item"} if kind == "rpn" else {"square", "disc", "cross"})
    place = {"project": str(run_dir), "name": "val", "plots": False, "verbose": False}
    metrics = model.val(**place, imgsz=96, rect=True, batch=2)
    assert np.isfinite(metrics.box.map) and metrics.nt_per_class.sum() == 10
    assert set(NAMES) <= {name.split("/")[-1] for name in metrics.results_dict} if kind == "rpn" else not metrics.recall
    for _ in range(2):
        (result,) = model.track(ODD, imgsz=96, conf=0.0001, persist=True, verbose=False)
    boxes = result.boxes.xyxy
    assert len(boxes) > 0 and boxes.min() >= 0 and boxes[:, 2].max() <= 97 and boxes[:, 3].max() <= 61
    assert result.orig_shape == (61, 97) and result.boxes.conf.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_with_assigner_steps_and_losses(kind: str, tiny_data: Path, run_dir: Path) -> None:
    still = dict.fromkeys(("mosaic", "fliplr", "hsv_h", "hsv_s", "hsv_v", "translate", "scale"), 0.0)
    chosen = {
        **still,
        "val": False,
        "epochs": 4,
        "assigner": "mlc",
        "assigner_warmup": 2,
        "lr_steps": "1,3",
        "iou_warmup": 2,
    }
    path = detector_yaml(run_dir, kind)
    train(path, tiny_data, run_dir / "whole", **chosen)
    model = MLCYOLO(path)
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(model, tiny_data, run_dir / "cut", **chosen)
    resumed = MLCYOLO(run_dir / "cut" / "weights" / "last.pt")
    resumed.train(resume=True)

    trainer = resumed.trainer
    criterion = trainer.model.criterion
    assert isinstance(criterion, DetectorLoss) and trainer.ema.ema.criterion is criterion and criterion.epoch == 3
    assert isinstance(trainer.schedule().at(1), StaticAssigner) and isinstance(trainer.schedule().at(2), MutualLabeling)
    whole, cut = rows(run_dir / "whole"), rows(run_dir / "cut")
    for table in (whole, cut):
        assert [row["epoch"] for row in table] == [1, 2, 3, 4]
        assert [row["lr/pg0"] for row in table] == pytest.approx([2e-3, 2e-4, 2e-4, 2e-5])
        assert [row["train/iou_loss"] > 0 for row in table] == [False, False, True, True]
        assert [row["train/pos_cls"] == row["train/pos_loc"] for row in table[::3]] == [True, False]
        assert table[0]["train/pos_cls"] == table[1]["train/pos_cls"] != table[2]["train/pos_cls"]
    # Upstream resumes from the average, kept in half precision; an RPN draws its samples anew.
    for epoch in (0, 1):
        for name in ("train/box_loss", "train/cls_loss"):
            tolerance = 0.1 if kind == "rpn" and epoch else 1e-2
            assert cut[epoch][name] == pytest.approx(whole[epoch][name], rel=tolerance), (epoch, name)


@pytest.mark.parametrize(
    ("first", "options", "then"),
    [
        ("iou", {}, {"cv_iou"}),
        ("iou", {"quality": "none"}, set()),
        ("iou", {"quality": "centerness"}, {"bbox_ctrness"}),
        ("centerness", {}, {"bbox_ctrness"}),
        ("centerness", {"quality": "none"}, set()),
        ("none", {}, set()),
        ("none", {"quality": "iou"}, {"cv_iou"}),
    ],
)
def test_the_quality_layer_follows_the_checkpoint_when_left_out(
    first: str, options: dict[str, Any], then: set[str], tiny_data: Path, run_dir: Path
) -> None:
    model = MLCYOLO(detector_yaml(run_dir, "fcos", quality=first))
    assert _layers(model) == {"iou": {"cv_iou"}, "centerness": {"bbox_ctrness"}, "none": set()}[first]
    model.save(run_dir / "first.pt")
    again = train(run_dir / "first.pt", tiny_data, run_dir / "again", val=False, **options)
    assert _layers(again) == _layers(_best(run_dir / "again")) == then


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A narrow ResNet's state dict with statistics worth keeping."""
    torch.manual_seed(0)
    state = parts.get_model("resnet18", weights=None, norm_layer=nn.BatchNorm2d).state_dict()
    for name, value in state.items():
        if "running_" in name:
            value.uniform_(0.5, 1.5)
    torch.save(state, tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def _changed(model: MLCYOLO, source: dict[str, torch.Tensor]) -> set[str]:
    """Which of a backbone's tensors training moved."""
    now = {name.removeprefix("0.body."): value for name, value in model.trainer.model.model.state_dict().items()}
    return {n for n, v in source.items() if n in now and "num_batches" not in n and not torch.equal(now[n].float(), v)}


def test_pretrained_backbones_keep_frozen_stages_and_statistics(imagenet: Path, tiny_data: Path, run_dir: Path) -> None:
    state = torch.load(imagenet)
    path = detector_yaml(run_dir, "retinanet")
    trained = train(path, tiny_data, run_dir / "run", pretrained=str(imagenet), lr0=0.01, val=False)
    moved = _changed(trained, state)
    assert {name.split(".")[0] for name in moved} == {"layer2", "layer3", "layer4"}
    assert not any("bn" in name or "downsample.1" in name for name in moved)

    again = train(run_dir / "run" / "weights" / "best.pt", tiny_data, run_dir / "again", lr0=0.01, val=False)
    kept = {
        name.removeprefix("0.body."): v for name, v in trained.model.model.state_dict().items() if "0.body." in name
    }
    assert {name.split(".")[0] for name in _changed(again, kept)} == {"layer2", "layer3", "layer4"}

    more = train(path, tiny_data, run_dir / "more", pretrained=str(imagenet), freeze=[1], lr0=0.01, val=False)
    frozen = {
        n.split(".")[1] + "." + n.split(".")[3] for n, p in more.trainer.model.named_parameters() if not p.requires_grad
    }
    assert {name for name in frozen if name.startswith("0.")} == {"0.conv1", "0.layer1"}
    assert {name.split(".")[0] for name in frozen} == {"0", "1"}


def test_batch_norm_asked_for_stays_where_weights_are_pretrained(
    imagenet: Path, tiny_data: Path, run_dir: Path
) -> None:
    path = detector_yaml(run_dir, "retinanet", norm="batch", trainable_stages=2)
    trained = train(path, tiny_data, run_dir / "run", pretrained=str(imagenet), lr0=0.01, val=False)
    moved = _changed(trained, torch.load(imagenet))
    assert {name.split(".")[0] for name in moved} == {"layer3", "layer4"}
    assert any("running_mean" in name for name in moved)


def test_from_scratch_every_stage_and_statistic_trains(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(detector_yaml(run_dir, "fcos"))
    before: dict[str, torch.Tensor] = {}
    model.add_callback(
        "on_train_start", lambda t: before.update({k: v.clone() for k, v in t.model.state_dict().items()})
    )
    train(model, tiny_data, run_dir / "run", lr0=0.01, val=False)
    after = model.trainer.model.state_dict()
    fixed = {"model.0.mean", "model.0.std", *(n for n in before if "num_batches" in n)}
    same = {name for name in before if torch.equal(before[name], after[name])} - fixed
    # a level without an object has no scale to learn
    assert all(p.requires_grad for p in model.trainer.model.parameters()) and same <= {"model.2.scales"}


def test_a_pretrained_run_resumes(imagenet: Path, tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(detector_yaml(run_dir, "retinanet"))
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(model, tiny_data, run_dir / "cut", pretrained=str(imagenet), epochs=2)
    resumed = MLCYOLO(run_dir / "cut" / "weights" / "last.pt")
    resumed.train(resume=True)
    assert len(rows(run_dir / "cut")) == 2
    state, now = torch.load(imagenet), resumed.trainer.model.model[0].body.state_dict()
    drift = {name: (now[name] - state[name]).abs().max().item() for name in now if "num_batches" not in name}
    # Upstream resumes from the average, kept in half precision.
    assert max(value for name, value in drift.items() if name.split(".")[0] in {"conv1", "bn1", "layer1"}) < 1e-3
    trains = {name: p.requires_grad for name, p in resumed.trainer.model.model[0].body.named_parameters()}
    assert not trains["conv1.weight"] and not trains["layer1.0.conv1.weight"] and trains["layer2.0.conv1.weight"]


def test_sizes_that_vary_and_mixed_precision_train(tiny_data: Path, run_dir: Path, monkeypatch: Any) -> None:
    """Mixed precision is for GPUs: here the forward pass is put under autocast by hand.

    Sizes stay above 64 px: some CPUs' bfloat16 convolutions give nan gradients from a single cell, P6's there.
    """
    seen, dtypes = set(), set()
    model = MLCYOLO(detector_yaml(run_dir, "fcos"))
    original = DetectorLoss.__call__

    def spy(self: DetectorLoss, preds: Any, batch: dict[str, Any]) -> Any:
        raw = preds[1] if isinstance(preds, tuple) else preds
        seen.add(tuple(batch["img"].shape[2:]))
        dtypes.add(raw["scores"].dtype)
        return original(self, preds, batch)

    monkeypatch.setattr(DetectorLoss, "__call__", spy)
    monkeypatch.setattr("ultralytics.engine.trainer.autocast", lambda *_, **__: torch.autocast("cpu", torch.bfloat16))
    few = {"epochs": 3, "batch": 4, "val": False, "save": False}
    train(model, tiny_data, run_dir / "run", multi_scale=0.25, imgsz=128, assigner="mlc", **few)
    assert len(seen) > 2 and torch.bfloat16 in dtypes
    assert all(np.isfinite(row[name]) for row in rows(run_dir / "run") for name in row if "loss" in name)


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each validation gathered, before upstream clears it."""
    seen: list[dict[str, Any]] = []
    original = MLCMetrics.process

    def spy(self: MLCMetrics, *args: Any, **kwargs: Any) -> Any:
        seen.append({name: list(values) for name, values in self.stats.items()})
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MLCMetrics, "process", spy)
    return seen


def test_an_rpn_is_judged_by_recall_in_every_validation(
    tiny_data: Path, run_dir: Path, gathered: list[dict[str, Any]]
) -> None:
    run = run_dir / "run"
    train(detector_yaml(run_dir, "rpn"), tiny_data, run)
    columns = [f"metrics/{name}" for name in NAMES]
    assert all(0 <= rows(run)[0][name] <= 1 for name in columns)
    metrics = _best(run).val(project=str(run_dir), name="val", plots=False, verbose=False)
    assert metrics.names == {0: "item"} and metrics.nt_per_class.tolist() == [10]
    assert [metrics.results_dict[name] for name in columns] == pytest.approx(
        [rows(run)[0][n] for n in columns], abs=0.11
    )
    assert max(len(found) for found in gathered[-1]["coco_detections"]) > 300  # more than upstream keeps


@pytest.mark.parametrize("kind", ["retinanet", "rpn", "yolo11n"])
def test_validation_ranks_by_what_was_asked_for(
    kind: str, tiny_data: Path, run_dir: Path, gathered: list[dict[str, Any]], iou_aware: Any
) -> None:
    if kind == "yolo11n":
        model = iou_aware(kind, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    else:
        model = lively_detector(kind, quality="iou", width=64, **({} if kind == "rpn" else {"nc": 3}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "cls_logits" in name:
                    parameter *= 0.2  # no score saturates
    model.names = {0: "item"} if kind == "rpn" else {0: "square", 1: "disc", 2: "cross"}
    model.args = {"task": "detect", "imgsz": 64}
    path = run_dir / "model.pt"
    torch.save({"model": model, "train_args": {}}, path)
    place = {"project": str(run_dir), "name": "val", "plots": False, "verbose": False, "data": str(tiny_data)}
    place |= {"coco_eval": True, "conf": 0.01, "imgsz": 96} | ({"single_cls": True} if kind == "rpn" else {})
    net = MLCYOLO(path)
    for options in ({}, {"rescore": False}, {"nms_by": "iou"}, {}):
        net.val(**place, **options)
    product, plain, by_iou, again = ([rows for rows in each["coco_detections"]] for each in gathered)
    for a, b, c, d in zip(product, plain, by_iou, again, strict=True):
        assert len(a) and np.array_equal(a, d)  # each choice is for one call
        assert a[:, 4].max() < b[:, 4].max() == c[:, 4].max()  # by IoU, scores are the classes' alone
        assert len(b) != len(c) or not np.array_equal(b[:, :4], c[:, :4])  # and other boxes are kept


def test_the_command_line_trains_predicts_and_validates_without_the_quality_layer(
    tiny_data: Path, run_dir: Path
) -> None:
    path = detector_yaml(run_dir, "fcos")
    options = {**TINY, "model": path, "data": tiny_data, "epochs": 2, "project": run_dir, "name": "run"}
    options |= {"quality": "none", "lr_steps": "1", "assigner": "mlc", "align_gain": 0.5}
    assert cli.main(["train", *(f"{k}={v}" for k, v in options.items())]) == 0
    assert _layers(_best(run_dir / "run")) == set()
    table = rows(run_dir / "run")
    assert "train/align_loss" in table[0] and "train/iou_loss" not in table[0]
    assert [row["lr/pg0"] for row in table] == pytest.approx([2e-3, 2e-4])
    photo = run_dir / "odd.png"
    cv2.imwrite(str(photo), ODD)
    model = run_dir / "run" / "weights" / "best.pt"
    for mode in (["predict", f"source={photo}"], ["val", f"data={tiny_data}", "plots=False"]):
        place = [f"project={run_dir}", "name=later", "exist_ok=True", "imgsz=96"]
        assert cli.main([mode[0], f"model={model}", *mode[1:], *place]) == 0
    assert (run_dir / "later" / "odd.jpg").exists() or (run_dir / "later" / "odd.png").exists()


def test_a_detector_trains_by_the_trainer_alone(tiny_data: Path, run_dir: Path) -> None:
    options = {**TINY, "model": str(detector_yaml(run_dir, "retinanet")), "data": str(tiny_data), "epochs": 1}
    trainer = MLCTrainer(overrides={**options, "project": str(run_dir), "name": "run", "assigner": "atss"})
    trainer.train()
    assert isinstance(trainer.model.criterion, DetectorLoss) and len(rows(run_dir / "run")) == 1
