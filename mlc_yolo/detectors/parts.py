"""Backbone and pyramid of the ported detectors: torchvision's, wired into the list-of-levels form heads take.

ImageNet's mean and standard deviation are applied here, because Ultralytics feeds RGB in [0, 1].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_builder, list_models, resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from mlc_yolo.detectors.frozen_norm import FrozenNorm

#: torchvision's names of the backbones that fit.
BACKBONES: tuple[str, ...] = tuple(n for n in list_models() if get_model_builder(n).__module__ == resnet.__name__)

#: What is frozen for 0 to 5 trainable stages, from the input on; torchvision's `trainable_layers`.
RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A torchvision ResNet that normalises its input and returns some of its stages.

    Attributes:
        body: the ResNet without pooling and classifier; its tensors keep torchvision's names.
        widths: channels of the returned stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, stages: tuple[int, ...], frozen_norm: bool, norm_eps: float | None = None):
        """Build it with fresh weights.

        Args:
            name: one of `BACKBONES`.
            stages: which of layer1 to layer4 to return, finest first.
            frozen_norm: batch normalisation with fixed statistics and affine parameters.
            norm_eps: epsilon of the normalisation; None is 1e-5. torchvision's own RetinaNet weights want 0.
        """
        super().__init__()
        norm: Callable[..., nn.Module] = FrozenNorm if frozen_norm else nn.BatchNorm2d
        net = get_model(name, weights=None, norm_layer=norm)
        self.widths = [net.inplanes // 2 ** (4 - stage) for stage in stages]
        self.body = IntermediateLayerGetter(net, {f"layer{stage}": str(stage) for stage in stages})
        if norm_eps is not None:
            for module in self.body.modules():
                if isinstance(module, FrozenNorm | nn.BatchNorm2d):
                    module.eps = norm_eps
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the stages' features of RGB images (B, 3, H, W) in [0, 1], finest first."""
        image = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return list(self.body(image).values())


class Pyramid(nn.Module):
    """torchvision's feature pyramid with the extra levels of the detector."""

    def __init__(self, widths: list[int], width: int, *, extra: str):
        """Build it with fresh weights.

        Args:
            widths: channels of the backbone's stages.
            width: channels of every pyramid level.
            extra: "p6p7_from_p5", "p6p7_from_c5" or "pool" (P6 by subsampling, for RPN).
        """
        super().__init__()
        blocks: dict[str, Callable[[], ExtraFPNBlock]] = {
            "p6p7_from_p5": lambda: _P6P7(width, width, from_p5=True),
            "p6p7_from_c5": lambda: _P6P7(widths[-1], width, from_p5=False),
            "pool": LastLevelMaxPool,
        }
        self.fpn = FeaturePyramidNetwork(widths, width, extra_blocks=blocks[extra]())

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Return the levels (B, width, H, W), finest first."""
        return list(self.fpn(OrderedDict((str(i), stage) for i, stage in enumerate(stages))).values())


class _P6P7(LastLevelP6P7):
    """torchvision's P6 and P7 with P6's source stated; torchvision guesses it from the channels, which may agree."""

    def __init__(self, in_channels: int, out_channels: int, *, from_p5: bool):
        super().__init__(in_channels, out_channels)
        self.use_P5 = from_p5


def frozen_prefixes(trainable_stages: int, stages: tuple[tuple[str, ...], ...] = RESNET_STAGES) -> list[str]:
    """Return the parts of the backbone that do not train.

    Args:
        trainable_stages: 0 to 5, counted from the last.
        stages: names by stage, from the input on.

    Returns:
        Names under `Backbone.body`.
    """
    return [name for stage in stages[: 5 - trainable_stages] for name in stage]


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals(
    [
        Backbone,
        Pyramid,
        _P6P7,
        IntermediateLayerGetter,
        resnet.BasicBlock,
        resnet.Bottleneck,
        FeaturePyramidNetwork,
        LastLevelMaxPool,
        Conv2dNormActivation,
    ]
)
