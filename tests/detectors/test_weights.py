"""Starting from torchvision's weights: files and enums, backbones and detectors, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, resnet18, resnet50
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights, retinanet_resnet50_fpn_v2

from mlc_yolo.detectors.weights import is_torchvision, start_from

from .lively import configuration, image, lively_detector, loaded, torchvision_detector, torchvision_heads

SIZE = (96, 128)
each_kind = pytest.mark.parametrize("kind", ["retinanet", "fcos"])


def _assert_same_raw(ours: Any, theirs: Any, outputs: Any = slice(None)) -> None:
    """Equal logits, of torchvision's classes `outputs`, and boxes."""
    images = image(*SIZE)
    with torch.no_grad():
        expected, _, _ = torchvision_heads(theirs, images)
        raw = ours(images)[1]
    torch.testing.assert_close(raw["scores"], expected["cls_logits"][..., outputs], rtol=0, atol=2e-4)
    torch.testing.assert_close(raw["boxes"], expected["bbox_regression"], rtol=0, atol=2e-4)


def _state(kind: str, **options: Any) -> dict[str, Tensor]:
    return torchvision_detector(kind, **options).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("frozen_there", [True, False], ids=["frozen_there", "batch_norm_there"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
@each_kind
def test_both_kinds_of_normalisation_load_from_both(kind: str, frozen_there: bool, norm: str, tmp_path: Path) -> None:
    theirs = torchvision_detector(kind, frozen=frozen_there)
    ours = loaded(kind, theirs.state_dict(), tmp_path, norm=norm)
    assert any(isinstance(m, nn.BatchNorm2d) for m in ours.modules()) == (norm == "batch")
    _assert_same_raw(ours, theirs)


@pytest.mark.slow
@each_kind
def test_a_loaded_detector_is_frozen_as_torchvisions_fine_tuning_is(kind: str, tmp_path: Path) -> None:
    ours = loaded(kind, _state(kind), tmp_path)
    assert ours.yaml["follows"] == "torchvision"
    assert ours.yaml["norm"] == "frozen"
    assert ours.frozen == ["0.body.conv1", "0.body.bn1", "0.body.layer1"]


@pytest.mark.slow
def test_the_published_retinanet_has_no_epsilon(tmp_path: Path) -> None:
    theirs = torchvision_detector("retinanet")
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # variances that the usual epsilon would drown
            module.eps = 0
            module.weight.data *= (1e-6 / module.running_var).sqrt()
            module.running_var.fill_(1e-6)
    torch.save(theirs.state_dict(), tmp_path / "retinanet_resnet50_fpn_coco-00000000.pth")
    ours = start_from(configuration("retinanet"), tmp_path / "retinanet_resnet50_fpn_coco-00000000.pth").eval()
    assert ours.yaml["norm_eps"] == 0
    _assert_same_raw(ours, theirs)
    renamed = loaded("retinanet", theirs.state_dict(), tmp_path, norm_eps=0)
    _assert_same_raw(renamed, theirs)


@each_kind
def test_names_from_before_torchvision_0_13_are_understood(kind: str, tmp_path: Path) -> None:
    theirs = torchvision_detector(kind)
    old = {}
    for name, value in theirs.state_dict().items():
        parts = name.split(".")
        if "_blocks" in name and parts[-2] == "0" and "fpn.extra" not in name:
            del parts[-2]
        if kind == "retinanet" and "_head.conv." in name:
            parts[-3:-1] = [str(2 * int(parts[-3]))]
        old[".".join(parts)] = value
    assert "backbone.fpn.inner_blocks.0.weight" in old
    assert ("head.regression_head.conv.6.weight") in old
    _assert_same_raw(loaded(kind, old, tmp_path), theirs)


@pytest.mark.slow
@each_kind
def test_of_91_coco_outputs_the_80_classes_stay_under_their_names(kind: str, tmp_path: Path) -> None:
    theirs = torchvision_detector(kind, classes=91)
    ours = loaded(kind, theirs.state_dict(), tmp_path)
    categories = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    real = [i for i, name in enumerate(categories) if name not in ("__background__", "N/A")]
    assert ours.head.nc == len(real) == 80
    assert [ours.names[i] for i in (0, 11, 79)] == ["person", "stop sign", "toothbrush"]
    _assert_same_raw(ours, theirs, real)


@each_kind
def test_with_other_classes_the_class_layer_alone_starts_fresh(kind: str, tmp_path: Path) -> None:
    theirs = torchvision_detector(kind)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = start_from(configuration(kind), tmp_path / "weights.pth", nc=3).eval()
    images = image(*SIZE)
    with torch.no_grad():
        expected, _, _ = torchvision_heads(theirs, images)
        raw = ours(images)[1]
    assert raw["scores"].shape[-1] == ours.head.nc == 3
    assert 0 < raw["scores"].sigmoid().mean() < 0.02  # the prior probability of 0.01
    torch.testing.assert_close(raw["boxes"], expected["bbox_regression"], rtol=0, atol=2e-4)


def test_an_iou_layer_joins_and_changes_no_ranking_until_it_is_trained(tmp_path: Path) -> None:
    theirs = torchvision_detector("retinanet")
    ours = loaded("retinanet", theirs.state_dict(), tmp_path, quality="iou")
    _assert_same_raw(ours, theirs)
    with torch.no_grad():
        decoded, raw = ours(image(*SIZE))
    assert bool((raw["quality"] == 0).all())
    torch.testing.assert_close(decoded[0, 4:].amax(), raw["scores"].sigmoid().amax() / 2)


def test_fcos_without_its_centerness_leaves_that_layer_out(tmp_path: Path) -> None:
    ours = loaded("fcos", _state("fcos"), tmp_path, quality="none")
    assert not any("bbox_ctrness" in name for name in ours.state_dict())


@pytest.mark.parametrize(("asked", "given"), [(None, "centerness"), ("iou", "iou"), ("centerness", "centerness")])
def test_fcos_keeps_its_centerness_unless_another_layer_is_asked_for(
    asked: str | None, given: str, tmp_path: Path
) -> None:
    ours = loaded("fcos", _state("fcos"), tmp_path, quality=asked)
    assert ours.yaml["quality"] == ours.head.quality == given
    assert any("cv_iou" in name for name in ours.state_dict()) == (given == "iou")


@pytest.mark.parametrize(
    ("kind", "name", "build"),
    [
        *((kind, "resnet18", resnet18) for kind in ("retinanet", "fcos", "rpn")),
        pytest.param("retinanet", "resnet50", resnet50, marks=pytest.mark.slow),
    ],
)
def test_an_imagenet_backbone_loads_and_is_frozen(kind: str, name: str, build: Any, tmp_path: Path) -> None:
    net = build(weights=None).eval()
    nn.init.uniform_(net.layer1[0].bn1.running_var, 0.5, 2)
    ours = loaded(kind, net.state_dict(), tmp_path, name)
    assert (ours.yaml["norm"], ours.yaml["follows"], len(ours.frozen)) == ("frozen", "paper", 3)
    body, picture = ours.get_submodule("model.0.body"), image(64, 64)
    for key, value in body.state_dict().items():
        assert torch.equal(value, net.state_dict()[key])
    with torch.no_grad():
        stem = net.maxpool(net.relu(net.bn1(net.conv1((picture - ours.model[0].mean) / ours.model[0].std))))
        expected = net.layer4(net.layer3(net.layer2(net.layer1(stem))))
        torch.testing.assert_close(ours.model[0](picture)[-1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("enum", "expected_eps"),
    [("RetinaNet_ResNet50_FPN_Weights.COCO_V1", 0), ("FCOS_ResNet50_FPN_Weights.COCO_V1", None)],
)
def test_a_weight_enum_of_a_detector_loads(enum: str, expected_eps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = enum.split("_")[0].lower()
    theirs = torchvision_detector(kind)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **options: theirs.state_dict())
    ours = start_from(configuration(kind), enum).eval()
    assert ours.yaml["norm_eps"] == expected_eps
    assert is_torchvision(enum)
    if expected_eps is None:
        _assert_same_raw(ours, theirs)


def test_a_weight_enum_of_a_backbone_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    net = resnet18(weights=None)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **options: net.state_dict())
    ours = start_from(configuration("rpn"), "ResNet18_Weights.IMAGENET1K_V1")
    assert torch.equal(ours.get_parameter("model.0.body.conv1.weight"), net.conv1.weight)


@pytest.mark.parametrize("enum", ["ResNet18_Weights.IMAGENET1K_V9", "ResNet19_Weights.DEFAULT"])
def test_an_unknown_enum_is_refused(enum: str) -> None:
    with pytest.raises(ValueError, match="is not a weight enum of torchvision"):
        start_from(configuration("fcos"), enum)


def test_without_a_network_the_message_says_which_file_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: WeightsEnum, **options: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(OSError, match=r"no route to host.*download https://\S+/resnet18-\w+\.pth on another machine"):
        start_from(configuration("fcos"), "ResNet18_Weights.DEFAULT")


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("a/b.pth", True),
        (Path("b.pth"), True),
        ("b.pt", False),
        (True, False),
        (None, False),
        ("My_Weights.X.pt", False),
    ],
)
def test_torchvision_weights_are_told_by_their_name(source: Any, is_one: bool) -> None:
    assert is_torchvision(source) == is_one


