"""The sections of the report: the values of its template, computed from the gathered results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.compare.results import Comparison
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD
from mlc_yolo.metrics.errors import BACKGROUND, FOREGROUND, Kind, count_kinds
from mlc_yolo.metrics.reliability import reliability
from mlc_yolo.report import charts
from mlc_yolo.report.differing import Differing, Judged, differences, most_differing
from mlc_yolo.report.gather import DataSet, Variant
from mlc_yolo.report.judged_by import METRICS, leading
from mlc_yolo.report.numerals import cell, signed

#: Column of results.csv -> what it is called.
CURVES = {
    "metrics/mAP50-95(M)": "Mask AP",
    "metrics/mAP50-95(P)": "Pose AP",
    "metrics/mAP50-95(B)": "AP",
    "metrics/mAP50(B)": "AP50",
    "metrics/spearman(B)": "Spearman, score and IoU",
}
#: Column of `Comparison.runs` -> its name in `Comparison.differences`, what it is called, and a factor to its unit.
COSTS = {
    "train_seconds": ("training_time", "Training, min", 1 / 60),
    "memory_mib": ("memory", "Peak memory, MiB", 1.0),
    "latency_ms": ("latency", "Latency, ms per image", 1.0),
}
COST_NOTE = (
    "Mean over the finished runs, and its ratio to the baseline’s. Training without validation; memory at its peak in "
    "training; latency of inference and NMS at batch 1, measured once per variant."
)
#: What stands beside a verdict from one seed.
ONE_SEED = (
    "One seed: this speaks of these two sets of weights only, and says nothing on the options. Trained again, the "
    "difference may vanish or turn round. For a verdict add seeds to the command, such as seed=0,1,2; finished runs "
    "are kept."
)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
#: Photographs of a page are limited to this many pairs; each direction of each variant gets one at least.
MOST_PAIRS, MOST_PER_LIST = 12, 3

KINDS = {
    Kind.LOCALIZATION: (
        "Localisation",
        f"right class, IoU from {BACKGROUND} to below {FOREGROUND}",
    ),
    Kind.CLASS: ("Class", f"IoU of {FOREGROUND} or more with an object of another class"),
    Kind.DUPLICATE: (
        "Duplicate",
        f"right class, IoU of {FOREGROUND} or more, but a better-scored box has found the object",
    ),
    Kind.BACKGROUND: ("Background", f"IoU below {BACKGROUND} with every object"),
    Kind.BOTH: ("Both", f"another class, and IoU from {BACKGROUND} to below {FOREGROUND}"),
    Kind.MISSED: ("Missed", "an object that no box found and no localisation or class error was meant for"),
}

Float64Array = NDArray[np.float64]


def facts(comparison: Comparison, sets: Sequence[DataSet]) -> list[tuple[str, str]]:
    """Return label and value of what the numbers come from; what is not known is left out."""
    runs = [run for data in sets for variant in data.variants for run in variant.runs]
    hours = sum(run["train_seconds"] for run in runs) / 3600
    fixed = comparison.grid.fixed
    sizes = [(data.name, data.baseline.records[0]) for data in sets]
    known = {
        "Data": "; ".join(
            f"{name}: {len(records.images):,} images, {len(records.gt_labels):,} objects" for name, records in sizes
        ),
        "Model": Path(str(fixed["model"])).name if "model" in fixed else "",
        "Runs": f"{len(runs)} of {len(comparison.grid.cells)} finished",
        "Training": f"{_duration(hours)} in all",
        "Device": _distinct(runs, "device"),
        "Date": _distinct(runs, "date"),
        "Version": _distinct(runs, "version"),
        "Commit": _distinct(runs, "commit"),
        "Options of all": ", ".join(f"{key}={value}" for key, value in fixed.items() if key not in {"data", "model"}),
    }
    return [(label, value) for label, value in known.items() if value]


def verdicts(data: DataSet) -> list[dict[str, Any]]:
    """Return a sentence per variant: what became of AP, then of the other metrics that moved.

    One seed gives no verdict on the options: its difference is neither better nor worse, and more seeds are asked for.
    """
    sentences = []
    first = leading(data)
    for variant in data.others:
        row = data.difference(variant, first)
        if row is None or row["difference"] is None:
            continue
        moved = [
            f"{METRICS[metric][0]} {_interval(other, metric)}"
            for metric in METRICS
            if metric != first and (other := data.difference(variant, metric)) and _shown(other)
        ]
        tone = ("better" if row["difference"] > 0 else "worse") if _proves(row) else "open"
        others = f"Also shown: {'; '.join(moved)}." if moved else "No other metric shows a difference."
        text, verdict, caveat = _interval(row, first), row["verdict"], ONE_SEED if row["seeds"] == 1 else ""
        sentences.append(
            {
                "variant": variant,
                "tone": tone,
                "name": METRICS[first][0],
                "text": text,
                "verdict": verdict,
                "caveat": caveat,
                "others": others,
            }
        )
    return sentences


def tables(data: DataSet) -> list[dict[str, Any]]:
    """Return the tables: what each variant reached, its differences from the baseline, its cost, and every run."""
    metrics = [metric for metric in METRICS if any(np.isfinite(v.values(metric)).any() for v in data.variants)]
    costs = [key for key in COSTS if any(np.isfinite(v.values(key)).any() for v in data.variants)]
    headings = [(METRICS[metric][0], METRICS[metric][1]) for metric in metrics]
    reached = [
        {"variant": v, "cells": [cell(len(v.runs), 0), *(_mean(v, metric) for metric in metrics)]}
        for v in data.variants
    ]
    note = "Mean over the finished runs ± standard deviation."
    made: list[dict[str, Any]] = [
        {"heading": "Reached", "note": note, "headings": [("Variant", ""), ("Runs", ""), *headings], "rows": reached}
    ]
    if data.others:
        rows = [
            {"variant": v, "cells": [_difference(data.difference(v, metric), metric) for metric in metrics]}
            for v in data.others
        ]
        shared = {
            "heading": "Difference from the baseline",
            "note": "Mean over pairs of runs of the same seed, and its 95 % interval; bold where that excludes zero "
            "and there are two pairs or more.",
        }
        made.append({**shared, "headings": [("Variant", ""), *headings], "rows": rows, "stacked": True})
    if costs:
        cost_headings = [(COSTS[key][1], "") for key in costs]
        rows = [{"variant": v, "cells": [_cost(data, v, key) for key in costs]} for v in data.variants]
        shared = {"heading": "Cost", "note": COST_NOTE}
        made.append({**shared, "headings": [("Variant", ""), *cost_headings], "rows": rows})
    runs = [
        {
            "variant": v,
            "run": f"seed {run['seed']}",
            "cells": [cell(v.values(metric)[i], METRICS[metric][2]) for metric in metrics],
        }
        for v in data.variants
        for i, run in enumerate(v.runs)
    ]
    made.append({"heading": "Every run", "note": "", "headings": [("Run", ""), *headings], "rows": runs})
    return made


def interval_charts(data: DataSet) -> list[dict[str, Any]]:
    """Draw the differences of the most asked metrics."""
    drawn = []
    main = leading(data)
    for metric in dict.fromkeys((main, f"{main}50", f"{main}75", "AP")):
        name = METRICS[metric][0]
        intervals, said = [], []
        for variant in data.others:
            row = data.difference(variant, metric)
            if row is not None and row["difference"] is not None:
                first, own = data.baseline.values(metric), variant.values(metric)
                pairs = [float(own[b] - first[a]) for a, b in data.pairs(variant)]
                mean, low, high = row["difference"], row["low"], row["high"]
                intervals.append(charts.Interval(variant.name, variant.colour, mean, low, high, pairs))
                said.append(f"{variant.name} {_interval(row, metric)}, {row['verdict']}")
        if intervals:
            description = f"Difference of {name} from the baseline in points: {'; '.join(said)}."
            svg = charts.interval_chart(intervals, x_label=f"difference of {name}, points", description=description)
            rings = "; rings are single pairs of runs" if any(len(interval.pairs) > 1 for interval in intervals) else ""
            drawn.append({"svg": svg, "caption": f"{name}: mean and 95 % interval{rings}"})
    return drawn


def _duration(hours: float) -> str:
    """Return a time in the unit that suits it."""
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 30 else f"{3600 * hours:.0f} seconds"


def curve_charts(data: DataSet) -> list[dict[str, Any]]:
    """Draw what validation said after every epoch."""
    drawn = []
    for column, name in CURVES.items():
        variants = [v for v in data.variants if any(column in curves for curves in v.curves)]
        if not variants:
            continue
        validated = [c["epoch"][np.isfinite(c[column])] for v in variants for c in v.curves if column in c]
        epochs = np.unique(np.concatenate(validated))
        lines = []
        for variant in variants:
            values = np.full((len(variant.curves), len(epochs)), np.nan)
            for i, curves in enumerate(variant.curves):
                if column in curves:
                    known = np.isfinite(curves[column])
                    values[i, np.searchsorted(epochs, curves["epoch"][known])] = curves[column][known]
            lines.append(_line(variant, values * (100 if "mAP" in column else 1)))
        decimals = 1 if "mAP" in column else 3
        ends = ", ".join(f"{line.name} {_last(line.y):.{decimals}f}" for line in lines)
        description = f"{name} by epoch. At the end: {ends}."
        drawn.append(
            {
                "svg": charts.line_chart(epochs, lines, x_label="epoch", y_label=name, description=description),
                "caption": "",
            }
        )
    return drawn


def ap_by_iou_charts(data: DataSet) -> list[dict[str, Any]]:
    """Draw AP over the IoU that a box must reach, and the difference from the baseline's."""
    lines = [_line(v, 100 * v.ap_by_iou) for v in data.variants]
    ends = "; ".join(f"{line.name} {line.y[0]:.1f} at 0.50, {line.y[-1]:.1f} at 0.95" for line in lines)
    caption = "AP: mean over runs, band from the lowest to the highest"
    label = "IoU that counts as correct"
    svg = charts.line_chart(THRESHOLDS, lines, x_label=label, y_label="AP", description=f"AP by IoU threshold: {ends}.")
    drawn = [{"svg": svg, "caption": caption}]
    paired = [(v, data.pairs(v)) for v in data.others]
    lines = [
        _line(v, 100 * np.stack([v.ap_by_iou[b] - data.baseline.ap_by_iou[a] for a, b in pairs]))
        for v, pairs in paired
        if pairs
    ]
    if lines:
        ends = "; ".join(f"{line.name} {signed(line.y[0])} at 0.50, {signed(line.y[-1])} at 0.95" for line in lines)
        description = f"Difference of AP from the baseline by IoU threshold: {ends}."
        svg = charts.line_chart(
            THRESHOLDS, lines, x_label=label, y_label="difference, points", description=description, zero=True
        )
        drawn.append(
            {"svg": svg, "caption": "Difference from the baseline: mean over pairs of runs, band over all pairs"}
        )
    return drawn


