"""What box voting adds to the prediction of an image, and to a validation's many more candidates. `make bench`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import enliven
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.evaluation.placement import Placement, Placing, placed_detections

from .measuring import DEVICE, Run, memory, show, timed

ROUNDS = 25
SIZE = 640
KINDS = ["without voting", "with voting"]


@pytest.mark.parametrize(
    ("candidates", "multi_label", "most"), [(300, False, 1.05), (10_000, True, 3)], ids=["predict", "val"]
)
def test_voting_against_prediction_without_it(
    candidates: int, multi_label: bool, most: float, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, SIZE, SIZE)
    model: Any = DetectionModel("yolov8n.yaml", nc=80, verbose=False).eval()
    enliven(model, image)
    model, image = model.to(DEVICE).fuse(verbose=False), image.to(DEVICE)
    with torch.no_grad():
        scores = model(image)[0][0, 4:]
    scores = scores.flatten() if multi_label else scores.amax(0)
    options: dict[str, Any] = {
        "confidence": float(scores.topk(candidates + 1).values[-1]),  # so many are above it
        "iou_threshold": 0.7,
        "max_det": 300,
        "agnostic": False,
        "multi_label": multi_label,
    }

    def run(kind: str) -> Run:
        placing = Placing(vote=kind == KINDS[1], vote_iou=0.65, vote_sigma=0.02, min_iou=0, by_iou=False)

        @torch.no_grad()
        def predict() -> object:
            preds = model(image)
            return placed_detections(preds, (), placing, Placement(model, preds), **options)

        return predict

    runs = {kind: run(kind) for kind in KINDS}
    timing = timed(runs, rounds=ROUNDS)
    memories = {kind: memory(each) for kind, each in runs.items()}
    show(capsys, f"yolov8n, fused, {SIZE} px, batch 1, {candidates} candidates", timing, memories)
    assert timing.ratios[KINDS[1]] < most