@pytest.mark.parametrize(("kind", "other"), [("retinanet", "fcos"), ("fcos", "retinanet"), ("rpn", "fcos")])
def test_another_detectors_weights_are_refused_with_the_yaml_to_take(kind: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"holds torchvision's {other}, but the model is a {kind}.*{other}-r50-fpn"):
        loaded(kind, _state(other), tmp_path)


@pytest.mark.slow
def test_retinanet_v2_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"v2.*group norm.*COCO_V1"):
        loaded("retinanet", retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["backbone", "detector"])
def test_another_backbone_is_refused(given: str, tmp_path: Path) -> None:
    state = resnet18(weights=None).state_dict() if given == "backbone" else _state("retinanet")
    with pytest.raises(ValueError, match="does not fit"):
        loaded("retinanet", state, tmp_path, "resnet50")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.zeros(1)}}, "must hold a state dict"),
        ([torch.zeros(1)], "must hold a state dict"),
        ({}, "must hold a state dict"),
        (torch.zeros(1), "must hold a state dict"),
        ({"stem.weight": torch.zeros(1)}, r"neither a torchvision ResNet nor.*stem\.weight"),
    ],
    ids=["nested", "list", "empty", "tensor", "of_another_net"],
)
def test_what_is_no_state_dict_of_torchvisions_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        loaded("retinanet", content, tmp_path)


