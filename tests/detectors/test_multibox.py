"""Mutual Guidance's pyramids, their VGG backbone and the multi-box head, put together by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg16_bn
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo.detectors.frozen_norm import FrozenNorm
from mlc_yolo.detectors.multibox import PYRAMIDS, level_widths
from mlc_yolo.detectors.pafpn import PooledNorm
from mlc_yolo.detectors.parts import IMAGENET_MEAN, IMAGENET_STD, Backbone
from mlc_yolo.detectors.rfb import COARSE, FINE, MIDDLE, ReceptiveField
from mlc_yolo.detectors.vgg import VGG_STAGES, VGGBackbone
from mlc_yolo.heads.multibox import MultiBoxDetect

from .lively import image

#: Channels of the sources, of strides 8, 16, ...
SOURCES = {"resnet18": [128, 256, 512], "vgg16_bn": [512, 512]}
#: Input sizes and levels: both settings, and a multiple of 32 that is one of neither 64 nor 128.
SETTINGS = [((320, 320), 4), ((512, 512), 5), ((288, 352), 5)]
CLASSES = 3

for_every_pyramid = pytest.mark.parametrize("kind", PYRAMIDS)
for_every_backbone = pytest.mark.parametrize("backbone", SOURCES)
for_every_setting = pytest.mark.parametrize(("size", "levels"), SETTINGS, ids=str)


def _sources(backbone: str, size: tuple[int, int], *, images: int = 1) -> list[Tensor]:
    """Features as a backbone gives them, as leaves."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(images, width, size[0] // (8 << i), size[1] // (8 << i), generator=generator).requires_grad_()
        for i, width in enumerate(SOURCES[backbone])
    ]


