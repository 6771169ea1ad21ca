"""A detector as a model among Ultralytics': fusing, precision, copies, state dicts and checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from mlc_yolo.detectors.frozen_norm import FrozenNorm
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.multibox import PYRAMIDS

from .lively import configuration, image, lively_detector

KINDS = ["retinanet", "fcos", "rpn"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_norm = pytest.mark.parametrize("norm", ["frozen", "batch"])
RAW = ("boxes", "scores", "quality")

pytestmark = pytest.mark.usefixtures("narrow_backbones")


def _raw(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    with torch.no_grad():
        raw = model(image(64, 96, count=2).to(dtype))[1]
    return {name: raw[name] for name in RAW if name in raw}


def _detector(kind: str, **keys: Any) -> DetectorModel:
    return lively_detector(kind, quality="iou", **keys)


@each_norm
@each_kind
def test_fusing_folds_every_normalisation_and_changes_no_score(kind: str, norm: str) -> None:
    model = _detector(kind, norm=norm)
    before = _raw(model)
    assert not model.is_fused()
    assert model.fuse(verbose=False) is model
    assert model.is_fused()
    after = _raw(model)
    for name in before:
        convert = torch.sigmoid if name != "boxes" else torch.Tensor.contiguous
        assert float((convert(after[name]) - convert(before[name])).abs().max()) < 1e-3


@each_norm
def test_fusing_twice_is_fusing_once(norm: str) -> None:
    model = _detector("fcos", norm=norm).fuse(verbose=False)
    once = _raw(model)
    twice = _raw(model.fuse(verbose=False))
    assert all(torch.equal(once[name], twice[name]) for name in once)


@each_kind
def test_bfloat16_is_close_and_the_statistics_stay_float32(kind: str) -> None:
    model = _detector(kind, norm="frozen")
    full = _raw(model)
    half = _raw(model.bfloat16(), torch.bfloat16)
    norms = [m for m in model.modules() if isinstance(m, FrozenNorm)]
    assert {buffer.dtype for norm in norms for buffer in norm.buffers()} == {torch.float32}
    assert {value.dtype for value in half.values()} == {torch.bfloat16}
    assert float((half["scores"].float().sigmoid() - full["scores"].sigmoid()).abs().mean()) < 0.02


@each_kind
def test_autocast_keeps_features_in_half_precision(kind: str) -> None:
    model = _detector(kind, norm="frozen")
    full, seen = _raw(model), []
    model.get_submodule("model.0.body.layer2").register_forward_hook(lambda *call: seen.append(call[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = _raw(model)
    assert seen == [torch.bfloat16]
    assert float((half["scores"].float().sigmoid() - full["scores"].sigmoid()).abs().mean()) < 0.02


def test_a_frozen_norm_is_torchvisions() -> None:
    theirs, ours = FrozenBatchNorm2d(5), FrozenNorm(5)
    for buffer in theirs.buffers():
        buffer.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 4, 6, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(*(torch.autograd.grad(norm(x).square().sum(), x)[0] for norm in (ours, theirs)))


def test_small_variances_outlive_a_float16_checkpoint() -> None:
    norm = FrozenNorm(3, eps=0)
    norm.weight.fill_(1e-5)
    norm.running_var.fill_(1e-10)
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(norm.half().float()(x), x)


@each_kind
def test_a_copy_gives_the_same_and_is_independent(kind: str) -> None:
    model = _detector(kind)
    before = _raw(model)
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    after = _raw(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert bool((_raw(copy)["boxes"] == 0).all())


@each_norm
@each_kind
def test_a_model_rebuilt_from_its_yaml_takes_the_state_dict(kind: str, norm: str) -> None:
    model = _detector(kind, norm=norm)
    rebuilt = DetectorModel(model.yaml, verbose=False).eval()
    assert rebuilt.yaml == model.yaml
    rebuilt.load_state_dict(model.state_dict())
    before, after = _raw(model), _raw(rebuilt)
    assert all(torch.equal(before[name], after[name]) for name in before)


@each_kind
def test_names_in_the_state_dict_are_torchvisions(kind: str) -> None:
    names = set(_detector(kind).state_dict())
    assert {"model.0.body.conv1.weight", "model.0.body.layer4.1.bn2.running_var"} <= names
    assert {"model.1.fpn.inner_blocks.0.0.weight", "model.1.fpn.layer_blocks.2.0.bias"} <= names
    tower = "rpn.conv.0.0.weight" if kind == "rpn" else "regression_head.bbox_reg.weight"
    assert f"model.2.{tower}" in names


@each_kind
def test_a_fresh_detector_believes_in_no_object(kind: str) -> None:
    torch.manual_seed(0)
    scores = _raw(DetectorModel(configuration(kind), verbose=False).eval())["scores"].sigmoid()
    assert scores.mean().item() == pytest.approx(0.5 if kind == "rpn" else 0.01, rel=0.3)  # RPN samples its negatives


def test_the_iou_layer_draws_no_random_numbers() -> None:
    states = []
    for quality in ("none", "iou"):
        torch.manual_seed(0)
        states.append(DetectorModel(configuration("retinanet", quality=quality), verbose=False).state_dict())
    without, with_layer = states
    assert set(with_layer) - set(without) == {"model.2.cv_iou.weight", "model.2.cv_iou.bias"}
    assert all(torch.equal(value, with_layer[name]) for name, value in without.items())


@pytest.mark.parametrize("size", [(64, 64), (32, 160), (224, 96), (96, 352)], ids=str)
@each_kind
def test_any_multiple_of_32_is_an_image_size(kind: str, size: tuple[int, int]) -> None:
    model = _detector(kind)
    with torch.no_grad():
        decoded, raw = model(image(*size))
    assert raw["boxes"].shape[1] == len(model.head.priors(raw["feats"], scale=1.0))
    x, y = decoded[:, [0, 2]], decoded[:, [1, 3]]
    assert bool(decoded.isfinite().all())
    assert float(x[:, 0].max()) <= size[1] and float(y[:, 0].max()) <= size[0]


@pytest.mark.slow
def test_restricted_loading_accepts_our_checkpoints(tmp_path: Path) -> None:
    models = [lively_detector(kind, quality="iou", norm=norm) for kind in KINDS for norm in ("frozen", "batch")]
    models.append(DetectorModel(configuration("fcos", "resnet50"), verbose=False).eval())
    models += [DetectorModel(configuration(kind, quality="iou"), verbose=False).eval() for kind in PYRAMIDS]
    models.append(DetectorModel(configuration("fssd", "vgg16_bn", norm="frozen"), verbose=False).eval())
    for i, model in enumerate(models):
        torch.save({"model": model, "train_args": {}}, tmp_path / f"{i}.pt")
    code = (
        "import sys, torch\n"
        "from ultralytics.utils import SAFE_LOAD\n"
        "from mlc_yolo.model import MLCYOLO\n"
        "assert SAFE_LOAD\n"
        "for path in sys.argv[1:]:\n"
        "    model = MLCYOLO(path).model\n"
        "    torch.save((model.state_dict(), model(torch.ones(1, 3, 64, 64))[0].shape), path + '.out')\n"
    )
    paths = [str(tmp_path / f"{i}.pt") for i in range(len(models))]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"})
    for path, model in zip(paths, models, strict=True):
        # What another process computes may differ: a score near another's changes which boxes are kept.
        weights, shape = torch.load(f"{path}.out")
        assert shape == model(torch.ones(1, 3, 64, 64))[0].shape
        torch.testing.assert_close(weights, model.state_dict(), rtol=0, atol=0)


def test_the_loss_comes_with_the_trainer() -> None:
    with pytest.raises(RuntimeError, match="is attached by its trainer"):
        DetectorModel(configuration("fcos"), verbose=False).init_criterion()
