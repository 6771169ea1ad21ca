"""RFBNet's pyramid (Liu et al., ECCV 2018) in Mutual Guidance's form: receptive field blocks of three kinds.

A block (RFBNet's figure 4): parallel branches, each a 1x1 convolution, kernels of its own and a dilated 3x3
convolution; their concatenation goes through a 1x1 convolution, is added to a 1x1 shortcut, and gets a ReLU.

| block | branches: kernels, then dilation of the 3x3 | channels of a branch |
|---|---|---|
| fine | none, 1; 3x1, 3; 1x3, 3; 3x1, 5; 1x3, 5; 1x3 and 3x1, 7; 3x1 and 1x3, 7 | 1/8 of the input's |
| middle | none, 1; 3x3, 3; 3x3 and 3x3, 5; 1x7 and 7x1, 7 | 1/4 |
| coarse | none, 1; 3x3, 3; 1x7 and 7x1, 7 | 1/4 |

For the head's width w (256) and the sources conv4_3 and conv5_3 of a VGG-16-BN:
1. Each source goes through a 1x1 convolution to w channels; the second is upsampled (nearest) to the first. Their
   concatenation goes through a fine block: the first level, 2 w channels.
2. A middle block over conv5_3 gives the second level, one of stride 2 over that the third (both 2 w), one of stride 2
   over that the fourth (w).
3. A coarse block of stride 2 gives each further level (w) from the one before.

These are the blocks, widths and connections of Mutual Guidance's published code; see `fssd` for what differs in every
pyramid. RFBNet itself has fc7 at stride 16, six levels at 300 px and plain convolutions for the last ones.

Our decision: a ResNet, which that code does not have here, has three sources. All of them are concatenated for the
first level, and the third gets a middle block too, in place of the one over the second level.

The import paths of these classes are written into checkpoints: they are a file format and must not change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlc_yolo.detectors.fssd import conv, to_size_of

#: A branch: by how much its 1x1 convolution is narrower than its output, kernels, dilation of its 3x3 convolution.
Branch = tuple[int, tuple[tuple[int, int], ...], int]

FINE: tuple[Branch, ...] = (
    (1, (), 1),
    (1, ((3, 1),), 3),
    (1, ((1, 3),), 3),
    (1, ((3, 1),), 5),
    (1, ((1, 3),), 5),
    (2, ((1, 3), (3, 1)), 7),
    (2, ((3, 1), (1, 3)), 7),
)
MIDDLE: tuple[Branch, ...] = (
    (1, (), 1),
    (2, ((3, 3),), 3),
    (2, ((3, 3), (3, 3)), 5),
    (2, ((1, 7), (7, 1)), 7),
)
COARSE: tuple[Branch, ...] = (MIDDLE[0], MIDDLE[1], MIDDLE[3])


class ReceptiveField(nn.Module):
    """A receptive field block."""

    def __init__(self, inputs: int, width: int, *, branches: tuple[Branch, ...], channels: int, stride: int = 1):
        """Build it with fresh weights.

        Args:
            inputs: channels of the input.
            width: channels of the result.
            branches: `FINE`, `MIDDLE` or `COARSE`.
            channels: of a branch's output, a multiple of 4.
            stride: 1 or 2, taken by a branch's last convolution before the dilated one.
        """
        super().__init__()
        self.branches = nn.ModuleList()
        for narrowing, kernels, dilation in branches:
            # Of two kernels the first gives three quarters of the channels.
            outputs = [channels // narrowing, *[channels * 3 // 4] * (len(kernels) - 1), *[channels] * bool(kernels)]
            layers, before = [], inputs
            for i, (kernel, after) in enumerate(zip(((1, 1), *kernels), outputs, strict=True)):
                layers.append(conv(before, after, kernel, stride=stride if i == len(kernels) else 1))
                before = after
            layers.append(conv(channels, channels, 3, dilation=dilation, relu=False))
            self.branches.append(nn.Sequential(*layers))
        self.merge = conv(channels * len(branches), width, 1, relu=False)
        self.shortcut = conv(inputs, width, 1, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W) of (B, inputs, H, W); with stride 2 sizes are halved, rounded up."""
        fields = torch.cat([branch(x) for branch in self.branches], 1)
        return F.relu(self.merge(fields) + self.shortcut(x))


class RFBPyramid(nn.Module):
    """Levels from the backbone's sources and, by blocks of stride 2, after them."""

    def __init__(self, sources: list[int], width: int, *, levels: int):
        """Build it with fresh weights.

        Args:
            sources: channels of the sources, whose strides double from one to the next.
            width: half the channels of the first three levels, all of the others'.
            levels: L, at least the number of sources.
        """
        super().__init__()
        widths = rfb_widths(width, levels=levels)
        self.laterals = nn.ModuleList([conv(channels, width, 1) for channels in sources])
        joined = width * len(sources)
        self.fused = ReceptiveField(joined, widths[0], branches=FINE, channels=joined // 8)
        self.over, self.after = nn.ModuleList(), nn.ModuleList()
        for level in range(1, levels):
            over_source = level < len(sources)
            inputs = sources[level] if over_source else widths[level - 1]
            block = ReceptiveField(
                inputs,
                widths[level],
                branches=MIDDLE if level < 4 else COARSE,
                channels=inputs // 4,
                stride=1 if over_source else 2,
            )
            (self.over if over_source else self.after).append(block)

    def forward(self, sources: list[Tensor]) -> list[Tensor]:
        """Return L levels (B, C, H, W), finest first; their channels are `rfb_widths`."""
        maps = [lateral(source) for lateral, source in zip(self.laterals, sources, strict=True)]
        levels = [self.fused(torch.cat([to_size_of(m, maps[0]) for m in maps], 1))]
        levels += [block(source) for block, source in zip(self.over, sources[1:], strict=True)]
        for block in self.after:
            levels.append(block(levels[-1]))
        return levels


def rfb_widths(width: int, *, levels: int) -> list[int]:
    """Return the channels of RFBNet's levels, finest first.

    Example:
        >>> rfb_widths(256, levels=5)
        [512, 512, 512, 256, 256]
    """
    return [2 * width if level < 3 else width for level in range(levels)]


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([ReceptiveField, RFBPyramid])
