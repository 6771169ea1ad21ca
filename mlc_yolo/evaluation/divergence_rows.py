"""Divergence in every row of Ultralytics' metrics, whatever the task: two columns after upstream's own.

The samples travel in `stats`, one array per image, because Ultralytics gathers those lists over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils.metrics import DetMetrics

from mlc_yolo.metrics.divergence import IOU, SCORE, SCORE_THRESHOLD, Divergence, divergence
from mlc_yolo.plots.score_iou import score_against_iou

#: Name of the divergence plot in the run's folder.
PLOT_NAME = "score_iou.png"
#: Header of the two columns.
HEADER = ("%11s" * 2) % ("Spearman", "(pooled)")


class DivergenceRows(DetMetrics):
    """Metrics of Ultralytics with divergence; stands before those of a task in the order of bases.

    `spearman(B)` of the row "all" is the mean over objects, not over classes; a value is nan where it is undefined.

    Attributes:
        divergence: the last validation's coefficients, by class too; None before.
    """

    def __init__(self, names: dict[int, str] | None = None) -> None:
        """Start empty.

        Args:
            names: class names by label.
        """
        super().__init__(names)
        self.stats["score_iou"] = []
        self.divergence: Divergence | None = None

    def process(
        self, save_dir: Path = Path("."), plot: bool = False, on_plot: Callable[..., None] | None = None
    ) -> dict[str, np.ndarray]:
        """Compute every metric from the gathered statistics; draws upstream's curves and ours when `plot`."""
        self.divergence = divergence(self.stats["score_iou"], len(self.names))
        results: dict[str, np.ndarray] = super().process(save_dir, plot, on_plot)
        if plot:
            samples = results["score_iou"]
            figure = score_against_iou(
                samples[:, SCORE],
                samples[:, IOU],
                spearman=self.spearman,
                spearman_pooled=self.spearman_pooled,
                threshold=SCORE_THRESHOLD,
            )
            path = Path(save_dir) / PLOT_NAME
            figure.savefig(path)
            if on_plot:
                on_plot(path)
        return results

    @property
    def spearman(self) -> float:
        """Rank correlation of score and overlap over an object's candidates, mean over objects; nan if undefined."""
        return self.divergence.per_object if self.divergence else float("nan")

    @property
    def spearman_pooled(self) -> float:
        """Rank correlation of score and overlap over all boxes above 0.05; nan if undefined."""
        return self.divergence.pooled if self.divergence else float("nan")

    @property
    def keys(self) -> list[str]:
        """Names of `mean_results`, as in results.csv."""
        return [*super().keys, "metrics/spearman(B)", "metrics/spearman_pooled(B)"]

    def mean_results(self) -> list[float]:
        """Return the table's row "all": upstream's numbers, then the two coefficients."""
        return [*super().mean_results(), self.spearman, self.spearman_pooled]

    def class_result(self, i: int) -> tuple[float, ...]:
        """Return the row of the i-th class that has objects: upstream's numbers, then the two coefficients."""
        return (*super().class_result(i), *self._class_spearman(i, self.divergence))

    def summary(self, normalize: bool = True, decimals: int = 5) -> list[dict[str, Any]]:
        """Return upstream's per-class rows with the two coefficients added."""
        rows: list[dict[str, Any]] = super().summary(normalize, decimals)
        for i, row in enumerate(rows):
            row["Spearman"], row["Spearman-pooled"] = (
                round(value, decimals) for value in self._class_spearman(i, self.divergence)
            )
        return rows

    def _class_spearman(self, i: int, measured: Divergence | None) -> tuple[float, float]:
        """Return the two coefficients of the i-th class that has objects; nan before a validation."""
        if measured is None:
            return float("nan"), float("nan")
        label = self.ap_class_index[i]
        return float(measured.per_object_by_class[label]), float(measured.pooled_by_class[label])
