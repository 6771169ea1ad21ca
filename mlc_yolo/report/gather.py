"""Gather the results of a comparison for its report: by data set and variant, the baseline first."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.compare.results import Comparison
from mlc_yolo.metrics.errors import judge
from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.reliability import best_ious
from mlc_yolo.metrics.weighted_ap import WeightedAP
from mlc_yolo.report.differing import Judged

#: Colours of the style sheet: one for the baseline, the others in turn.
COLOURS = 7

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Variant:
    """The finished runs of one variant on one data set.

    Attributes:
        name: such as "assigner=mlc".
        colour: number of its colour; 0 is the baseline's.
        runs: what `Comparison.runs` says of each, by seed.
        records: of each.
        curves: of each, column of results.csv -> (epochs,); no column where there is no such file.
    """

    name: str
    colour: int
    runs: list[dict[str, Any]]
    records: list[Records]
    curves: list[dict[str, Float64Array]]

    @cached_property
    def judged(self) -> list[Judged]:
        """What is right and wrong in each run."""
        return [Judged(records, judge(records)) for records in self.records]

    @cached_property
    def ap_by_iou(self) -> Float64Array:
        """(runs, 10) AP at IoU 0.50:0.05:0.95, nan where there is nothing to judge."""
        return np.stack([WeightedAP(records).by_threshold() for records in self.records])

    @property
    def commands(self) -> list[str]:
        """What repeats each run."""
        return [str(run["command"]) for run in self.runs]

    def values(self, key: str) -> Float64Array:
        """Return one value per run; nan where it is not known."""
        return np.array([_number(run.get(key)) for run in self.runs], dtype=np.float64)

    def scores_and_ious(self, threshold: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return score and best IoU of all runs' detections from a score on, (N,) each."""
        pairs = [(records.scores, best_ious(records)) for records in self.records]
        scores, ious = (np.concatenate(part) for part in zip(*pairs, strict=True))
        kept = scores >= threshold
        return scores[kept], ious[kept]


@dataclass(frozen=True)
class DataSet:
    """The variants on one data set.

    Attributes:
        name: of the data set.
        variants: those with a finished run, the baseline first.
        differences: what `Comparison.differences` says of each of them and metric.
    """

    name: str
    variants: list[Variant]
    differences: list[dict[str, Any]]

    @property
    def baseline(self) -> Variant:
        """What the others are compared with."""
        return self.variants[0]

    @property
    def others(self) -> list[Variant]:
        """All but the baseline."""
        return self.variants[1:]

    def difference(self, variant: Variant, metric: str) -> dict[str, Any] | None:
        """Return the difference of a variant and the baseline; None where there is none."""
        for row in self.differences:
            if row["variant"] == variant.name and row["metric"] == metric:
                return row
        return None

    def pairs(self, variant: Variant) -> list[tuple[int, int]]:
        """Return the pairs of runs of equal seed, as places in the baseline's runs and in the variant's."""
        seeds = {run["seed"]: i for i, run in enumerate(self.baseline.runs)}
        return [(seeds[run["seed"]], i) for i, run in enumerate(variant.runs) if run["seed"] in seeds]


def gather(comparison: Comparison) -> list[DataSet]:
    """Read everything that the report shows.

    Args:
        comparison: its finished runs are read.

    Returns:
        The data sets on which a run of the baseline has finished, in the order of their first run.
    """
    sets = []
    for data in dict.fromkeys(run["data"] for run in comparison.runs):
        runs = [run for run in comparison.runs if run["data"] == data]
        names = dict.fromkeys([comparison.baseline, *(run["variant"] for run in runs)])
        variants = []
        for i, name in enumerate(names):
            own = sorted((run for run in runs if run["variant"] == name), key=lambda run: run["seed"])
            if own:
                colour = i if i < COLOURS else 1 + (i - 1) % (COLOURS - 1)
                records = [comparison.records(run["cell"]) for run in own]
                curves = [read_curves(comparison.folder / run["cell"] / "results.csv") for run in own]
                variants.append(Variant(name or "every run", colour, own, records, curves))
        if variants and variants[0].colour == 0:
            differences = [row for row in comparison.differences if row["data"] == data]
            sets.append(DataSet(data, variants, differences))
    return sets


def read_curves(path: Path) -> dict[str, Float64Array]:
    """Return the columns of a run's results.csv; none where there is no such file.

    What is no number is nan, and so are metrics of epochs without validation, for which Ultralytics writes zeros.
    """
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = [{key.strip(): _number(value) for key, value in row.items() if key} for row in csv.DictReader(file)]
    curves = {key: np.array([row[key] for row in rows]) for key in (rows[0] if rows else {})}
    skipped = curves.get("val/cls_loss", np.ones(len(rows))) == 0
    return {key: np.where(skipped, np.nan, y) if key.startswith("metrics/") else y for key, y in curves.items()}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
