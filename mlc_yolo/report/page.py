"""The page of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlc_yolo import whole_files
from mlc_yolo.compare.results import Comparison, write_table
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD
from mlc_yolo.metrics.reliability import BINS
from mlc_yolo.report import sections
from mlc_yolo.report.gaps import gap_rows, gap_tables
from mlc_yolo.report.gather import DataSet, gather
from mlc_yolo.report.template import fill

GAPS = "gaps.csv"
METHOD = (
    "An interval accounts for two kinds of chance. Other images might have been judged: images are drawn with "
    "replacement 1,000 times, the same draws for every run, and AP is computed anew from each draw. Other seeds might "
    "have been trained: the spread of the differences over pairs of runs of the same seed is added, by Student’s t, "
    "which makes intervals wide where two seeds differ (12.7 standard errors), less so for three (4.3) and five (2.8). "
    "With one seed that spread is unknown: the interval speaks of these very weights on other images, not of training "
    "again, and there is no verdict on the options. Of comparisons of equals, one in twenty shows a difference by "
    "chance: with several metrics and many variants, expect some."
)


def write_report(comparison: Comparison, path: str | Path) -> Path:
    """Write the report of a comparison, and beside it, as `gaps.csv`, what each mistake costs each variant.

    Args:
        comparison: a `Comparison`; runs that have not finished are left out.
        path: of the HTML file, which is replaced in one step.

    Returns:
        The path.
    """
    path, sets = Path(path), gather(comparison)
    gaps = [gap_rows(data) for data in sets]
    write_table(path.with_name(GAPS), [row for rows in gaps for row in rows])
    whole_files.write(path, render(comparison, sets, gaps))
    return path


def render(comparison: Comparison, sets: list[DataSet], gaps: list[list[dict[str, Any]]]) -> str:
    """Return the page as HTML.

    Args:
        comparison: what it is of.
        sets: what `gather` gives of it.
        gaps: what `gap_rows` gives of each of them.
    """
    return fill(
        "page.html",
        title=f"Comparison {comparison.folder.name}",
        facts=sections.facts(comparison, sets),
        sets=[_context(data, rows) for data, rows in zip(sets, gaps, strict=True)],
        method=METHOD,
        threshold=SCORE_THRESHOLD,
        bins=BINS,
    )


def _context(data: DataSet, gaps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the template fills in for one data set."""
    density, reliable = sections.score_charts(data)
    return {
        "name": data.name,
        "variants": data.variants,
        "verdicts": sections.verdicts(data),
        "tables": sections.tables(data),
        "intervals": sections.interval_charts(data),
        "curves": sections.curve_charts(data),
        "by_iou": sections.ap_by_iou_charts(data),
        "density": density,
        "reliability": reliable,
        "objects": f"{len(data.baseline.records[0].gt_labels):,}",
        "images": f"{len(data.baseline.records[0].images):,}",
        "kinds": sections.error_rows(data),
        "gaps": gap_tables(data, gaps),
        "differing": sections.differing_images(data),
    }
