"""A step of two gloo ranks sums to that of one process on the joined batch: losses, counts and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from mlc_yolo.assigners import Schedule, build_assigner
from mlc_yolo.detectors.config import complete
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.options import specification as options
from mlc_yolo.training.detector_criterion import DetectorLoss
from mlc_yolo.training.yolo_criterion import build_criterion

OBJECTS = torch.tensor([[0, 0, 0.3, 0.4, 0.4, 0.5], [0, 2, 0.7, 0.6, 0.3, 0.6], [1, 1, 0.5, 0.5, 0.9, 0.9]])


#: The assigner of a test is that of a YOLO, or a detector's: "kind assigner quality".
DETECTORS = ["retinanet mlc iou", "retinanet max_iou none", "fcos mlc iou", "fcos fcos centerness", "rpn mlc iou"]


def _step(images: torch.Tensor, rows: torch.Tensor, assigner: str) -> torch.Tensor:
    """What ranks must sum to: the losses, the positives of each task, and every parameter's gradient."""
    torch.manual_seed(0)
    model, criterion = _detector(*assigner.split()) if assigner in DETECTORS else _yolo(assigner)
    if assigner.startswith("rpn"):
        rows = rows.clone()
        rows[:, 1] = 0
    batch = {"img": images, "batch_idx": rows[:, 0], "cls": rows[:, 1:2], "bboxes": rows[:, 2:]}
    losses, items = criterion(model(images)[1], batch)
    losses.sum().backward()
    counts = torch.stack((items["pos_cls"], items["pos_loc"])) * len(images)
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    assert len(gradients) > 20
    return torch.cat((losses.detach(), counts, *gradients))


def _yolo(assigner: str) -> tuple[Any, Any]:
    model: Any = DetectionModel("yolo11n.yaml", nc=3, verbose=False).eval()  # batch statistics are each rank's own
    model.args = DEFAULT_CFG
    add_iou_channel(model.model[-1])
    main = build_assigner(assigner, options.settle(options.defaults()))
    return model, build_criterion(model, schedule=Schedule(main, main, 0), prior_scale=5.0, iou_gain=1.0)


def _detector(kind: str, assigner: str, quality: str) -> tuple[Any, Any]:
    config = {"detector": kind, "backbone": "resnet18", "width": 64, "nc": 1 if kind == "rpn" else 3}
    model = DetectorModel(complete({**config, "quality": quality}), verbose=False).eval()
    head: Any = model.head
    if kind == "rpn":  # ranks draw differently: let the sample be everything
        head.recipe = replace(head.recipe, sample=10**6)
    main = build_assigner(assigner, options.settle(options.defaults(), kind), own=head.own_assigner)
    return model, DetectorLoss(model, schedule=Schedule(main, main, 0), align_gain=0.5)


def _rank(rank: int, store: str, assigner: str, images: torch.Tensor, rows: torch.Tensor, file: Path) -> None:
    """Train a step on this rank's images: the first has one more than the second, as of a last batch."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    first = (len(images) + 1) // 2
    own = rows[(rows[:, 0] >= first) == bool(rank)].clone()
    own[:, 0] -= rank * first
    torch.save(_step(images[first:] if rank else images[:first], own, assigner), file)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("images", [2, 3], ids=["even", "uneven"])
@pytest.mark.parametrize("assigner", ["fcos", "max_iou", "atss", "mutual_guidance", "mlc", *DETECTORS])
@pytest.mark.parametrize(
    "rows",
    [OBJECTS, OBJECTS[:2], torch.tensor([[0, 0, 0.3, 0.4, 0.04, 0.05]]), OBJECTS[:0]],
    ids=["both", "one rank empty", "fewer positives than ranks", "both empty"],
)
def test_two_ranks_equal_one_process(assigner: str, rows: torch.Tensor, images: int, tmp_path: Path) -> None:
    if images == 3:  # the second rank has the last image alone
        rows = torch.cat((rows[:, :1] * 2, rows[:, 1:]), 1)
    batch = torch.rand((images, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    expected = _step(batch, rows, assigner)
    context = mp.get_context("fork")
    files = [tmp_path / f"{rank}.pt" for rank in range(2)]
    ranks = [
        context.Process(target=_rank, args=(rank, str(tmp_path / "store"), assigner, batch, rows, files[rank]))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
        assert process.exitcode == 0
    got = sum(torch.load(file) for file in files)
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=tolerance)
