"""`assigner=tal iou_head=False` is stock Ultralytics: the same weights after the same steps from one seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nets import SMALL, SMALL26
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unwrap_model

from mlc_yolo.training.trainer import MLCTrainer

STEPS = 20  # epochs of one step: the whole tiny set is one batch


def _trained(trainer_class: type[DetectionTrainer], model: str, data: Path, run_dir: Path, **ours: object) -> dict:
    arguments = {
        "model": model,
        "data": str(data),
        "epochs": STEPS,
        "imgsz": 64,
        "batch": 8,
        "nbs": 8,  # an optimiser step at every batch
        "seed": 3,
        "optimizer": "SGD",
        "plots": False,
        "save": False,
        "val": False,
        "project": str(run_dir),
        "name": trainer_class.__name__,
    }
    trainer = trainer_class(overrides={**arguments, **ours})
    trainer.final_eval = lambda: None  # type: ignore[method-assign]  # it reads the file that save=False leaves out
    trainer.train()
    return unwrap_model(trainer.model).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("model", [SMALL, SMALL26], ids=["yolo11", "yolo26"])
def test_weights_equal_stock_trainers_after_twenty_steps_and_those_of_another_assigner_do_not(
    model: str, tiny_data: Path, run_dir: Path
) -> None:
    stock = _trained(DetectionTrainer, model, tiny_data, run_dir)
    ours = _trained(MLCTrainer, model, tiny_data, run_dir, assigner="tal", iou_head=False)
    assert stock.keys() == ours.keys()
    for name, tensor in stock.items():
        assert torch.equal(tensor, ours[name]), name
    others = _trained(MLCTrainer, model, tiny_data, run_dir, assigner="atss", iou_head=False)
    assert any(not torch.equal(tensor, others[name]) for name, tensor in stock.items())
