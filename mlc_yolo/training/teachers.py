"""Frozen teachers: tuned detectors that see the very images the student sees, and say what is at every anchor.

1. A file is checked as every checkpoint is, and refused if it cannot teach this student: other strides, another kind of
   detector, no class in common. An ONNX file is data already; see `training.onnx_teacher`.
2. Its classes are matched with the student's by name. Of classes that it lacks it says nothing.
3. Once frozen it normalises by its running statistics, and gives raw predictions of its one-to-many branch alone.
4. Its word on a class is what it ranks detections by: of a YOLO with an IoU channel class score times predicted IoU.
5. Several are averaged: class probabilities over those who know the class; boxes, distributions and predicted IoU
   weighted by each one's foreground.

Nothing here is part of the student: checkpoints keep a teacher's path and digest, not its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import OBB

from mlc_yolo import whole_files
from mlc_yolo.checkpoints import safe_load, tensors_file
from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.heads.iou_aware import has_room, keep_boxes
from mlc_yolo.losses.distillation import foreground
from mlc_yolo.training.dense_outputs import Dense, level_sizes, yolo_dense
from mlc_yolo.training.onnx_teacher import OnnxDetector, exported_dense
from mlc_yolo.training.other_size import refuse_size, resized

#: A probability's distance from 0 and 1 where an average of probabilities becomes a logit again.
_EPS = 1e-6


@dataclass(frozen=True)
class Teacher:
    """One frozen detector.

    Attributes:
        model: gives raw predictions of its one-to-many branch.
        read: makes them a `Dense`, of all its classes.
        own: (n,) int64, those of its classes that the student has.
        classes: (n,) int64, the same ones as the student counts them.
    """

    model: nn.Module
    read: Callable[[Any], Dense]
    own: Tensor
    classes: Tensor

    def __call__(self, images: Tensor) -> Dense:
        """Return what it sees, of the shared classes in the order of `classes`; without gradients.

        Args:
            images: (B, 3, H, W) in [0, 1].
        """
        with torch.no_grad():
            return self.read(self.model(images)).of(self.own.to(images.device))


class Teachers:
    """One or more teachers, as one.

    Attributes:
        classes: (n,) int64, the student's classes that any of them knows, rising.
    """

    def __init__(self, teachers: Sequence[Teacher], *, imgsz: int | None = None) -> None:
        """Join teachers of one student.

        Args:
            teachers: one or more.
            imgsz: size in px at which they see square images; None is the student's.
        """
        self.teachers = teachers
        self.imgsz = imgsz
        self.classes = torch.cat([teacher.classes for teacher in teachers]).unique()

    def __call__(self, images: Tensor) -> Dense:
        """Return what they see on average, of the classes `classes`; without gradients.

        Args:
            images: (B, 3, H, W) in [0, 1], square where the teachers see them at another size.

        Returns:
            Boxes in px of `images`; anchors of the teachers' own cells, see `other_size.at_cells`.
        """
        shown = images if self.imgsz is None else resized(images, self.imgsz)
        seen = self._average(shown)
        zoom = images.shape[-1] / shown.shape[-1]
        return seen if zoom == 1 else replace(seen, boxes=seen.kind.scaled(seen.boxes, zoom))

    def _average(self, images: Tensor) -> Dense:
        seen = [teacher(images) for teacher in self.teachers]
        places = [torch.searchsorted(self.classes, teacher.classes).to(images.device) for teacher in self.teachers]
        if len(seen) == 1:
            return seen[0].of(places[0].argsort())
        return averaged(seen, places, len(self.classes))

    def to(self, device: torch.device) -> Teachers:
        """Move them to a device."""
        for teacher in self.teachers:
            teacher.model.to(device)
        return self


def averaged(seen: Sequence[Dense], places: Sequence[Tensor], num_classes: int) -> Dense:
    """Return what several teachers see on average.

    Args:
        seen: of each the shared classes, at the same anchors.
        places: of each (n,) int64, where its classes stand in the result.
        num_classes: of the result; each is somebody's.

    Returns:
        Logits of the mean probability of those who know a class. Boxes, distributions and quality are means weighted by
        each one's foreground; distributions and quality where all have them, over as many bins.
    """
    shape = (*seen[0].logits.shape[:2], num_classes)
    total, known = seen[0].boxes.new_zeros(shape), seen[0].boxes.new_zeros(num_classes)
    for one, place in zip(seen, places, strict=True):
        total[..., place] += one.logits.float().sigmoid()
        known[place] += 1
    weights = torch.stack([foreground(one.logits) for one in seen]).clamp(min=_EPS)
    weights = weights / weights.sum(0)

    def mean(parts: Iterable[Tensor]) -> Tensor:
        extended = [w.reshape(*w.shape, *[1] * (part.ndim - 2)) * part for w, part in zip(weights, parts, strict=True)]
        return torch.stack(extended).sum(0)

    bins = {None if one.distributions is None else one.distributions.shape[-1] for one in seen}
    distributions = quality = None
    if len(bins) == 1 and None not in bins:
        sides = [one.distributions.float().softmax(-1) for one in seen if one.distributions is not None]
        distributions = mean(sides).clamp(min=_EPS**2).log()
    if all(one.quality is not None for one in seen):
        quality = mean([one.quality.float().sigmoid() for one in seen if one.quality is not None]).logit(_EPS)
    boxes = mean([one.boxes for one in seen])
    return Dense((total / known).logit(_EPS), boxes, distributions, quality, seen[0].sizes)


def load_teachers(
    files: Sequence[str], student: nn.Module, names: Mapping[int, str], *, trust: bool, imgsz: int | None = None
) -> Teachers:
    """Load frozen teachers of a student.

    Args:
        files: checkpoints, .pt or .safetensors, or exports, .onnx.
        student: the network that is trained.
        names: its classes by index.
        trust: open files unchecked.
        imgsz: size in px at which they see images; None is the student's.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file that carries code, or a model that cannot teach this student.
    """
    _refuse_several(files, student)
    return Teachers([_teacher(file, _opened(file, trust=trust), student, names) for file in files], imgsz=imgsz)


def refuse_teachers(
    files: Sequence[str],
    *,
    trust: bool,
    student: nn.Module | None = None,
    names: Mapping[int, str] | None = None,
    imgsz: Any = None,
    teacher_imgsz: Any = None,
) -> None:
    """Refuse teachers that cannot teach, by what is known before a run folder is made.

    Args:
        files: checkpoints, .pt or .safetensors, or exports, .onnx.
        trust: open files unchecked.
        student: the network to be trained, if it is there.
        names: classes of the data by index, if they are known.
        imgsz: the run's image size in px, if it is known.
        teacher_imgsz: the teachers' image size in px, if it is another one.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file that carries code, or a model that cannot teach this student.
    """
    if student is not None:
        _refuse_several(files, student)
    shown = teacher_imgsz or imgsz
    for file in files:
        model = _opened(file, trust=trust)
        if student is not None:
            _refuse_other_kind(file, model, student)
            if teacher_imgsz:
                refuse_size(teacher_imgsz, student)
        if isinstance(model, OnnxDetector) and shown is not None and model.size != (shown, shown):
            height, width = model.size
            asked = f"teacher_imgsz={teacher_imgsz:g}" if teacher_imgsz else f"the run imgsz={imgsz}"
            other = f", or give teacher_imgsz={height}" if height == width else ""
            raise ValueError(f"teacher={file} takes {height} x {width} px, {asked}: export it at that size{other}")
        if names is not None:
            _shared_classes(file, model.names, names)


def teacher_files(option: Any) -> list[str]:
    """Return the option `teacher` as absolute paths; empty for none."""
    several = option if isinstance(option, list | tuple) else [option] if option else []
    return [str(Path(file).expanduser().absolute()) for file in several]


def digests(files: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each file, by path.

    Raises:
        FileNotFoundError: one is missing.
    """
    for file in files:
        _refuse_missing(file)
    return {file: whole_files.sha256(file) for file in files}