def test_a_file_with_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    state = _state("retinanet")
    del state["backbone.fpn.inner_blocks.0.0.weight"]
    with pytest.raises(ValueError, match=r"1 tensors missing, such as .*inner_blocks"):
        loaded("retinanet", state, tmp_path)


class _Payload:
    """Unpickling it would create the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch", "pickle", "text"])
def test_a_file_with_code_is_refused_and_the_code_not_run(form: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    if form == "torch":
        torch.save({"a": _Payload(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": _Payload(trace)}) if form == "pickle" else b"not a checkpoint")
    with pytest.raises(ValueError, match="not a state dict that loads without running code"):
        start_from(configuration("fcos"), path)
    assert not trace.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: no such file"):
        start_from(configuration("fcos"), tmp_path / "nothing.pth")


@pytest.mark.slow
def test_weights_of_our_own_detectors_load_between_models_of_a_kind_alone() -> None:
    source, target = lively_detector("fcos", nc=3), lively_detector("fcos", nc=5)
    target.load(source, verbose=False)
    for name, value in target.state_dict().items():
        if "cls_logits" not in name:
            assert torch.equal(value, source.state_dict()[name])
    with pytest.raises(ValueError, match="expected weights of a retinanet, got those of a fcos"):
        lively_detector("retinanet").load({"model": source})
    with pytest.raises(ValueError, match="got those of Linear"):
        target.load(nn.Linear(1, 1))
