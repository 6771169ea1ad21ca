"""Charts as SVG that takes its colours from the page, so that dark mode and print need no second drawing.

A chart is 320 units wide: on a phone one unit is about one pixel, and its text as large as the page's small print. The
style sheet colours the classes used here; `s0`, `s1` ... are the colours of the variants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from mlc_yolo.metrics.coverage import Spread
from mlc_yolo.metrics.reliability import Reliability

WIDTH, HEIGHT = 320, 240
LEFT, RIGHT, TOP, BOTTOM = 36, 8, 20, 34
#: Bins of a density along each axis, and shades it is drawn in.
CELLS, SHADES = 25, 6
#: Fewest boxes of a score for which the density's median is drawn.
MIN_BOXES = 10
#: Least spread that is drawn, px.
LEAST = 0.01

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Line:
    """One variant's line, and how far its runs spread.

    Attributes:
        name: the variant's.
        colour: its number.
        y: (N,) mean over runs; nan breaks the line.
        low: (N,) the lowest run; None draws no spread.
        high: (N,) the highest run.
    """

    name: str
    colour: int
    y: Array
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True)
class Interval:
    """A difference and where it may lie, and the differences of single pairs of runs."""

    name: str
    colour: int
    mean: float
    low: float
    high: float
    pairs: Sequence[float]


def line_chart(
    x: Array, lines: Sequence[Line], *, x_label: str, y_label: str, description: str, zero: bool = False
) -> Markup:
    """Draw lines over common x.

    Args:
        x: (N,) ascending; N may be 1.
        lines: of N values each.
        x_label: what x is.
        y_label: what y is.
        description: what a reader who does not see the chart should know of it.
        zero: whether y = 0 is a line of its own, as in differences.
    """
    values = [v for line in lines for v in (line.y, line.low, line.high) if v is not None]
    frame = Frame(limits(x), limits(np.concatenate([np.empty(0), *values]), zero=zero))
    parts = [frame.axes(x_label, y_label)]
    if zero:
        parts.append(frame.line([frame.x[0], frame.x[1]], [0, 0], class_="zero"))
    for line in lines:
        if line.low is not None and line.high is not None:
            known = np.isfinite(line.low) & np.isfinite(line.high)
            around = np.concatenate((x[known], x[known][::-1]))
            parts.append(
                frame.line(
                    around, np.concatenate((line.low[known], line.high[known][::-1])), class_=f"band s{line.colour}"
                )
            )
    for line in lines:
        parts.append(frame.line(x, line.y, class_=f"line s{line.colour}"))
        if np.isfinite(line.y).sum() == 1:
            at = int(np.flatnonzero(np.isfinite(line.y))[0])
            parts.append(frame.dot(x[at], line.y[at], class_=f"dot s{line.colour}"))
    return svg(HEIGHT, description, parts)


def interval_chart(intervals: Sequence[Interval], *, x_label: str, description: str) -> Markup:
    """Draw differences with their intervals, one row each, around a line at zero."""
    row = 34
    height = TOP + row * len(intervals) + BOTTOM
    values = [v for interval in intervals for v in (interval.mean, interval.low, interval.high, *interval.pairs)]
    frame = Frame(limits(np.array(values), zero=True), (0, len(intervals)), height=height, left=RIGHT)
    parts = [frame.axes(x_label, ""), frame.line([0, 0], [0, len(intervals)], class_="zero")]
    for i, interval in enumerate(intervals):
        middle = len(intervals) - i - 0.68
        parts.append(tag("text", interval.name, x=frame.left, y=short(frame.to_y(middle) - 10), class_="name"))
        parts.append(frame.line([interval.low, interval.high], [middle, middle], class_=f"interval s{interval.colour}"))
        parts += [frame.dot(value, middle, class_="pair", r=2.5) for value in interval.pairs if len(interval.pairs) > 1]
        parts.append(frame.dot(interval.mean, middle, class_=f"dot s{interval.colour}", r=5))
    return svg(height, description, parts)


def density_chart(scores: Array, ious: Array, *, description: str) -> Markup:
    """Draw the density of boxes over score and IoU, and the median IoU of a score.

    Args:
        scores: (N,) in [0, 1]; N may be 0.
        ious: (N,) in [0, 1].
        description: what a reader who does not see the chart should know of it.
    """
    frame = Frame((0, 1), (0, 1), height=WIDTH)
    edges = np.linspace(0, 1, CELLS + 1)
    counts, _, _ = np.histogram2d(scores, ious, bins=(edges, edges))
    shade = np.zeros(counts.shape, dtype=np.int64)
    if counts.any():
        shade = np.ceil(SHADES * np.log1p(counts) / np.log1p(counts.max())).astype(np.int64)
    width, depth = frame.to_x(edges[1]) - frame.to_x(0), frame.to_y(0) - frame.to_y(edges[1])
    parts = []
    for level in range(1, SHADES + 1):
        corners = ((frame.to_x(edges[i]), frame.to_y(edges[j + 1])) for i, j in np.argwhere(shade == level))
        cells = "".join(f"M{short(x)} {short(y)}h{short(width)}v{short(depth)}h{short(-width)}z" for x, y in corners)
        if cells:
            parts.append(tag("path", d=cells, class_="cell", fill_opacity=short(0.1 + 0.8 * level / SHADES)))
    parts += [frame.axes("score", "IoU"), frame.line([0, 1], [0, 1], class_="ideal")]
    bins = np.linspace(0, 1, 21)
    groups = [ious[(scores >= low) & (scores < high)] for low, high in pairwise(bins)]
    median = np.array([np.median(group) if len(group) >= MIN_BOXES else np.nan for group in groups])
    parts.append(frame.line((bins[1:] + bins[:-1]) / 2, median, class_="median"))
    return svg(WIDTH, description, parts)


def reliability_chart(bins: Reliability, *, colour: int, description: str, x_label: str = "score") -> Markup:
    """Draw mean IoU against mean score by bins, the diagonal of honest scores, and how many boxes a bin holds."""
    frame = Frame((0, 1), (0, 1), height=250)
    strip, base = 44, 250 + 50
    parts = [frame.axes(x_label, "mean IoU"), frame.line([0, 1], [0, 1], class_="ideal")]
    for score, iou in zip(bins.score, bins.iou, strict=True):
        if np.isfinite(score):
            parts.append(frame.line([score, score], [score, iou], class_=f"gap s{colour}"))
    known = np.isfinite(bins.score)
    parts.append(frame.line(bins.score[known], bins.iou[known], class_=f"line s{colour}"))
    parts += [frame.dot(x, y, class_=f"dot s{colour}") for x, y in zip(bins.score[known], bins.iou[known], strict=True)]
    width = (WIDTH - frame.left - RIGHT) / len(bins.count)
    for i, count in enumerate(bins.count.tolist()):
        tall = strip * count / max(1, int(bins.count.max())) * 0.7
        x = frame.left + i * width
        parts.append(
            tag(
                "rect",
                x=short(x + 1),
                y=short(base - tall),
                width=short(width - 2),
                height=short(tall),
                class_=f"bar s{colour}",
            )
        )
        parts.append(tag("text", _count_text(count), x=short(x + width / 2), y=short(base - tall - 3), class_="count"))
    parts.append(
        tag(
            "text",
            "boxes in the bin",
            x=short(frame.left + (WIDTH - frame.left - RIGHT) / 2),
            y=base + 13,
            class_="label middle",
        )
    )
    return svg(base + 18, description, parts)


def spread_chart(bins: Spread, *, colour: int, description: str) -> Markup:
    """Draw actual against stated spread of edges in pixels, by bins, and the diagonal of honest deviations.

    Args:
        bins: with one bin or more; both axes are logarithmic.
        colour: number of its colour.
        description: what a reader who does not see the chart should know of it.
    """
    values = np.maximum(np.concatenate((bins.stated, bins.actual)), LEAST)
    ends = float(values.min()) / 1.3, float(values.max()) * 1.3
    frame = Frame(ends, ends, height=250, logarithmic=True)
    actual = np.maximum(bins.actual, LEAST)
    parts = [frame.axes("stated deviation, px", "actual, px"), frame.line(ends, ends, class_="ideal")]
    for stated, value in zip(bins.stated, actual, strict=True):
        parts.append(frame.line([stated, stated], [stated, value], class_=f"gap s{colour}"))
    parts.append(frame.line(bins.stated, actual, class_=f"line s{colour}"))
    parts += [frame.dot(x, y, class_=f"dot s{colour}") for x, y in zip(bins.stated, actual, strict=True)]
    return svg(250, description, parts)


@dataclass(frozen=True)
class Frame:
    """A pair of axes: from data to the drawing's units. Logarithmic ones take values above 0 alone."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: int = HEIGHT
    left: int = LEFT
    logarithmic: bool = False

    def to_x(self, value: float) -> float:
        """Return x in units of the drawing."""
        return self.left + self._share(value, *self.x) * (WIDTH - self.left - RIGHT)

    def to_y(self, value: float) -> float:
        """Return y in units of the drawing, downwards."""
        return self.height - BOTTOM - self._share(value, *self.y) * (self.height - TOP - BOTTOM)

    def _share(self, value: float, low: float, high: float) -> float:
        """Return how far a value is on the way from low to high, in [0, 1] between them."""
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return (value - low) / (high - low)

    def axes(self, x_label: str, y_label: str) -> Markup:
        """Return grid, ticks and labels; an axis without a label has none."""
        parts = []
        floor = self.height - BOTTOM
        ticks = _logarithmic_ticks if self.logarithmic else _ticks
        for tick in ticks(*self.x):
            at = short(self.to_x(tick))
            parts.append(tag("line", x1=at, x2=at, y1=TOP, y2=floor, class_="grid"))
            parts.append(tag("text", _tick_text(tick), x=at, y=floor + 14, class_="tick middle"))
        if y_label:
            for tick in ticks(*self.y):
                at = short(self.to_y(tick))
                parts.append(tag("line", x1=self.left, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
                parts.append(
                    tag(
                        "text",
                        _tick_text(tick),
                        x=self.left - 4,
                        y=short(self.to_y(tick) + 4),
                        class_="tick end",
                    )
                )
            parts.append(tag("text", y_label, x=self.left, y=TOP - 8, class_="label"))
        middle = short((self.left + WIDTH - RIGHT) / 2)
        parts.append(tag("text", x_label, x=middle, y=self.height - 5, class_="label middle"))
        return Markup("").join(parts)

    def line(self, x: Any, y: Any, *, class_: str) -> Markup:
        """Return a path through the points; a y that is nan lifts the pen."""
        path, pen = [], "M"
        for a, b in zip(x, y, strict=True):
            if math.isfinite(b):
                path.append(f"{pen}{short(self.to_x(a))} {short(self.to_y(b))}")
            pen = "L" if math.isfinite(b) else "M"
        return tag("path", d="".join(path), class_=class_) if path else Markup("")

    def dot(self, x: float, y: float, *, class_: str, r: float = 3) -> Markup:
        """Return a point."""
        return tag("circle", cx=short(self.to_x(x)), cy=short(self.to_y(y)), r=r, class_=class_)


def svg(height: float, description: str, parts: Sequence[Markup]) -> Markup:
    """Return a drawing of that height, with what a reader who does not see it should know."""
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {short(height)}", role="img", aria_label=description)


def tag(name: str, *children: str, **attributes: Any) -> Markup:
    """Return an element; what is not markup yet is escaped. `class_` stands for class, `a_b` for a-b."""
    text = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{text}>{Markup('').join(children)}</{name}>")


def limits(values: Array, *, zero: bool = False) -> tuple[float, float]:
    """Return limits with some room around all values that are finite."""
    known = values[np.isfinite(values)]
    if zero:
        known = np.append(known, 0.0)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Return up to six round numbers from low to high."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten from low to high; both are above 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _tick_text(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _count_text(count: int) -> str:
    """Return a count of at most four letters."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if count >= unit:
            return f"{count / unit:.1f}{letter}" if count < 10 * unit else f"{count // unit}{letter}"
    return str(count)


def short(value: float) -> str:
    """Return a number as short as the eye allows."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
