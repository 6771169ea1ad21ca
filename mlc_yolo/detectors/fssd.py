"""FSSD's pyramid (Li and Zhou, arXiv 1712.00960) in Mutual Guidance's form: all sources in one map, levels from that.

1. Every source goes through a 1x1 convolution and is upsampled (nearest) to the finest one's size, stride 8.
2. The maps are concatenated and merged by a 3x3 convolution: the first level.
3. A 3x3 convolution of stride 2 gives each further level from the one before.

A convolution is Conv-BN-ReLU throughout. The batch normalisation always learns, whatever the backbone's does.

Every map has the head's width, the merged one too, as in Mutual Guidance's published code. FSSD itself normalises the
concatenation and has levels of 512 and 256 channels.

Differences from that code, which hold for all pyramids here: running statistics move by 0.1 a step, not by 0.01, so
that a run of a few hundred steps can be validated (effect on a long run: not measured). Its convolutions have biases,
which the batch normalisation after them takes out again.

The import paths of these classes are written into checkpoints: they are a file format and must not change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation


def conv(
    inputs: int, outputs: int, kernel: int | tuple[int, int], *, stride: int = 1, dilation: int = 1, relu: bool = True
) -> Conv2dNormActivation:
    """Conv-BN-ReLU that keeps the size, or with stride 2 halves it, rounded up."""
    activation = nn.ReLU if relu else None
    return Conv2dNormActivation(inputs, outputs, kernel, stride, dilation=dilation, activation_layer=activation)


def to_size_of(source: Tensor, target: Tensor) -> Tensor:
    """Upsample (B, C, h, w) to the (H, W) of another map, taking the nearest cell."""
    return F.interpolate(source, target.shape[2:], mode="nearest")


class Concatenation(nn.Module):
    """FSSD's fusion of the sources to one map of the finest one's size."""

    def __init__(self, widths: list[int], width: int):
        """Build it with fresh weights.

        Args:
            widths: channels of the sources.
            width: channels of the result.
        """
        super().__init__()
        self.laterals = nn.ModuleList([conv(w, width, 1) for w in widths])
        self.merge = conv(width * len(widths), width, 3)

    def forward(self, sources: list[Tensor]) -> Tensor:
        """Return (B, width, H, W) of sources (B, C, h, w), finest first."""
        maps = [lateral(source) for lateral, source in zip(self.laterals, sources, strict=True)]
        fused: Tensor = self.merge(torch.cat([to_size_of(m, maps[0]) for m in maps], 1))
        return fused


class FusedPyramid(nn.Module):
    """A pyramid that grows from one map by convolutions of stride 2."""

    def __init__(self, fusion: nn.Module, width: int, *, levels: int):
        """Build it with fresh weights.

        Args:
            fusion: makes one map (B, width, H, W) of the sources.
            width: channels of every level.
            levels: L.
        """
        super().__init__()
        self.fusion = fusion
        self.down = nn.ModuleList([conv(width, width, 3, stride=2) for _ in range(levels - 1)])

    def forward(self, sources: list[Tensor]) -> list[Tensor]:
        """Return L levels (B, width, H, W), finest first; each has half the size of the one before, rounded up."""
        levels = [self.fusion(sources)]
        for down in self.down:
            levels.append(down(levels[-1]))
        return levels


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([Concatenation, FusedPyramid, Conv2dNormActivation])
