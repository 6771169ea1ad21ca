"""Weights put into a ported detector by `load`: what comes along with them, and what a YAML says stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detector_runs import detector_yaml
from torchvision.models import resnet18
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo import MLCYOLO
from mlc_yolo.detectors.model import DetectorModel


def _checkpoint(model: DetectorModel, path: Path) -> Path:
    model.args, model.task = dict(DEFAULT_CFG_DICT), "detect"
    torch.save({"model": model, "train_args": {}}, path)
    return path


@pytest.mark.slow
def test_the_conventions_of_a_checkpoint_come_with_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = {"detector": "fcos", "backbone": "resnet18", "width": 64, "nc": 3}
    source = DetectorModel({**own, "follows": "torchvision", "quality": "centerness"}, verbose=False).eval()
    torch.nn.init.normal_(source.head.get_parameter("regression_head.bbox_reg.weight"), std=0.1)
    model = MLCYOLO(detector_yaml(tmp_path, "fcos")).load(_checkpoint(source, tmp_path / "source.pt"))
    assert (model.model.yaml["follows"], model.model.yaml["quality"]) == ("torchvision", "centerness")
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.model.eval()(image)[0], source(image)[0])


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"norm": "batch", "trainable_stages": 5}, {"trainable_stages": 1}])
def test_a_yaml_decides_how_a_backbone_loads(keys: dict[str, Any], tmp_path: Path) -> None:
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    model = MLCYOLO(detector_yaml(tmp_path, "retinanet", **keys)).load(tmp_path / "resnet18.pth")
    expected = {"norm": "frozen", "trainable_stages": 3, **keys}
    assert {key: model.model.yaml[key] for key in expected} == expected
