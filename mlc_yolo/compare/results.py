"""The result of a comparison: a table of runs, and a table of differences with their uncertainty."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlc_yolo import whole_files
from mlc_yolo.compare.cell import RECORDS, SPECIFICATION, read_epochs
from mlc_yolo.compare.grid import Cell, Grid, plan
from mlc_yolo.metrics.bootstrap import Difference, draw_images, paired_differences
from mlc_yolo.metrics.records import Records, saved_digest
from mlc_yolo.metrics.weighted_ap import WeightedAP

GRID, RUNS, DIFFERENCES = "grid.yaml", "runs.csv", "differences.csv"

#: Columns of `differences`; `ratio` is of costs, what stands between it and the means is of metrics.
COLUMNS = (
    *("data", "variant", "baseline", "metric", "seeds", "baseline_mean", "baseline_sd", "mean", "sd"),
    *("difference", "difference_sd", "low", "high", "verdict", "ratio"),
)
#: Cost -> column of `runs`.
_COSTS = {"training_time": "train_seconds", "memory": "memory_mib", "latency": "latency_ms"}


class Comparison:
    """The results of a comparison's finished runs, by variant against the baseline.

    Prints as a table. Everything is read from the folder, on first use.

    Attributes:
        folder: the comparison's folder.
        grid: its runs.
        failed: runs that ended with an error the last time they were tried -> the last lines of their log.
    """

    def __init__(self, folder: str | Path, grid: Grid | None = None, failed: Mapping[str, str] | None = None) -> None:
        """Open a comparison.

        Args:
            folder: as `compare` made it.
            grid: what it holds; read from its `grid.yaml` if left out.
            failed: runs that ended with an error.

        Raises:
            OSError: no comparison is there.
        """
        self.folder = Path(folder)
        self.grid = grid or read_grid(self.folder)
        self.failed = dict(failed or {})

    @property
    def baseline(self) -> str:
        """Name of the variant the others are compared with."""
        return self.grid.baseline

    def records(self, cell: str) -> Records:
        """Return what the final validation of a run saw.

        Args:
            cell: its name, which is its folder's.

        Raises:
            KeyError: no such run.
            FileNotFoundError: it is not finished.
        """
        run = self.grid.cell(cell)
        if not is_finished(run, self.folder):
            raise FileNotFoundError(f"{cell} is not finished: compare again with the same options to resume")
        return Records.load(self.folder / cell / RECORDS)

    @property
    def finished(self) -> list[Cell]:
        """The finished runs."""
        return [cell for cell in self.grid.cells if is_finished(cell, self.folder)]

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """A row per finished run: its options, metrics (AP in percent), costs; None for what cannot be known."""
        latency = {data: read_latency(self.folder, data) for data in {cell.data for cell in self.grid.cells}}
        rows = []
        for cell in self.finished:
            epochs = read_epochs(self.folder / cell.name)
            specification = yaml.safe_load((self.folder / cell.name / SPECIFICATION).read_text(encoding="utf-8"))
            metrics = {name: _known(values[0] * _factor(name)) for name, values in self._values[cell.name].items()}
            rows.append(
                {
                    "cell": cell.name,
                    "data": cell.data,
                    "variant": cell.variant,
                    "seed": cell.seed,
                    **{name: value for name, value in cell.varied.items() if name not in {"data", "seed"}},
                    **metrics,
                    "epochs": len(epochs),
                    "train_seconds": round(sum(epoch.seconds for epoch in epochs), 3),
                    "memory_mib": _known(max((epoch.memory for epoch in epochs), default=math.nan)),
                    "latency_ms": latency[cell.data].get(cell.variant),
                    "device": " + ".join(dict.fromkeys(epoch.device for epoch in epochs)),
                    "version": specification["version"],
                    "command": cell.command,
                }
            )
        return rows

    @cached_property
    def differences(self) -> list[dict[str, Any]]:
        """A row per variant and metric, against the baseline on the same data; AP in percent points."""
        rows = []
        for data in dict.fromkeys(cell.data for cell in self.grid.cells):
            for variant in self.grid.variants[1:]:
                pairs = self._pairs(data, variant)
                if pairs:
                    rows += self._metric_rows(pairs) + _cost_rows(pairs)
        return rows

    def write(self) -> None:
        """Write both tables as CSV."""
        write_table(self.folder / RUNS, self.runs)
        write_table(self.folder / DIFFERENCES, self.differences)

    def to_pandas(self, table: str = "differences") -> Any:
        """Return a table as a pandas DataFrame.

        Args:
            table: "differences" or "runs".

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas  # type: ignore[import-untyped,unused-ignore]

        return pandas.DataFrame(self._table(table))

    def to_polars(self, table: str = "differences") -> Any:
        """Return a table as a polars DataFrame.

        Args:
            table: "differences" or "runs".

        Raises:
            ImportError: polars is not installed.
        """
        import polars

        return polars.DataFrame(self._table(table), infer_schema_length=None)

    def __str__(self) -> str:
        """Return a block of lines per variant: metric, means with spread over seeds, difference, interval, verdict."""
        by_variant = groupby(self.differences, key=lambda row: (row["data"], row["variant"]))
        blocks = [_block(list(rows)) for _, rows in by_variant]
        notes = []
        if self.differences:
            notes.append(
                "AP in percent, ± standard deviation over seeds; intervals at 95 %, over images and seeds. "
                "One in twenty comparisons of equals shows a difference by chance."
            )
        if any(row["seeds"] == 1 for row in self.differences):
            notes.append(
                "With one seed intervals speak of these two sets of weights on other images, not of training again: no "
                "verdict on the options. Add seeds to the command (seed=0,1,2); finished runs are kept."
            )
        if any(row["seeds"] == 2 for row in self.differences):
            notes.append(
                "Two seeds say little about a third: where they disagree, intervals are wide. Take three or more."
            )
        if self.failed:
            notes.append(f"Failed: {', '.join(self.failed)}")
        if not blocks:
            notes.append(f"{len(self.finished)} of {len(self.grid.cells)} runs finished, none that can be compared.")
        return "\n\n".join([*blocks, "\n".join(notes)])

    @cached_property
    def _values(self) -> dict[str, dict[str, np.ndarray]]:
        """Run -> metric -> values on the images as they are, then on each draw of them.

        Raises:
            ValueError: runs on the same data were validated on different images.
        """
        first: dict[str, Records] = {}
        weights: dict[str, np.ndarray] = {}
        values = {}
        for cell in self.finished:
            records = Records.load(self.folder / cell.name / RECORDS)
            if cell.data not in first:
                count = len(records.images)
                first[cell.data] = records
                weights[cell.data] = np.concatenate((np.ones((count, 1)), draw_images(count)), 1)
            if not records.same_images(first[cell.data]):
                raise ValueError(
                    f"{cell.name} was validated on other images or labels than the runs before it: the data set has "
                    f"changed. Delete {self.folder} and compare again"
                )
            values[cell.name] = WeightedAP(records)(weights[cell.data])
        return values

    def _pairs(self, data: str, variant: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return rows of `runs`, baseline and variant, of the seeds that both have finished."""
        of = {(row["variant"], row["seed"]): row for row in self.runs if row["data"] == data}
        seeds = [seed for name, seed in of if name == variant and (self.baseline, seed) in of]
        return [(of[self.baseline, seed], of[variant, seed]) for seed in seeds]

    def _metric_rows(self, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
        bases, variants = ([self._values[row["cell"]] for row in side] for side in zip(*pairs, strict=True))
        shared = [name for name in bases[0] if name in variants[0]]  # models of two tasks share those of boxes
        differences = paired_differences([{name: base[name] for name in shared} for base in bases], variants)
        return [{**_row(name, name, pairs), **_scaled(differences[name], _factor(name))} for name in shared]

    def _table(self, name: str) -> list[dict[str, Any]]:
        if name not in {"differences", "runs"}:
            raise ValueError(f"table={name!r} must be 'differences' or 'runs'")
        table: list[dict[str, Any]] = getattr(self, name)
        return table


def read_grid(folder: Path) -> Grid:
    """Read the grid of a comparison's folder.

    Raises:
        OSError: no comparison is there.
    """
    content = yaml.safe_load((folder / GRID).read_text(encoding="utf-8"))
    return plan({**content["options"], **content["lists"]}, content["baseline"])


def is_finished(cell: Cell, folder: Path) -> bool:
    """Whether the run's records are there and come from its options."""
    return saved_digest(folder / cell.name / RECORDS) == cell.digest


def latency_file(folder: Path, data: str) -> Path:
    """Return the file of a data set's latencies."""
    return folder / f"latency-{data}.yaml"


def read_latency(folder: Path, data: str) -> dict[str, float]:
    """Return milliseconds per image by variant; empty where nothing was measured."""
    path = latency_file(folder, data)
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    milliseconds: dict[str, float] = content.get("milliseconds", {})
    return milliseconds


def _row(metric: str, column: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Return a row of differences, its verdict still missing."""
    base, variant = pairs[0]
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"data": base["data"], "variant": variant["variant"], "baseline": base["variant"], "metric": metric}
    row["seeds"] = len(pairs)
    for prefix, side in zip(("baseline_", ""), zip(*pairs, strict=True), strict=True):
        values = [run[column] for run in side]
        if None not in values:
            row[f"{prefix}mean"] = _known(float(np.mean(values)))
            if len(values) > 1 and metric != "latency":  # which is measured once for all seeds
                row[f"{prefix}sd"] = _known(float(np.std(values, ddof=1)))
    return row


def _cost_rows(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of costs; times measured on different devices have no ratio."""
    rows = [_row(metric, column, pairs) for metric, column in _COSTS.items()]
    same = len({row["device"] for pair in pairs for row in pair}) == 1
    for row in rows:
        if row["mean"] and row["baseline_mean"] and (same or row["metric"] == "latency"):
            row["ratio"] = _known(row["mean"] / row["baseline_mean"])
    return rows


def _scaled(difference: Difference, factor: float) -> dict[str, Any]:
    return {
        "difference": _known(difference.mean * factor),
        "difference_sd": _known(difference.sd * factor),
        "low": _known(difference.low * factor),
        "high": _known(difference.high * factor),
        "verdict": difference.verdict,
    }


def _factor(metric: str) -> float:
    """Return the factor to the unit of the tables: percent of APs, none of others."""
    return 100.0 if "AP" in metric else 1.0


def _known(value: float) -> float | None:
    """Return the value, rounded as results are kept; None for nan."""
    return None if math.isnan(value) else round(float(value), 4)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV in one step; None is nothing."""
    table = io.StringIO(newline="")
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))  # models of some tasks have more metrics
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    whole_files.write(path, table.getvalue())


def _block(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the lines of one variant."""
    first = rows[0]
    seeds = f"{first['seeds']} seed{'s' * (first['seeds'] > 1)}"
    width = 16 if first["seeds"] > 1 else 11  # one seed has no spread, but a longer verdict
    lines = [
        f"{first['variant']} against {first['baseline']} on {first['data']}, {seeds}",
        f"  {'':14}{'baseline':>{width}}{'variant':>{width}}{'difference':>{width}}   {'interval':17}verdict",
    ]
    for row in rows:
        digits = 3 if row["metric"] == "spearman" else 1
        means = [_spread(row[f"{prefix}mean"], row[f"{prefix}sd"], digits) for prefix in ("baseline_", "")]
        line = f"  {row['metric'].replace('_', ' '):14}{means[0]:>{width}}{means[1]:>{width}}"
        if row["verdict"]:
            change = _spread(row["difference"], row["difference_sd"], digits, sign="+")
            known = row["low"] is not None
            ends = (f"{round(row[end], digits) + 0.0:+.{digits}f}" for end in ("low", "high")) if known else ()
            interval = f"[{', '.join(ends)}]" if known else ""
            line += f"{change:>{width}}   {interval:17}{row['verdict']}"
        elif row["ratio"] is not None:
            line += f"{'x ' + format(row['ratio'], '.2f'):>{width}}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _spread(mean: float | None, sd: float | None, digits: int, sign: str = "") -> str:
    if mean is None:
        return "-"
    return f"{round(mean, digits) + 0.0:{sign}.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")
