"""SSD's augmentation, warped images, warm-up by iterations and unaveraged weights, in real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from detector_runs import detector_yaml, rows, stop_after, train
from nets import SMALL
from torch import nn
from ultralytics.nn.tasks import load_checkpoint

from mlc_yolo import MLCYOLO
from mlc_yolo.assigners import TaskAligned
from mlc_yolo.checkpoints.marker import read_marker, wants_warp, write_marker
from mlc_yolo.cli import parse
from mlc_yolo.data.datasets import SSDDataset, WarpedDataset
from mlc_yolo.evaluation.predictor import MLCPredictor
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.options.specification import validated
from mlc_yolo.training.semi_trainer import SemiTrainer
from mlc_yolo.training.trainer import MLCTrainer

SIZE = 96
#: Arguments that a warp must not make wrong: a wide and a tall image.
SHAPES = [(60, 200), (220, 70)]
ALL_FOUR = {"augmentation": "ssd", "resize": "warp", "warmup_iters": 1, "ema": False, "cos_lr": True}


# Names and values -----------------------------------------------------------------------------------------------------


def test_the_command_line_takes_all_four() -> None:
    words = ["train", "augmentation=ssd", "resize=warp", "warmup_iters=500", "ema=False"]
    expected = {"augmentation": "ssd", "resize": "warp", "warmup_iters": 500, "ema": False}
    assert parse(words) == ("train", expected)
    assert parse(["val", "augment=True"]) == ("val", {"augment": True})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"resize": "wrap"}, "resize='wrap' must be one of letterbox, warp.* Did you mean 'warp'"),
        ({"warmup_iters": 2.5}, "warmup_iters=2.5 must be a whole number of iterations"),
        ({"warmup_iters": -1}, "warmup_iters=-1 must be 0 or more"),
        ({"ema": None}, "ema=None .* must be True or False"),
        ({"ema": "no"}, "ema='no' .* must be True or False"),
        ({"augmentation": "mosaic"}, "augmentation='mosaic' must be one of standard, ssd"),
    ],
)
def test_wrong_values_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        validated(option)


# Warped images, without a training ------------------------------------------------------------------------------------


@pytest.fixture
def warped(iou_aware: Any, tmp_path: Path) -> Path:
    """A checkpoint that says its images are warped, with lively outputs."""
    model = iou_aware("yolo11n", torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    write_marker(model, iou_head=True, resize="warp")
    path = tmp_path / "warped.pt"
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": SIZE}}, path)
    return path


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A data.yaml of the pictures, with an object each."""
    root = tmp_path / "shapes"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i, image in enumerate(pictures()):
        cv2.imwrite(str(root / "images" / f"{i}.png"), image)
        (root / "labels" / f"{i}.txt").write_text("1 0.5 0.5 0.5 0.25\n")
    data = root / "data.yaml"
    data.write_text(f"path: {root.as_posix()}\ntrain: images\nval: images\nnames: [a, b, c]\n")
    return data


def expected_detections(model: MLCYOLO | Path, image: np.ndarray, **options: Any) -> torch.Tensor:
    """What a model says of the image stretched by hand, in the image's own pixels."""
    net = model if isinstance(model, MLCYOLO) else MLCYOLO(model)
    square = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    (result,) = net.predict(square, imgsz=SIZE, verbose=False, **options)
    found: torch.Tensor = result.boxes.data.clone()
    height, width = image.shape[:2]
    found[:, :4] *= torch.tensor([width, height, width, height]) / SIZE
    return found


