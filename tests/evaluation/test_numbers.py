"""Half precision and repetition: the same assignments under mixed precision, the same weights from the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nets import SMALL_NETS, enliven
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from mlc_yolo import MLCYOLO
from mlc_yolo.assigners import Assignment, Predictions, Schedule, Targets, build_assigner
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.options import specification as options
from mlc_yolo.priors import Priors
from mlc_yolo.training.criteria import build_criterion
from mlc_yolo.training.detector_criterion import DetectorLoss

ASSIGNERS = ["max_iou", "fcos", "atss", "mutual_guidance", "mlc"]
NETS = ["yolo11n", "yolo26n", "retinanet"]


class Watched:
    """An assigner that remembers what it was called with and what it answered."""

    def __init__(self, name: str) -> None:
        self.assigner = build_assigner(name, options.settle(options.defaults()))
        self.seen: list[Any] = []

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        self.seen = [predictions, targets, self.assigner(predictions, priors, targets)]
        return self.seen[-1]


def _batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [[b, (b + i) % 3, 0.3 + 0.1 * i, 0.4 + 0.05 * b, 0.2 + 0.1 * i, 0.3] for b in range(4) for i in range(4)]
    table = torch.tensor(rows)
    image = torch.rand((4, 3, 128, 128), generator=generator)
    return {"img": image, "batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:]}


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """A net in training mode, and its raw outputs for the batch; of two branches, the one-to-many."""
    torch.manual_seed(0)
    if request.param == "retinanet":
        config = {"detector": "retinanet", "backbone": "resnet18", "width": 32, "nc": 3}
        model: Any = DetectorModel(config, verbose=False)
        model.args = DEFAULT_CFG
    else:
        model = DetectionModel(SMALL_NETS[request.param], nc=3, verbose=False)
        model.args = DEFAULT_CFG
        enliven(model, _batch()["img"])
    model.train()
    with torch.no_grad():
        raw = model(_batch()["img"])
    return model, raw.get("one2many", raw)


def _to(raw: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, Tensor) else [each.to(dtype) for each in v] for k, v in raw.items()}


def _step(model: Any, raw: dict[str, Any], assigner: Any) -> Tensor:
    common: dict[str, Any] = {"schedule": Schedule(assigner, assigner, 0), "prior_scale": 5.0, "iou_gain": 1.0}
    if isinstance(model, DetectorModel):
        return DetectorLoss(model, **common)(raw, _batch())[0]
    criterion: Any = build_criterion(model, **common)
    return getattr(criterion, "one2many", criterion).loss(raw, _batch())[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_mixed_precision_assigns_as_single_precision_does(
    net: tuple[Any, dict[str, Any]], assigner: str, dtype: torch.dtype
) -> None:
    model, raw = net
    low, watched, expected = _to(raw, dtype), Watched(assigner), Watched(assigner)
    with torch.autocast("cpu", dtype=dtype):
        losses = _step(model, low, watched)
    assert losses.isfinite().all()
    torch.testing.assert_close(losses.float(), _step(model, _to(low, torch.float32), expected), rtol=0.02, atol=1e-4)
    if not watched.seen:  # a static assigner of a ported detector is not shown the predictions
        return
    (predictions, targets, found), (same_predictions, same_targets, wanted) = watched.seen, expected.seen
    assert torch.equal(predictions.scores, same_predictions.scores)
    assert torch.equal(predictions.boxes, same_predictions.boxes)
    assert torch.equal(targets.boxes, same_targets.boxes)
    for task in ("classification", "localization"):
        for name, tensor in vars(getattr(found, task)).items():
            assert torch.equal(tensor, getattr(getattr(wanted, task), name)), (task, name)
    assert wanted.classification.positive.any()


@pytest.mark.slow
@pytest.mark.parametrize("assigner", ["tal", "mlc"])
def test_two_runs_of_one_seed_end_in_the_same_weights(assigner: str, tiny_data: Path, run_dir: Path) -> None:
    layers = [[-1, 1, "Conv", [8, 3, 2]]] * 3 + [[-1, 1, "Conv", [16, 3, 2]]] * 2
    config = {"nc": 3, "backbone": layers, "head": [[[2, 3, 4], 1, "Detect", ["nc"]]]}
    file = run_dir / "small.yaml"
    file.write_text(yaml.safe_dump(config))

    def run(name: str, seed: int) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        model = MLCYOLO(file)
        model.add_callback("on_train_epoch_end", lambda trainer: weights.update(trainer.model.state_dict()))
        place = {"data": str(tiny_data), "project": str(run_dir), "name": name, "seed": seed, "deterministic": True}
        small = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False}
        model.train(**place, **small, assigner=assigner, assigner_warmup=0)
        return weights

    first, second, other = run("first", 0), run("second", 0), run("other", 1)
    assert first and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
