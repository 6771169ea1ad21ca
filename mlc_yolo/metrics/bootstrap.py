"""How sure a difference between two trainings is: a paired bootstrap over images, and the spread over seeds.

A difference D of seed s on image i is: what the options make, what image i adds for every seed, what seed s adds on
every image, and what only the two together add. Its mean over S seeds and I images varies for two reasons: other images
would have been judged, and other seeds would have been trained.

1. *Images* are drawn with replacement, as many as there are, 1,000 times. One draw serves both trainings and all seeds:
   what makes an image hard for all cancels out. For each draw AP is computed anew from the images drawn; it is no mean
   over images, so there is no formula for its spread. The variance over draws, of the mean over seeds, is V.
2. *Seeds* are paired (seed s of one training against seed s of the other). They are not resampled: draws of two or
   three seeds would understate the spread. The variance of their S differences, over S, is W. It holds everything that
   changes from seed to seed, the errors on images of its own included; these are taken out of V, which leaves V'. What
   is taken out follows from the draws: one seed's variance less that of the mean over seeds.
3. The interval reaches sqrt(z^2 V' + t^2 W) to both sides, with the normal quantile z and Student's t of S - 1 degrees
   of freedom: 12.7 for two seeds, 4.3 for three, 2.8 for five. This joins the exact intervals of the two parts (method
   of variance estimates recovery: Howe, JRSS B 36, 1974; Zou and Donner, Statistics in Medicine 27, 2008). It never
   reaches less far than the images alone, z sqrt(V).

For normal differences and V known exactly, such an interval holds the truth in 95.0 to 99.3 of a hundred cases with two
seeds, 95.0 to 98.7 with three and 95.0 to 97.9 with five, whatever the shares of the variances: integrated numerically
over W. Satterthwaite's degrees of freedom, the usual choice, fall to 87 with two seeds and 92 with three.

With one seed nothing is known of the spread over seeds. The interval then speaks of these two sets of weights on other
images, and there is no verdict on the options. At 95 %, one in twenty comparisons of equals shows a difference by
chance: with seven metrics and many variants, some will.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Float64Array = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95

#: Verdicts on the options, which take two seeds or more.
HIGHER, LOWER, OPEN = "higher", "lower", "no difference shown"
#: Verdicts on two sets of weights, all that one seed allows.
WEIGHTS_DIFFER, WEIGHTS_OPEN = "these two weights differ; take more seeds", "no difference shown; take more seeds"
UNDEFINED = "nothing to judge"


@dataclass(frozen=True)
class Difference:
    """A variant's value less the baseline's.

    Attributes:
        mean: over seeds, on the images as they are; nan where undefined.
        sd: standard deviation over seeds; nan for one seed.
        low: lower end of the confidence interval.
        high: its upper end.
        seeds: how many pairs.
    """

    mean: float
    sd: float
    low: float
    high: float
    seeds: int

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """What the interval allows to say: on the options from two seeds on, on these weights with one."""
        if math.isnan(self.mean):
            return UNDEFINED
        if self.seeds == 1:
            return WEIGHTS_DIFFER if self.shown else WEIGHTS_OPEN
        if not self.shown:
            return OPEN
        return HIGHER if self.mean > 0 else LOWER


def draw_images(count: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Float64Array:
    """Draw sets of images with replacement.

    Args:
        count: I, how many images there are, and how many are drawn each time.
        resamples: B.
        seed: of the random numbers; the same seed draws the same images.

    Returns:
        (I, B) how often each image was drawn; every column sums to I.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(count, size=(resamples, count)) + count * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * resamples).reshape(resamples, count).T.astype(np.float64)


def difference(differences: Float64Array, resampled: Float64Array, *, level: float = LEVEL) -> Difference:
    """Sum up the differences of S pairs of runs.

    Args:
        differences: (S,) variant less baseline on the images as they are, a pair of seeds each.
        resampled: (S, B) the same on B draws of the images, the same draws for every pair; draws in which a value is
            nan (no small object among them) are left out.
        level: of the confidence interval.

    Returns:
        The mean, its spread and its interval.

    Raises:
        ValueError: no pair, or shapes that do not agree.

    Example:
        One seed, whose difference of 2 varies by 1 over images (normal, 1.96 standard deviations each way):

        >>> draws = 2 + np.array([[-1.0, 1.0] * 500])
        >>> one = difference(np.array([2.0]), draws)
        >>> round(one.low, 2), round(one.high, 2), one.verdict
        (0.04, 3.96, 'these two weights differ; take more seeds')

        Two seeds whose differences are 1 apart: t = 12.71 makes the interval wide.

        >>> two = difference(np.array([1.5, 2.5]), np.concatenate((draws - 0.5, draws + 0.5)))
        >>> round(two.low, 2), round(two.high, 2), two.verdict
        (-4.65, 8.65, 'no difference shown')
    """
    seeds = len(differences)
    if not seeds or resampled.ndim != 2 or len(resampled) != seeds:
        raise ValueError(f"expected (S,) and (S, B) with S >= 1, got {differences.shape} and {resampled.shape}")
    mean = float(differences.mean())
    sd = float(differences.std(ddof=1)) if seeds > 1 else math.nan
    resampled = resampled[:, ~np.isnan(resampled).any(0)]
    if math.isnan(mean) or resampled.shape[1] < 2:
        return Difference(math.nan, math.nan, math.nan, math.nan, seeds)
    quantile = (1 + level) / 2
    z = float(ndtri(quantile))
    of_images = float(resampled.mean(0).var())
    reach = z * math.sqrt(of_images)
    if seeds > 1:
        # One seed's variance over draws is that of what all seeds share and of its own part; their mean's is that of
        # the former and an S-th of the latter. Own parts show between seeds as well, and must not be counted twice.
        own = max(float(resampled.var(1).mean()) - of_images, 0.0) * seeds / (seeds - 1)
        shared = max(of_images - own / seeds, 0.0)
        t = float(stdtrit(seeds - 1, quantile))
        reach = max(reach, math.sqrt(z**2 * shared + t**2 * sd**2 / seeds))
    return Difference(mean, sd, mean - reach, mean + reach, seeds)


def paired_differences(
    baseline: Sequence[Mapping[str, Float64Array]], variant: Sequence[Mapping[str, Float64Array]]
) -> dict[str, Difference]:
    """Compare two trainings, seed by seed.

    Args:
        baseline: per seed, metric -> (1 + B,) values: on the images as they are, then on B draws of them.
        variant: the same of the variant, the same seeds and the same draws.

    Returns:
        Metric -> difference.
    """
    by_metric = {}
    for name in baseline[0]:
        differences = np.stack([v[name] - b[name] for b, v in zip(baseline, variant, strict=True)])
        by_metric[name] = difference(differences[:, 0], differences[:, 1:])
    return by_metric
