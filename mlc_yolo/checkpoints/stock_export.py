"""An IoU-aware model rewritten with stock layers only, exactly.

The rewritten checkpoint opens in plain Ultralytics with no trace of this package, restricted loading included. It also
serves the exporters that know stock heads only (`NEEDS_STOCK`).

1. A stock head takes the sigmoid of its class logits, so the class branch must give the log-odds z of
   p = sigmoid(a) * sigmoid(b), a being the class logit and b the IoU logit.
2. With 1/p = (1 + e^-a)(1 + e^-b): z = -log(1/p - 1) = -log(e^-a + e^-b + e^-(a+b)) = a - s(s(a) - b), where
   s(x) = log(1 + e^x) is the softplus.
3. `C3` is the stock block that evaluates two paths side by side: its forward is cv3(cat(m(cv1(x)), cv2(x))). With other
   layers in it, it shows the class branch the regression tower, and carries a and b past a Softplus.
4. The tower is shared with the regression branch, not copied: no weight is stored twice. PyTorch evaluates it twice;
   the ONNX exporter merges the two evaluations.

Every constant is 0, 1 or -1 and every trained weight is kept as it was, so half precision rounds the rewritten model as
it rounds the original. The rewritten model is for inference: trained further by plain Ultralytics, its constants would
be trained too.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from datetime import datetime
from pathlib import Path

import torch
from torch import nn
from ultralytics import __version__
from ultralytics.nn.modules import C3
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo import whole_files
from mlc_yolo.checkpoints import safe_load
from mlc_yolo.checkpoints.half_precision import to_half
from mlc_yolo.faults import begin_work
from mlc_yolo.heads.iou_aware import IoUAwareDetect, IoUAwarePose26, stock_head

__all__ = ["NEEDS_STOCK", "export_stock", "needs_stock", "to_stock"]

#: Export formats (the `format` argument) that must be given `to_stock(model)`. IMX replaces `_inference`, so it would
#: drop the predicted IoU without a word; Hailo refuses subclasses of `Detect`. IMX also counts layers, and so refuses
#: the rewritten head: what it takes is the rewrite of a model with `rescore` off, which is the stock head.
NEEDS_STOCK: frozenset[str] = frozenset({"hailo", "imx"})
#: Formats whose exporter decodes keypoints as YOLO26's where the head's class is `Pose26` itself, as others elsewhere.
_TELLS_POSE26 = frozenset({"edgetpu", "executorch"})

_STOCK = (DetectionModel, SegmentationModel, PoseModel, OBBModel)


def to_stock(model: DetectionModel) -> DetectionModel:
    """Copy a model into stock layers with the same outputs.

    Boxes are equal bit for bit; scores differ by float32 rounding, 3e-7 at most. A head with `rescore` off, or a stock
    one, keeps its class branch: only the channel is dropped.

    Args:
        model: a model of detection, segmentation, pose or oriented boxes, IoU-aware or stock, fused or not; it is not
            changed.

    Returns:
        Upstream's model of the task with its own head, on the device and in the dtype of `model`. It carries no
        criterion.

    Raises:
        TypeError: `model` is of another kind.
    """
    if not isinstance(model, DetectionModel):
        raise TypeError(f"expected a detection model, got {type(model).__name__}; for a YOLO object, pass its `.model`")
    stock = deepcopy(model)
    # a copy: upstream builds models of a YAML alone, with fresh weights
    stock.__class__ = next(kind for kind in type(stock).__mro__ if kind in _STOCK)
    stock.criterion = None
    stock.yaml = {key: value for key, value in stock.yaml.items() if key != "mlc"}
    head = stock.model[-1]
    if isinstance(head, IoUAwareDetect):
        for prefix in ("", "one2one_"):
            iou_convs: Iterable[nn.Conv2d] | None = getattr(head, f"{prefix}cv_iou", None)
            towers: Iterable[nn.Sequential] | None = getattr(head, f"{prefix}cv2", None)
            if head.rescore and iou_convs is not None and towers is not None:  # None: a branch `fuse()` dropped
                rewritten = map(_rescored_class_branch, towers, getattr(head, f"{prefix}cv3"), iou_convs)
                setattr(head, f"{prefix}cv3", nn.ModuleList(rewritten))
            if hasattr(head, f"{prefix}cv_iou"):
                delattr(head, f"{prefix}cv_iou")
        del head.rescore
        head.__class__ = stock_head(head)  # as above; the layers, strides and indices stay as they are
    return stock.train(model.training)


def needs_stock(model: DetectionModel, target: str) -> bool:
    """Tell whether an exporter must be given `to_stock(model)`.

    Args:
        model: IoU-aware or not.
        target: the format.
    """
    head = model.model[-1]
    pose26 = isinstance(head, IoUAwarePose26) and target in _TELLS_POSE26
    return isinstance(head, IoUAwareDetect) and (pose26 or target in NEEDS_STOCK)


def export_stock(model: DetectionModel | str | Path, path: str | Path) -> Path:
    """Write a checkpoint that plain Ultralytics opens, restricted loading included.

    Args:
        model: a detection model, or the path of a checkpoint.
        path: the file to write, `.pt`. The weights are stored in half precision, as after every Ultralytics training.

    Returns:
        `path`.

    Raises:
        ValueError: `path` does not end in `.pt`.
        TypeError: `model` is not a detection model.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise ValueError(f"expected a file name ending in .pt, got '{path}': Ultralytics tells formats by their suffix")
    if isinstance(model, (str, Path)):
        model, _ = safe_load.load_checkpoint(model)
    stock = to_half(to_stock(model)).to(memory_format=torch.contiguous_format).requires_grad_(False)
    begin_work()
    arguments = getattr(stock, "args", {})
    arguments = arguments if isinstance(arguments, dict) else vars(arguments)
    stock.args = {key: value for key, value in arguments.items() if key in DEFAULT_CFG_DICT}
    whole_files.save(
        path,
        {
            "epoch": -1,
            "model": stock,
            "ema": None,
            "train_args": stock.args,
            "date": datetime.now().astimezone().isoformat(),
            "version": __version__,
            "license": "AGPL-3.0 License (https://ultralytics.com/license)",
            "docs": "https://docs.ultralytics.com",
        },
    )
    return path


