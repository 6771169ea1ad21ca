"""Average precision of many ranked lists at once, under many weightings of the images.

A *lane* is one ranked list of detections, such as those of one class at one IoU threshold. A weight says how often an
image is in the set; weight w gives the numbers of a set with w copies of the image. That makes a bootstrap over images
cheap:

1. A lane's true positives in the order of their rank are its *steps*. For each step we keep how many detections of each
   image count from the step before up to it (sparse, steps x images). No weight changes that.
2. Under weights, a product with that matrix and a running sum give the detections so far at each step, and so precision
   and recall there. False positives between two steps only lower the precision of points that the envelope hides.
3. The precision envelope is read at COCO's 101 recalls.

Source: the definition that `pycocotools.cocoeval` computes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

BoolArray = NDArray[np.bool_]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

#: COCO's IoU thresholds and recalls, as pycocotools.cocoeval.Params has them, in its floating-point arithmetic.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
#: Detections of an image and class that COCO judges, the best-scored ones.
MAX_DETECTIONS = 100

_CHUNK = 32  # weightings at a time: more would not fit the processor's cache


class Lanes:
    """Ranked lists of detections, ready to be weighted."""

    def __init__(
        self, blocks: Iterable[tuple[Int64Array, Int64Array, BoolArray]], *, num_lanes: int, num_images: int
    ) -> None:
        """Find the steps of every lane.

        Args:
            blocks: (lane, image, true) of n detections each: their lane, rising and in no other block; their image; and
                whether they are true positives. Within a lane the best-ranked comes first.
            num_lanes: how many lanes there are, empty ones included.
            num_images: I.
        """
        self.num_lanes = num_lanes
        counts, images, lanes = [], [], []
        for lane, image, true in blocks:
            steps = np.flatnonzero(true)
            if not len(steps):
                continue
            next_step = np.minimum(np.cumsum(true) - true, len(steps) - 1)
            # What follows a lane's last step has no effect: it reaches no further recall.
            counted = (lane[steps][next_step] == lane) & (np.arange(len(lane)) <= steps[next_step])
            rows = next_step[counted], image[counted]
            counts.append(sparse.csr_array((np.ones(counted.sum()), rows), (len(steps), num_images)))
            images.append(image[steps])
            lanes.append(lane[steps])
        none = np.empty(0, dtype=np.int64)
        self._counts = sparse.csr_array(sparse.vstack(counts)) if counts else sparse.csr_array((0, num_images))
        self._image, self._lane = np.concatenate([none, *images]), np.concatenate([none, *lanes])
        self._starts = np.flatnonzero(np.diff(self._lane, prepend=-1))
        self._start = np.repeat(self._starts, np.diff(self._starts, append=len(self._lane)))

    def average_precision(self, weights: Float64Array, objects: Float64Array) -> Float64Array:
        """Compute every lane's AP for B weightings.

        Args:
            weights: (I, B) whole numbers >= 0, how often each image is there.
            objects: (num_lanes, B) objects of each lane under the same weights.

        Returns:
            (num_lanes, B) in [0, 1]; nan for lanes without objects, which COCO leaves out.
        """
        aps = np.zeros((self.num_lanes, weights.shape[1]))
        if len(self._lane):
            for i in range(0, weights.shape[1], _CHUNK):
                part = slice(i, i + _CHUNK)
                chunk = np.ascontiguousarray(weights[:, part], dtype=np.float64)
                aps[self._lane[self._starts], part] = self._with_steps(chunk, objects[:, part])
        aps[objects == 0] = np.nan
        return aps

    def _with_steps(self, weights: Float64Array, objects: Float64Array) -> Float64Array:
        """Return the AP of the lanes that have steps, (lanes, B)."""
        true = self._so_far(weights[self._image])
        counted = self._so_far(self._counts @ weights)
        precision = np.divide(true, counted, out=np.zeros_like(true), where=counted > 0)
        # A running maximum from the back that forgets at each lane's end: the lane before it starts 2 higher.
        shift = 2.0 * (self._lane[-1] - self._lane)[:, None]
        envelope = np.maximum.accumulate((precision + shift)[::-1])[::-1] - shift

        total = objects[self._lane]
        recall = np.divide(true, total, out=np.zeros_like(true), where=total > 0)
        reached = (recall * 100 + 1e-7).astype(np.int64)  # then exactly, as RECALLS are not quite hundredths
        reached += recall >= RECALLS[reached]
        new = np.diff(reached, axis=0, prepend=0)
        new[self._starts] = reached[self._starts]
        aps: Float64Array = np.add.reduceat(envelope * new, self._starts, axis=0) / len(RECALLS)
        return aps

    def _so_far(self, values: Float64Array) -> Float64Array:
        """Return running sums that start anew with each lane; exact, as the values are whole numbers."""
        sums = np.cumsum(values, axis=0)
        before: Float64Array = sums[self._start] - values[self._start]
        return sums - before


def mean_over_defined(aps: Float64Array) -> Float64Array:
    """Return the mean over all axes but the last, nan left out; nan where all are.

    Example:
        >>> mean_over_defined(np.array([[0.2, np.nan], [0.4, np.nan]])).tolist()
        [0.30000000000000004, nan]
    """
    values = aps.reshape(-1, aps.shape[-1])
    defined = (~np.isnan(values)).sum(0)
    total: Float64Array = np.nansum(values, axis=0)
    mean: Float64Array = np.divide(total, defined, out=np.full_like(total, np.nan), where=defined > 0)
    return mean
