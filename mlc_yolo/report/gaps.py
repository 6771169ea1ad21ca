"""The cost of each kind of mistake to a variant, and how its change affects that cost.

The *gap* of a mistake is what AP would gain if it alone were mended (`metrics.oracles`). Runs are paired by seed, and a
difference of gaps has its interval from `metrics.bootstrap`. Mending the rank inside objects needs the candidates
before NMS, which a comparison does not keep: `mlc-yolo diagnose` tells that gap.
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
REPAIRS = tuple(repair for repair in Repair if repair is not Repair.INSIDE)

Float64Array = NDArray[np.float64]


def gaps(records: Records) -> dict[str, Float64Array]:
    """Return what mending each mistake alone would gain.

    Args:
        records: of one validation.

    Returns:
        Name of the repair -> (1 + 100,) points of AP, 0 or more: on the images as they are, then on draws of them; nan
        where there is nothing to judge.
    """
    oracles, count = Oracles(records), len(records.images)
    weights = np.concatenate((np.ones((count, 1)), draw_images(count, resamples=RESAMPLES)), 1)
    plain = oracles((), weights)["AP"]
    return {repair.value: 100 * (oracles((repair,), weights)["AP"] - plain) for repair in REPAIRS}


def gap_tables(data: DataSet) -> list[dict[str, Any]]:
    """Return a table per variant: each mistake's gap in the baseline and in the variant, and their difference."""
    paired = [(variant, data.pairs(variant)) for variant in data.others]
    own = [gaps(records) for records in data.baseline.records]
    tables = []
    for variant, pairs in paired:
        if not pairs:
            continue
        first, second = [own[a] for a, _ in pairs], [gaps(variant.records[b]) for _, b in pairs]
        differences = paired_differences(first, second)
        rows = []
        for repair in REPAIRS:
            means = [float(np.mean([run[repair.value][0] for run in side])) for side in (first, second)]
            cells = [*map(cell, means), _difference(differences[repair.value])]
            rows.append({"name": repair.value, "words": WORDS[repair], "cells": cells})
        tables.append({"variant": variant, "rows": rows, "one_seed": len(pairs) == 1})
    return tables


def _difference(value: Difference) -> dict[str, Any]:
    if math.isnan(value.mean):
        return cell(math.nan)
    interval = f"({signed(value.low)} to {signed(value.high)})"
    shown = value.seeds > 1 and value.shown
    return {"value": value.mean, "text": signed(value.mean), "small": interval, "shown": shown}
