"""Untrained nets whose outputs are worth comparing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.detectors import parts, vgg

#: The path of a net with the head of YOLO11 and 0.2 M parameters: it trains in a third of the time of yolo11n.yaml.
SMALL = str(Path(__file__).with_name("fixtures") / "small11.yaml")
#: The same with the head of YOLO26, which has a one-to-many and a one-to-one branch.
SMALL26 = str(Path(__file__).with_name("fixtures") / "small26.yaml")
#: YOLO's heads on such nets: name of the model -> path of the YAML.
SMALL_NETS = {"yolov8n": SMALL.replace("small11", "small8"), "yolo11n": SMALL, "yolo26n": SMALL26}
#: The same by the names of the families whose heads they have.
BY_FAMILY = {name.removesuffix("n"): path for name, path in SMALL_NETS.items()}


class _NarrowResNet(resnet.ResNet):
    """torchvision's, with a quarter of the channels after its first layer.

    With an eighth (8 channels) and more than one thread, oneDNN of torch 2.14 ends the process in a backward pass.
    """

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 4, *args, **kwargs)


@contextmanager
def narrow_backbones() -> Iterator[None]:
    """Let ported detectors be built with few channels: ResNets of two blocks a stage, and VGGs.

    A ResNet-18 has 11 M parameters, which a short training mostly spends on initialising, copying and writing. The
    classes and the tensors' names stay, so that checkpoints open anywhere; only what builds from a YAML must be here.
    """

    def build(name: str, **keys: Any) -> resnet.ResNet:
        block = resnet.BasicBlock if name in {"resnet18", "resnet34"} else resnet.Bottleneck
        return _NarrowResNet(block, [2, 2, 2, 2], norm_layer=keys["norm_layer"])

    # conv4_3 and conv5_3, which are read, stay as wide as they are said to be
    layers = [16, 16, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 512, "M", 64, 64, 512, "M"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "get_model", build)
        patch.setattr(vgg, "cfgs", {"D": layers})
        yield


def enliven(model: DetectionModel, image: torch.Tensor) -> None:
    """Give an untrained model predictions that vary over anchors: logits of mean 0 and deviation 2 on `image`.

    As built, features fade from layer to layer until the biases alone are seen. The gain of 1.3 keeps them within half
    precision in all families, and the last layers of the head are scaled by what reaches them.
    """
    for module in model.modules():
        if isinstance(module, Conv):
            nn.init.normal_(module.conv.weight, 0, 1.3 / module.conv.weight[0].numel() ** 0.5)

    def rescale(conv: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        deviation, mean = torch.std_mean(output, (0, 2, 3))
        conv.weight *= (2 / deviation)[:, None, None, None]
        conv.bias.copy_(-2 * mean / deviation)

    head = model.model[-1]
    branches = [getattr(head, f"{p}{n}", None) for p in ("", "one2one_") for n in ("cv2", "cv3", "cv_iou")]
    layers = [convs if isinstance(convs, nn.Conv2d) else convs[-1] for branch in branches for convs in branch or ()]
    with torch.no_grad():
        for layer in layers:
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        hooks = [layer.register_forward_hook(rescale) for layer in layers]
        model(image)
    for hook in hooks:
        hook.remove()
