"""Untrained detectors whose outputs are worth comparing: torchvision's, and ours with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mlc_yolo.detectors.config import complete
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.weights import start_from

#: Multiples of 32; the first has no side that is one of 128, as the coarsest levels would like.
SIZES = [(160, 224), (256, 192), (128, 256)]
CLASSES = 7


def image(height: int, width: int, count: int = 1) -> Tensor:
    """RGB noise in [0, 1] over a slope, so that places differ: (count, 3, height, width)."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    noise = torch.rand(count, 3, height, width, generator=generator)
    return (noise + torch.linspace(0, 1, width)) / 2


def torchvision_detector(
    kind: str, backbone: str = "resnet18", *, classes: int = CLASSES, frozen: bool = False, seed: int = 0
) -> Any:
    """torchvision's RetinaNet or FCOS in evaluation mode, with varied class scores, boxes and centerness."""
    torch.manual_seed(seed)
    norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    body = resnet_fpn_backbone(
        backbone_name=backbone,
        weights=None,
        norm_layer=norm,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    build = {"retinanet": RetinaNet, "fcos": FCOS}[kind]
    model = build(body, classes, _skip_resize=True).eval()
    if kind == "fcos":
        outputs = {"classification_head.cls_logits": (-3, 1.5), "regression_head.bbox_ctrness": (0, 1.5)}
        outputs["regression_head.bbox_reg"] = (2, 1)  # strides; the negative ones are cut off
    else:
        outputs = {"classification_head.cls_logits": (-4, 1.5), "regression_head.bbox_reg": (0, 0.4)}
    enliven(model, {f"head.{name}": value for name, value in outputs.items()})
    return model


def enliven(model: nn.Module, outputs: dict[str, tuple[float, float]]) -> None:
    """Normalise the features of a net with new statistics, and its named outputs to (mean, deviation).

    Args:
        model: in evaluation mode; takes a list of images or a batch.
        outputs: convolutions of the head by name.
    """
    norms = {name for name, m in model.named_modules() if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not any(name.startswith(output) for output in outputs):
            nn.init.kaiming_normal_(module.weight)

    def observe(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance + 0.01)
        norm.weight.copy_(torch.rand(len(mean)) * 0.4 + 0.6)
        norm.bias.copy_(torch.randn(len(mean)) * 0.1)

    def rescale(name: str) -> Any:
        def hook(conv: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
            nn.init.normal_(conv.weight)
            nn.init.zeros_(conv.bias)
            deviation, mean = torch.std_mean(conv._conv_forward(inputs[0], conv.weight, conv.bias), (0, 2, 3))
            wanted_mean, wanted_deviation = outputs[name]
            conv.weight *= (wanted_deviation / deviation)[:, None, None, None]
            conv.bias.copy_(wanted_mean - mean * wanted_deviation / deviation)
            handles[name].remove()  # of the finest level, where it runs first

        return hook

    modules = dict(model.named_modules())
    handles = {name: modules[name].register_forward_pre_hook(observe) for name in norms}
    handles |= {name: modules[name].register_forward_pre_hook(rescale(name)) for name in outputs}
    batch = image(*SIZES[0], count=1)
    with torch.no_grad():
        model(batch if isinstance(model, DetectorModel) else list(batch))
    for handle in handles.values():
        handle.remove()


def configuration(kind: str, backbone: str = "resnet18", **keys: Any) -> dict[str, Any]:
    """A complete configuration of ours, by default with the layers of torchvision's."""
    quality = {"fcos": "centerness"}.get(kind, "none")
    return complete({"detector": kind, "backbone": backbone, "quality": quality, "nc": 1 if kind == "rpn" else 80} | keys)


def loaded(kind: str, state: Any, folder: Path, backbone: str = "resnet18", **keys: Any) -> DetectorModel:
    """Our detector in evaluation mode, started from a state dict by way of a file."""
    torch.save(state, folder / "weights.pth")
    return start_from(configuration(kind, backbone, **keys), folder / "weights.pth").eval()


def lively_detector(kind: str, **keys: Any) -> DetectorModel:
    """Our own detector by our conventions, in evaluation mode, with varied outputs."""
    torch.manual_seed(0)
    model = DetectorModel(configuration(kind, **keys), verbose=False).eval()
    names = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    outputs = {"cls_logits": (-3, 1.5), "bbox_reg": (4 if kind == "fcos" else 0, 0.4), "bbox_pred": (0, 0.4)}
    outputs |= {"bbox_ctrness": (0, 1.5), "cv_iou": (0, 1.5)}
    enliven(model, {name: outputs[name.split(".")[-1]] for name in names if name.split(".")[-1] in outputs})
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
