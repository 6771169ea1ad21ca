"""Two gloo ranks on half a batch each give the loss of one process on the whole batch."""

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
from mlc_yolo.engine import options
from mlc_yolo.engine.criterion import build_criterion
from mlc_yolo.engine.detector_criterion import DetectorLoss
from mlc_yolo.heads.iou_aware import add_iou_channel

OBJECTS = torch.tensor([[0, 0, 0.3, 0.4, 0.4, 0.5], [0, 2, 0.7, 0.6, 0.3, 0.6], [1, 1, 0.5, 0.5, 0.9, 0.9]])


#: The assigner of a test is that of a YOLO, or a detector's: "kind assigner quality".
DETECTORS = ["retinanet mlc iou", "retinanet max_iou none", "fcos mlc iou", "fcos fcos centerness", "rpn mlc iou"]


def _losses(images: torch.Tensor, rows: torch.Tensor, assigner: str) -> torch.Tensor:
    torch.manual_seed(0)
    if assigner in DETECTORS:
        return _detector_losses(images, rows, *assigner.split())
    model: Any = DetectionModel("yolo11n.yaml", nc=3, verbose=False).eval()
    model.args = DEFAULT_CFG
    add_iou_channel(model.model[-1])
    main = build_assigner(assigner, options.settle(options.defaults()))
    criterion = build_criterion(model, schedule=Schedule(main, main, 0), prior_scale=5.0, iou_gain=1.0)
    batch = {"img": images, "batch_idx": rows[:, 0], "cls": rows[:, 1:2], "bboxes": rows[:, 2:]}
    with torch.no_grad():
        preds = model(images)[1]
    return criterion(preds, batch)[0]


def _detector_losses(images: torch.Tensor, rows: torch.Tensor, kind: str, assigner: str, quality: str) -> torch.Tensor:
    config = {"detector": kind, "backbone": "resnet18", "width": 64, "nc": 1 if kind == "rpn" else 3}
    model = DetectorModel(complete({**config, "quality": quality}), verbose=False).eval()
    head: Any = model.head
    if kind == "rpn":  # ranks draw differently: let the sample be everything
        head.recipe = replace(head.recipe, sample=10**6)
        rows = rows.clone()
        rows[:, 1] = 0
    main = build_assigner(assigner, options.settle(options.defaults(), kind), own=head.own_assigner)
    criterion = DetectorLoss(model, schedule=Schedule(main, main, 0), align_gain=0.5)
    batch = {"img": images, "batch_idx": rows[:, 0], "cls": rows[:, 1:2], "bboxes": rows[:, 2:]}
    with torch.no_grad():
        preds = model(images)[1]
    return criterion(preds, batch)[0]


def _rank(rank: int, store: str, assigner: str, images: torch.Tensor, rows: torch.Tensor, queue: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    half = len(images) // 2
    own = rows[(rows[:, 0] // half) == rank].clone()
    own[:, 0] -= rank * half
    queue.put(_losses(images[rank * half : (rank + 1) * half], own, assigner).tolist())
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("assigner", ["fcos", "mutual_guidance", "mlc", *DETECTORS])
@pytest.mark.parametrize(
    "rows",
    [OBJECTS, OBJECTS[:2], torch.tensor([[0, 0, 0.3, 0.4, 0.04, 0.05]]), OBJECTS[:0]],
    ids=["both", "one rank empty", "fewer positives than ranks", "both empty"],
)
def test_two_ranks_equal_one_process(assigner: str, rows: torch.Tensor, tmp_path: Path) -> None:
    images = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    expected = _losses(images, rows, assigner)
    context = mp.get_context("fork")
    queue = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, str(tmp_path / "store"), assigner, images, rows, queue))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    got = torch.tensor([queue.get(timeout=120), queue.get(timeout=120)]).sum(0)
    for process in ranks:
        process.join()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
