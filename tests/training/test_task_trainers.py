"""Segmentation, pose and oriented boxes: assigners train them, stock stays stock, and what a run writes opens again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import ultralytics.utils.events  # noqa: F401  # it draws a random number, which some versions do within a training
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils.torch_utils import unwrap_model

from mlc_yolo import MLCYOLO
from mlc_yolo.assigners import Assignment, Predictions, Role, Targets, TaskAligned
from mlc_yolo.heads.iou_aware import IoUAwareTask, has_iou_channel
from mlc_yolo.priors import Priors
from mlc_yolo.training.task_trainers import MLCOrientedTrainer, MLCPoseTrainer, MLCSegmentationTrainer

TRAINERS: dict[str, tuple[type[DetectionTrainer], type[DetectionTrainer]]] = {
    "segment": (SegmentationTrainer, MLCSegmentationTrainer),
    "pose": (PoseTrainer, MLCPoseTrainer),
    "obb": (OBBTrainer, MLCOrientedTrainer),
}
#: What each task is taught by beside boxes and classes.
LEARNED = {"segment": "seg_loss", "pose": "pose_loss", "obb": "angle_loss"}
SMALL: dict[str, Any] = {"imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "device": "cpu", "plots": False, "seed": 3}


def _weights(kind: type[DetectionTrainer], model: str, data: Path, run_dir: Path, **ours: object) -> dict[str, Any]:
    """Weights after twenty steps."""
    own = {"model": model, "data": str(data), "epochs": 20, "optimizer": "SGD", "save": False, "val": False}
    trainer = kind(overrides={**SMALL, **own, **ours, "project": str(run_dir), "name": kind.__name__})
    trainer.final_eval = lambda: None  # type: ignore[method-assign]  # it reads the file that save=False leaves out
    trainer.train()
    return unwrap_model(trainer.model).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "family"), [*((task, family) for task in TRAINERS for family in (11, 26)), ("obb", 8), ("segment", 12)]
)
def test_tal_is_the_stock_trainer_to_the_bit(
    task: str, family: int, net: Callable[..., str], labelled: Callable[[str], Path], run_dir: Path
) -> None:
    stock, ours = (_weights(kind, net(task, family), labelled(task), run_dir) for kind in TRAINERS[task])
    assert stock.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in stock.items())


@pytest.mark.slow
@pytest.mark.parametrize("task", TRAINERS)
def test_a_run_with_an_assigner_serves_every_mode(
    task: str,
    net: Callable[..., str],
    labelled: Callable[[str], Path],
    run_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    where = {"project": str(run_dir), "exist_ok": True}
    model = MLCYOLO(net(task))
    model.train(data=str(labelled(task)), epochs=2, assigner="mlc", assigner_warmup=1, name="run", **SMALL, **where)
    header, *rows = (run_dir / "run" / "results.csv").read_text().splitlines()
    names = {"train/pos_cls", "train/pos_loc", "val/pos_cls", "metrics/spearman(B)"}
    assert names <= set(header.split(",")) and len(rows) == 2
    assert "assigner: mlc from epoch 2" in caplog.text
    weights = run_dir / "run" / "weights"
    image = np.full((64, 64, 3), 90, np.uint8)
    detections = []
    for file in (weights / "best.pt", weights / "best.safetensors"):
        opened = MLCYOLO(file)
        assert opened.task == task and opened.val(data=str(labelled(task)), **SMALL, **where).fitness >= 0
        (result,) = opened.predict(image, conf=1e-4, max_det=5, verbose=False)
        detections.append((result.obb if task == "obb" else result.boxes).data)
        assert {"segment": result.masks, "pose": result.keypoints, "obb": result.obb}[task] is not None
    torch.testing.assert_close(
        detections[0], detections[1], atol=1e-3, rtol=1e-3
    )  # a stored model is in half precision


@pytest.mark.parametrize("task", TRAINERS)
@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"nms_by": "iou"}, "works on what detection's NMS keeps"),
        ({"ssl": "sed"}, "learned without labels"),
        ({"resize": "warp"}, "moves boxes alone"),
        ({"align_gain": 1.0}, "belongs to the ported detectors"),
    ],
)
def test_options_that_a_task_cannot_have_are_refused_with_the_reason_before_a_folder_is_made(
    task: str, option: dict[str, Any], why: str, net: Callable[..., str], labelled: Callable[[str], Path], run_dir: Path
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))}: only for detection models.*{why}"):
        MLCYOLO(net(task)).train(data=str(labelled(task)), project=str(run_dir), **option, **SMALL)
    assert not run_dir.exists() or not list(run_dir.iterdir())


def test_pose_without_keypoints_in_the_data_is_refused_before_a_folder_is_made(
    net: Callable[..., str], labelled: Callable[[str], Path], run_dir: Path
) -> None:
    with pytest.raises(ValueError, match="has no kpt_shape"):
        MLCYOLO(net("pose")).train(data=str(labelled("segment")), project=str(run_dir), **SMALL)
    assert not run_dir.exists() or not list(run_dir.iterdir())


class OnlyBoxes:
    """Trains task-aligned positives as boxes and nothing as a class, or the other way round."""

    def __init__(self, *, boxes: bool) -> None:
        self.boxes = boxes
        self.aligned = TaskAligned()

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        task = self.aligned(predictions, priors, targets).localization
        nothing = type(task)(
            gt_index=torch.full_like(task.gt_index, -1),
            role=torch.full_like(task.role, int(Role.NEGATIVE)),
            weight=task.weight,
            quality=torch.zeros_like(task.quality),
        )
        return Assignment(nothing, task) if self.boxes else Assignment(task, nothing)


@pytest.mark.parametrize("task", TRAINERS)
@pytest.mark.parametrize("boxes", [True, False])
def test_masks_keypoints_and_angles_are_trained_where_localisation_is_positive(
    task: str, boxes: bool, net: Callable[..., str], labelled: Callable[[str], Path], run_dir: Path
) -> None:
    items = _first_losses(task, net(task), labelled(task), run_dir, OnlyBoxes(boxes=boxes))
    assert (items[LEARNED[task]] > 0) == boxes
    assert (items["pos_loc"] > 0) == boxes and (items["pos_cls"] > 0) == (not boxes)


def _first_losses(
    task: str, model: str, data: Path, run_dir: Path, assigner: Any = None, **options: Any
) -> dict[str, torch.Tensor]:
    """Losses of a run's first batch, by name."""
    trainer: Any = TRAINERS[task][1](
        overrides={**SMALL, "model": model, "data": str(data), "project": str(run_dir), **options},
        **({} if assigner is None else {"assigner": assigner}),
    )
    trainer._setup_train()
    trainer.epoch = 0
    trainer._model_train()
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    assert len(batch["cls"]) > 0
    items: dict[str, torch.Tensor] = trainer.model(batch)[1]
    return items


