"""Batch normalisation with fixed statistics and affine parameters, as the published detectors keep it.

torchvision's layer, in one pass over the features instead of two, and with its statistics always in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's `FrozenBatchNorm2d`, safe and cheap in half precision; its tensors have the same names.

    The import path of this class is written into checkpoints: it is a file format and must not change.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W); the result has the features' dtype, which float32 factors would widen under AMP."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenNorm:
        """Follow moves between devices, not changes of dtype: checkpoints are float16, where small variances are 0."""
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([FrozenNorm])
