"""Untrained detectors whose outputs are worth comparing: torchvision's, and ours with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mlc_yolo.detectors import parts
from mlc_yolo.detectors.config import complete
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.weights import start_from

#: Multiples of 32; the first has no side that is one of 128, as the coarsest levels would like.
SIZES = [(160, 224), (256, 192), (128, 256)]
CLASSES = 7
#: Channels of the pyramids, a quarter of torchvision's.
WIDTH = 64


def image(height: int, width: int, count: int = 1) -> Tensor:
    """RGB blobs and noise in [0, 1], so that places differ: (count, 3, height, width)."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    blobs = torch.rand(count, 3, height // 16, width // 16, generator=generator)
    noise = torch.rand(count, 3, height, width, generator=generator)
    return 0.8 * F.interpolate(blobs, (height, width), mode="bilinear") + 0.2 * noise


def torchvision_detector(
    kind: str, backbone: str = "resnet18", *, classes: int = CLASSES, frozen: bool = False, seed: int = 0
) -> Any:
    """torchvision's RetinaNet or FCOS in evaluation mode, with varied class scores, boxes and centerness."""
    return deepcopy(_torchvision_detector(parts.get_model, kind, backbone, classes, frozen, seed))


@cache
def _torchvision_detector(get_model: Any, kind: str, backbone: str, classes: int, frozen: bool, seed: int) -> Any:
    torch.manual_seed(seed)
    net = get_model(backbone, weights=None, norm_layer=FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    widths = [net.inplanes // 4, net.inplanes // 2, net.inplanes]
    stages = {f"layer{stage}": str(stage) for stage in (2, 3, 4)}
    body = BackboneWithFPN(net, stages, widths, WIDTH, extra_blocks=LastLevelP6P7(WIDTH, WIDTH))
    build = {"retinanet": RetinaNet, "fcos": FCOS}[kind]
    model = build(body, classes).eval()
    model.transform.resize = lambda image, target=None: (image, target)
    if kind == "fcos":  # distances in strides; the negative ones are cut off
        enliven(model, {"cls_logits": (-3, 1.5), "bbox_reg": (2, 1), "bbox_ctrness": (0, 1.5)})
    else:
        enliven(model, {"cls_logits": (-4, 1.5), "bbox_reg": (0, 0.4)})
    return model


def enliven(model: nn.Module, outputs: dict[str, tuple[float, float]]) -> None:
    """Give every layer features that differ from place to place, and the outputs a mean and a deviation.

    Normalisations get the statistics of what reaches them. Other convolutions, which would drown the places' difference
    in their common mean, are scaled to channels of mean 0 and deviation 1.

    Args:
        model: a detector in evaluation mode.
        outputs: (mean, deviation) by the last part of a convolution's name.
    """

    def observe(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance + 0.01)
        norm.weight.copy_((torch.rand(len(mean)) + 1) * gains.get(norm, 0.6))
        norm.bias.copy_(torch.randn(len(mean)) * 0.1)

    def rescale(conv: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        if conv in scaled:  # on the finest level, where it runs first
            return
        wanted_mean, wanted_deviation = outputs.get(scaled.setdefault(conv, names[conv]), (0.0, 1.0))
        nn.init.normal_(conv.weight)
        response = F.conv2d(inputs[0], conv.weight, None, conv.stride, conv.padding)
        deviation, mean = torch.std_mean(response, (0, 2, 3))
        conv.weight *= (wanted_deviation / deviation)[:, None, None, None]
        if conv.bias is not None:
            conv.bias.copy_(wanted_mean - mean * wanted_deviation / deviation)

    # Untrained residual branches at full strength double rounding errors from block to block, trained ones do not.
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock | Bottleneck)]
    gains = {block.bn3 if isinstance(block, Bottleneck) else block.bn2: 0.1 for block in blocks}
    scaled: dict[nn.Module, str] = {}
    names = {module: name.split(".")[-1] for name, module in model.named_modules()}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(observe))
        elif isinstance(module, nn.Conv2d) and ".body." not in name:
            handles.append(module.register_forward_pre_hook(rescale))
    batch = image(*SIZES[0])
    with torch.no_grad():
        model(batch if isinstance(model, DetectorModel) else list(batch))
    for handle in handles:
        handle.remove()


def configuration(kind: str, backbone: str = "resnet18", **keys: Any) -> dict[str, Any]:
    """A complete configuration of ours, by default with the layers of torchvision's."""
    quality = {"fcos": "centerness"}.get(kind, "none")
    small = {"detector": kind, "backbone": backbone, "width": WIDTH, "nc": 1 if kind == "rpn" else 80}
    return complete({**small, "quality": quality, **keys})


def loaded(kind: str, state: Any, folder: Path, backbone: str = "resnet18", **keys: Any) -> DetectorModel:
    """Our detector in evaluation mode, started from a state dict by way of a file."""
    torch.save(state, folder / "weights.pth")
    return start_from(configuration(kind, backbone, **keys), folder / "weights.pth").eval()


def lively_detector(kind: str, **keys: Any) -> DetectorModel:
    """Our own detector by our conventions, in evaluation mode, with varied outputs."""
    return deepcopy(_lively_detector(parts.get_model, kind, **keys))


@cache
def _lively_detector(_: Any, kind: str, **keys: Any) -> DetectorModel:
    """Build it, once for each builder of backbones, which may be that of narrow ones."""
    torch.manual_seed(0)
    model = DetectorModel(configuration(kind, **keys), verbose=False).eval()
    boxes = (4, 0.4) if kind == "fcos" else (0, 0.4)
    quality = {"bbox_ctrness": (0, 1.5), "cv_iou": (0, 1.5)}
    enliven(model, {"cls_logits": (-3, 1.5), "bbox_reg": boxes, "bbox_pred": boxes, **quality})
    return model


def torchvision_heads(model: Any, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Return torchvision's raw outputs, its anchors per image, and the pyramid's levels."""
    batch = model.transform(list(images))[0]
    feats = list(model.backbone(batch.tensors).values())
    sizes = [tuple(images.shape[2:])] * len(images)
    return model.head(feats), model.anchor_generator(ImageList(images, sizes), feats), feats


@contextmanager
def fixed_statistics(*models: nn.Module) -> Iterator[None]:
    """Training mode, with every batch norm in evaluation as the frozen ones are."""
    for model in models:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    yield
    for model in models:
        model.eval()
