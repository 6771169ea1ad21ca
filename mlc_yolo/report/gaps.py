"""The cost of each kind of mistake to a variant, and how its change affects that cost.

The *gap* of a mistake is what AP would gain if it alone were mended (`metrics.oracles`). Runs are paired by seed, and a
difference of gaps has its interval from `metrics.bootstrap`. Mending the rank inside objects needs the best-placed
candidate of each object before NMS; that gap is not known of records without it, nor of heads that need no NMS.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.metrics.bootstrap import Difference, draw_images, paired_differences
from mlc_yolo.metrics.oracles import Oracles, Repair
from mlc_yolo.metrics.records import Records
from mlc_yolo.report.diagnosis_page import WORDS
from mlc_yolo.report.gather import DataSet
from mlc_yolo.report.numerals import cell, signed

RESAMPLES = 100

Float64Array = NDArray[np.float64]


def gaps(records: Records) -> dict[str, Float64Array]:
    """Return what mending each mistake alone would gain.

    Args:
        records: of one validation.

    Returns:
        Name of the repair -> (1 + 100,) points of AP, 0 or more: on the images as they are, then on draws of them; nan
        where there is nothing to judge, or the repair's gap is not known.
    """
    oracles, count = Oracles(records, reach=records.reach), len(records.images)
    weights = np.concatenate((np.ones((count, 1)), draw_images(count, resamples=RESAMPLES)), 1)
    plain = oracles((), weights)["AP"]
    unknown = np.full_like(plain, np.nan)
    known = {repair: repair is not Repair.INSIDE or records.reach is not None for repair in Repair}
    return {
        repair.value: 100 * (oracles((repair,), weights)["AP"] - plain) if known[repair] else unknown
        for repair in Repair
    }


def gap_rows(data: DataSet) -> list[dict[str, Any]]:
    """Return a row per variant and mistake: its gap in the baseline and in the variant, and their difference.

    Means and ends of the 95 % interval are in points of AP; None where they are not known.
    """
    own = [gaps(records) for records in data.baseline.records]
    rows = []
    for variant in data.others:
        pairs = data.pairs(variant)
        if not pairs:
            continue
        first, second = [own[a] for a, _ in pairs], [gaps(variant.records[b]) for _, b in pairs]
        differences = paired_differences(first, second)
        for repair in Repair:
            means = [_known(float(np.mean([run[repair.value][0] for run in side]))) for side in (first, second)]
            difference = differences[repair.value]
            rows.append(
                {
                    "data": data.name,
                    "variant": variant.name,
                    "baseline": data.baseline.name,
                    "mistake": repair.value,
                    "seeds": len(pairs),
                    "baseline_gap": means[0],
                    "gap": means[1],
                    "difference": _known(difference.mean),
                    "low": _known(difference.low),
                    "high": _known(difference.high),
                    "verdict": difference.verdict,
                }
            )
    return rows


def gap_tables(data: DataSet, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a table per variant of the rows that `gap_rows` gives."""
    tables = []
    for variant in data.others:
        own = [row for row in rows if row["variant"] == variant.name]
        shown = [
            {
                "name": row["mistake"],
                "words": WORDS[Repair(row["mistake"])],
                "cells": [*(cell(_number(row[name])) for name in ("baseline_gap", "gap")), _difference(row)],
            }
            for row in own
        ]
        if own:
            tables.append({"variant": variant, "rows": shown, "one_seed": own[0]["seeds"] == 1})
    return tables


def _difference(row: dict[str, Any]) -> dict[str, Any]:
    if row["difference"] is None:
        return cell(math.nan)
    value = Difference(row["difference"], math.nan, _number(row["low"]), _number(row["high"]), row["seeds"])
    interval = f"({signed(value.low)} to {signed(value.high)})"
    return {
        "value": value.mean,
        "text": signed(value.mean),
        "small": interval,
        "shown": value.seeds > 1 and value.shown,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
