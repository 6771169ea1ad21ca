"""The numbers of a detector's validation: Ultralytics' table, divergence in every row, and what else was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlc_yolo.evaluation.divergence_rows import DivergenceRows
from mlc_yolo.metrics import coco, proposals, voc
from mlc_yolo.metrics.coverage import Coverage


class MLCMetrics(DivergenceRows):
    """Ultralytics' detection metrics with divergence in every row and COCO's numbers beside them.

    Fitness and everything in `box` stay upstream's.

    Attributes:
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
        return results

    @property
    def keys(self) -> list[str]:
        """Names of `mean_results`, as in results.csv."""
        return [*super().keys, *self.extra]

    def mean_results(self) -> list[float]:
        """Return the values of `keys`: the table's row "all", then what else was asked for."""
        return [*self.table_row(), *self.extra.values()]

    def table_row(self) -> list[float]:
        """Return the table's row "all": upstream's four numbers, then the two coefficients."""
        return super().mean_results()

    @property
    def extra(self) -> dict[str, float]:
        """What was asked for beyond Ultralytics' metrics and divergence, by key."""
        return {**self.coco, **self.recall, **self.voc}
