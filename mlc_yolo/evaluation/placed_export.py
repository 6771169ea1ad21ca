"""Exported files that also say how well their boxes sit: `export(placement=True)`.

The file's one output is (B, 4 + K + E, A): boxes and K class scores as always, then E channels, whose names and order
are the entry `placement` of the file's metadata, joined by commas: `iou`, `sigma_left`, `sigma_top`, `sigma_right`,
`sigma_bottom`, or those of them that the head gives (`heads.placed` says what they are). A reader of other files takes
every channel from the fifth on for a class, plain Ultralytics among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.checkpoints.sigma_scale import sigma_scale
from mlc_yolo.heads.placed import placement_channels, with_placement

#: Formats whose files can carry the channels, and their metadata.
FORMATS = ("onnx", "torchscript")
#: Entry of the file's metadata that names the channels.
ENTRY = "placement"


def placed_model(model: DetectionModel, arguments: Mapping[str, Any]) -> DetectionModel:
    """Return the model to export with its placement.

    Args:
        model: it is not changed.
        arguments: of the export, upstream's.

    Returns:
        A copy whose head puts out the channels.

    Raises:
        ValueError: a format, a precision or an output that cannot carry them, or a head that has none.
    """
    target = str(arguments.get("format") or "torchscript").lower()
    if target not in FORMATS:
        raise ValueError(f"placement=True is for format={' and format='.join(FORMATS)}, not for format={target}")
    for option in ("nms", "end2end"):
        if arguments.get(option) is not None and (option, arguments[option]) != ("end2end", False):
            raise ValueError(_final(f"{option}={arguments[option]} exports", f"leave {option} out"))
    if getattr(model.model[-1], "cv2", ()) is None:
        raise ValueError(_final("this model, which was fused to its NMS-free branch, gives", "leave placement out"))
    if arguments.get("quantize") == 8:
        raise ValueError(
            "placement=True needs floating-point outputs, and was not tried with quantize=8: leave quantize out, or "
            "give quantize=16"
        )
    return with_placement(model, sigma_scale=sigma_scale(model))


def noting(model: DetectionModel) -> Any:
    """Return a callback for `on_export_start` that writes the names of the channels into the file's metadata.

    Args:
        model: whose placement is exported, as it was before.
    """
    return partial(_note, names=placement_channels(model.model[-1]))


def _note(exporter: Any, names: tuple[str, ...]) -> None:
    shape, expected = exporter.output_shape, 4 + len(exporter.model.names) + len(names)
    if shape[1] != expected:
        raise ValueError(_final(f"this model's output {shape}, without {expected} channels, has", "export with NMS"))
    exporter.metadata[ENTRY] = ",".join(names)


def _final(what: str, advice: str) -> str:
    return f"placement=True describes the boxes before NMS, but {what} final detections: {advice}"
