"""Validation: everything Ultralytics measures, plus divergence and, on request, COCO's AP and AR.

The samples travel in `MLCMetrics.stats`, one array per image, because upstream gathers those lists over ranks. They are
taken from what the model hands to NMS; an end-to-end model, or an export with NMS inside, hands over its final boxes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import LOGGER, ops
from ultralytics.utils.metrics import DetMetrics

from mlc_yolo.engine import options
from mlc_yolo.metrics import coco
from mlc_yolo.metrics.divergence import (
    IOU,
    MAX_ENTRIES,
    SCORE,
    SCORE_THRESHOLD,
    Divergence,
    divergence,
    entries,
    match,
)
from mlc_yolo.plots.divergence import score_against_iou

#: Name of the divergence plot in the run's folder.
PLOT_NAME = "score_iou.png"


class MLCMetrics(DetMetrics):
    """Ultralytics' detection metrics with divergence in every row and COCO's numbers beside them.

    Fitness and everything in `box` stay upstream's. `spearman(B)` of the row "all" is the mean over objects, not over
    classes; a value is nan where it is undefined.

    Attributes:
        divergence: the last validation's coefficients, by class too; None before.
        coco: "metrics/coco_AP" etc. -> value, empty unless asked for; nan before the first validation.
    """

    def __init__(self, names: dict[int, str] | None = None, *, coco_eval: bool = False) -> None:
        """Start empty.

        Args:
            names: class names by label.
            coco_eval: also run pycocotools.
        """
        super().__init__(names)
        self.stats["score_iou"] = []
        self.divergence: Divergence | None = None
        self.coco = {f"metrics/coco_{name}": float("nan") for name in coco.NAMES} if coco_eval else {}
        if coco_eval:
            self.stats["coco_detections"] = []
            self.stats["coco_objects"] = []

    def process(
        self, save_dir: Path = Path("."), plot: bool = False, on_plot: Callable[..., None] | None = None
    ) -> dict[str, np.ndarray]:
        """Compute every metric from the gathered statistics; draws upstream's curves and ours when `plot`."""
        self.divergence = divergence(self.stats["score_iou"], len(self.names))
        if self.coco:
            values = coco.coco_evaluate(self.stats["coco_detections"], self.stats["coco_objects"], len(self.names))
            self.coco = {f"metrics/coco_{name}": value for name, value in values.items()}
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
        return [*super().keys, "metrics/spearman(B)", "metrics/spearman_pooled(B)", *self.coco]

    def mean_results(self) -> list[float]:
        """Return the row "all", in the order of `keys`."""
        return [*super().mean_results(), self.spearman, self.spearman_pooled, *self.coco.values()]

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


class MLCValidator(DetectionValidator):
    """Ultralytics' detection validator that also measures divergence, for stock models and ours alike.

    Attributes:
        options: our options, every one, checked.
        metrics: the metrics, divergence included.
    """

    metrics: MLCMetrics

    def __init__(
        self,
        dataloader: Any = None,
        save_dir: Path | None = None,
        args: dict[str, Any] | SimpleNamespace | None = None,
        _callbacks: dict[str, Any] | None = None,
    ) -> None:
        """Take upstream's arguments; `args` may hold our options beside upstream's."""
        ours, stock = options.split(args)
        super().__init__(dataloader, save_dir, stock, _callbacks)
        self.options = {**options.defaults(), **options.check(ours)}
        self.metrics = MLCMetrics(coco_eval=self.options["coco_eval"])
        self._entries: deque[Tensor] = deque()  # of the current batch, an image each, on the CPU

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Prepare a validation."""
        super().init_metrics(model)
        self._entries.clear()

    def get_desc(self) -> str:
        """Return the table's header."""
        return str(super().get_desc()) + ("%11s" * 2) % ("Spearman", "(pooled)")

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Keep what NMS is about to see, then apply it."""
        dense = preds[0] if isinstance(preds, (list, tuple)) else preds
        rows = [self._image_entries(image) for image in dense]
        self._entries.extend(torch.cat(rows).cpu().split([len(row) for row in rows]))
        detections: list[dict[str, Tensor]] = super().postprocess(preds)
        return detections

    def print_results(self) -> None:
        """Print upstream's table, divergence included, and COCO's numbers on a line of their own."""
        numbers, self.metrics.coco = self.metrics.coco, {}  # the table's columns are `metrics.keys`
        super().print_results()
        self.metrics.coco = numbers
        if numbers:
            LOGGER.info("COCO: " + ", ".join(f"{n} {v:.3f}" for n, v in zip(coco.NAMES, numbers.values(), strict=True)))

    def _image_entries(self, prediction: Tensor) -> Tensor:
        """Return one image's entries from (4 + K, A) dense or (N, 6) final predictions."""
        if self.end2end or prediction.shape[-1] == 6:  # the test upstream's NMS applies
            image_entries = prediction[prediction[:, 4] > SCORE_THRESHOLD, :6][:MAX_ENTRIES].float()  # best first
        else:
            image_entries = entries(ops.xywh2xyxy(prediction[:4].T), prediction[4:].T)
        if self.args.single_cls:
            image_entries[:, 5] = 0
        return image_entries

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return one image's statistics; upstream calls this once per image, in order, and stores what it returns."""
        stat: dict[str, np.ndarray] = super()._process_batch(preds, batch)
        stat["score_iou"] = match(self._entries.popleft(), batch["bboxes"].cpu(), batch["cls"].cpu())
        if self.metrics.coco:
            shape, original, ratio_pad = batch["imgsz"], batch["ori_shape"], batch["ratio_pad"]
            found = self.scale_preds(preds, batch)
            boxes = torch.as_tensor(ops.scale_boxes(shape, batch["bboxes"].clone(), original, ratio_pad=ratio_pad))
            stat["coco_detections"] = _columns(found["bboxes"], found["conf"], found["cls"])
            stat["coco_objects"] = _columns(boxes, batch["cls"])
        return stat


def _columns(boxes: Tensor, *values: Tensor) -> np.ndarray:
    """Return (n, 4 + len(values)) float32 rows."""
    return torch.cat((boxes.float(), *(v.float()[:, None] for v in values)), 1).cpu().numpy()