@pytest.mark.parametrize("family", [11, 26])
@pytest.mark.parametrize("task", TRAINERS)
def test_under_a_channel_of_no_weight_upstreams_assignment_gives_upstreams_losses(
    task: str, family: int, net: Callable[..., str], labelled: Callable[[str], Path], run_dir: Path
) -> None:
    # YOLO26 assigns masks and keypoints too, which assigners of ours do not see.
    channel = {"iou_head": True, "iou_training": "positives", "iou_gain": 0.0}
    stock, ours = (
        _first_losses(task, net(task, family), labelled(task), run_dir, **options) for options in ({}, channel)
    )
    assert ours.pop("iou_loss") == 0 and stock.keys() == ours.keys() and stock[LEARNED[task]] > 0
    for name, value in stock.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("task", TRAINERS)
def test_a_channel_learns_ranks_and_stays_in_what_is_saved_and_trained_further(
    task: str, net: Callable[..., str], labelled: Callable[[str], Path], run_dir: Path
) -> None:
    where = {"project": str(run_dir), "exist_ok": True}
    model = MLCYOLO(net(task, 26 if task == "pose" else 11))
    once = {"data": str(labelled(task)), "epochs": 1, "warmup_epochs": 0, "val": False, **SMALL, **where}
    model.train(assigner="mlc", iou_head=True, name="run", **once)
    assert "train/iou_loss" in (run_dir / "run" / "results.csv").read_text().splitlines()[0]
    weights = run_dir / "run" / "weights"
    last, plain = MLCYOLO(weights / "last.pt"), MLCYOLO(weights / "last.pt")
    head = last.model.model[-1]
    assert isinstance(head, IoUAwareTask) and head.cv_iou[0].weight.abs().sum() > 0
    image = np.full((64, 64, 3), 90, np.uint8)

    def scores(opened: MLCYOLO, **options: Any) -> np.ndarray:
        (result,) = opened.predict(image, conf=1e-6, max_det=3, verbose=False, **options)
        best: np.ndarray = (result.obb if task == "obb" else result.boxes).conf.numpy()
        return best

    ranked = scores(last)
    assert len(ranked) == 3 and (scores(last, rescore=False) > ranked).all()
    np.testing.assert_array_equal(scores(last), ranked)  # the next call asks again
    last.save(weights / "last.safetensors")
    np.testing.assert_allclose(scores(MLCYOLO(weights / "last.safetensors")), ranked, rtol=1e-3)
    stock = YOLO(last.export(format="stock"))
    assert not has_iou_channel(stock.model)
    np.testing.assert_allclose(scores(stock), ranked, rtol=5e-3)
    if task != "segment":  # what begins a training is of no task
        return
    plain.train(rescore=False, name="further", **once)
    assert has_iou_channel(plain.trainer.model) and not plain.trainer.model.model[-1].rescore


@pytest.mark.parametrize("task", ["segment", "obb"])
def test_upstreams_assignment_through_our_seam_gives_upstreams_losses(
    task: str, net: Callable[..., str], labelled: Callable[[str], Path], run_dir: Path
) -> None:
    # tal as an assigner object decides as upstream does; losses then differ by rounding alone.
    stock, ours = (_first_losses(task, net(task), labelled(task), run_dir, a) for a in (None, TaskAligned()))
    assert stock[LEARNED[task]] > 0 and stock.keys() == ours.keys()
    for name, value in stock.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segment", "obb"])
def test_a_killed_run_resumes_with_its_assigner_and_its_channel(
    task: str, net: Callable[..., str], labelled: Callable[[str], Path], run_dir: Path
) -> None:
    class Killed(Exception):
        """The process is gone."""

    def kill(trainer: Any) -> None:
        if trainer.epoch == 0:
            raise Killed

    model = MLCYOLO(net(task, 26))
    model.add_callback("on_model_save", kill)
    with pytest.raises(Killed):
        model.train(
            data=str(labelled(task)),
            epochs=2,
            assigner="mutual_guidance",
            iou_head=True,
            project=str(run_dir),
            name="run",
            **SMALL,
        )
    resumed = MLCYOLO(run_dir / "run" / "weights" / "last.pt")
    resumed.train(resume=True)
    assert isinstance(resumed.trainer, TRAINERS[task][1]) and resumed.trainer.start_epoch == 1
    assert resumed.trainer.args.assigner == "mutual_guidance"
    assert type(resumed.trainer.schedule().main).__name__ == "MutualGuidance"
    assert has_iou_channel(resumed.trainer.model)
