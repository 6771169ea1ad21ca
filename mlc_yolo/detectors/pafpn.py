"""What Mutual Guidance's pyramids add to FSSD's: a top-down path, a bottom-up path, and context.

- `TopDown` is a feature pyramid network (Lin et al., CVPR 2017), torchvision's. FSSD's pyramid and this one are the
  paper's "RetinaNet".
- `BottomUp` is the second path of PANet (Liu et al., CVPR 2018).
- `ContextEnhancement` is ThunderNet's (Qin et al., ICCV 2019): the sum of 1x1 convolutions of the sources and of the
  coarsest one's global average. `PAFPN` is this, `TopDown` and `BottomUp`.

Our decisions: ThunderNet enhances one map of stride 16 from C4 and C5. Here all the backbone's sources are summed at
stride 8 and the levels grow from the sum as FSSD's do, so that the pyramids differ in their fusion and paths alone. The
global average has no batch normalisation, which would need more than one image. The top-down path's 1x1 convolutions
have no ReLU, as in torchvision; its 3x3 ones have one.

The import paths of these classes are written into checkpoints: they are a file format and must not change.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from mlc_yolo.detectors.fssd import conv, to_size_of


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
        self.context = nn.Conv2d(widths[-1], width, 1)

    def forward(self, sources: list[Tensor]) -> Tensor:
        """Return (B, width, H, W) of sources (B, C, h, w), finest first."""
        maps = [lateral(source) for lateral, source in zip(self.laterals, sources, strict=True)]
        fused: Tensor = self.context(sources[-1].mean((2, 3), keepdim=True))
        for m in maps:
            fused = fused + to_size_of(m, maps[0])
        return fused


class TopDown(nn.Module):
    """torchvision's feature pyramid network over existing levels, with batch normalisation and ReLU."""

    def __init__(self, width: int, *, levels: int):
        """Build it with fresh weights.

        Args:
            width: channels of every level.
            levels: L.
        """
        super().__init__()
        self.fpn = FeaturePyramidNetwork([width] * levels, width, norm_layer=nn.BatchNorm2d)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return levels of the same shapes, each with what the coarser ones know."""
        return [F.relu(m) for m in self.fpn(OrderedDict((str(i), m) for i, m in enumerate(levels))).values()]


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
        self.smooth = nn.ModuleList([conv(width, width, 3) for _ in range(levels - 1)])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return levels of the same shapes; the finest one is handed through."""
        enhanced = [levels[0]]
        for down, smooth, level in zip(self.down, self.smooth, levels[1:], strict=True):
            enhanced.append(smooth(down(enhanced[-1]) + level))
        return enhanced


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([ContextEnhancement, TopDown, BottomUp, FeaturePyramidNetwork])
