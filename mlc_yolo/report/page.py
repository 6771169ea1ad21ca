"""The page: its template, style and script, joined into one file.

What users named (classes, paths, options) is escaped by the template engine. The page's own policy forbids it to load
or send anything, and to run any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mlc_yolo import __version__, whole_files
from mlc_yolo.compare.results import Comparison
from mlc_yolo.metrics.divergence import SCORE_THRESHOLD
from mlc_yolo.metrics.reliability import BINS
from mlc_yolo.report import sections
from mlc_yolo.report.gather import DataSet, gather

METHOD = (
    "An interval accounts for two kinds of chance. Other images might have been judged: images are drawn with "
    "replacement 1,000 times, the same draws for every run, and AP is computed anew from each draw. Other seeds might "
    "have been trained: the spread of the differences over pairs of runs of the same seed is added. With one seed, the "
    "interval speaks of these very weights on other images, and not of training again. Of comparisons of equals, one "
    "in twenty shows a difference by chance: with several metrics and many variants, expect some."
)
_FOLDER = Path(__file__).parent


def write_report(comparison: Comparison, path: str | Path) -> Path:
    """Write the report of a comparison.

    Args:
        comparison: a `Comparison`; runs that have not finished are left out.
        path: of the HTML file, which is replaced in one step.

    Returns:
        The path.
    """
    path = Path(path)
    whole_files.write(path, render(comparison))
    return path


def render(comparison: Comparison) -> str:
    """Return the page as HTML."""
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    sets = gather(comparison)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["breakable"] = breakable
    return environment.get_template("page.html").render(
        title=f"Comparison {comparison.folder.name}",
        facts=sections.facts(comparison, sets),
        sets=[_context(data) for data in sets],
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
        method=METHOD,
        date=date.today().isoformat(),
        software=f"mlc-yolo {__version__}, ultralytics {version('ultralytics')}, torch {version('torch')}",
        threshold=SCORE_THRESHOLD,
        bins=BINS,
    )


def breakable(name: str) -> Markup:
    """Return a name as markup in which a line may end after "," and "=".

    Example:
        >>> breakable("a=<b>,c")
        Markup('a=<wbr>&lt;b&gt;,<wbr>c')
    """
    return Markup("<wbr>").join(re.split(r"(?<=[,=])", name))


def _source(text: str) -> str:
    """Return the only text that the page's policy lets in, as its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _context(data: DataSet) -> dict[str, Any]:
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
        "differing": sections.differing_images(data),
    }
