"""The ladder of oracles: for each repair, a bar from the detector's AP to its AP after the repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlc_yolo.report.charts import BOTTOM, RIGHT, TOP, Frame, short, svg, tag

_ROW = 36


@dataclass(frozen=True)
class Rung:
    """One repair; AP in percent.

    Attributes:
        name: of the repair.
        ap: once it is done.
        low: lower end of the interval around `ap`.
        high: its upper end.
        colour: number of its colour.
    """

    name: str
    ap: float
    low: float
    high: float
    colour: int


def ladder_chart(baseline: float, rungs: Sequence[Rung], *, description: str) -> Markup:
    """Draw the rungs from the top down, and a line at the detector's own AP.

    Args:
        baseline: the detector's AP in percent.
        rungs: the repairs.
        description: what a reader who does not see the chart should know of it.
    """
    height = TOP + _ROW * len(rungs) + BOTTOM
    top = max([baseline, *(rung.high for rung in rungs)])
    frame = Frame((0, min(100.0, max(10.0, top * 1.06))), (0, len(rungs)), height=height, left=RIGHT)
    parts = [frame.axes("AP", ""), frame.line([baseline, baseline], [0, len(rungs)], class_="zero")]
    for i, rung in enumerate(rungs):
        middle = len(rungs) - i - 0.68
        x, y = frame.to_x(baseline), frame.to_y(middle)
        label = f"{rung.name} {rung.ap - baseline:+.1f}".replace("-", "−")
        parts.append(tag("text", label, x=frame.left, y=short(y - 10), class_="name"))
        width = max(0.0, frame.to_x(rung.ap) - x)
        own = f"own s{rung.colour}"
        parts.append(tag("rect", x=frame.left, y=short(y - 5), width=short(x - frame.left), height=10, class_="base"))
        parts.append(tag("rect", x=short(x), y=short(y - 5), width=short(width), height=10, class_=own))
        parts.append(frame.line([rung.low, rung.high], [middle, middle], class_="whisker"))
    return svg(height, description, parts)
