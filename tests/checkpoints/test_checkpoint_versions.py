"""What an earlier version wrote still loads, says the same, trains on, and is data alone (docs/versions.md)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.make import outputs

from mlc_yolo import MLCYOLO, __version__

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILES = sorted(file for kind in ("pt", "safetensors") for file in FIXTURES.glob(f"*.{kind}"))

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def test_this_version_has_a_checkpoint_to_keep() -> None:
    message = "python tests/fixtures/make.py makes it, once, when a version is released"
    assert f"yolo11-{__version__}.pt" in {file.name for file in FILES}, message


@each_file
def test_an_old_checkpoint_gives_the_outputs_it_gave(file: Path) -> None:
    kept = np.load(file.with_suffix(".npz"))
    model = MLCYOLO(file)
    assert list(model.names.values()) == ["dot", "ring", "cross", "bars", "triangle"]
    found = outputs(model.model, kept["image"])
    np.testing.assert_allclose(found[:4], kept["outputs"][:4], atol=0.02)  # boxes, px
    np.testing.assert_allclose(found[4:], kept["outputs"][4:], rtol=1e-3, atol=1e-5)  # scores, up to 0.1
    assert kept["outputs"].std(1).min() > 1e-3, "too even to tell anything"


@pytest.mark.slow
@each_file
def test_an_old_checkpoint_trains_on_as_what_it_was(file: Path, tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(file)
    before = {name: value.detach().clone() for name, value in model.model.named_parameters()}
    options = {"epochs": 1, "batch": 8, "nbs": 8, "imgsz": 64, "workers": 0, "device": "cpu"}
    options |= {
        "plots": False,
        "val": False,
        "optimizer": "SGD",
        "lr0": 0.01,
        "warmup_epochs": 0,
        "assigner": "mlc",
        "assigner_warmup": 0,
    }
    model.train(data=str(tiny_data), project=run_dir, **options)
    trained = torch.load(model.trainer.last, weights_only=False)["model"]
    assert (trained.yaml["mlc"]["iou_head"], trained.yaml["mlc"]["resize"]) == (True, "warp")
    after = dict(trained.named_parameters())
    kept = [name for name in before if after[name].shape == before[name].shape]  # but for the classes, 3 instead of 5
    assert len(kept) == len(before) - 4
    steps = {name: (after[name].float() - before[name]).abs().max().item() for name in kept}
    assert max(steps.values()) < 0.1, "one step away from where it was, not drawn anew"
    assert steps["model.0.conv.weight"] > 0 and steps["model.4.cv_iou.0.weight"] > 0


@each_file
def test_a_kept_file_is_small_and_names_no_folder_of_the_machine_that_made_it(file: Path) -> None:
    content = file.read_bytes()
    assert len(content) < 100_000
    assert not re.search(rb"/(tmp|home|root|Users)/", content)
