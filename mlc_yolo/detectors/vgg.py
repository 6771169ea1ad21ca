"""VGG-16 with batch normalisation (Simonyan and Zisserman, ICLR 2015) as a backbone: torchvision's layers.

Mutual Guidance's detectors read conv4_3 and conv5_3, each after its ReLU; neither SSD's dilated fc6 and fc7 nor its
normalisation of conv4_3 is there.

The import path of `VGGBackbone` is written into checkpoints: it is a file format and must not change.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.vgg import cfgs, make_layers

from mlc_yolo.detectors.frozen_norm import FrozenNorm
from mlc_yolo.detectors.parts import IMAGENET_MEAN, IMAGENET_STD, Backbone

#: torchvision's name of this network.
VGG = "vgg16_bn"

#: The five blocks' layers under `VGGBackbone.body`, from the input on; what has no parameters is left out.
VGG_STAGES: tuple[tuple[str, ...], ...] = (
    ("0", "1", "3", "4"),
    ("7", "8", "10", "11"),
    ("14", "15", "17", "18", "20", "21"),
    ("24", "25", "27", "28", "30", "31"),
    ("34", "35", "37", "38", "40", "41"),
)

#: Layers whose outputs are returned: the ReLU of conv4_3 (stride 8) and of conv5_3 (stride 16).
_SOURCES = ("32", "42")


class VGGBackbone(Backbone):
    """A VGG-16-BN that normalises its input and returns conv4_3 and conv5_3.

    Attributes:
        body: the layers up to the last source; their tensors keep torchvision's names, less `features.`.
        widths: channels of the sources.
    """

    def __init__(self, *, frozen_norm: bool, norm_eps: float | None = None):
        """Build it with fresh weights, drawn as torchvision draws them.

        Args:
            frozen_norm: batch normalisation with fixed statistics and affine parameters.
            norm_eps: epsilon of the normalisation; None is 1e-5.
        """
        nn.Module.__init__(self)  # Backbone's own builds a ResNet
        layers = make_layers(cfgs["D"], batch_norm=True)  # without the classifier, most of VGG's parameters
        for name, layer in layers.named_children():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.get_parameter("bias"))
            elif isinstance(layer, nn.BatchNorm2d):
                eps = layer.eps if norm_eps is None else norm_eps
                layer.eps = eps
                if frozen_norm:
                    setattr(layers, name, FrozenNorm(layer.num_features, eps=eps))
        self.widths = [512, 512]
        self.body = IntermediateLayerGetter(layers, {layer: layer for layer in _SOURCES})
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([VGGBackbone])