def refuse_changed(expected: Mapping[str, str], files: Sequence[str]) -> None:
    """Refuse to go on with teachers that are not those a run began with.

    Args:
        expected: `digests` of then.
        files: today's.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: names the file.
    """
    for file, digest in digests(files).items():
        if expected.get(file, digest) != digest:
            raise ValueError(
                f"teacher={file} is not the file that this run began with (SHA-256 {expected[file][:12]}..., now "
                f"{digest[:12]}...): put that one back, or start a new run"
            )


def _refuse_missing(file: str) -> None:
    if not Path(file).is_file():
        raise FileNotFoundError(f"teacher={file}: there is no such file")


def _opened(file: str, *, trust: bool) -> Any:
    """Return a checkpoint's detector."""
    path = Path(file)
    _refuse_missing(file)
    if path.suffix not in {".pt", ".onnx", tensors_file.SUFFIX}:
        raise ValueError(f"teacher={file}: expected a checkpoint, .pt or {tensors_file.SUFFIX}, or an export, .onnx")
    if path.suffix == ".onnx":
        return OnnxDetector(path)
    if path.suffix == tensors_file.SUFFIX:
        model: Any = tensors_file.load(path)[0]
    else:
        model = safe_load.load_checkpoint(path, trust=trust)[0]
    head = model.model[-1] if isinstance(getattr(model, "model", None), nn.Sequential) else None
    if head is None or not (has_room(head) or isinstance(head, DenseDetect)):
        raise ValueError(
            f"teacher={file} ends in {type(head).__name__}: expected the head of a yolov8, yolo11, yolo12 or yolo26 "
            "of detection, segmentation, pose or oriented boxes, or of a ported detector"
        )
    if not isinstance(head, DenseDetect) and head.cv2 is None:
        raise ValueError(
            f"teacher={file} has its one-to-one branch alone, which cannot teach: give the checkpoint of the training, "
            "not a fused one"
        )
    return model


