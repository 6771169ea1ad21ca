"""The page of a diagnosis: the verdict and the ladder of oracles first, then the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlc_yolo import whole_files
from mlc_yolo.evaluation.diagnosis import ClassRow, Diagnosis
from mlc_yolo.evaluation.diagnosis_files import coverage_table
from mlc_yolo.evaluation.repaired_ap import MISTAKES, Gain, RepairedAP
from mlc_yolo.evaluation.verdict import verdict
from mlc_yolo.metrics.coverage import SIDES
from mlc_yolo.metrics.operating_point import OperatingPoint
from mlc_yolo.metrics.oracles import Repair
from mlc_yolo.report.charts import reliability_chart, spread_chart
from mlc_yolo.report.examples import misplaced, misranked
from mlc_yolo.report.ladder import Rung, ladder_chart
from mlc_yolo.report.template import fill

#: Repair -> what is mended, and what stays.
WORDS = {
    Repair.INSIDE: "every object keeps its best-placed candidate of those that NMS saw",
    Repair.ACROSS: "no false detection is scored above a true one, in the whole data set",
    Repair.PLACE: "detections of the right class that overlap their object by 0.1 or more sit on it",
    Repair.CLASS: "detections that sit on an object have its class",
    Repair.MISSED: "objects without any detection have one",
    Repair.BACKGROUND: "detections that overlap no object by 0.1 are gone",
    Repair.DUPLICATES: "second detections of an object are gone",
}


#: Repair -> what a rung of the ladder calls it.
RUNGS = {
    Repair.INSIDE: "each object's best box kept",
    Repair.ACROSS: "no false box above a true one",
    Repair.PLACE: "boxes sit on their objects",
    Repair.CLASS: "classes right",
    Repair.MISSED: "missed objects found",
    Repair.BACKGROUND: "boxes on background gone",
    Repair.DUPLICATES: "second boxes gone",
}

#: Part of `coverage_table` -> what the page calls it; sizes are the square root of the object's area.
EDGES = {
    "all": "all",
    **{side: f"{side} sides" for side in SIDES},
    "small": "of objects under 32 px",
    "medium": "of objects of 32 to 96 px",
    "large": "of objects of 96 px and more",
}


def write_diagnosis(diagnosis: Diagnosis, path: str | Path, *, model: str = "", data: str = "") -> Path:
    """Write the page of a diagnosis.

    Args:
        diagnosis: of one detector.
        path: of the HTML file, which is replaced in one step.
        model: what the page calls the detector.
        data: what it calls the data set.

    Returns:
        The path.
    """
    path = Path(path)
    whole_files.write(path, render_diagnosis(diagnosis, model=model, data=data))
    return path


def render_diagnosis(diagnosis: Diagnosis, *, model: str = "", data: str = "") -> str:
    """Return the page as HTML; see `write_diagnosis`."""
    records = diagnosis.seen.records
    point = diagnosis.curve.at(diagnosis.confidence)
    facts = {
        "Model": model,
        "Data": data,
        "Images": f"{len(records.images):,}",
        "Objects": f"{len(records.gt_labels):,}",
        "AP": f"{diagnosis.ap.mean:.1f} [{diagnosis.ap.low:.1f}, {diagnosis.ap.high:.1f}]",
        **_own_fact(diagnosis),
        "AP50, AP75": f"{diagnosis.baseline.values['AP50']:.1f}, {diagnosis.baseline.values['AP75']:.1f}",
        "Rank correlation": _number(diagnosis.spearman, 2),
        f"Recall at conf={diagnosis.confidence:g}": _number(point.recall, 2),
    }
    return fill(
        "diagnosis.html",
        title=f"Diagnosis of {'/'.join(Path(model).parts[-3:])}" if model else "Diagnosis",
        facts=[(label, value) for label, value in facts.items() if value],
        verdict=[sentence.partition(": ") for sentence in verdict(diagnosis)],
        ladder=_ladder(diagnosis),
        repairs=[_gain_row(gain, WORDS[repair]) for repair, gain in _by_gain(diagnosis)],
        own=_own(diagnosis),
        ranking=misranked(diagnosis),
        placing=misplaced(diagnosis),
        confused=f"{diagnosis.gains[Repair.CLASS].gain.mean:+.1f}",
        confusions=[_gain_row(gain, "") for gain in diagnosis.confusions if gain.gain.mean > 0.005],
        sizes=[_size_row(diagnosis, i) for i in range(len(diagnosis.sizes)) if diagnosis.sizes[i].objects],
        classes=[
            {"name": row.name, "cells": [f"{row.objects:,}", *_class_aps(row), _number(row.spearman, 2)]}
            for row in sorted(diagnosis.classes, key=lambda row: -row.objects)
        ],
        points=_points(diagnosis),
        reliability=_reliability(diagnosis),
        edges=_edges(diagnosis),
        confidence=f"{diagnosis.confidence:g}",
    )


def _own_fact(diagnosis: Diagnosis) -> dict[str, str]:
    """Return the AP of masks or keypoints as a fact; nothing where boxes are all there is."""
    part, own = diagnosis.part, diagnosis.own
    if part is None or own is None:
        return {}
    return {f"AP of {part.many} ({part.by})": f"{own.ap.mean:.1f} [{own.ap.low:.1f}, {own.ap.high:.1f}]"}


def _by_gain(measured: RepairedAP) -> list[tuple[Repair, Gain]]:
    """Return the ranking's repairs, then the mistakes', each with the largest gain first."""
    known = measured.gains
    order = sorted(known, key=lambda repair: (repair in MISTAKES, -known[repair].gain.mean))
    return [(repair, known[repair]) for repair in order]


def _ladder(measured: RepairedAP, words: Mapping[Repair, str] = RUNGS) -> dict[str, Any]:
    base = measured.baseline.values["AP"]
    rungs = [
        Rung(
            words[repair],
            gain.values["AP"],
            base + gain.gain.low,
            base + gain.gain.high,
            3 if repair is Repair.INSIDE else 2 if repair in MISTAKES else 1,
        )
        for repair, gain in _by_gain(measured)
    ]
    said = "; ".join(f"{rung.name} {rung.ap - base:+.1f}" for rung in rungs)
    description = f"AP {base:.1f} as it is. One repair at a time: {said}."
    caption = (
        f"The line is the detector’s own AP, {base:.1f}. A bar goes from there to what one repair alone would make of "
        "it; its whisker is the 95 % interval. Orange: one kind of mistake mended. Blue and green: the same boxes, "
        "better ranked. Blue is what perfect scores would reach, which no training does."
    )
    return {"svg": ladder_chart(base, rungs, description=description), "caption": caption}


def _own(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """Return the ladder of masks or keypoints; None where boxes are all there is."""
    part, own = diagnosis.part, diagnosis.own
    if part is None or own is None:
        return None
    rungs = {repair: words.replace("boxes", part.many).replace("box", part.one) for repair, words in RUNGS.items()}
    rows = [_gain_row(gain, "") for _, gain in _by_gain(own)]
    return {"part": part.many, "by": part.by, "ladder": _ladder(own, rungs), "rows": rows}


def _class_aps(row: ClassRow) -> list[str]:
    return [_number(row.ap)] if row.own_ap is None else [_number(row.ap), _number(row.own_ap)]


def _gain_row(gain: Gain, words: str) -> dict[str, Any]:
    interval = f"[{gain.gain.low:.1f}, {gain.gain.high:.1f}]"
    return {
        "name": gain.name,
        "words": words,
        "gain": f"{gain.gain.mean:+.1f}",
        "interval": interval,
        "shown": gain.gain.shown,
        "cells": [f"{gain.values[name]:.1f}" for name in ("AP", "AP50", "AP75")],
    }


def _size_row(diagnosis: Diagnosis, i: int) -> dict[str, Any]:
    size = diagnosis.sizes[i]
    gain = "–" if size.gain is None else f"{size.gain:+.1f}"
    return {
        "name": size.name,
        "cells": [f"{size.objects:,}", f"{100 * size.detected:.0f} %", _number(size.spearman, 2), gain],
    }


def _points(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    rows = [
        (f"conf={diagnosis.confidence:g}, as deployed", diagnosis.curve.at(diagnosis.confidence)),
        ("best F1", diagnosis.curve.best_f1()),
    ]
    if diagnosis.curve_without_rescoring is not None:
        plain = diagnosis.curve_without_rescoring
        rows.append((f"conf={diagnosis.confidence:g}, rescore=False", plain.at(diagnosis.confidence)))
        rows.append(("best F1, rescore=False", plain.best_f1()))
    return [{"name": name, "cells": _point(point)} for name, point in rows]


def _point(point: OperatingPoint) -> list[str]:
    rates = [_number(value, 2) for value in (point.precision, point.recall, point.f1)]
    return [f"{point.threshold:.2f}", *rates, f"{point.false:,}", _number(point.per_image)]


def _reliability(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    drawn = [("The score", "score", diagnosis.reliability, 1)]
    if diagnosis.predicted_iou is not None:
        drawn.append(("The predicted IoU", "predicted IoU", diagnosis.predicted_iou, 3))
    charts = []
    for name, label, values, colour in drawn:
        if int(values.count.sum()):
            said = f"{name}: calibration error {values.error:.3f}, bias {values.bias:+.3f}"
            svg = reliability_chart(values, colour=colour, description=said, x_label=label)
            charts.append({"svg": svg, "caption": said})
    return charts


def _edges(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """Return how honest the deviations of edges are; None where the head states none."""
    measured, bins = diagnosis.coverage, diagnosis.spread
    if measured is None or bins is None:
        return None
    stated, actual = (f"{values[0]:.1f} to {values[-1]:.1f} px" for values in (bins.stated, bins.actual))
    said = f"The edges: stated deviations of {stated}, actual ones of {actual}"
    rows = coverage_table(measured)
    return {
        "chart": {"svg": spread_chart(bins, colour=3, description=said), "caption": said},
        "rows": [{"name": EDGES[row["part"]], "cells": [_share(row["within_one_sigma"])]} for row in rows],
        "count": f"{measured.count:,}",
        "factor": f"{measured.factor:.2f}",
    }


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _number(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
