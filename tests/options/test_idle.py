"""Options without effect are named, in a mode that passes them over and in a training beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nets import SMALL

from mlc_yolo import cli
from mlc_yolo.options.idle import OF_MODE, idle_in_mode, idle_in_training
from mlc_yolo.options.specification import CUSTOM, OWN, defaults, settle, specifications


def test_the_modes_options_are_options() -> None:
    assert set().union(*OF_MODE.values()) <= set(specifications())


@pytest.mark.parametrize("mode", [*OF_MODE, "train"])
def test_defaults_are_never_named_in_a_mode(mode: str) -> None:
    assert idle_in_mode(mode, {**defaults(), "imgsz": 64}) is None


@pytest.mark.parametrize(
    ("mode", "asked", "said"),
    [
        ("val", {"assigner": "mlc", "vote": True}, "assigner: no effect in val"),
        ("diagnose", {"show_sigma": True}, "show_sigma: no effect in diagnose"),
        ("predict", {"vote_iou": 0.5}, "vote_iou: no effect in predict without vote=True"),
        ("diagnose", {"vote_iou": 0.5}, None),  # which tries a vote
        ("diagnose", {"vote_iou": 0.5, "remedies": ("vote", 640)}, None),
        ("diagnose", {"vote_iou": 0.5, "remedies": False}, "vote_iou: no effect in diagnose without vote=True"),
        ("track", {"coco_eval": True, "vote_iou": 0.5, "vote": True}, "coco_eval: no effect in track"),
        ("export", {"min_iou": 0.5}, "min_iou: no effect in export"),
        ("val", {"iou_head": False}, "iou_head: no effect in val. rescore=False ranks without the channel"),
        ("train", {"iou_head": False, "calibrate": True}, None),
    ],
)
def test_what_a_mode_passes_over_is_named(mode: str, asked: dict[str, Any], said: str | None) -> None:
    assert idle_in_mode(mode, asked) == said


@pytest.mark.parametrize("detector", OWN)
def test_defaults_are_never_named_in_a_training(detector: str | None) -> None:
    assert idle_in_training(settle(defaults(), detector), 10, detector=detector) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"mlc_alpha": 2.0}, "mlc_alpha: no effect with assigner=tal, but with assigner=mlc"),
        ({"mlc_candidates": "inside", "mlc_tasks": "cls", "assigner": "mlc"}, None),
        ({"mg_tasks": "l2c", "assigner": "mlc"}, "mg_tasks: no effect with assigner=mlc, but with assigner=mutual_g"),
        ({"mg_sigma": 3, "assigner": "mlc", "assigner_base": "mutual_guidance"}, None),  # its warm-up trains by it
        ({"assigner_base": "atss"}, "assigner_base: no effect without a warm-up"),
        ({"assigner_base": "atss", "assigner": "mlc"}, None),  # warms up by itself
        ({"assigner_base": "atss", "assigner_warmup": 0.05}, "assigner_base: no effect without a warm-up"),
        ({"assigner_warmup": 3}, "assigner_warmup: no effect, as assigner and assigner_base are both tal"),
        ({"prior_scale": 3, "assigner": "mlc"}, "prior_scale: no effect with assigner=mlc, which looks at no prior's"),
        ({"prior_scale": 3, "assigner": "atss"}, None),
        ({"prior_scale": 3, "assigner": "mlc", "assigner_base": "mutual_guidance"}, None),
        ({"prior_scale": 3, "assigner": CUSTOM}, None),
        ({"box_weight": "score", "assigner": CUSTOM}, "box_weight: no effect with an assigner object"),
        ({"box_weight": "score", "assigner": CUSTOM, "assigner_warmup": 2}, None),  # acts while TAL trains
        ({"box_weight": "score"}, None),
        ({"ssl": "soft", "ssl_ema": 0.9, "teacher": "big.pt"}, "ssl_ema: no effect with a teacher"),
        ({"ssl": "soft", "ssl_ema": 0.9, "teacher": "big.pt", "teacher_weight": 0}, None),
        ({"vote_sigma": 0.1}, "vote_sigma: no effect without vote=True"),
        ({"calibrate": True}, "calibrate: no effect in a training"),
    ],
)
def test_what_a_training_passes_over_is_named(asked: dict[str, Any], said: str | None) -> None:
    idle = idle_in_training(settle({**defaults(), **asked}), 10)
    assert not idle if said is None else len(idle) == 1 and idle[0].startswith(said)


@pytest.mark.parametrize(("detector", "named"), [("fcos", False), ("retinanet", True), ("rfbnet", True)])
def test_anchors_have_sizes_of_their_own(detector: str, named: bool) -> None:
    asked = settle({**defaults(), "prior_scale": 3, "assigner": "atss"}, detector)
    idle = idle_in_training(asked, 10, detector=detector)
    said = f"prior_scale: no effect with {detector}, whose anchors have sizes of their own"
    assert idle == ([said] if named else [])


@pytest.mark.slow
def test_the_command_line_names_them(tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = [f"model={SMALL}", f"data={tiny_data}", "imgsz=64", f"project={run_dir}", "workers=0", "plots=False"]
    assert cli.main(["val", *place, "assigner=mlc", "vote_iou=0.5"]) == 0
    assert "assigner, vote_iou: no effect in val" in caplog.text
    assert cli.main(["train", *place, "epochs=1", "batch=8", "val=False", "mg_sigma=3", "rescore=False"]) == 0
    assert "mg_sigma: no effect with assigner=tal, but with assigner=mutual_guidance" in caplog.text
    assert "rescore: no effect without a predicted-IoU channel" in caplog.text