def _teacher(file: str, model: Any, student: nn.Module, names: Mapping[int, str]) -> Teacher:
    """Return a detector frozen, with its classes matched."""
    _refuse_other_kind(file, model, student)
    own, classes = _shared_classes(file, model.names, names)
    if isinstance(model, OnnxDetector):
        sizes = model.levels(_strides(_head(student)))
        return Teacher(model, lambda decoded: exported_dense(decoded, sizes), torch.tensor(own), torch.tensor(classes))
    head = _head(model)
    strides = _strides(head)
    if isinstance(head, DenseDetect):

        def read(raw: dict[str, Any]) -> Dense:
            boxes = head.decode(raw["boxes"], head.priors(raw["feats"], scale=5.0))
            return Dense(raw["scores"], boxes, None, raw.get("quality"), level_sizes(raw["feats"]))
    else:
        head.end2end = False  # fusing then drops the one-to-one branch, if there is one
        keep_boxes(head)

        def read(raw: dict[str, Any]) -> Dense:
            return yolo_dense(raw.get("one2many", raw), strides, rescore=getattr(head, "rescore", False))

    model.criterion = None
    model.fuse(verbose=False)
    model.eval().requires_grad_(False)
    head.training = True  # the head alone, without its layers: it then gives raw predictions, and decodes none
    return Teacher(model, read, torch.tensor(own), torch.tensor(classes))


def _refuse_other_kind(file: str, teacher: Any, student: Any) -> None:
    """Refuse a teacher whose anchors are not the student's.

    Raises:
        ValueError: it is of another kind, has other strides, or takes other images.
    """
    layers = getattr(student, "model", None)
    if not isinstance(layers, nn.Sequential):
        raise ValueError(f"teacher={file} teaches a model, got {type(student).__name__}: give a .pt or a model YAML")
    if isinstance(teacher, OnnxDetector):
        _refuse_other_anchors(file, teacher, student)
        return
    kinds = [getattr(model, "kind", "YOLO") for model in (teacher, student)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"teacher={file} is a {kinds[0]}, the student a {kinds[1]}: a detector teaches its own kind")
    boxes = ["oriented" if isinstance(_head(model), OBB) else "upright" for model in (teacher, student)]
    if boxes[0] != boxes[1]:
        raise ValueError(
            f"teacher={file} predicts {boxes[0]} boxes, the student {boxes[1]} ones: give a teacher of {boxes[1]} boxes"
        )
    strides = [_strides(_head(model)) for model in (teacher, student)]
    if strides[0] != strides[1]:
        told = ["[" + ", ".join(f"{stride:g}" for stride in each) + "]" for each in strides]
        raise ValueError(
            f"teacher={file} has levels of strides {told[0]}, the student of {told[1]}: they must be the same"
        )


def _refuse_several(files: Sequence[str], student: Any) -> None:
    """Refuse several teachers of oriented boxes.

    Raises:
        ValueError: there are several.
    """
    layers = getattr(student, "model", None)
    if len(files) > 1 and isinstance(layers, nn.Sequential) and isinstance(layers[-1], OBB):
        raise ValueError(
            f"teacher={','.join(files)}: oriented boxes of several teachers have no mean, as a box has several angles: "
            "give one teacher"
        )


def _refuse_other_anchors(file: str, teacher: OnnxDetector, student: Any) -> None:
    """Refuse an export whose anchors are not a YOLO's of the student's strides.

    Raises:
        ValueError: it has another number, or the student is a ported detector.
    """
    if isinstance(_head(student), OBB):
        raise ValueError(f"teacher={file} is an export, which teaches upright boxes alone: give the checkpoint")
    if isinstance(_head(student), DenseDetect):
        raise ValueError(f"teacher={file} is an export, which teaches YOLO alone: give a {student.kind}'s checkpoint")
    strides = _strides(_head(student))
    cells = sum(height * width for height, width in teacher.levels(strides))
    if teacher.anchors != cells:
        raise ValueError(
            f"teacher={file} has {teacher.anchors} anchors at {teacher.size[0]} x {teacher.size[1]} px, where strides "
            f"{strides} have {cells}: give a detector of the student's strides, exported without nms and end2end"
        )


def _head(model: Any) -> Any:
    return model.model[-1]


def _strides(head: Any) -> list[float]:
    """Return input px per cell of each level."""
    own = head.level_strides if isinstance(head, DenseDetect) else head.stride
    return [float(stride) for stride in own]


def _shared_classes(file: str, teacher: Mapping[int, str], student: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """Return the teacher's indices of classes that both have, and the student's. Case does not count.

    Raises:
        ValueError: there is none.
    """
    known = {_plain(name): index for index, name in teacher.items()}
    pairs = [(known[_plain(name)], index) for index, name in student.items() if _plain(name) in known]
    if not pairs:
        raise ValueError(
            f"teacher={file} knows {_listed(teacher)}; the data has {_listed(student)}: no name is in both. Classes "
            "are matched by name: rename them in the data YAML, or give another teacher"
        )
    return [own for own, _ in pairs], [index for _, index in pairs]


def _plain(name: Any) -> str:
    return str(name).strip().casefold()


def _listed(names: Mapping[int, str]) -> str:
    first = [str(name) for name in names.values()][:5]
    return ", ".join(first) + (", ..." if len(names) > 5 else "")
