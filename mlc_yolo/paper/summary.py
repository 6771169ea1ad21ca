"""The README's short table: what a method gains over the same training without it, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.special import stdtrit

#: A line of results.csv: column -> text, empty where there is nothing.
Line = Mapping[str, str]
#: Columns in which the runs of one table agree.
ALIKE = ("model", "data", "images", "epochs", "imgsz", "batch", "scale")
#: What the table is headed.
HEAD = ("what is trained", "with", "AP without", "AP with", "AP gained", "AP75 gained", "seeds")


class Pair(NamedTuple):
    """A line of the README's table: what was trained, on what, the row without a method, the row with it, its name."""

    trained: str
    model: str
    data: str
    epochs: int
    without: str
    method: str
    called: str


_CELLS, _CARDS, _BOARDS = "bccd-416/data.yaml", "cards6-416/data.yaml", "deeppcb-320/data.yaml"
SUMMARY = (
    Pair("YOLO11n from scratch, blood cells", "yolo11n", _CELLS, 30, "yolo_stock", "yolo_nbs16", "`nbs=16`"),
    Pair(
        "YOLOv8n fine-tuned, circuit boards, 4 epochs",
        "yolov8n",
        _BOARDS,
        4,
        "yolo_tuned_stock",
        "yolo_tuned_nbs16",
        "`nbs=16`",
    ),
    Pair(
        "YOLO11n from scratch, blood cells, `nbs=16`",
        "yolo11n",
        _CELLS,
        30,
        "yolo_nbs16",
        "yolo_nbs16_mlc",
        "mlc alone",
    ),
    Pair(
        "YOLOv8n fine-tuned, playing cards, `nbs=16`",
        "yolov8n",
        _CARDS,
        15,
        "yolo_tuned_nbs16",
        "yolo_tuned_nbs16_mlc",
        "mlc alone",
    ),
    Pair(
        "YOLOv8n fine-tuned, playing cards, `nbs=16`",
        "yolov8n",
        _CARDS,
        15,
        "yolo_tuned_nbs16",
        "yolo_tuned_nbs16_product",
        "IoU channel",
    ),
    Pair(
        "YOLOv8n fine-tuned, circuit boards, `nbs=16`",
        "yolov8n",
        _BOARDS,
        4,
        "yolo_tuned_nbs16",
        "yolo_tuned_nbs16_product",
        "IoU channel",
    ),
    Pair(
        "YOLO11n from scratch, blood cells, `nbs=16`",
        "yolo11n",
        _CELLS,
        30,
        "yolo_nbs16",
        "yolo_nbs16_teacher",
        "a teacher",
    ),
    Pair(
        "YOLOv8n fine-tuned, circuit boards, `nbs=16`",
        "yolov8n",
        _BOARDS,
        4,
        "yolo_tuned_nbs16",
        "yolo_tuned_nbs16_teacher_larger",
        "a teacher at 384 px (twice the time)",
    ),
    Pair(
        "FCOS without centerness, blood cells",
        "fcos-r18w128",
        _CELLS,
        7,
        "mlc_table1_fcos_minus",
        "mlc_table3_fcos_mlc",
        "MLC",
    ),
    Pair(
        "RetinaNet, blood cells",
        "retinanet-r18w128",
        _CELLS,
        7,
        "mlc_table3_retinanet",
        "mlc_table3_retinanet_mlc",
        "MLC",
    ),
)


def summary_rows(lines: Sequence[Line]) -> list[list[str]]:
    """Return the cells below `HEAD`: AP without and with a method, and what that gains, with its interval over seeds.

    Args:
        lines: of results.csv.

    Raises:
        ValueError: a row of `SUMMARY` has no line, lacks a seed that its method has, or was not trained alike.
    """
    body = []
    for pair in SUMMARY:
        alike = (pair.model, pair.data, str(pair.epochs))
        runs = [
            sorted(
                (
                    line
                    for line in lines
                    if (line["model"], line["data"], line["epochs"]) == alike and line["row"] == row
                ),
                key=lambda line: int(line["seed"]),
            )
            for row in (pair.without, pair.method)
        ]
        with_method = {line["seed"] for line in runs[1]}
        runs[0] = [line for line in runs[0] if line["seed"] in with_method]  # plain may have been trained more often
        seeds = [[line["seed"] for line in of_row] for of_row in runs]
        if seeds[0] != seeds[1] or len({tuple(line[name] for name in ALIKE) for one in runs for line in one}) != 1:
            raise ValueError(
                f"results.csv must have {pair.method} and, with the same seeds, {pair.without} of {pair.model} on "
                f"{pair.data}, trained alike; it has seeds {seeds[1]} and {seeds[0]}. Run what is missing, or change "
                "SUMMARY."
            )
        plain, with_it = (statistics.mean(float(line["AP"]) for line in of_row) for of_row in runs)
        gains = [
            _gain([float(b[name]) - float(a[name]) for a, b in zip(*runs, strict=True)]) for name in ("AP", "AP75")
        ]
        body.append([pair.trained, pair.called, f"{plain:.1f}", f"{with_it:.1f}", *gains, str(len(seeds[0]))])
    return body


def _gain(differences: Sequence[float]) -> str:
    """Return the mean of paired differences and, of several, its 95 % interval after Student's t.

    Example:
        >>> _gain([1.0, 2.0, 3.0]), _gain([0.5])
        ('+2.0 [-0.5, 4.5]', '+0.5')
    """
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return f"{mean:+.1f}"
    half = stdtrit(len(differences) - 1, 0.975) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.1f} [{mean - half:.1f}, {mean + half:.1f}]"
