"""Real short trainings: warm-up, resuming, checkpoints, custom assigners, nan."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import SMALL, SMALL26
from ultralytics import YOLO
from ultralytics.nn.modules.head import Detect
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo import MLCYOLO, cli
from mlc_yolo.assigners import STOCK, Assignment, MutualLabeling, Predictions, Targets, TaskAligned
from mlc_yolo.heads.iou_aware import NEUTRAL_BIAS, IoUAwareDetect, add_iou_channel
from mlc_yolo.priors import Priors
from mlc_yolo.training.trainer import MLCTrainer
from mlc_yolo.training.yolo_criterion import PerTaskE2ELoss, PerTaskLoss

TINY = {"imgsz": 64, "batch": 8, "nbs": 8, "seed": 0, "optimizer": "SGD", "plots": False, "warmup_epochs": 0}


def rows(run: Path) -> list[dict[str, float]]:
    with open(run / "results.csv", encoding="utf-8") as file:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _stop_after(epoch: int) -> Any:
    """A callback that ends the process' training as Ctrl-C does, once `epoch` epochs are saved."""

    def stop(trainer: MLCTrainer) -> None:
        if trainer.epoch + 1 == epoch:
            raise KeyboardInterrupt

    return stop


@pytest.mark.slow
@pytest.mark.parametrize("name", [SMALL, SMALL26], ids=["yolo11", "yolo26"])
def test_a_resumed_run_follows_the_uninterrupted_one_across_the_switch(
    name: str, tiny_data: Path, run_dir: Path
) -> None:
    still = dict.fromkeys(("mosaic", "fliplr", "hsv_h", "hsv_s", "hsv_v", "translate", "scale"), 0.0)
    options = {**TINY, **still, "data": str(tiny_data), "epochs": 6, "assigner": "mlc", "assigner_warmup": 3}
    options |= {"iou_head": True, "iou_gain": 2.0}
    MLCYOLO(name).train(project=str(run_dir), name="whole", **options)

    model = MLCYOLO(name)
    model.add_callback("on_model_save", _stop_after(2))
    with pytest.raises(KeyboardInterrupt):
        model.train(project=str(run_dir), name="cut", **options)
    last = run_dir / "cut" / "weights" / "last.pt"
    resumed = MLCYOLO(last)
    resumed.train(resume=True)

    trainer = resumed.trainer
    assert isinstance(trainer.model.criterion, PerTaskE2ELoss if name == SMALL26 else PerTaskLoss)
    assert (trainer.args.assigner, trainer.args.assigner_warmup, trainer.args.iou_gain) == ("mlc", 3, 2.0)
    assert trainer.ema.ema.criterion is trainer.model.criterion and trainer.model.criterion.epoch == 5
    if name == SMALL26:  # the branch weights go on from where they were: 0.8 to 0.1 over 5 updates
        assert trainer.model.criterion.updates == 6 and trainer.model.criterion.o2m == pytest.approx(0.1)
    assert trainer.schedule().at(2) is STOCK and isinstance(trainer.schedule().at(3), MutualLabeling)

    whole, cut = rows(run_dir / "whole"), rows(run_dir / "cut")
    assert [row["epoch"] for row in cut] == [1, 2, 3, 4, 5, 6]
    for epoch, (expected, got) in enumerate(zip(whole, cut, strict=True)):
        for column in ("train/box_loss", "train/cls_loss", "train/iou_loss"):
            assert got[column] == expected[column], (epoch, column)
        task_aligned = epoch < 3
        assert (got["train/pos_cls"] == got["train/pos_loc"]) == task_aligned


