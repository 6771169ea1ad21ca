"""What Mutual Guidance's pyramids add to FSSD's: a top-down path, a bottom-up path, and context.

- `TopDown` is a feature pyramid network (Lin et al., CVPR 2017). FSSD's pyramid and this one are the paper's
  "RetinaNet".
- `BottomUp` is the second path of PANet (Liu et al., CVPR 2018).
- `ContextEnhancement` is ThunderNet's (Qin et al., ICCV 2019): the sum of 1x1 convolutions of the sources and of the
  coarsest one's global average, here at stride 8 and through a 3x3 convolution. `PAFPN` is this, FSSD's further levels,
  `TopDown` and `BottomUp`.

Layers and connections are those of Mutual Guidance's published code; see `fssd` for what differs in every pyramid.

Our decisions: that code sums two sources, which with a VGG-16 are all; with a ResNet we sum three. The global average
of a single image is normalised by running statistics, because batch normalisation needs more than one value.

The import paths of these classes are written into checkpoints: they are a file format and must not change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from mlc_yolo.detectors.fssd import conv, to_size_of


class PooledNorm(nn.BatchNorm2d):
    """Batch normalisation of one cell per image."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, 1, 1); a batch of one image by the running statistics, which then stay as they are."""
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class ContextEnhancement(nn.Module):
    """ThunderNet's fusion of the sources to one map of the finest one's size."""

    def __init__(self, widths: list[int], width: int):
        """Build it with fresh weights.

        Args:
            widths: channels of the sources.
            width: channels of the result.
        """
        super().__init__()
        self.laterals = nn.ModuleList([conv(w, width, 1) for w in widths])
        self.context = Conv2dNormActivation(widths[-1], width, 1, norm_layer=PooledNorm)
        self.merge = conv(width, width, 3)

    def forward(self, sources: list[Tensor]) -> Tensor:
        """Return (B, width, H, W) of sources (B, C, h, w), finest first."""
        maps = [lateral(source) for lateral, source in zip(self.laterals, sources, strict=True)]
        total: Tensor = self.context(sources[-1].mean((2, 3), keepdim=True))
        for m in maps:
            total = total + to_size_of(m, maps[0])
        fused: Tensor = self.merge(total)
        return fused


class TopDown(nn.Module):
    """A feature pyramid network over existing levels: each one gets what the coarser ones know."""

    def __init__(self, width: int, *, levels: int):
        """Build it with fresh weights.

        Args:
            width: channels of every level.
            levels: L.
        """
        super().__init__()
        self.laterals = nn.ModuleList([conv(width, width, 1) for _ in range(levels)])
        self.smooth = nn.ModuleList([conv(width, width, 3) for _ in range(levels)])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return levels of the same shapes."""
        sums = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        for finer in reversed(range(len(sums) - 1)):
            sums[finer] = sums[finer] + to_size_of(sums[finer + 1], sums[finer])
        return [smooth(total) for smooth, total in zip(self.smooth, sums, strict=True)]


class BottomUp(nn.Module):
    """PANet's path: each level gets what the finer ones know."""

    def __init__(self, width: int, *, levels: int):
        """Build it with fresh weights.

        Args:
            width: channels of every level.
            levels: L.
        """
        super().__init__()
        self.down = nn.ModuleList([conv(width, width, 3, stride=2) for _ in range(levels - 1)])
        self.smooth = nn.ModuleList([conv(width, width, 3) for _ in range(levels)])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return levels of the same shapes."""
        sums = [levels[0]]
        for down, level in zip(self.down, levels[1:], strict=True):
            sums.append(level + down(sums[-1]))
        return [smooth(total) for smooth, total in zip(self.smooth, sums, strict=True)]


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([PooledNorm, ContextEnhancement, TopDown, BottomUp])
