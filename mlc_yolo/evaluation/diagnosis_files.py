"""A diagnosis as text and as files: the tables of repairs and of coverage as CSV, everything as JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlc_yolo import whole_files
from mlc_yolo.evaluation.diagnosis import Diagnosis, Tried
from mlc_yolo.evaluation.repaired_ap import Gain, RepairedAP
from mlc_yolo.evaluation.verdict import verdict
from mlc_yolo.metrics.bootstrap import Difference
from mlc_yolo.metrics.coverage import SIDES, SIZES, Coverage
from mlc_yolo.metrics.operating_point import OperatingPoint
from mlc_yolo.metrics.oracles import Repair
from mlc_yolo.metrics.reliability import Reliability

CSV, COVERAGE, JSON = "diagnosis.csv", "coverage.csv", "diagnosis.json"
COLUMNS = ("repair", "AP", "AP50", "AP75", "gain", "low", "high", "gain50", "gain75")


def table(measured: RepairedAP) -> list[dict[str, Any]]:
    """Return a row per repair, the detector as it is first and everything mended last; AP and gains in percent."""
    everything = measured.oracles(tuple(Repair))
    last = {"repair": "all together", **{name: 100 * float(values[0]) for name, values in everything.items()}}
    return [*map(_row, (measured.baseline, *measured.gains.values())), last]


def as_text(diagnosis: Diagnosis) -> str:
    """Return the table and the verdict, as the console prints them."""
    lines = _lines("mended", diagnosis)
    if diagnosis.part is not None and diagnosis.own is not None:
        lines = [*_lines("mended, by boxes", diagnosis), "", *_lines(f"by {diagnosis.part.by}", diagnosis.own)]
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in verdict(diagnosis))])


def _lines(title: str, measured: RepairedAP) -> list[str]:
    """Return a table as lines of text."""
    lines = [f"{title:<22}{'AP':>7}{'AP50':>7}{'AP75':>7}{'gain':>8}  95 % interval"]
    for row in table(measured):
        values = "".join(f"{row[name]:>7.1f}" for name in ("AP", "AP50", "AP75"))
        gain = f"{row['gain']:>+8.1f}  {row['low']:.1f} to {row['high']:.1f}" if row.get("gain") else ""
        lines.append(f"{row['repair']:<22}{values}{gain}")
    return lines


def as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return everything that was measured; AP and gains in percent, None where a number is undefined."""
    plain = diagnosis.curve_without_rescoring
    return {
        "images": len(diagnosis.seen.records.images),
        "objects": len(diagnosis.seen.records.gt_labels),
        "AP": asdict(diagnosis.ap),
        "repairs": table(diagnosis),
        "costliest": [repair.value for repair in diagnosis.costliest],
        "own": _own(diagnosis),
        "confusions": [_row(gain) for gain in diagnosis.confusions],
        "sizes": [asdict(size) for size in diagnosis.sizes],
        "tried": [_tried(remedy) for remedy in diagnosis.tried],
        "classes": [asdict(row) for row in diagnosis.classes],
        "spearman": diagnosis.spearman,
        "score_as_iou": _calibration(diagnosis.reliability),
        "predicted_iou": None if diagnosis.predicted_iou is None else _calibration(diagnosis.predicted_iou),
        "coverage": None if diagnosis.coverage is None else coverage_table(diagnosis.coverage),
        "sigma_factor": None if diagnosis.coverage is None else diagnosis.coverage.factor,
        "deployed": _point(diagnosis.curve.at(diagnosis.confidence)),
        "best_f1": _point(diagnosis.curve.best_f1()),
        "deployed_without_rescoring": None if plain is None else _point(plain.at(diagnosis.confidence)),
        "verdict": verdict(diagnosis),
    }


def coverage_table(measured: Coverage) -> list[dict[str, Any]]:
    """Return the share of true edges within one stated deviation: of all, by side and by the object's size."""
    parts = [("all", measured.overall)]
    parts += [*zip(SIDES, measured.by_side.tolist(), strict=True), *zip(SIZES, measured.by_size.tolist(), strict=True)]
    return [{"part": name, "within_one_sigma": None if math.isnan(value) else value} for name, value in parts]


def write(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write the files, each in one step; that of coverage where the head states deviations, that of masks or keypoints
    where the task has them.

    Args:
        diagnosis: what to write.
        folder: an existing folder.

    Returns:
        Their paths.
    """
    files = {CSV: _as_csv(COLUMNS, table(diagnosis))}
    if diagnosis.part is not None and diagnosis.own is not None:
        files[f"diagnosis_{diagnosis.part.many}.csv"] = _as_csv(COLUMNS, table(diagnosis.own))
    if diagnosis.coverage is not None:
        files[COVERAGE] = _as_csv(("part", "within_one_sigma"), coverage_table(diagnosis.coverage))
    for name, text in files.items():
        whole_files.write(folder / name, text)
    whole_files.write_json(folder / JSON, as_dict(diagnosis), indent=2)
    return [folder / name for name in (*files, JSON)]


def _as_csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _own(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """Return what was measured of masks or keypoints; None where boxes are all there is."""
    part, own, behind = diagnosis.part, diagnosis.own, diagnosis.own_behind
    if part is None or own is None or behind is None:
        return None
    return {
        "part": part.many,
        "by": part.by,
        "AP": asdict(own.ap),
        "repairs": table(own),
        "costliest": [repair.value for repair in own.costliest],
        "behind_boxes": asdict(behind),
        "unlabelled": diagnosis.seen.unlabelled,
    }


def _tried(remedy: Tried) -> dict[str, Any]:
    changes = {name: _change(value) for name, value in (("change", remedy.change), ("own", remedy.own))}
    return {"remedy": remedy.name, "pixels": remedy.pixels, **changes}


def _change(change: Difference | None) -> dict[str, float] | None:
    return None if change is None else {"AP": change.mean, "low": change.low, "high": change.high}


def _row(gain: Gain) -> dict[str, Any]:
    return {
        "repair": gain.name,
        **gain.values,
        "gain": gain.gain.mean,
        "low": gain.gain.low,
        "high": gain.gain.high,
        "gain50": gain.gain50,
        "gain75": gain.gain75,
    }


def _calibration(values: Reliability) -> dict[str, Any]:
    return {"error": values.error, "bias": values.bias, "count": int(values.count.sum())}


def _point(point: OperatingPoint) -> dict[str, Any]:
    rates = {name: getattr(point, name) for name in ("precision", "recall", "f1", "false", "per_image")}
    return {**asdict(point), **{name: None if math.isnan(value) else value for name, value in rates.items()}}
