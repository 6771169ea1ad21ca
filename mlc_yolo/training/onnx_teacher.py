"""An exported detector as a teacher: an ONNX file, by onnxruntime.

It holds decoded boxes and class scores of every anchor, but no distributions and no predicted IoU of its own: boxes are
taught by their overlap. It takes images of the size it was exported at alone.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo.training.dense_outputs import Dense

#: A score's distance from 0 and 1 where it becomes a logit.
_EPS = 1e-6


class OnnxDetector(nn.Module):
    """A YOLO's ONNX file, called as a model is.

    Attributes:
        names: its classes by index.
        size: (H, W) in px that it takes.
        anchors: A, what it says something of.
    """

    def __init__(self, file: Path) -> None:
        """Open a file.

        Raises:
            ValueError: onnxruntime is not installed, or the file is no export of a detector without NMS.
        """
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(f'teacher={file} needs onnxruntime: pip install "mlc-yolo[export]"') from error
        try:
            self.session: Any = onnxruntime.InferenceSession(str(file), providers=onnxruntime.get_available_providers())
        except Exception as error:
            raise ValueError(f"teacher={file} cannot be opened as ONNX: {str(error).splitlines()[0]}") from error
        known = self.session.get_modelmeta().custom_metadata_map
        (given, *_), (output, *_) = self.session.get_inputs(), self.session.get_outputs()
        if known.get("task") != "detect" or "names" not in known or len(output.shape) != 3:
            raise ValueError(f"teacher={file} is no detection model that Ultralytics or mlc-yolo has exported")
        self.names: dict[int, str] = ast.literal_eval(known["names"])
        sides = [*given.shape, *output.shape[1:]]
        if not all(isinstance(side, int) for side in sides[1:]) or output.shape[1] != 4 + len(self.names):
            raise ValueError(
                f"teacher={file} gives {output.shape} for images {given.shape}: expected a fixed size, and (batch, "
                f"{4 + len(self.names)}, anchors). Export it without dynamic, nms and end2end"
            )
        self.batch = given.shape[0] if isinstance(given.shape[0], int) else None
        self.size = (int(given.shape[2]), int(given.shape[3]))
        self.anchors = int(output.shape[2])
        self.input, self.dtype = given.name, np.float16 if "float16" in given.type else np.float32

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 4 + K, A): xywh px and class scores, float32 on the images' device.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: images of another size.
        """
        if tuple(images.shape[2:]) != self.size:
            raise ValueError(
                f"the exported teacher takes {self.size[0]} x {self.size[1]} px, got {images.shape[2]} x "
                f"{images.shape[3]}: export it at that size, without multi_scale and rect in training"
            )
        given = images.detach().float().cpu().numpy().astype(self.dtype)
        step = self.batch or len(given)
        short = -len(given) % step
        padded = np.concatenate([given, np.zeros((short, *given.shape[1:]), given.dtype)]) if short else given
        parts = [self.session.run(None, {self.input: padded[i : i + step]})[0] for i in range(0, len(padded), step)]
        decoded = np.concatenate(parts)[: len(given)].astype(np.float32)
        return torch.from_numpy(decoded).to(images.device)

    def levels(self, strides: Sequence[float]) -> list[tuple[int, int]]:
        """Return (H, W) in cells of levels of these strides."""
        return [(int(self.size[0] // stride), int(self.size[1] // stride)) for stride in strides]


def exported_dense(decoded: Tensor, sizes: list[tuple[int, int]]) -> Dense:
    """Return an export's output as predictions at every anchor.

    Args:
        decoded: (B, 4 + K, A), xywh px and class scores.
        sizes: (H, W) in cells of each level.
    """
    boxes = xywh2xyxy(decoded[:, :4].transpose(1, 2))
    return Dense(decoded[:, 4:].transpose(1, 2).logit(_EPS), boxes, None, None, sizes)
