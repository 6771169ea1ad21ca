"""A ported detector as an Ultralytics model: a Sequential of backbone, pyramid and head.

The import path of `DetectorModel` is written into checkpoints: it is a file format and must not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import intersect_dicts

from mlc_yolo.detectors.config import complete, fill_empty
from mlc_yolo.detectors.frozen_norm import FrozenNorm
from mlc_yolo.detectors.multibox import PYRAMIDS, level_widths
from mlc_yolo.detectors.parts import RESNET_STAGES, Backbone, Pyramid, frozen_prefixes
from mlc_yolo.detectors.vgg import VGG, VGG_STAGES, VGGBackbone
from mlc_yolo.heads.anchor_based import RetinaNetDetect, RPNDetect
from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.heads.fcos import FCOSDetect
from mlc_yolo.heads.multibox import MultiBoxDetect

_HEADS: dict[str, Callable[..., DenseDetect]] = {"retinanet": RetinaNetDetect, "fcos": FCOSDetect, "rpn": RPNDetect}

#: Input sizes are rounded up to multiples of this: the pyramid's finer levels must halve evenly. Coarser ones need not,
#: so that an image is not padded to multiples of 128.
GRID = 32


class DetectorModel(DetectionModel):
    """A ported detector, built from its YAML.

    Attributes:
        yaml: the complete configuration; building from it again gives the same architecture.
    """

    def __init__(self, cfg: Mapping[str, Any], ch: int = 3, nc: int | None = None, verbose: bool = True):
        """Build the model with fresh weights.

        Args:
            cfg: a detector's configuration.
            ch: image channels, 3.
            nc: classes, in place of the configuration's.
            verbose: log a summary.

        Raises:
            ValueError: a configuration that is not as it should be, or images that are not RGB.
        """
        nn.Module.__init__(self)  # DetectionModel's own parses YOLO's YAMLs
        if ch != 3:
            raise ValueError(f"{cfg.get('detector')} takes RGB images (channels: 3), got {ch} channels")
        config = complete({**cfg, **({} if nc is None else {"nc": nc})}, cfg.get("yaml_file", "model"))
        self.yaml = {**fill_empty(config, pretrained=False), "channels": ch}
        kind, width, levels, follows = (self.yaml[key] for key in ("detector", "width", "levels", "follows"))
        norm: dict[str, Any] = {"frozen_norm": self.yaml["norm"] == "frozen", "norm_eps": self.yaml["norm_eps"]}
        if self.yaml["backbone"] == VGG:
            backbone: Backbone = VGGBackbone(**norm)
        else:
            backbone = Backbone(self.yaml["backbone"], stages=(1, 2, 3, 4) if kind == "rpn" else (2, 3, 4), **norm)
        outputs = {"num_classes": self.yaml["nc"], "quality": self.yaml["quality"]}
        neck: nn.Module
        head: DenseDetect
        if kind in PYRAMIDS:
            neck = PYRAMIDS[kind](backbone.widths, width, levels)
            head = MultiBoxDetect(widths=level_widths(kind, width, levels), **outputs)
        else:
            from_c5 = kind == "retinanet" and follows == "paper"
            extra = "pool" if kind == "rpn" else "p6p7_from_c5" if from_c5 else "p6p7_from_p5"
            neck = Pyramid(backbone.widths, width, extra=extra)
            head = _HEADS[kind](width=width, **outputs, follows=follows)
        self.model = nn.Sequential(backbone, neck, head)
        part: Any  # Ultralytics hangs its notes on the modules
        for i, part in enumerate(self.model):
            part.i, part.f, part.type = i, -1, type(part).__name__
            part.np = sum(p.numel() for p in part.parameters())
        self.save: list[int] = []
        self.names = {i: str(i) for i in range(self.yaml["nc"])}
        self.inplace = True
        self.stride = torch.tensor([float(GRID)])
        self.model.to(memory_format=torch.channels_last)
        if verbose:
            self.info()

    @property
    def kind(self) -> str:
        """Which detector it is, as its YAML says."""
        return str(self.yaml["detector"])

    @property
    def head(self) -> DenseDetect:
        """The detection head."""
        head: Any = self.model[-1]
        return head

    @property
    def frozen(self) -> list[str]:
        """Names of the parts that do not train, as Ultralytics' `freeze` takes them."""
        stages = VGG_STAGES if self.yaml["backbone"] == VGG else RESNET_STAGES
        return [f"0.body.{name}" for name in frozen_prefixes(self.yaml["trainable_stages"], stages)]

    def load(self, weights: Any, verbose: bool = True) -> None:
        """Take the weights that fit, from a model of the same kind.

        Args:
            weights: a model, or a checkpoint dict with `ema` or `model`.
            verbose: log how many arrived.

        Raises:
            ValueError: weights of another detector.
        """
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        kind = getattr(source, "yaml", {}).get("detector") if isinstance(source, DetectorModel) else None
        if kind != self.yaml["detector"]:
            raise ValueError(
                f"expected weights of a {self.yaml['detector']}, got those of "
                f"{'a ' + kind if kind else type(source).__name__}; use the model YAML that fits them"
            )
        tensors = intersect_dicts(source.float().state_dict(), self.state_dict())
        self.load_state_dict(tensors, strict=False)
        if len(tensors) == len(self.state_dict()) and self.names == {i: str(i) for i in range(len(self.names))}:
            self.names = dict(source.names)
        self.pt_path = getattr(source, "pt_path", None)
        if verbose:
            LOGGER.info(f"{len(tensors)}/{len(self.state_dict())} tensors loaded")

    def fuse(self, verbose: bool = True, imgsz: int = 640) -> DetectorModel:
        """Fold the normalisations of backbone and pyramid into their convolutions, for inference."""
        for module in list(self.model.modules()):
            _fold(module)
        if verbose:
            self.info(verbose=verbose, imgsz=imgsz)
        return self

    def is_fused(self) -> bool:
        """Return whether `fuse` has been called."""
        return not any(isinstance(m, FrozenNorm | nn.BatchNorm2d) for m in self.model.modules())

    def _predict_once(self, x: Any, profile: bool = False, embed: Any = None) -> Any:
        """Run the layers; an embedding is the pyramid's levels, averaged over their cells, one after the other."""
        if not embed:
            return super()._predict_once(x, profile)
        levels = self.model[1](self.model[0](x))
        return torch.unbind(torch.cat([level.mean((2, 3)) for level in levels], 1), dim=0)

    def init_criterion(self) -> Any:
        """Refuse: the trainer attaches the criterion, which needs the training options."""
        raise RuntimeError("a detector's loss is attached by its trainer: call MLCYOLO(...).train(...)")


def _fold(parent: nn.Module) -> None:
    """Fold each normalisation among the children into the convolution before it, in place."""
    previous = None
    for name, child in parent.named_children():
        if isinstance(child, FrozenNorm | nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            mean: Any = child.running_mean
            variance: Any = child.running_var
            previous.weight, previous.bias = fuse_conv_bn_weights(
                previous.weight, previous.bias, mean, variance, child.eps, child.weight, child.bias
            )
            setattr(parent, name, nn.Identity())
        previous = child


# Accept our checkpoints where Ultralytics loads with an allow-list (ULTRALYTICS_SAFE_LOAD=1)
torch.serialization.add_safe_globals([DetectorModel])
