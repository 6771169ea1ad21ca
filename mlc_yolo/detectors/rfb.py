"""RFBNet's pyramid (Liu et al., ECCV 2018): receptive field blocks over and after the backbone's sources.

A block (figure 4): parallel branches, each a 1x1 convolution, a kernel of its own and a 3x3 convolution dilated by the
kernel's size; their concatenation goes through a 1x1 convolution, is added to a 1x1 shortcut, and gets a ReLU.

| block | branches: kernel, then dilation of the 3x3 |
|---|---|
| RFB | none, 1; 3x3, 3; 5x5 as two 3x3, 5 |
| RFB-s, for the finest level | none, 1; 3x1, 3; 1x3, 3; 3x3, 5 |

1. The finest source gets an RFB-s, every other one an RFB: the first levels.
2. An RFB of stride 2 gives each further level from the one before.

Our decisions: on VGG-16-BN the sources are conv4_3 and conv5_3 (RFBNet has fc7 at stride 16); every level has the
head's width, the branches half of it; further levels are RFB with stride 2 to the last (RFBNet's last two are plain
convolutions); branch and shortcut add with weight 1 (published code scales the branches by 0.1); the dilated
convolutions have no ReLU.

The import paths of these classes are written into checkpoints: they are a file format and must not change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlc_yolo.detectors.fssd import conv

#: Kernels before the dilated convolution, and its dilation, by branch.
_RFB: tuple[tuple[tuple[tuple[int, int], ...], int], ...] = (((), 1), (((3, 3),), 3), (((3, 3), (3, 3)), 5))
_RFB_S: tuple[tuple[tuple[tuple[int, int], ...], int], ...] = (
    ((), 1),
    (((3, 1),), 3),
    (((1, 3),), 3),
    (((3, 3),), 5),
)


class ReceptiveField(nn.Module):
    """An RFB or an RFB-s."""

    def __init__(self, inputs: int, width: int, *, stride: int = 1, small: bool = False):
        """Build it with fresh weights.

        Args:
            inputs: channels of the input.
            width: channels of the result, even.
            stride: 1 or 2, taken by a branch's first convolution after the 1x1.
            small: RFB-s, which has no stride.
        """
        super().__init__()
        half = width // 2
        self.branches = nn.ModuleList()
        for kernels, dilation in _RFB_S if small else _RFB:
            layers, step = [conv(inputs, half, 1)], stride
            for kernel in kernels:
                layers.append(conv(half, half, kernel, stride=step))
                step = 1
            layers.append(conv(half, half, 3, stride=step, dilation=dilation, relu=False))
            self.branches.append(nn.Sequential(*layers))
        self.merge = conv(half * len(self.branches), width, 1, relu=False)
        self.shortcut = conv(inputs, width, 1, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W) of (B, inputs, H, W); with stride 2 sizes are halved, rounded up."""
        fields = torch.cat([branch(x) for branch in self.branches], 1)
        return F.relu(self.merge(fields) + self.shortcut(x))


class RFBPyramid(nn.Module):
    """Levels from the backbone's sources and, by blocks of stride 2, after them."""

    def __init__(self, widths: list[int], width: int, *, levels: int):
        """Build it with fresh weights.

        Args:
            widths: channels of the sources, whose strides double from one to the next.
            width: channels of every level.
            levels: L, at least the number of sources.
        """
        super().__init__()
        self.over = nn.ModuleList([ReceptiveField(w, width, small=i == 0) for i, w in enumerate(widths)])
        self.after = nn.ModuleList([ReceptiveField(width, width, stride=2) for _ in range(levels - len(widths))])

    def forward(self, sources: list[Tensor]) -> list[Tensor]:
        """Return L levels (B, width, H, W), finest first."""
        levels = [block(source) for block, source in zip(self.over, sources, strict=True)]
        for block in self.after:
            levels.append(block(levels[-1]))
        return levels


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([ReceptiveField, RFBPyramid])