def score_charts(data: DataSet) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw, per variant, the density of boxes over score and IoU, and the reliability of the score."""
    density, reliable = [], []
    for variant in data.variants:
        scores, ious = variant.scores_and_ious(SCORE_THRESHOLD)
        bins = reliability(scores, ious)
        description = f"{variant.name}: density of {len(scores):,} detections over score and IoU."
        svg = charts.density_chart(scores, ious, description=description)
        density.append({"svg": svg, "variant": variant, "caption": f"{len(scores):,} detections"})
        if math.isnan(bins.error):
            said = "no detections"
        else:
            direction = "above" if bins.bias > 0 else "below"
            said = f"ECE {bins.error:.3f}; scores are {abs(bins.bias):.3f} {direction} IoU on average"
        description = (
            f"{variant.name}: mean IoU by bins of the score, with {_spoken(bins.count.tolist())} boxes; {said}."
        )
        svg = charts.reliability_chart(bins, colour=variant.colour, description=description)
        reliable.append({"svg": svg, "variant": variant, "caption": said})
    return density, reliable


def error_rows(data: DataSet) -> list[dict[str, Any]]:
    """Return the table of errors by kind: mean counts over runs, and shares."""
    means = []
    for variant in data.variants:
        counts = [count_kinds(list(run.images)) for run in variant.judged]
        means.append({kind: float(np.mean([count[kind] for count in counts])) for kind in Kind})
    totals = [sum(mean[kind] for kind in KINDS) for mean in means]
    rows = []
    for kind, (name, definition) in KINDS.items():
        cells = []
        for variant, mean, total in zip(data.variants, means, totals, strict=True):
            percent = 100 * mean[kind] / total if total else 0.0
            share = {"share": f"{percent:.0f} %", "percent": f"{percent:.1f}", "colour": variant.colour}
            cells.append({"count": _count(mean[kind]), **share})
        rows.append({"name": name, "definition": definition, "cells": cells})
    all_errors = [{"count": _count(total)} for total in totals]
    rows.append({"name": "All errors", "definition": "", "cells": all_errors, "class_": "sum"})
    correct = [{"count": _count(mean[Kind.CORRECT])} for mean in means]
    definition = f"right class, IoU of {FOREGROUND} or more, first to find its object"
    rows.append({"name": "Correct", "definition": definition, "cells": correct})
    return rows


def differing_images(data: DataSet) -> list[dict[str, Any]]:
    """Return, for each variant, the images on which it and the baseline differ most."""
    count = max(1, min(MOST_PER_LIST, MOST_PAIRS // (2 * max(1, len(data.others)))))
    compared = []
    for variant in data.others:
        pairs = data.pairs(variant)
        first: Sequence[Judged] = [data.baseline.judged[a] for a, _ in pairs]
        second: Sequence[Judged] = [variant.judged[b] for _, b in pairs]
        if not pairs:
            continue
        mean = differences(first, second).mean(0)
        names = (data.baseline.name, variant.name)
        better, worse = most_differing(first, second, names, count=count)
        higher, lower = int((mean > 0).sum()), int((mean < 0).sum())
        summary = (
            f"Of {len(mean)} images, {variant.name} is better on {higher} and worse on {lower}; mean difference of "
            f"quality {signed(float(mean.mean()), 3)}."
        )
        lists = [
            (f"Where {variant.name} is better", _shown_images(better, names)),
            (f"Where {variant.name} is worse", _shown_images(worse, names)),
        ]
        compared.append({"variant": variant, "summary": summary, "lists": lists})
    return compared


def _shown_images(images: Sequence[Differing], names: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "file": image.file,
            "difference_text": signed(image.difference, 2),
            "panels": list(zip(image.panels, names, strict=True)),
        }
        for image in images
    ]


def _line(variant: Variant, values: Float64Array) -> charts.Line:
    """Return the mean of (runs, N) values and their range, nan where no run has a value."""
    known = np.isfinite(values)
    some = known.any(0)
    mean = np.divide(np.where(known, values, 0).sum(0), known.sum(0), out=np.full(values.shape[1], np.nan), where=some)
    if len(values) == 1:
        return charts.Line(variant.name, variant.colour, mean)
    low, high = np.where(known, values, np.inf).min(0), np.where(known, values, -np.inf).max(0)
    return charts.Line(variant.name, variant.colour, mean, np.where(some, low, np.nan), np.where(some, high, np.nan))


def _last(values: NDArray[np.floating]) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _shown(row: dict[str, Any]) -> bool:
    return row["low"] is not None and (row["low"] > 0 or row["high"] < 0)


def _proves(row: dict[str, Any]) -> bool:
    """Whether a difference speaks of the options, which takes two seeds, and is shown."""
    return row["seeds"] > 1 and _shown(row)


def _interval(row: dict[str, Any], metric: str) -> str:
    mean, low, high = (signed(row[key], METRICS[metric][2]) for key in ("difference", "low", "high"))
    return f"{mean} ({low} to {high})"


def _difference(row: dict[str, Any] | None, metric: str) -> dict[str, Any]:
    if row is None or row["difference"] is None:
        return cell(math.nan)
    mean, _, interval = _interval(row, metric).partition(" ")
    return {"value": row["difference"], "text": mean, "small": interval, "shown": _proves(row)}


def _mean(variant: Variant, metric: str) -> dict[str, Any]:
    values, digits = variant.values(metric), METRICS[metric][2]
    values = values[np.isfinite(values)]
    if not len(values):
        return cell(math.nan)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return {**cell(float(values.mean()), digits), "small": spread}


def _cost(data: DataSet, variant: Variant, key: str) -> dict[str, Any]:
    name, _, factor = COSTS[key]
    values = factor * variant.values(key)
    values = values[np.isfinite(values)]
    if not len(values):
        return cell(math.nan)
    row = data.difference(variant, name)
    ratio = "" if row is None or row["ratio"] is None else f" × {row['ratio']:.2f}"
    return {**cell(float(values.mean()), 0 if values.mean() >= 100 else 1), "small": ratio}


def _count(mean: float) -> str:
    return f"{mean:,.0f}" if mean == round(mean) or mean >= 100 else f"{mean:,.1f}"


def _spoken(counts: Sequence[int]) -> str:
    return ", ".join(f"{count:,}" for count in counts)


def _distinct(runs: Sequence[dict[str, Any]], key: str) -> str:
    """Return the different values of runs."""
    return ", ".join(dict.fromkeys(str(run[key]) for run in runs if run.get(key) not in (None, "")))