def test_the_data_yaml_of_a_resumed_run_is_looked_at_again(tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    data, mark = tmp_path / "data.yaml", tmp_path / "ran"
    data.write_text(tiny_data.read_text())
    model = MLCYOLO(SMALL)
    model.add_callback("on_model_save", _stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        model.train(data=str(data), epochs=3, project=str(run_dir), name="cut", **TINY)
    data.write_text(f"{tiny_data.read_text()}download: touch {mark}\n".replace("images/val", "images/gone"))
    with pytest.raises(ValueError, match=r"data\.yaml: .*gone does not exist\. 'download' holds a program"):
        MLCYOLO(run_dir / "cut" / "weights" / "last.pt").train(resume=True)
    assert not mark.exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_resumes_from_the_command_line(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL)
    model.add_callback("on_model_save", _stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        model.train(data=str(tiny_data), epochs=2, assigner="mlc", project=str(run_dir), name="cut", **TINY)
    assert cli.main(["train", "resume", f"model={run_dir / 'cut' / 'weights' / 'last.pt'}"]) == 0
    assert [row["epoch"] for row in rows(run_dir / "cut")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("assigner", ["max_iou", "fcos", "atss", "mutual_guidance", "mlc"])
def test_every_assigner_trains_validates_and_reloads(assigner: str, tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL)
    chosen = {"assigner": assigner, "iou_head": True}
    model.train(data=str(tiny_data), epochs=2, **chosen, project=str(run_dir), name="run", **TINY)
    table = rows(run_dir / "run")
    assert {"train/iou_loss", "train/pos_cls", "train/pos_loc", "val/iou_loss", "metrics/spearman(B)"} <= table[
        0
    ].keys()
    assert all(row["train/pos_cls"] > 0 for row in table)
    reloaded = MLCYOLO(run_dir / "run" / "weights" / "best.pt")
    assert type(reloaded.model.model[-1]) is IoUAwareDetect
    assert reloaded.predict(torch.rand(1, 3, 64, 64), verbose=False)


@pytest.mark.slow
def test_iou_channel_follows_the_checkpoint_when_left_out(tiny_data: Path, run_dir: Path) -> None:
    def train(model: str | Path, name: str, **options: Any) -> Path:
        trained = MLCYOLO(model)
        trained.train(data=str(tiny_data), epochs=1, project=str(run_dir), name=name, **TINY, **options)
        return run_dir / name / "weights" / "best.pt"

    without = train(SMALL, "without")
    assert type(YOLO(without).model.model[-1]) is Detect
    added = train(without, "added", iou_head=True)
    assert type(MLCYOLO(added).model.model[-1]) is IoUAwareDetect
    kept = train(added, "kept")
    assert type(MLCYOLO(kept).model.model[-1]) is IoUAwareDetect
    dropped = train(kept, "dropped", iou_head=False)
    assert type(MLCYOLO(dropped).model.model[-1]) is Detect


class Counted(TaskAligned):
    """A subclass of a built-in assigner, which counts its calls."""

    calls = 0

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        self.calls += 1
        return super().__call__(predictions, priors, targets)


@pytest.mark.slow
def test_an_assigner_object_is_called_and_must_be_given_again_to_resume(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL)
    model.add_callback("on_model_save", _stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        model.train(data=str(tiny_data), epochs=3, assigner=Counted(topk=1), project=str(run_dir), name="own", **TINY)
    assert isinstance(model.trainer.model.criterion.schedule.main, Counted)
    last = run_dir / "own" / "weights" / "last.pt"
    with pytest.raises(ValueError, match="assigner object"):
        MLCYOLO(last).train(resume=True)
    resumed = MLCYOLO(last)
    again = Counted(topk=1)
    resumed.train(resume=True, assigner=again)
    assert again.calls >= 4  # two epochs of a training and a validation batch or more
    assert len(rows(run_dir / "own")) == 3


@pytest.mark.slow
def test_nan_in_the_loss_recovers_from_an_intact_checkpoint(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL)
    hurt = []

    def poison(trainer: MLCTrainer) -> None:
        if trainer.epoch == 2 and not hurt:
            hurt.append(trainer.epoch)
            with torch.no_grad():
                trainer.model.model[0].conv.weight.fill_(float("nan"))

    model.add_callback("on_train_epoch_start", poison)
    model.train(data=str(tiny_data), epochs=4, assigner="mlc", project=str(run_dir), name="nan", **TINY)
    assert hurt == [2]
    assert [row["epoch"] for row in rows(run_dir / "nan")] == [1, 2, 3, 4]
    last = MLCYOLO(run_dir / "nan" / "weights" / "last.pt")
    assert all(tensor.isfinite().all() for tensor in last.model.state_dict().values())


def test_stock_checkpoint_trains_on_with_every_stock_tensor_in_place(
    tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock = YOLO(SMALL)
    path = run_dir / "stock.pt"
    stock.save(path)
    model = MLCYOLO(path)
    assert type(model.model.model[-1]) is Detect
    with caplog.at_level("INFO"):
        place = {"data": str(tiny_data), "project": str(run_dir)}
        trainer = MLCTrainer(overrides={**TINY, **place, "model": path, "iou_head": True})
        built = trainer.get_model(cfg=model.model.yaml, weights=model.model)
    assert type(built.model[-1]) is IoUAwareDetect
    ours, theirs = built.state_dict(), model.model.state_dict()
    same_shape = [name for name in theirs if theirs[name].shape == ours[name].shape]
    assert all(torch.equal(ours[name], theirs[name]) for name in same_shape)
    assert f"{len(same_shape)}/{len(theirs)} stock tensors loaded" in caplog.text


@pytest.mark.parametrize(
    ("options", "by_product", "bias"),
    [({}, True, NEUTRAL_BIAS), ({"rescore": False}, False, NEUTRAL_BIAS), ({"iou_training": "positives"}, False, 0)],
)
def test_the_form_of_the_channels_training_reaches_head_and_criterion(
    options: dict[str, Any], by_product: bool, bias: float, tiny_data: Path, run_dir: Path
) -> None:
    place = {"data": str(tiny_data), "project": str(run_dir), "model": SMALL}
    trainer = MLCTrainer(overrides={**TINY, **place, "epochs": 1, "iou_head": True, **options})
    trainer.setup_model()
    trainer.set_model_attributes()
    assert trainer._attach_criterion().by_product is by_product
    assert all((conv.bias == bias).all() for conv in trainer.model.model[-1].cv_iou)


@pytest.mark.slow
def test_a_run_bounded_by_time_still_switches_assigners(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL)
    model.train(data=str(tiny_data), time=0.001, assigner="mlc", val=False, project=str(run_dir), name="timed", **TINY)
    table = rows(run_dir / "timed")
    same = [row["train/pos_cls"] == row["train/pos_loc"] for row in table]
    switch = same.index(False)
    assert switch > 0 and not any(same[switch:])


@pytest.mark.slow
def test_loading_weights_brings_their_iou_channel_along(tiny_data: Path, run_dir: Path) -> None:
    trained = MLCYOLO(SMALL)
    trained.train(data=str(tiny_data), epochs=1, iou_head=True, project=str(run_dir), name="one", **TINY)
    best = run_dir / "one" / "weights" / "best.pt"
    source = MLCYOLO(best)
    with torch.no_grad():
        source.model.model[-1].cv_iou[0].bias.fill_(0.25)
    loaded = MLCYOLO(SMALL).load(source.model)
    assert loaded.model.model[-1].cv_iou[0].bias.item() == 0.25


def test_a_configuration_file_is_checked_and_its_data_kept(tiny_data: Path, run_dir: Path) -> None:
    given = {**DEFAULT_CFG_DICT, "data": str(tiny_data), "project": str(run_dir), "model": SMALL}
    with pytest.raises(ValueError, match="Did you mean 'mlc'"):
        MLCTrainer(cfg={**given, "assigner": "mcl"})
    assert not list(run_dir.iterdir())
    trainer = MLCTrainer(cfg={**given, "assigner": "mg"})
    assert trainer.args.assigner == "mutual_guidance" and trainer.args.data == str(tiny_data)


def test_rescoring_is_switched_for_one_call_only() -> None:
    model = MLCYOLO(SMALL)
    add_iou_channel(model.model.model[-1])
    image = torch.rand(1, 3, 64, 64)
    model.predict(image, rescore=False, verbose=False)
    assert model.model.model[-1].rescore is False
    model.predict(image, verbose=False)
    assert model.model.model[-1].rescore is True


def test_an_assigner_class_is_refused(tiny_data: Path, run_dir: Path) -> None:
    with pytest.raises(TypeError, match=r"give an instance: TaskAligned\(\)"):
        MLCYOLO(SMALL).train(data=str(tiny_data), assigner=TaskAligned, project=str(run_dir), **TINY)
    assert not list(run_dir.iterdir())


def test_a_wrong_name_is_answered_in_validation_too() -> None:
    with pytest.raises(SyntaxError, match="coco_eval"):
        MLCYOLO(SMALL).val(coco_evl=True)
