"""Model YAMLs of the detectors: what is bundled, what is filled in, and what is refused with the nearest right word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchvision.ops import FrozenBatchNorm2d

from mlc_yolo.detectors.config import DEFAULTS, bundled, complete, fill_empty, find_config
from mlc_yolo.detectors.model import DetectorModel

GOOD = {"detector": "retinanet", "backbone": "resnet50"}


NETS = {"r18": "resnet18", "r50": "resnet50", "vgg16": "vgg16_bn"}


def test_thirteen_yamls_are_bundled() -> None:
    mlc = {f"{kind}-{net}-fpn.yaml" for kind in ("fcos", "retinanet", "rpn") for net in ("r18", "r50")}
    guidance = {f"{kind}-{net}.yaml" for kind in ("fssd", "retinanet-fssd", "pafpn") for net in ("r18", "vgg16")}
    assert set(bundled()) == mlc | guidance | {"rfbnet-vgg16.yaml"}


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled())
def test_every_bundled_yaml_builds_the_detector_of_its_name(name: str) -> None:
    config = find_config(name)
    assert config is not None
    kind, net = name.removesuffix(".yaml").removesuffix("-fpn").rsplit("-", 1)
    assert (config["detector"], config["backbone"]) == (kind.replace("-", "_"), NETS[net])
    model = DetectorModel(config, verbose=False).eval()
    assert type(model.head).__name__.lower() == ("multiboxdetect" if config["levels"] else f"{kind}detect")
    output = model(torch.rand(1, 3, 64, 96))[0]
    assert output.shape[1] == 4 + config["nc"] + len(model.head.extra_channels)
    assert bool(output.isfinite().all())


@pytest.mark.parametrize(
    "backbone", ["resnet34", "resnext50_32x4d", pytest.param("wide_resnet50_2", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["retinanet-r50-fpn.yaml", "rpn-r50-fpn.yaml"])
def test_another_backbone_takes_one_word(name: str, backbone: str, tmp_path: Path) -> None:
    bundled_yaml = find_config(name)
    assert bundled_yaml is not None
    text = Path(bundled_yaml["yaml_file"]).read_text(encoding="utf-8").replace("resnet50 ", f"{backbone} ")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    config = find_config(tmp_path / "mine.yaml")
    assert config is not None and config["backbone"] == backbone
    feats = DetectorModel(config, verbose=False).eval()(torch.rand(1, 3, 64, 64))[1]["feats"]
    assert [tuple(level.shape[1:]) for level in feats[:2]] == (
        [(256, 16, 16), (256, 8, 8)] if "rpn" in name else [(256, 8, 8), (256, 4, 4)]
    )


def test_left_out_keys_get_their_defaults_and_the_input_stays_as_it_is() -> None:
    given = dict(GOOD)
    config = complete(given)
    assert given == GOOD
    assert config == {**DEFAULTS, **GOOD}
    assert (config["nc"], config["width"], config["quality"]) == (80, 256, None)


def test_width_is_that_of_every_level_and_tower() -> None:
    for kind in ("retinanet", "fcos"):
        model = DetectorModel({"detector": kind, "backbone": "resnet18", "width": 64}, verbose=False).eval()
        raw = model(torch.rand(1, 3, 64, 64))[1]
        assert {level.shape[1] for level in raw["feats"]} == {64}
        assert model.head.classification_head.cls_logits.in_channels == 64


@pytest.mark.parametrize(("pretrained", "norm", "stages"), [(True, "frozen", 3), (False, "batch", 5)])
def test_a_backbone_is_frozen_where_it_is_pretrained(pretrained: bool, norm: str, stages: int) -> None:
    settled = fill_empty(complete(GOOD), pretrained=pretrained)
    assert (settled["norm"], settled["trainable_stages"]) == (norm, stages)
    own = fill_empty(complete({**GOOD, "norm": "batch", "trainable_stages": 0}), pretrained=pretrained)
    assert (own["norm"], own["trainable_stages"]) == ("batch", 0)


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [(5, []), (3, ["conv1", "bn1", "layer1"]), (0, ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"])],
)
def test_frozen_stages_are_counted_from_the_input(stages: int, frozen: list[str]) -> None:
    model = DetectorModel({**GOOD, "backbone": "resnet18", "trainable_stages": stages}, verbose=False)
    assert model.frozen == [f"0.body.{name}" for name in frozen]
    for name in model.frozen:
        model.get_submodule(f"model.{name}")


def test_norm_and_its_epsilon_reach_every_layer() -> None:
    model = DetectorModel({**GOOD, "backbone": "resnet18", "norm": "frozen", "norm_eps": 0}, verbose=False)
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 20
    assert {norm.eps for norm in norms} == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": "retinanett"}, "Did you mean 'retinanet'"),
        ({"detector": None}, "detector is missing"),
        ({"detector": ["fcos"]}, "must be one of"),
        ({"backbone": "resnet51"}, "Did you mean 'resnet50'"),
        ({"backbone": "vgg16"}, "must be one of .*resnet18"),
        ({"backbone": 50}, "must be one of .*resnet18"),
        ({"quality": "centerness"}, "must be one of iou, none"),
        ({"quality": "iuo"}, "Did you mean 'iou'"),
        ({"norm": "frosen"}, "Did you mean 'frozen'"),
        ({"follows": "pytorch"}, "must be one of paper, torchvision"),
        ({"bakcbone": "resnet18"}, "Did you mean 'backbone'"),
        ({"nc": 0}, "nc=0 must be a whole number from 1"),
        ({"nc": "80"}, "nc='80' must be a whole number"),
        ({"nc": True}, "nc=True must be a whole number"),
        ({"nc": None}, "nc=None must be a whole number"),
        ({"width": 100}, "multiple of 32"),
        ({"width": 256.0}, "width=256.0 must be a whole number"),
        ({"trainable_stages": 6}, "trainable_stages=6 must be a whole number from 0 to 5"),
        ({"norm_eps": -1}, "norm_eps=-1 must be a number"),
        ({"norm_eps": "1e-5"}, "norm_eps='1e-5' must be a number"),
        ({"detector": "rpn", "nc": 3}, "single_cls=True"),
    ],
    ids=str,
)
def test_a_wrong_key_or_value_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(ValueError, match=message) as error:
        find_config(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(error.value)


def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("detector: [fcos")
    with pytest.raises(ValueError, match=r"bad\.yaml is not a YAML file"):
        find_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize("content", ["nc: 80\nbackbone: []\n", "- a\n", ""])
def test_a_yaml_without_a_detector_is_not_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(content)
    assert find_config(tmp_path / "other.yaml") is None


@pytest.mark.parametrize("name", ["yolo11n.yaml", "retinanet-r50-fpn.pt", "nowhere.yaml", None])
def test_other_names_are_not_ours(name: Any) -> None:
    assert find_config(name) is None


def test_images_must_be_rgb() -> None:
    with pytest.raises(ValueError, match="RGB"):
        DetectorModel(GOOD, ch=1, verbose=False)
