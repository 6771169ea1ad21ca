"""Drawings of the documentation, as SVG files of their own that follow the reader's light or dark colours."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from mlc_yolo.report.charts import HEIGHT, WIDTH, Frame, limits, svg, tag

CSS = Path(__file__).resolve().parents[2] / "mlc_yolo" / "report" / "page.css"
OWN = """
svg { font-family: system-ui, sans-serif; }
.card { fill: var(--paper); }
.box { fill: var(--tint); stroke: var(--soft); stroke-width: 1; }
.chosen { fill: var(--tint); stroke: var(--s1); stroke-width: 2.5; }
svg .head { font-size: 13px; font-weight: 600; }
svg .small { fill: var(--soft); font-size: 11px; }
.arrow { fill: none; stroke: var(--soft); stroke-width: 1.5; marker-end: url(#tip); }
.tip { fill: var(--soft); }
"""
#: Room of the package, from the ground up -> what is decided or done there.
ROOMS = (
    ("cli · guide · modes · demo", "the command line"),
    ("compare · report", "does it help? pages"),
    ("figures · paper", "pictures, rows of papers"),
    ("model · opening", "MLCYOLO"),
    ("training · evaluation", "trainers, validators, diagnosis"),
    ("checkpoints · data · options", "files, images, arguments"),
    ("heads · detectors", "layers and models"),
    ("losses · metrics · plots", "pure losses and measures"),
    ("assigners", "who is a positive sample"),
    ("boxes · priors · coding · nms · voting", "pure geometry"),
)


def standing(panels: Sequence[tuple[str, Markup]], description: str, foot: Sequence[Markup] = ()) -> Markup:
    """Return charts side by side, each under its title, as one file.

    Args:
        panels: title and chart.
        description: what a reader who does not see the picture should know of it.
        foot: what stands below the charts, in 24 units of height.
    """
    parts, deepest = [], 0.0
    for number, (title, chart) in enumerate(panels):
        height = float(chart.split('viewBox="0 0 ')[1].split('"')[0].split()[1])
        deepest = max(deepest, height)
        left = number * (WIDTH + 16) + 8
        parts.append(tag("text", title, x=left + 8, y=20, class_="head"))
        placed = str(chart).replace("<svg ", f'<svg x="{left}" y="26" width="{WIDTH}" height="{height:g}" ', 1)
        parts.append(Markup(placed))
    return _file(len(panels) * (WIDTH + 16), deepest + 34 + 24 * bool(foot), description, [*parts, *foot])


def gains(table: Path) -> Markup:
    """Return what each method gained in AP over the gap of ranking inside objects before it, a panel a method.

    Args:
        table: CSV of columns method, set, gap, gain (percent points) and others.
    """
    with open(table, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    panels = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        gaps, gained = (np.array([float(row[name]) for row in own]) for name in ("gap", "gain"))
        frame = Frame(limits(np.array([float(row["gap"]) for row in rows])), limits(gained, zero=True))
        parts = [frame.axes("rank inside objects: gap before, AP", "gain, AP")]
        parts.append(frame.line([frame.x[0], frame.x[1]], [0, 0], class_="zero"))
        for row, x, y in zip(own, gaps, gained, strict=True):
            parts.append(frame.dot(x, y, class_=f"dot s{sets.index(row['set']) + 1}"))
        described = f"{method}: gains from {gained.min():+.1f} to {gained.max():+.1f} AP"
        panels.append((f"{method}, {len(own)} pairs", svg(HEIGHT, described, parts)))
    legend = [
        part
        for number, name in enumerate(sets)
        for part in (
            tag("circle", cx=24 + 110 * number, cy=HEIGHT + 44, r=4, class_=f"dot s{number + 1}"),
            tag("text", name, x=33 + 110 * number, y=HEIGHT + 48),
        )
    ]
    said = (
        "What methods gained over the gap of ranking inside objects of the detector before: no line through the points"
    )
    return standing(panels, said, foot=legend)


def seam() -> Markup:
    """Return the diagram of one training step around the assigner."""
    parts = [
        Markup('<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" ')
        + Markup('orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'),
        *_box(16, 70, 96, 60, "Head", ["raw outputs"]),
        *_box(150, 12, 168, 52, "Predictions", ["scores (B,A,K) · boxes (B,A,4)"]),
        *_box(150, 74, 168, 52, "Priors", ["points, boxes, strides, levels"]),
        *_box(150, 136, 168, 52, "Targets", ["labels, boxes, valid"]),
        *_box(358, 70, 96, 60, "Assigner", ["yours, or ours"], class_="chosen"),
        *_box(494, 28, 158, 62, "classification", ["who learns the class:", "index, role, weight, quality"]),
        *_box(494, 110, 158, 62, "localization", ["who learns the box:", "index, role, weight, quality"]),
        *_box(690, 70, 80, 60, "Losses", ["named"]),
        *(_arrow(112, y1, 148, y2) for y1, y2 in ((90, 40), (100, 100))),
        *(_arrow(318, y1, 356, y2) for y1, y2 in ((38, 86), (100, 100), (162, 114))),
        *(_arrow(454, y1, 492, y2) for y1, y2 in ((92, 60), (108, 140))),
        *(_arrow(652, y1, 688, y2) for y1, y2 in ((60, 90), (140, 110))),
    ]
    said = "Predictions, priors and targets go to the assigner, which gives an assignment for each task to the losses."
    return _file(786, 200, said, parts)


def package_map() -> Markup:
    """Return the rooms of the package; each imports from those below it alone."""
    parts = []
    for number, (rooms, words) in enumerate(ROOMS):
        y = 10 + 34 * number
        parts.append(tag("rect", x=10, y=y, width=500, height=28, rx=4, class_="box"))
        parts.append(tag("text", rooms, x=22, y=y + 18, class_="head"))
        parts.append(tag("text", words, x=498, y=y + 18, class_="small end"))
    parts.append(tag("text", "A room imports from those below it, never from above.", x=12, y=366, class_="small"))
    said = "The rooms of the package, from the command line down to pure geometry: " + "; ".join(r for r, _ in ROOMS)
    return _file(520, 378, said, parts)


def _box(
    x: int, y: int, width: int, height: int, title: str, lines: Sequence[str], class_: str = "box"
) -> list[Markup]:
    middle, top = x + width / 2, y + height / 2 - 7 * len(lines) + 4
    parts = [
        tag("rect", x=x, y=y, width=width, height=height, rx=6, class_=class_),
        tag("text", title, x=middle, y=top, class_="head middle"),
    ]
    return parts + [
        tag("text", line, x=middle, y=top + 15 * i, class_="small middle") for i, line in enumerate(lines, 1)
    ]


def _arrow(x1: int, y1: int, x2: int, y2: int) -> Markup:
    return tag("path", d=f"M{x1} {y1}L{x2} {y2}", class_="arrow")


def _file(width: float, height: float, description: str, parts: Sequence[Markup]) -> Markup:
    """Return a file: the report's colours and marks for charts, ours for diagrams, and a card behind all."""
    lines = CSS.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith(".s4"))
    style = "\n".join([*lines[: end + 1], *(line for line in lines if line.startswith("svg ."))])
    style += "\nsvg text { fill: var(--ink); font-size: 11px; }" + OWN
    card = tag("rect", width=width, height=height, rx=8, class_="card")
    inner = Markup("").join([Markup(f"<style>{style}</style>"), card, *parts])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
    return Markup(head) + Markup('aria-label="{}">').format(description) + inner + Markup("</svg>")
