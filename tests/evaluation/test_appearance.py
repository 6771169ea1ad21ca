"""Tracking by appearance: each detection gets the features of the cell that stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors.lively import lively_detector

from mlc_yolo import MLCYOLO

SIZE = 96


def tracked(model: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """Track one picture by appearance; return the result and the features the head read, (L maps)."""
    model.names, model.args = {0: "square", 1: "disc", 2: "cross"}, {"task": "detect", "imgsz": SIZE}
    torch.save({"model": model, "train_args": {}}, folder / "model.pt")
    tracker = folder / "tracker.yaml"
    tracker.write_text(
        "tracker_type: botsort\ntrack_high_thresh: 0.1\ntrack_low_thresh: 0.05\nnew_track_thresh: 0.1\n"
        "track_buffer: 30\nmatch_thresh: 0.8\nfuse_score: True\ngmc_method: none\nproximity_thresh: 0.5\n"
        "appearance_thresh: 0.8\nwith_reid: True\nmodel: auto\n"
    )
    results: list[Any] = []
    net = MLCYOLO(folder / "model.pt")
    net.add_callback("on_predict_postprocess_end", lambda predictor: results.append(predictor.results[0]))
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    net.track(image, imgsz=SIZE, tracker=str(tracker), verbose=False, **options)
    return results[0], net.predictor._feats


@pytest.mark.parametrize("nms", ["standard", "iou"])
def test_a_yolos_detection_has_the_features_of_its_own_anchor(nms: str, iou_aware: Any, tmp_path: Path) -> None:
    model = iou_aware("yolo11n", torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    result, levels = tracked(model, tmp_path, nms_by=nms)
    width = min(level.shape[1] for level in levels)
    cells = torch.cat([m[0].flatten(1).T.reshape(-1, width, m.shape[1] // width).mean(2) for m in levels])
    assert len(result.feats) > 5
    for features in result.feats:
        assert (cells == features).all(1).sum() == 1


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_ported_detectors_detection_has_the_features_under_its_centre(kind: str, tmp_path: Path) -> None:
    result, levels = tracked(lively_detector(kind, quality="iou", width=64, nc=3), tmp_path)
    finest = levels[0][0]
    stride = SIZE // 12
    assert finest.shape[1:] == (12, 12)
    assert len(result.feats) > 5
    for (x, y, *_), features in zip(result.boxes.xywh, result.feats, strict=True):
        torch.testing.assert_close(features, finest[:, min(int(y // stride), 11), min(int(x // stride), 11)])
