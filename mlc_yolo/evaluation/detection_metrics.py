"""The numbers of a validation: Ultralytics' table, divergence in every row, and what else was asked for.

The samples travel in `MLCMetrics.stats`, one array per image, because Ultralytics gathers those lists over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils.metrics import DetMetrics

from mlc_yolo.metrics import coco, proposals, voc
from mlc_yolo.metrics.coverage import Coverage
from mlc_yolo.metrics.divergence import IOU, SCORE, SCORE_THRESHOLD, Divergence, divergence
from mlc_yolo.plots.score_iou import score_against_iou

#: Name of the divergence plot in the run's folder.
PLOT_NAME = "score_iou.png"


class MLCMetrics(DetMetrics):
    """Ultralytics' detection metrics with divergence in every row and COCO's numbers beside them.

    Fitness and everything in `box` stay upstream's. `spearman(B)` of the row "all" is the mean over objects, not over
    classes; a value is nan where it is undefined.

    Attributes:
        divergence: the last validation's coefficients, by class too; None before.
        coco: "metrics/coco_AP" etc. -> value, empty unless asked for; nan before the first validation.
        recall: "metrics/AR@100" etc. -> value for a proposal network, else empty; nan before the first validation.
        voc: "metrics/voc_AP_11" etc. -> value, empty unless asked for; nan before the first validation.
        coverage: how many true edges lie within one standard deviation of the detected; None before, and in training.
    """

    def __init__(self, names: dict[int, str] | None = None, *, coco_eval: bool = False, voc_eval: bool = False) -> None:
        """Start empty.

        Args:
            names: class names by label.
            coco_eval: also run pycocotools.
            voc_eval: also measure Pascal VOC's AP.
        """
        super().__init__(names)
        self.stats["score_iou"] = []
        self.divergence: Divergence | None = None
        self.coverage: Coverage | None = None
        self.coco = {f"metrics/coco_{name}": float("nan") for name in coco.NAMES} if coco_eval else {}
        self.recall: dict[str, float] = {}
        self.voc = {f"metrics/voc_{name}": float("nan") for name in voc.NAMES} if voc_eval else {}
        if voc_eval:
            self.stats["difficult"] = []
        if coco_eval or voc_eval:
            self._collect_boxes()

    def measure_proposals(self) -> None:
        """Also measure class-agnostic average recall, from now on."""
        self.recall = {f"metrics/{name}": float("nan") for name in proposals.NAMES}
        self._collect_boxes()

    def _collect_boxes(self) -> None:
        """Gather every detection and object, in original-image pixels."""
        self.stats.setdefault("coco_detections", [])
        self.stats.setdefault("coco_objects", [])

    def process(
        self, save_dir: Path = Path("."), plot: bool = False, on_plot: Callable[..., None] | None = None
    ) -> dict[str, np.ndarray]:
        """Compute every metric from the gathered statistics; draws upstream's curves and ours when `plot`."""
        self.divergence = divergence(self.stats["score_iou"], len(self.names))
        if self.coco:
            values = coco.coco_evaluate(self.stats["coco_detections"], self.stats["coco_objects"], len(self.names))
            self.coco = {f"metrics/coco_{name}": value for name, value in values.items()}
        if self.recall:
            boxes = [rows[:, :5] for rows in self.stats["coco_detections"]]
            ars = proposals.average_recall(boxes, [rows[:, :4] for rows in self.stats["coco_objects"]])
            self.recall = {f"metrics/{name}": value for name, value in ars.items()}
        if self.voc:
            detections, objects = self.stats["coco_detections"], self.stats["coco_objects"]
            aps = voc.voc_evaluate(detections, objects, len(self.names), difficult=self.stats["difficult"])
            self.voc = {f"metrics/voc_{name}": value for name, value in aps.items()}
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
        """Rank correlation of score and IoU over an object's candidates, mean over objects; nan if undefined."""
        return self.divergence.per_object if self.divergence else float("nan")

    @property
    def spearman_pooled(self) -> float:
        """Rank correlation of score and IoU over all boxes above 0.05; nan if undefined."""
        return self.divergence.pooled if self.divergence else float("nan")

    @property
    def keys(self) -> list[str]:
        """Names of `mean_results`, as in results.csv."""
        return [*super().keys, "metrics/spearman(B)", "metrics/spearman_pooled(B)", *self.extra]

    def mean_results(self) -> list[float]:
        """Return the values of `keys`: the table's row "all", then what else was asked for."""
        return [*self.table_row(), *self.extra.values()]

    def table_row(self) -> list[float]:
        """Return the table's row "all": upstream's four numbers, then the two coefficients."""
        return [*super().mean_results(), self.spearman, self.spearman_pooled]

    @property
    def extra(self) -> dict[str, float]:
        """What was asked for beyond Ultralytics' metrics and divergence, by key."""
        return {**self.coco, **self.recall, **self.voc}

    def class_result(self, i: int) -> tuple[float, ...]:
        """Return the row of the i-th class that has objects: upstream's four, then the two coefficients."""
        return (*super().class_result(i), *self._class_spearman(i))

    def summary(self, normalize: bool = True, decimals: int = 5) -> list[dict[str, Any]]:
        """Return upstream's per-class rows with the two coefficients added."""
        rows: list[dict[str, Any]] = super().summary(normalize, decimals)
        for i, row in enumerate(rows):
            row["Spearman"], row["Spearman-pooled"] = (round(value, decimals) for value in self._class_spearman(i))
        return rows

    def _class_spearman(self, i: int) -> tuple[float, float]:
        if self.divergence is None:
            return float("nan"), float("nan")
        label = self.ap_class_index[i]
        return float(self.divergence.per_object_by_class[label]), float(self.divergence.pooled_by_class[label])