def _rescored_class_branch(tower: nn.Sequential, class_branch: nn.Sequential, iou_conv: nn.Conv2d) -> nn.Sequential:
    """The class branch of one level with the predicted IoU multiplied in.

    Three stages, the last one a convolution with K outputs, like the branch it replaces: exporters rely on it.

    Args:
        tower: the regression tower; all but its last layer are shared with the result.
        class_branch: features (B, C, H, W) -> class logits (B, K, H, W).
        iou_conv: features of the regression tower -> IoU logits (B, 1, H, W).
    """
    num_classes = int(class_branch[-1].out_channels)  # type: ignore[arg-type]
    identity = torch.eye(num_classes)
    ones, zeros = torch.ones(num_classes, 1), torch.zeros(num_classes, 1)
    # each list names the channels that go in, each comment those that come out
    logits = _side_by_side(class_branch, nn.Sequential(*tower[:-1], iou_conv), nn.Identity())  # a, b
    to_u = _pointwise([identity, zeros, torch.zeros_like(identity), -ones])  # s(a), s(b), a, b -> u = s(a) - b
    softplus_u = nn.Sequential(_side_by_side(nn.Softplus(), nn.Identity(), to_u), nn.Softplus())
    terms = _side_by_side(softplus_u, nn.Identity(), nn.Identity())  # a, b -> s(u), a, b
    to_z = _pointwise([-identity, identity, zeros])  # z = a - s(u)
    return nn.Sequential(logits, terms, to_z).to(iou_conv.weight)


def _side_by_side(first: nn.Module, second: nn.Module, then: nn.Module) -> C3:
    """A module that computes then(cat(first(x), second(x)))."""
    block = C3(2, 2, n=0)  # only its forward is wanted; its layers are replaced
    block.cv1 = nn.Identity()
    block.m = first
    block.cv2 = second
    block.cv3 = then
    return block


def _pointwise(columns: list[torch.Tensor]) -> nn.Conv2d:
    """A 1x1 convolution with zero bias, whose weight is `columns` joined along the input channels."""
    weight = torch.cat(columns, 1)
    conv: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], 1)  # type: ignore[no-untyped-call]
    conv.weight.data.copy_(weight[:, :, None, None])
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # a convolution made so has one
    return conv
