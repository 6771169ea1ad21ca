"""Judge a model on one blank image with one object, as a validation judges it on a data set's."""

from __future__ import annotations

from typing import Any

import torch
from ultralytics.utils.checks import check_imgsz

from mlc_yolo.evaluation.recording import RECORDERS, RecordingValidator, record
from mlc_yolo.model import MLCYOLO

_FILE = "blank.png"


def judge_blank_image(model: MLCYOLO, options: dict[str, Any]) -> None:
    """Validate a model as `record` does, from the forward pass to the records, and forget the result.

    Args:
        model: the model, with as many classes as the data.
        options: of its training, `data` among them.

    Raises:
        Exception: whatever a validation of this model would end with.
    """
    validator: Any = RECORDERS[model.task]

    class BlankImageValidator(_OfBlankImage, validator):
        pass

    record(model, BlankImageValidator, **{**options, "batch": 1})


class _OfBlankImage(RecordingValidator):
    """Lets a `RecordingValidator` see one blank image."""

    def get_dataloader(self, dataset_path: str, batch_size: int) -> Any:
        """Return a loader of one batch, as upstream collates it."""
        height, width = check_imgsz(self.args.imgsz, stride=self.stride, min_dim=2)
        parts: dict[str, Any] = {"bboxes": torch.full((1, 4), 0.5)}  # xywh, fractions of the image
        if self.args.task == "segment":
            parts["masks"] = torch.ones(1, height // 4, width // 4)
        if self.args.task == "pose":
            parts["keypoints"] = torch.full((1, *self.data["kpt_shape"]), 0.5)
        if self.args.task == "obb":
            parts["bboxes"] = torch.full((1, 5), 0.5)  # and an angle
        return _Loader(
            img=torch.zeros(1, self.data["channels"], height, width, dtype=torch.uint8),
            cls=torch.zeros(1, 1),
            batch_idx=torch.zeros(1),
            im_file=[_FILE],
            ori_shape=[(height, width)],
            ratio_pad=[((1.0, 1.0), (0.0, 0.0))],
            **parts,
        )


class _Loader(list[dict[str, Any]]):
    """A loader of one batch, and its own data set of as many images."""

    batch_size = 1

    def __init__(self, **batch: Any) -> None:
        super().__init__([batch])
        self.dataset = self
        self.labels = [{"im_file": _FILE, "cls": batch["cls"].numpy(), "bboxes": batch["bboxes"].numpy()}]
