"""What each repair brings to AP: numbers with their intervals over images, for one way of comparing boxes.

AP and its gains are COCO's, in percent points; an interval is a 95 % interval over draws of the images with
replacement, as `metrics.bootstrap` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlc_yolo.metrics.bootstrap import Difference, difference
from mlc_yolo.metrics.lanes import mean_over_defined
from mlc_yolo.metrics.oracles import Oracles, Repair, summary

Float64Array = NDArray[np.float64]

#: Repairs of mistakes; the other two are of the ranking.
MISTAKES = (Repair.PLACE, Repair.CLASS, Repair.MISSED, Repair.BACKGROUND, Repair.DUPLICATES)


@dataclass(frozen=True)
class Gain:
    """What a repair brings.

    Attributes:
        name: of the repair, or of the part that is mended.
        values: metric -> value after the repair, in percent.
        gain: in AP, with its interval; percent points.
        gain50: in AP at IoU 0.50, percent points.
        gain75: in AP at IoU 0.75, percent points.
        draws: (1 + B,) in AP on the images as they are, then on each draw of them, percent points.
    """

    name: str
    values: dict[str, float]
    gain: Difference
    gain50: float
    gain75: float
    draws: Float64Array


class RepairedAP:
    """AP under every repair.

    Attributes:
        oracles: AP under repairs.
    """

    def __init__(self, oracles: Oracles, weights: Float64Array, *, inside: bool) -> None:
        """Take what they are computed from.

        Args:
            oracles: of one validation's records.
            weights: (I, 1 + B) how often each image is there: once each, then in each draw.
            inside: whether the candidates before NMS are known, which INSIDE needs.
        """
        self.oracles, self._weights, self._inside = oracles, weights, inside

    @cached_property
    def baseline(self) -> Gain:
        """The detector as it is: a gain of 0; its AP's interval is `ap`."""
        return self._compared("as it is", self._plain_aps)

    @property
    def ap_draws(self) -> Float64Array:
        """AP on the images as they are, then on each draw of them, (1 + B,) in percent."""
        return 100 * self._plain["AP"]

    @cached_property
    def ap(self) -> Difference:
        """AP with its interval, in percent."""
        ap = difference(self.ap_draws[:1], self.ap_draws[None, 1:])
        return replace(ap, low=max(ap.low, 0.0), high=min(ap.high, 100.0))

    @cached_property
    def gains(self) -> dict[Repair, Gain]:
        """What each repair alone brings; INSIDE only where candidates are known."""
        known = [repair for repair in Repair if repair is not Repair.INSIDE or self._inside]
        return {repair: self._compared(repair.value, self.oracles.aps((repair,), self._weights)) for repair in known}

    @cached_property
    def costliest(self) -> list[Repair]:
        """The mistakes that cost most, as far as the images can tell: the largest gain and those not shown below it."""
        best, *others = sorted(MISTAKES, key=lambda repair: self.gains[repair].gain.mean, reverse=True)
        lead = {repair: self.gains[best].draws - self.gains[repair].draws for repair in others}
        ties = [repair for repair in others if not difference(lead[repair][:1], lead[repair][None, 1:]).shown]
        return [best, *ties]

    @property
    def class_aps(self) -> Float64Array:
        """AP of each class, (K,) in percent; nan of those without objects."""
        return 100 * mean_over_defined(self._plain_aps[..., 0])  # over thresholds

    @cached_property
    def _plain_aps(self) -> Float64Array:
        return self.oracles.aps((), self._weights)

    @cached_property
    def _plain(self) -> dict[str, Float64Array]:
        return summary(self._plain_aps)

    def _compared(self, name: str, aps: Float64Array) -> Gain:
        """Return the gain of AP (10, K, 1 + B) under some repair."""
        mended = summary(aps)
        gains = {metric: 100 * (mended[metric] - self._plain[metric]) for metric in mended}
        gain = difference(gains["AP"][:1], gains["AP"][None, 1:])
        return Gain(
            name,
            {metric: 100 * float(values[0]) for metric, values in mended.items()},
            replace(gain, low=max(gain.low, 0.0)),  # no repair lowers AP
            float(gains["AP50"][0]),
            float(gains["AP75"][0]),
            gains["AP"],
        )
