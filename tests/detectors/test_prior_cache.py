"""Priors of one size are built once, and nobody notices."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from mlc_yolo.heads.anchor_based import RetinaNetDetect, RPNDetect
from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.heads.fcos import FCOSDetect
from mlc_yolo.heads.multibox import MultiBoxDetect
from mlc_yolo.heads.prior_cache import REMEMBERED, built_once
from mlc_yolo.priors import Priors, grid_priors

HEADS: dict[str, DenseDetect] = {
    "retinanet": RetinaNetDetect(2, 32, quality="none", follows="paper"),
    "rpn": RPNDetect(1, 32, quality="none", follows="paper"),
    "fcos": FCOSDetect(2, 64, quality="none", follows="paper"),
    "fcos as in torchvision": FCOSDetect(2, 64, quality="none", follows="torchvision"),
    "multibox": MultiBoxDetect(2, [32] * 5, quality="none"),
}
with_every_head = pytest.mark.parametrize("name", HEADS)


def _feats(height: int, width: int, head: DenseDetect, device: str = "cpu") -> list[Tensor]:
    return [torch.empty(1, 1, -(-height // s), -(-width // s), device=device) for s in head.level_strides]


@with_every_head
def test_the_same_size_gives_the_same_priors_and_another_size_or_scale_its_own(name: str) -> None:
    head = HEADS[name]
    priors = head.priors(_feats(64, 96, head), scale=1.0)
    assert copy.deepcopy(head).priors(_feats(64, 96, head), scale=1.0) is priors
    other = head.priors(_feats(96, 64, head), scale=1.0)
    assert len(other) == len(priors) and not torch.equal(other.points, priors.points)
    wider = head.priors(_feats(64, 96, head), scale=2.0)
    assert torch.equal(wider.boxes, priors.boxes) == ("fcos" not in name)


def test_fcos_conventions_do_not_share_their_points() -> None:
    paper, torchvision = HEADS["fcos"], HEADS["fcos as in torchvision"]
    assert paper.priors(_feats(64, 64, paper), scale=1.0).points[0].tolist() == [4.0, 4.0]
    assert torchvision.priors(_feats(64, 64, torchvision), scale=1.0).points[0].tolist() == [0.0, 0.0]


def test_the_other_detectors_of_one_class_do_not_share_their_anchors() -> None:
    """The same five sizes of maps, other strides and sides."""
    feats = [torch.empty(1, 1, n, n) for n in (16, 8, 4, 2, 1)]
    assert HEADS["retinanet"].priors(feats, scale=1.0).strides[0] == 8
    assert HEADS["rpn"].priors(feats, scale=1.0).strides[0] == 4


@with_every_head
def test_another_device_has_priors_of_its_own(name: str) -> None:
    head = HEADS[name]
    for device in ("cpu", "meta", "cpu"):
        priors = head.priors(_feats(64, 128, head, device), scale=1.0)
        fields = (priors.points, priors.boxes, priors.strides, priors.levels)
        if device == "cpu" or name == "multibox":  # torchvision's anchors cannot be built without numbers
            assert {tensor.device.type for tensor in fields} == {device}


@with_every_head
def test_what_inference_built_serves_training(name: str) -> None:
    """A tensor of inference mode cannot be saved for the backward pass."""
    head = HEADS[name]
    feats = _feats(128, 160, head)
    with torch.inference_mode():
        built = head.priors(feats, scale=1.0)
    priors = head.priors(feats, scale=1.0)
    assert priors is built
    raw = torch.zeros(len(priors), 4, requires_grad=True)
    head.decode(raw, priors).sum().backward()
    assert raw.grad is not None


@with_every_head
def test_a_heads_pickle_holds_no_priors(name: str) -> None:
    head = copy.deepcopy(HEADS[name])
    before = pickle.dumps(head)
    head.priors(_feats(192, 160, head), scale=1.0)
    assert pickle.dumps(head) == before


def test_the_memory_is_bounded_and_the_oldest_size_goes_first() -> None:
    built = []

    @built_once
    def build(columns: int, device: torch.device) -> Priors:
        built.append(columns)
        return grid_priors([(1, columns)], [8], device=device)

    cpu = torch.device("cpu")
    for columns in range(1, REMEMBERED + 2):
        build(columns, cpu)
        build(columns, cpu)
    assert built == [*range(1, REMEMBERED + 2)]
    build(2, cpu)
    assert len(built) == REMEMBERED + 1
    build(1, cpu)
    assert built[-1] == 1 and len(built) == REMEMBERED + 2


def test_a_trace_builds_priors_for_itself_and_leaves_none() -> None:
    head = HEADS["multibox"].eval()
    built = []

    def boxes(*feats: Tensor) -> Tensor:
        built.append(head.priors(list(feats), scale=1.0))
        return built[-1].boxes + feats[0].sum()

    feats = [torch.zeros_like(m) for m in _feats(96, 224, head)]
    traced = torch.jit.trace(boxes, tuple(feats), check_trace=False)
    priors = head.priors(feats, scale=1.0)
    assert all(priors is not other for other in built)
    torch.testing.assert_close(traced(*feats), priors.boxes)