@pytest.mark.slow
def test_a_warped_prediction_is_that_of_the_stretched_image_scaled_back(warped: Path) -> None:
    together = MLCYOLO(warped).predict(pictures(), imgsz=SIZE, conf=0.25, verbose=False, batch=2)
    for image, among in zip(pictures(), together, strict=True):
        wanted = expected_detections(warped, image, conf=0.25)
        (alone,) = MLCYOLO(warped).predict(image, imgsz=SIZE, conf=0.25, verbose=False)
        assert len(wanted) > 10 and alone.orig_shape == image.shape[:2]
        torch.testing.assert_close(alone.boxes.data, wanted, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(among.boxes.data, wanted, rtol=1e-4, atol=1e-2)


def test_the_choice_at_prediction_overrules_the_checkpoint_for_one_call(warped: Path) -> None:
    net, image = MLCYOLO(warped), pictures()[0]
    chosen = {"imgsz": SIZE, "conf": 0.25, "verbose": False}
    by_checkpoint, padded, by_word, again = (
        net.predict(image, **chosen, **resize)[0].boxes.data
        for resize in ({}, {"resize": "letterbox"}, {"resize": "warp"}, {})
    )
    assert torch.equal(by_checkpoint, again) and torch.equal(by_checkpoint, by_word)
    assert padded.shape != by_checkpoint.shape or not torch.equal(padded, by_checkpoint)
    kept = net.predictor
    net.predict(image, **chosen)
    assert net.predictor is kept, "the model is wrapped once"


def test_upstreams_predictor_interface_reads_the_checkpoint_too(warped: Path) -> None:
    predictor = MLCPredictor(overrides={"model": str(warped), "imgsz": SIZE, "conf": 0.25, "verbose": False})
    predictor.setup_model(None)
    (result,) = predictor(pictures()[0])
    wanted = expected_detections(warped, pictures()[0], conf=0.25)
    torch.testing.assert_close(result.boxes.data, wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_an_exported_model_warps_when_told(warped: Path, shapes: Path, run_dir: Path) -> None:
    exported = MLCYOLO(warped).export(format="torchscript", imgsz=SIZE, verbose=False)
    image = pictures()[0]
    wanted = expected_detections(warped, image, conf=0.25)
    net = MLCYOLO(exported, task="detect")
    told, untold = (
        net.predict(image, imgsz=SIZE, conf=0.25, verbose=False, **resize)[0].boxes.data
        for resize in ({"resize": "warp"}, {})
    )
    assert len(told) == len(wanted) > 10
    torch.testing.assert_close(told, wanted, rtol=1e-3, atol=0.1)
    assert len(untold) != len(told) or not torch.allclose(untold, told, atol=1)

    options = {"model": exported, "data": str(shapes), "imgsz": SIZE, "plots": False, "project": str(run_dir)}
    validator = MLCValidator(args={**options, "resize": "warp"})
    validator()
    assert type(validator.dataloader.dataset) is WarpedDataset


def test_exporting_says_what_the_file_does_not(warped: Path, caplog: pytest.LogCaptureFixture) -> None:
    MLCYOLO(warped).export(format="stock")
    assert any("validate it with resize=warp" in record.message for record in caplog.records)


@pytest.mark.slow
@pytest.mark.parametrize("direct", [False, True])
def test_validation_writes_what_prediction_finds(direct: bool, warped: Path, shapes: Path, run_dir: Path) -> None:
    options = {"data": str(shapes), "imgsz": SIZE, "conf": 0.25, "max_det": 20, "batch": 2, "plots": False}
    options |= {"save_json": True, "save_txt": True, "save_conf": True, "project": str(run_dir), "name": "val"}
    if direct:  # Ultralytics' other way in
        MLCValidator(args={"model": str(warped), "rect": True, **options})()
    else:
        MLCYOLO(warped).val(coco_eval=True, **options)
    found = json.loads((run_dir / "val" / "predictions.json").read_text())
    net = MLCYOLO(warped)
    for i, image in enumerate(pictures()):
        wanted = expected_detections(net, image, conf=0.25)
        boxes = torch.tensor([row["bbox"] for row in found if row["image_id"] == i])
        assert len(boxes) > 5
        corners = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
        # Validation lets an anchor give every class and prediction its best one: the best box is in both.
        torch.testing.assert_close(corners[:1], wanted[:1, :4], rtol=1e-3, atol=0.05)
        height, width = image.shape[:2]
        assert boxes.amin() >= 0 and corners[:, 2].max() <= width + 0.01 and corners[:, 3].max() <= height + 0.01
        line = (run_dir / "val" / "labels" / f"{i}.txt").read_text().splitlines()[0].split()
        x, y, w, h = (float(value) for value in line[1:5])
        text = torch.tensor([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
        torch.testing.assert_close(text, wanted[0, :4], rtol=1e-3, atol=0.05)


# Trainings ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11", "fssd"])
def test_all_four_options_train_resume_and_are_remembered(name: str, tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(detector_yaml(run_dir, "fssd", norm="batch") if name == "fssd" else SMALL)
    seen: dict[str, Any] = {}

    def look(trainer: Any) -> None:
        seen["train"], seen["val"] = type(trainer.train_loader.dataset), type(trainer.test_loader.dataset)
        seen["sizes"] = {tuple(item["img"].shape) for item in trainer.test_loader.dataset}

    model.add_callback("on_train_start", look)
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(model, tiny_data, run_dir / "run", epochs=2, batch=4, close_mosaic=1, **ALL_FOUR)
    assert seen == {"train": SSDDataset, "val": WarpedDataset, "sizes": {(3, 64, 64)}}
    written = yaml.safe_load((run_dir / "run" / "args.yaml").read_text())
    kept = {"augmentation": "ssd", "augment": False, "resize": "warp", "warmup_iters": 1, "ema": False}
    assert {key: written[key] for key in kept} == kept

    last = run_dir / "run" / "weights" / "last.pt"
    resumed = MLCYOLO(last)
    resumed.add_callback("on_train_start", look)
    resumed.train(resume=True)
    assert seen["train"] is SSDDataset and seen["val"] is WarpedDataset and not resumed.trainer.ema.enabled
    assert len(rows(run_dir / "run")) == 2
    assert wants_warp(None, MLCYOLO(last).model)
    if name == "fssd":  # what a later training takes from the checkpoint is what was just asked of it
        return

    again = train(last, tiny_data, run_dir / "again")
    assert type(again.trainer.train_loader.dataset) is WarpedDataset, "as in the checkpoint"
    assert wants_warp(None, load_checkpoint(run_dir / "again" / "weights" / "best.pt")[0])
    back = train(last, tiny_data, run_dir / "back", resize="letterbox")
    assert "resize" not in read_marker(back.model) and not isinstance(back.trainer.train_loader.dataset, WarpedDataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": "ssd"}, r"augmentation=ssd distorts colours: expected images of 3 channels.* has 4"),
        ({"ssl": "sed", "ssl_weight": 1.0}, r"ssl=sed changes colours: expected images of 1 or 3 channels.* has 4"),
    ],
)
def test_images_of_other_channels_are_refused_before_a_folder_is_made(
    options: dict[str, Any], message: str, tiny_data: Path, tmp_path: Path, run_dir: Path
) -> None:
    bands = tmp_path / "bands.yaml"
    bands.write_text(tiny_data.read_text() + f"channels: 4\nunlabeled: {tiny_data.parent / 'images' / 'train'}\n")
    with pytest.raises(ValueError, match=message):
        SemiTrainer(overrides={"model": SMALL, "data": str(bands), "project": str(run_dir), **options})
    assert not list(run_dir.iterdir())


@pytest.mark.parametrize("device", ["0,1", [0, 1], "cuda:0,1", "-1,-1"])
def test_an_assigner_object_on_several_devices_is_refused_before_a_folder_is_made(
    device: Any, tiny_data: Path, run_dir: Path
) -> None:
    overrides = {"model": SMALL, "data": str(tiny_data), "project": str(run_dir), "device": device}
    with pytest.raises(ValueError, match="an assigner object works on one device"):
        MLCTrainer(overrides=overrides, assigner=TaskAligned())
    assert not list(run_dir.iterdir())


def test_images_without_labels_need_their_own_trainer(tiny_data: Path, run_dir: Path) -> None:
    overrides = {"model": SMALL, "data": str(tiny_data), "project": str(run_dir), "ssl": "sed"}
    with pytest.raises(ValueError, match="ssl=sed is learned by SemiTrainer"):
        MLCTrainer(overrides=overrides)
    assert not list(run_dir.iterdir())


def test_a_warm_up_longer_than_the_run_is_refused(tiny_data: Path, run_dir: Path) -> None:
    trainer = MLCTrainer.__new__(MLCTrainer)
    trainer.epochs = 4
    trainer.args = type("Args", (), {"warmup_iters": 40, "time": None})()
    with pytest.raises(ValueError, match="warmup_iters=40 must end before the run: epochs=4 of 10 batches are 40"):
        trainer._get_warmup_iterations(10)
    assert trainer._get_warmup_iterations(11) == 40
    trainer.args.time = 1.0
    assert trainer._get_warmup_iterations(10) == 40


@pytest.mark.slow
def test_the_learning_rate_rises_for_so_many_batches_and_goes_on_after_a_stop(tiny_data: Path, run_dir: Path) -> None:
    rates: dict[int, list[float]] = {}

    def note(trainer: Any) -> None:
        batch = len(rates) if not hasattr(trainer, "noted") else trainer.noted + 1
        trainer.noted = batch
        rates[batch] = [group["lr"] for group in trainer.optimizer.param_groups]

    options = {"epochs": 5, "batch": 4, "nbs": 4, "lr0": 0.01, "lrf": 1.0, "warmup_iters": 6, "warmup_bias_lr": 0.0}
    model = MLCYOLO(SMALL)
    model.add_callback("on_train_batch_end", note)
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(model, tiny_data, run_dir / "cut", **options)
    assert len(rates) == 2
    resumed = MLCYOLO(run_dir / "cut" / "weights" / "last.pt")
    resumed.add_callback("on_train_batch_end", note)
    resumed.train(resume=True)
    assert len(rates) == 10
    for batch, groups in rates.items():
        assert groups == pytest.approx([0.01 * min(batch / 6, 1)] * len(groups)), batch


def _saved(run: Path, name: str) -> nn.Module:
    checkpoint: dict[str, Any] = torch.load(run / "weights" / name, weights_only=False)
    model: nn.Module = checkpoint["ema"] or checkpoint["model"]
    return model


@pytest.mark.slow
@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize("ema", [True, False])
def test_without_averaging_the_weights_as_trained_are_validated_and_saved(
    ema: bool, val: bool, tiny_data: Path, run_dir: Path
) -> None:
    checked: list[bool] = []

    def same(trainer: Any, other: nn.Module) -> bool:
        trained, held = trainer.model.state_dict(), other.state_dict()
        assert trained.keys() == held.keys() and any("running_mean" in name for name in held)
        return all(torch.equal(tensor.half(), held[name].half()) for name, tensor in trained.items())

    def compare(trainer: Any) -> None:
        checked.append(same(trainer, trainer.ema.ema) and same(trainer, _saved(run_dir / "run", "last.pt")))

    model = MLCYOLO(SMALL)
    model.add_callback("on_model_save", compare)
    # The last batch of an epoch makes no step (4 batches, a step after each third): its statistics still count.
    train(model, tiny_data, run_dir / "run", epochs=2, batch=2, nbs=6, ema=ema, val=val)
    assert checked == [not ema] * 2
    assert type(model.trainer.ema.ema) is type(model.trainer.model)


@pytest.mark.slow
def test_an_unaveraged_run_resumes_and_recovers_unaveraged(tiny_data: Path, run_dir: Path) -> None:
    hurt: list[int] = []

    def poison(trainer: Any) -> None:
        if trainer.epoch == 2 and not hurt:
            hurt.append(trainer.epoch)
            with torch.no_grad():
                trainer.model.model[0].conv.weight.fill_(float("nan"))

    model = MLCYOLO(SMALL)
    model.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(model, tiny_data, run_dir / "run", epochs=4, ema=False)
    resumed = MLCYOLO(run_dir / "run" / "weights" / "last.pt")
    resumed.add_callback("on_train_epoch_start", poison)
    resumed.train(resume=True)
    trainer = resumed.trainer
    assert hurt == [2] and not trainer.ema.enabled and len(rows(run_dir / "run")) == 4
    for name, tensor in trainer.model.state_dict().items():
        assert tensor.isfinite().all() and torch.equal(tensor, trainer.ema.ema.state_dict()[name]), name
