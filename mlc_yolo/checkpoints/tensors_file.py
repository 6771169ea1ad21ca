"""A model without pickles: `best.safetensors` holds its tensors and, as JSON, everything needed to rebuild it.

The format is safetensors' own (https://github.com/huggingface/safetensors, "Format"), read and written by many
programs: 8 bytes, the length N of the header, little-endian; N bytes of JSON, `{name: {dtype, shape, data_offsets}}`
and `__metadata__`, texts by name; then the tensors, row-major, little-endian, without gaps. It is so simple that
writing it here costs less than depending on the package, which Ultralytics does not.

`__metadata__` has `format: pt` and `mlc_yolo`: the JSON of `version`, `yaml` (the model's, which builds its layers),
`names` of the classes, `channels`, `task` and `train_args`; for pose also the keypoints' names and sigmas.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import OBB, Pose, Segment
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo import __version__, whole_files
from mlc_yolo.checkpoints import model_yaml, safe_load
from mlc_yolo.checkpoints.marker import read_marker
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.iou_aware import add_iou_channel, rank_by_iou, set_rescore

__all__ = ["SUFFIX", "load", "save"]

SUFFIX = ".safetensors"

#: The format's names of types. A header is refused beyond the size that the format's own reader allows.
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
_LONGEST_HEADER = 100_000_000

#: Task -> the class that a YAML of it builds.
_MODELS: dict[str, type[DetectionModel]] = {
    "detect": DetectionModel,
    "segment": SegmentationModel,
    "pose": PoseModel,
    "obb": OBBModel,
}
#: What a pose model knows beside its YAML.
_OF_POSE = ("kpt_names", "kpt_oks_sigmas")


def save(file: Path, model: DetectionModel, train_args: dict[str, Any] | None = None) -> None:
    """Write a model, in one step.

    Args:
        file: where to; it should end in `.safetensors`.
        model: a model of detection, segmentation, pose or oriented boxes, not fused; its tensors are written in the
            types they have.
        train_args: options of its training, by name; what JSON has no type for is written as text.

    Raises:
        ValueError: its YAML does not build it, as after `fuse()` or an export to stock layers.
        TypeError: it is a model of another task.
        OSError: the file cannot be written.
    """
    if not isinstance(model, DetectionModel):
        raise TypeError(f"{SUFFIX} files hold models of {', '.join(_MODELS)}, got {type(model).__name__}")
    description = {
        "version": __version__,
        "task": _task(model),
        "yaml": model_yaml.without_fetching(model.yaml),
        "names": {str(label): name for label, name in model.names.items()},
        "channels": model.yaml.get("channels", 3),
        "train_args": train_args or {},
        **{name: value for name in _OF_POSE if (value := getattr(model, name, None)) is not None},
    }
    metadata = whole_files.json_text(description, default=str)
    state = model.state_dict()
    with torch.random.fork_rng(devices=[]):  # building draws weights
        built = _build(json.loads(metadata), state)
    if _shapes(built.state_dict()) != _shapes(state):
        raise ValueError(f"{file} cannot be written: the model's YAML does not build its layers. Is it fused?")
    whole_files.write(file, _encoded(state, {"format": "pt", "mlc_yolo": metadata}))


def load(file: str | Path) -> tuple[DetectionModel, dict[str, Any]]:
    """Read a model that `save` wrote. Nothing in the file is run.

    Args:
        file: the file.

    Returns:
        The model, float32 and in evaluation mode, and a checkpoint as Ultralytics has them, with `model` and
        `train_args`.

    Raises:
        RefusedCheckpoint: building the model, or going on with its run, would run or fetch something.
        ValueError: the file is cut off, of another format, or not a model of ours.
        FileNotFoundError: there is none.
    """
    try:
        tensors, metadata = _decoded(Path(file).read_bytes())
        description = json.loads(metadata["mlc_yolo"])
        safe_load.check_description(description["yaml"], file)
        model = _build(description, tensors)
        model.load_state_dict(tensors)
        model.names = {int(label): str(name) for label, name in description["names"].items()}
        for name in _OF_POSE:
            if name in description:
                setattr(model, name, _numbered(description[name]))
        arguments = dict(description["train_args"])
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a model written by mlc-yolo: {type(error).__name__}: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not a {SUFFIX} file: {error}") from error
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True  # as upstream loads checkpoints; it shows in the last digits
    model.args, model.task, model.pt_path = {**DEFAULT_CFG_DICT, **arguments}, description["task"], str(file)
    return model.eval(), {"model": model, "ema": None, "epoch": -1, "train_args": arguments}


def _build(description: dict[str, Any], tensors: dict[str, Tensor]) -> DetectionModel:
    """Build the model that a description tells of, with fresh weights.

    Args:
        description: as read from JSON.
        tensors: what shall be loaded into it. They show what the YAML does not say: the predicted-IoU channel, and
            class branches as wide as those of the checkpoint that training started from.
    """
    config, channels = description["yaml"], description["channels"]
    if "detector" in config:
        model: DetectionModel = DetectorModel(config, ch=channels, nc=config["nc"], verbose=False)
    else:
        model = _MODELS[description["task"]](config, ch=channels, verbose=False)
        if description["task"] == "pose":
            model.kpt_shape = config["kpt_shape"]  # some upstream versions set it in training only
        _widen(model, config, tensors)
        if any("cv_iou." in name for name in tensors):
            add_iou_channel(model.model[-1])
    marker = read_marker(model)
    if marker.get("nms_by") == "iou":
        rank_by_iou(model.model[-1], True)
    set_rescore(model, marker.get("rescore", True))
    return model.to(memory_format=torch.contiguous_format)  # as checkpoints are


def _task(model: DetectionModel) -> str:
    """Return the task of a model."""
    head = model.model[-1]
    kinds: dict[str, type] = {"segment": Segment, "pose": Pose, "obb": OBB}
    return next((task for task, kind in kinds.items() if isinstance(head, kind)), "detect")


def _numbered(value: Any) -> Any:
    """Return a value of JSON with the integers that were its keys."""
    return {int(key): item for key, item in value.items()} if isinstance(value, dict) else value


def _widen(model: DetectionModel, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Make the class branches as wide as `tensors` are: their width follows the number of classes, up to 100."""
    head: Any = model.model[-1]
    last = tensors.get(f"model.{head.i}.cv3.0.{len(head.cv3[0]) - 1}.weight")
    if last is None or last.shape[1] == head.cv3[0][-1].in_channels:
        return
    wide: Any = type(model)({**config, "nc": last.shape[1]}, ch=model.yaml["channels"], verbose=False).model[-1]
    for name in ("cv3", "one2one_cv3"):
        for branch in getattr(wide, name, None) or ():
            branch[-1] = nn.Conv2d(branch[-1].in_channels, head.nc, 1)
        if hasattr(head, name):
            setattr(head, name, getattr(wide, name))


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _encoded(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    types = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, end = [], 0
    # Larger elements first, as the format's own writer has them: each tensor is then aligned to its type.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        part = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        start, end = end, end + len(part)
        header[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        parts.append(part)
    text = whole_files.json_text(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _decoded(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata.

    Raises:
        ValueError: lengths that do not fit each other.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, _LONGEST_HEADER):
        raise ValueError(f"it is cut off, or not a {SUFFIX} file: {len(content)} bytes")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    data, tensors = bytearray(content[8 + length :]), {}  # torch wants memory it may write to
    for name, entry in header.items():
        dtype, shape, (start, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        size = torch.Size(shape).numel() * dtype.itemsize
        if not 0 <= start <= end <= len(data) or end - start != size or min(shape, default=1) < 0:
            raise ValueError(f"it is cut off: {name} would be bytes {start} to {end} of {len(data)}")
        flat = torch.frombuffer(data, dtype=dtype, count=size // dtype.itemsize, offset=start) if size else None
        tensors[name] = torch.empty(shape, dtype=dtype) if flat is None else flat.reshape(shape)
    return tensors, metadata