def _cells(size: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """Rows and columns of every level, rounded up."""
    return [(-(-size[0] // (8 << k)), -(-size[1] // (8 << k))) for k in range(levels)]


def _feats(size: tuple[int, int], levels: int) -> list[Tensor]:
    return [torch.empty(1, 1, *cells) for cells in _cells(size, levels)]


def _pyramid(kind: str, backbone: str, *, width: int = 32, levels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return PYRAMIDS[kind](SOURCES[backbone], width, levels)


def _head(
    kind: str = "fssd", *, quality: Any = "none", levels: int = 4, width: int = 32, classes: int = CLASSES
) -> MultiBoxDetect:
    torch.manual_seed(0)
    return MultiBoxDetect(classes, level_widths(kind, width, levels), quality=quality)


def _conv(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a Conv-BN."""
    return inputs * outputs * kernel**2 + 2 * outputs


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Pyramids


@for_every_setting
@for_every_backbone
@for_every_pyramid
def test_every_level_has_its_width_and_stride(kind: str, backbone: str, size: tuple[int, int], levels: int) -> None:
    feats = _pyramid(kind, backbone, levels=levels)(_sources(backbone, size))
    widths = [64, 64, 64, 32, 32][:levels] if kind == "rfbnet" else [32] * levels
    expected = [(1, width, *cells) for width, cells in zip(widths, _cells(size, levels), strict=True)]
    assert [tuple(m.shape) for m in feats] == expected


@for_every_setting
@for_every_pyramid
def test_forward_and_backward_stay_finite_and_reach_every_parameter(
    kind: str, size: tuple[int, int], levels: int
) -> None:
    pyramid = _pyramid(kind, "vgg16_bn", levels=levels).train()
    head = _head(kind, quality="iou", levels=levels).train()
    sources = _sources("vgg16_bn", size)
    raw = head(pyramid(sources))
    total = sum((raw[name] ** 2).mean() for name in ("boxes", "scores")) + (raw["quality"] - 1).square().mean()
    assert isinstance(total, Tensor)
    total.backward()
    for name, parameter in [*pyramid.named_parameters(), *head.named_parameters()]:
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert all(s.grad is not None and bool(s.grad.any()) for s in sources)


@for_every_pyramid
def test_every_source_is_seen_by_every_level_it_should_be(kind: str) -> None:
    """The fused pyramids show every source to every level; RFBNet's show them to the first, then one by one."""
    pyramid = _pyramid(kind, "resnet18").eval()
    for k in range(4):
        sources = _sources("resnet18", (128, 128))
        pyramid(sources)[k].square().sum().backward()
        seen = [source.grad is not None and bool(source.grad.any()) for source in sources]
        assert seen == ([i == min(k, 2) for i in range(3)] if kind == "rfbnet" and k else [True] * 3)


@for_every_backbone
def test_parameters_are_those_of_the_convolutions_counted_by_hand(backbone: str) -> None:
    widths, w = SOURCES[backbone], 256
    laterals = sum(_conv(c, w, 1) for c in widths)
    down = 3 * _conv(w, w, 3)
    fssd = laterals + _conv(w * len(widths), w, 3) + down
    top_down = 4 * (_conv(w, w, 1) + _conv(w, w, 3))
    context = _conv(widths[-1], w, 1)
    pafpn = laterals + context + _conv(w, w, 3) + down + top_down + 3 * _conv(w, w, 3) + 4 * _conv(w, w, 3)
    counts = {"fssd": fssd, "retinanet_fssd": fssd + top_down, "pafpn": pafpn}
    assert {kind: _count(_pyramid(kind, backbone, width=w)) for kind in counts} == counts


#: The convolutions of RFBNet's pyramid over two sources of 512 channels at width 256, (inputs, outputs, cells of the
#: kernel), written down from the authors' description of every block.
_RFBNET_FUSED = [
    *[(512, 256, 1)] * 2,  # both sources
    *[(512, 64, 1)] * 5,
    *[(512, 32, 1)] * 2,
    *[(64, 64, 3)] * 4,
    *[(32, 48, 3)] * 2,
    *[(48, 64, 3)] * 2,
    *[(64, 64, 9)] * 7,  # dilated
    (7 * 64, 512, 1),
    (512, 512, 1),
]
_RFBNET_MIDDLE = [
    (512, 128, 1),
    *[(512, 64, 1)] * 3,
    (64, 128, 9),
    (64, 96, 9),
    (96, 128, 9),
    (64, 96, 7),
    (96, 128, 7),
    *[(128, 128, 9)] * 4,
]
_RFBNET_COARSE = [
    (256, 64, 1),
    *[(256, 32, 1)] * 2,
    (32, 64, 9),
    (32, 48, 7),
    (48, 64, 7),
    *[(64, 64, 9)] * 3,
    (3 * 64, 256, 1),
    (256, 256, 1),
]


@pytest.mark.parametrize("levels", [4, 5])
def test_rfbnets_parameters_are_those_of_the_authors_convolutions_counted_by_hand(levels: int) -> None:
    listed = [*_RFBNET_FUSED, *(_RFBNET_COARSE if levels == 5 else [])]
    for out in (512, 512, 256):
        listed += [*_RFBNET_MIDDLE, (4 * 128, out, 1), (512, out, 1)]
    expected = sum(inputs * outputs * cells + 2 * outputs for inputs, outputs, cells in listed)
    pyramid = _pyramid("rfbnet", "vgg16_bn", width=256, levels=levels)
    assert _count(pyramid) == expected
    convolutions = [m for m in pyramid.modules() if isinstance(m, nn.Conv2d)]
    ours = sorted((m.in_channels, m.out_channels, math.prod(m.kernel_size)) for m in convolutions)
    assert ours == sorted(listed)


def test_rfbnet_has_the_authors_23_million_parameters() -> None:
    """On Pascal VOC's 20 classes; theirs has a bias in every convolution of the pyramid besides."""
    pyramid, head = _pyramid("rfbnet", "vgg16_bn", width=256), _head("rfbnet", width=256, classes=20)
    biases = sum(m.out_channels for m in pyramid.modules() if isinstance(m, nn.Conv2d))
    # 14,723,136 in VGG-16-BN's convolutions; 6 * 24 outputs of 3x3 over 512, 512, 512 and 256 channels.
    assert _count(head) == 6 * 24 * (9 * (3 * 512 + 256) + 4)
    assert 14_723_136 + _count(pyramid) + biases + _count(head) == 23_037_792


def _stretched(pyramid: nn.Module) -> nn.Module:
    """The pyramid with statistics and affine parameters that differ from channel to channel, for inference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in (m for m in pyramid.modules() if isinstance(m, nn.BatchNorm2d)):
            for tensor, low in (
                (norm.weight, 0.5),
                (norm.bias, 0.0),
                (norm.running_mean, -0.2),
                (norm.running_var, 0.3),
            ):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + low)
    return pyramid.double().eval()


def _reference_conv(layer: nn.Module, x: Tensor, *, stride: int = 1, dilation: int = 1, relu: bool = True) -> Tensor:
    """A Conv-BN[-ReLU] by its formula; the layer gives its numbers alone."""
    weight, (gain, shift, mean, variance) = layer.get_parameter("0.weight"), _norm_numbers(layer)
    padding = [dilation * (n // 2) for n in weight.shape[2:]]
    y = nn.functional.conv2d(x, weight, None, stride, padding, dilation)
    y = (y - mean) / (variance + 1e-5).sqrt() * gain + shift
    return y.clamp(min=0) if relu else y


def _norm_numbers(layer: nn.Module) -> list[Tensor]:
    numbers = [*map(layer.get_parameter, ("1.weight", "1.bias"))]
    numbers += [*map(layer.get_buffer, ("1.running_mean", "1.running_var"))]
    return [n[:, None, None] for n in numbers]


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Nearest cells: index floor(i * h / H)."""
    rows = torch.arange(like.shape[2]) * x.shape[2] // like.shape[2]
    columns = torch.arange(like.shape[3]) * x.shape[3] // like.shape[3]
    return x[:, :, rows][:, :, :, columns]


def _reference_rfb(block: Any, x: Tensor, dilations: list[int], *, stride: int = 1) -> Tensor:
    """Every branch by its layers; the last convolution before the dilated one strides."""
    fields = []
    for branch, dilation in zip(block.branches, dilations, strict=True):
        y = x
        for i, layer in enumerate(branch[:-1]):
            y = _reference_conv(layer, y, stride=stride if i == len(branch) - 2 else 1)
        fields.append(_reference_conv(branch[-1], y, dilation=dilation, relu=False))
    merged = _reference_conv(block.merge, torch.cat(fields, 1), relu=False)
    return (merged + _reference_conv(block.shortcut, x, stride=stride, relu=False)).clamp(min=0)


ODD_SIZES = [((96, 160), 4), ((288, 352), 5)]


@pytest.mark.parametrize(("size", "levels"), ODD_SIZES, ids=str)
def test_rfbnet_computes_what_the_authors_does(size: tuple[int, int], levels: int) -> None:
    pyramid: Any = _stretched(_pyramid("rfbnet", "vgg16_bn", levels=levels))
    fine, coarse = [s.detach().double() for s in _sources("vgg16_bn", size, images=2)]
    reduced = [_reference_conv(layer, x) for layer, x in zip(pyramid.laterals, (fine, coarse), strict=True)]
    joined = torch.cat((reduced[0], _enlarged(reduced[1], fine)), 1)
    middle, last = [1, 3, 5, 7], [1, 3, 7]
    expected = [_reference_rfb(pyramid.fused, joined, [1, 3, 3, 5, 5, 7, 7])]
    expected.append(_reference_rfb(pyramid.over[0], coarse, middle))
    for block, dilations in zip(pyramid.after, [middle, middle, last], strict=False):
        expected.append(_reference_rfb(block, expected[-1], dilations, stride=2))
    with torch.no_grad():
        torch.testing.assert_close(pyramid([fine, coarse]), expected)
    assert all(float(level.detach().std()) > 0.05 for level in expected)


@pytest.mark.parametrize(("size", "levels"), ODD_SIZES, ids=str)
def test_pafpn_computes_what_the_authors_does(size: tuple[int, int], levels: int) -> None:
    pyramid: Any = _stretched(_pyramid("pafpn", "vgg16_bn", levels=levels))
    (grown, down, up), conv = pyramid, _reference_conv
    fine, coarse = [s.detach().double() for s in _sources("vgg16_bn", size, images=2)]
    cem = grown.fusion
    total = conv(cem.laterals[0], fine) + _enlarged(conv(cem.laterals[1], coarse), fine)
    total = total + conv(cem.context, coarse.mean((2, 3), keepdim=True))
    maps = [conv(cem.merge, total)]
    for layer in grown.down:
        maps.append(conv(layer, maps[-1], stride=2))
    sums = [conv(layer, m) for layer, m in zip(down.laterals, maps, strict=True)]
    for k in range(levels - 1, 0, -1):
        sums[k - 1] = sums[k - 1] + _enlarged(sums[k], sums[k - 1])
    paths = [conv(layer, m) for layer, m in zip(down.smooth, sums, strict=True)]
    for k in range(levels - 1):  # from the finest on, before any of them is smoothed
        paths[k + 1] = paths[k + 1] + conv(up.down[k], paths[k], stride=2)
    expected = [conv(layer, m) for layer, m in zip(up.smooth, paths, strict=True)]
    with torch.no_grad():
        torch.testing.assert_close(pyramid([fine, coarse]), expected)
    assert all(float(level.detach().std()) > 0.05 for level in expected)


@pytest.mark.parametrize(
    ("branches", "radius"), [(FINE, 8), (MIDDLE, 10), (COARSE, 10)], ids=["fine", "middle", "coarse"]
)
def test_a_receptive_field_block_sees_as_far_as_its_widest_branch(branches: Any, radius: int) -> None:
    """The widest branch's dilated convolution reaches 7 cells; before it 1x3 and 3x1 reach 1, 1x7 and 7x1 reach 3."""
    torch.manual_seed(0)
    block = ReceptiveField(4, 8, branches=branches, channels=4).eval()
    x = torch.rand(1, 4, 25, 25, requires_grad=True)
    block.merge.register_forward_hook(lambda _, __, output: output + 100)  # keeps the ReLU open
    for layer in [layer for branch in block.branches for layer in branch]:
        nn.init.uniform_(layer[0].weight, 0.1, 1)  # keeps those of the branches open
    block(x)[0, :, 12, 12].sum().backward()
    assert x.grad is not None
    rows, columns = x.grad[0].abs().sum(0).nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (int(columns.min()), int(columns.max())) == (12 - radius, 12 + radius)


def test_the_context_of_one_image_is_normalised_by_running_statistics_which_stay() -> None:
    norm = PooledNorm(2, eps=1e-9).train()
    norm.running_mean = torch.tensor([1.0, 2.0])
    norm.running_var = torch.tensor([4.0, 16.0])
    one = torch.tensor([5.0, -2.0]).reshape(1, 2, 1, 1)
    assert norm(one).flatten().tolist() == pytest.approx([2.0, -1.0])  # (5 - 1) / 2, (-2 - 2) / 4
    assert norm.running_mean.tolist() == [1.0, 2.0]
    pair = torch.tensor([[3.0, 1.0], [5.0, 9.0]]).reshape(2, 2, 1, 1)
    assert norm(pair).flatten().tolist() == pytest.approx(
        [-1.0, -1.0, 1.0, 1.0]
    )  # two values are one deviation from their mean
    torch.testing.assert_close(norm.running_mean, torch.tensor([1.3, 2.3]))  # 0.9 and 0.1 of 4, of 5


def test_context_needs_one_image_only() -> None:
    feats = _pyramid("pafpn", "resnet18").train()(_sources("resnet18", (128, 128)))
    assert all(bool(m.isfinite().all()) for m in feats)


# Backbone


@cache
def _vgg() -> VGGBackbone:
    torch.manual_seed(0)
    return VGGBackbone(frozen_norm=False).eval()


def test_vgg_returns_torchvisions_conv4_3_and_conv5_3_of_normalised_images() -> None:
    with torch.device("meta"):  # its classifier is 100 million numbers that nobody reads
        reference = vgg16_bn(weights=None)
    features = reference.features.to_empty(device="cpu").eval()
    features.load_state_dict(_vgg().body.state_dict(), strict=False)
    x = image(96, 64)
    with torch.no_grad():
        returned = _vgg()(x)
        y = (x - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
        conv4_3, conv5_3 = features[:33](y), features[:43](y)
    assert [tuple(m.shape) for m in returned] == [(1, 512, 12, 8), (1, 512, 6, 4)]
    torch.testing.assert_close(returned, [conv4_3, conv5_3])
    assert all(float(m.min()) == 0 < float(m.max()) for m in returned)


def test_vggs_tensors_are_called_as_torchvisions() -> None:
    with torch.device("meta"):
        theirs = vgg16_bn(weights=None).features.state_dict()
    ours = _vgg().body.state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_vggs_stages_cover_every_parameter_once() -> None:
    names = [name.split(".")[0] for name, _ in _vgg().body.named_parameters()]
    assert sorted({int(name) for name in names}) == [int(name) for stage in VGG_STAGES for name in stage]
    widths = [{_vgg().body[layer].weight.shape[0] for layer in stage} for stage in VGG_STAGES]
    assert widths == [{64}, {128}, {256}, {512}, {512}]


def test_vggs_norm_can_be_frozen_and_its_epsilon_set() -> None:
    body = VGGBackbone(frozen_norm=True, norm_eps=0.25).body
    norms = [m for m in body.modules() if isinstance(m, FrozenNorm | nn.BatchNorm2d)]
    assert len(norms) == 13
    assert all(isinstance(m, FrozenNorm) and m.eps == 0.25 for m in norms)


# Priors


@pytest.mark.parametrize(("side", "levels", "count"), [(320, 4, 12_750), (512, 5, 32_736)])
def test_the_papers_numbers_of_priors(side: int, levels: int, count: int) -> None:
    assert len(_head(levels=levels).priors(_feats((side, side), levels), scale=1.0)) == count


def test_fifty_of_the_papers_priors_at_320_px_are_longer_than_the_image() -> None:
    """The authors clip them; the head of the file and the papers' rows state this number."""
    boxes = _head().priors(_feats((320, 320), 4), scale=1.0).boxes
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert int((longest > 321).sum()) == 50
    torch.testing.assert_close(longest[longest > 321], torch.full((50,), 384.0))


def _plain_priors(size: tuple[int, int], levels: int) -> Iterator[tuple[list[float], list[float], float, int]]:
    for level, (rows, columns) in enumerate(_cells(size, levels)):
        stride = 8 * 2**level
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for side in (24 * 2**level, 24 * 2**level * math.sqrt(2)):
                    for ratio in (1, 2, 0.5):
                        w, h = side * math.sqrt(ratio), side / math.sqrt(ratio)
                        yield [x, y], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], stride, level


@pytest.mark.parametrize(("size", "levels"), [((96, 160), 4), ((288, 352), 5)], ids=str)
def test_priors_are_those_of_a_plain_loop(size: tuple[int, int], levels: int) -> None:
    priors = _head(levels=levels).priors(_feats(size, levels), scale=1.0)
    points, boxes, strides, of_level = zip(*_plain_priors(size, levels), strict=True)
    torch.testing.assert_close(priors.points, torch.tensor(points))
    torch.testing.assert_close(priors.boxes, torch.tensor(boxes), rtol=1e-5, atol=1e-3)
    assert priors.strides.tolist() == list(strides)
    assert priors.levels.tolist() == list(of_level)


def test_a_cells_priors_have_areas_that_double_and_the_three_ratios() -> None:
    sides = _head().priors(_feats((64, 64), 4), scale=1.0).boxes[:6]
    width, height = (sides[:, 2:] - sides[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.tensor([576.0] * 3 + [1152.0] * 3))
    torch.testing.assert_close(width / height, torch.tensor([1.0, 2.0, 0.5] * 2))


# Head


def test_decoding_by_hand_with_ssds_variances() -> None:
    head = _head()
    priors = head.priors(_feats((64, 64), 4), scale=1.0)[torch.tensor([0])]  # 24 px around (4, 4)
    deltas = torch.tensor([[1.0, -2.0, 5 * math.log(2), 0.0]])
    # centre 4 + .1 * 24, 4 - .2 * 24; sides 24 * 2, 24
    expected = torch.tensor([[6.4 - 24, -0.8 - 12, 6.4 + 24, -0.8 + 12]])
    torch.testing.assert_close(head.decode(deltas, priors), expected)
    torch.testing.assert_close(head.encode(expected, priors), deltas)


def test_decoding_undoes_encoding() -> None:
    head = _head()
    priors = head.priors(_feats((96, 160), 4), scale=1.0)
    reach = torch.rand(len(priors), 4, generator=torch.Generator().manual_seed(0)) * 90 + 2
    boxes = torch.cat((priors.points - reach[:, :2], priors.points + reach[:, 2:]), 1)
    torch.testing.assert_close(head.decode(head.encode(boxes, priors), priors), boxes, rtol=1e-4, atol=1e-2)


def test_a_wild_regression_stays_within_the_bound() -> None:
    head = _head()
    priors = head.priors(_feats((64, 64), 4), scale=1.0)
    boxes = head.decode(torch.full((len(priors), 4), 1e4), priors)
    growth = (boxes[:, 2:] - boxes[:, :2]) / (priors.boxes[:, 2:] - priors.boxes[:, :2])
    torch.testing.assert_close(growth, torch.full_like(growth, 1000 / 16), rtol=1e-3, atol=0)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("quality", ["none", "iou"])
def test_the_head_is_one_convolution_per_level_and_task(quality: str, levels: int) -> None:
    head = _head(quality=quality, levels=levels, width=256, classes=20)
    per_prior = 20 + 4 + (quality == "iou")
    assert _count(head) == levels * 6 * per_prior * (256 * 9 + 1)
    assert head.stride.tolist() == [8, 16, 32, 64, 128][:levels]


def test_untrained_scores_are_about_one_in_a_hundred() -> None:
    raw = _head().raw(_pyramid("fssd", "resnet18").eval()(_sources("resnet18", (96, 160))))
    scores = raw["scores"].detach().sigmoid()
    assert 0.008 < float(scores.mean()) < 0.012
    assert float(scores.max()) < 0.05


def test_a_levels_outputs_land_on_its_own_priors() -> None:
    """The one anchor with a known map, row, column and prior is where the priors have it."""
    head, size = _head(quality="iou"), (96, 160)
    feats = [torch.zeros(1, 32, *cells) for cells in _cells(size, 4)]
    level, row, column, prior, label = 1, 2, 7, 4, 2
    outputs = head.levels[level]
    with torch.no_grad():
        for conv, channel in ((outputs.cls_logits, prior * CLASSES + label), (outputs.cv_iou, prior)):
            conv.weight[channel].zero_()[0, 1, 1] = 9.0
        outputs.bbox_reg.weight[prior * 4 + 2].zero_()[0, 1, 1] = 9.0
    feats[level][0, 0, row, column] = 1
    with torch.no_grad():
        raw = head.raw(feats)
    anchor, predicted = divmod(int(raw["scores"].flatten().argmax()), CLASSES)
    assert predicted == label
    assert int(raw["quality"].argmax()) == anchor
    assert divmod(int(raw["boxes"].flatten().argmax()), 4) == (anchor, 2)
    priors = head.priors(feats, scale=1.0)
    assert priors.points[anchor].tolist() == [(column + 0.5) * 16, (row + 0.5) * 16]
    width, height = (priors.boxes[anchor, 2:] - priors.boxes[anchor, :2]).tolist()
    assert (width, height) == pytest.approx((96, 48))  # prior 4: side 48 * sqrt(2), ratio 2


def _assembled(kind: str, quality: str) -> nn.Sequential:
    """A detector in evaluation mode with scores and boxes that differ from place to place."""
    backbone = Backbone("resnet18", stages=(2, 3, 4), frozen_norm=False)
    torch.manual_seed(0)
    pyramid = PYRAMIDS[kind](backbone.widths, 32, 4)
    model = nn.Sequential(backbone, pyramid, _head(kind, quality=quality))
    model.train()
    with torch.no_grad():
        for _ in range(30):  # running statistics of what there is to see
            model(image(96, 160))
        for outputs in model[2].levels:
            for conv in outputs.children():
                nn.init.normal_(conv.weight, std=0.1)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quality"), [("pafpn", "none"), ("rfbnet", "iou")])
def test_onnx_gives_the_same_detections(kind: str, quality: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = _assembled(kind, quality)
    head: Any = model[2]
    x = image(96, 160, count=2)
    with torch.no_grad():
        expected = model(x)[0]
        head.export = True
        torch.onnx.export(model, (x,), str(tmp_path / "model.onnx"), dynamo=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert exported.shape == expected.shape == (2, 4 + CLASSES, 1000 + 360 + 90 + 36)
    for ours, theirs in zip(torch.from_numpy(exported).transpose(1, 2), expected.transpose(1, 2), strict=True):
        assert theirs[:, 4:].amax(0).min() > 5 * theirs[:, 4:].mean()
        # Two scores that are equal but for rounding may change places, so rows are compared with their nearest.
        gap = (ours[:, None] - theirs).abs().amax(-1)
        for nearest in (gap.amin(0), gap.amin(1)):
            assert int((nearest > 1e-3).sum()) <= len(theirs) // 100


@pytest.mark.slow
def test_detections_are_decoded_and_clipped_boxes_of_the_best_anchors() -> None:
    model = _assembled("retinanet_fssd", "none")
    with torch.no_grad():
        decoded, raw = model(image(96, 160))
    head: Any = model[2]
    boxes = head.decode(raw["boxes"], head.priors(raw["feats"], scale=1.0))[0]
    x, y = boxes[:, ::2].clamp(0, 160), boxes[:, 1::2].clamp(0, 96)
    clipped = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)
    rows = decoded[0].T
    best = int(raw["scores"][0].amax(-1).argmax())
    top = rows[rows[:, 4:].amax(1).argmax()]
    torch.testing.assert_close(xywh2xyxy(top[:4]), clipped[best])
    torch.testing.assert_close(top[4:].amax(), raw["scores"].sigmoid().max())
