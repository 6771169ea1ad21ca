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
from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import DEFAULT_CFG, LOGGER, ops
from ultralytics.utils.metrics import DetMetrics

from mlc_yolo.checkpoints import safe_load
from mlc_yolo.checkpoints.marker import wants_warp
from mlc_yolo.data.datasets import build
from mlc_yolo.data.flags import difficult_rows, read_flags
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.evaluation.postprocess import detections, extra_channels, native
from mlc_yolo.metrics import coco, proposals, voc
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
from mlc_yolo.options import specification as options
from mlc_yolo.plots.score_iou import score_against_iou

#: The confidence Ultralytics validates detectors at unless told otherwise.
LOWEST_CONFIDENCE = 0.001

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
            found = [rows[:, :5] for rows in self.stats["coco_detections"]]
            ars = proposals.average_recall(found, [rows[:, :4] for rows in self.stats["coco_objects"]])
            self.recall = {f"metrics/{name}": value for name, value in ars.items()}
        if self.voc:
            found, objects = self.stats["coco_detections"], self.stats["coco_objects"]
            aps = voc.voc_evaluate(found, objects, len(self.names), difficult=self.stats["difficult"])
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
        """Return the row "all", in the order of `keys`."""
        return [*super().mean_results(), self.spearman, self.spearman_pooled, *self.extra.values()]

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
        self.metrics = MLCMetrics(coco_eval=self.options["coco_eval"], voc_eval=self.options["voc_eval"])
        self._warp = False
        self._difficult: dict[str, np.ndarray] = {}  # image file -> (M,) bool
        self._entries: deque[Tensor] = deque()  # of the current batch, an image each, on the CPU
        self._extras: tuple[str, ...] = ()

    def prepare_for(self, model: torch.nn.Module) -> None:
        """Measure what the model's kind is judged by: proposals by recall, which wants many of them, however unsure."""
        net = native(model)
        if not isinstance(net, DetectorModel) or net.kind != "rpn" or self.metrics.recall:
            return
        self.metrics.measure_proposals()
        if self.args.max_det == DEFAULT_CFG.max_det:
            self.args.max_det = max(proposals.LIMITS)
        if self.args.conf == LOWEST_CONFIDENCE:
            self.args.conf = 0.0

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Prepare a validation."""
        self.prepare_for(model)
        self._compare_classes(model)
        super().init_metrics(model)
        self._entries.clear()
        self._extras = extra_channels(model)
        if self.metrics.voc:
            flags = read_flags(self.data[self.args.split or "val"])
            for label in self.dataloader.dataset.labels:
                rows = np.concatenate((label["cls"].reshape(-1, 1), label["bboxes"]), 1)
                path = label["im_file"]
                self._difficult[path] = difficult_rows(flags.get(Path(path).stem), rows)

    def get_model(self, model: Any, trainer: Any = None) -> Any:
        """Return the model to validate; in a validation of its own, images are resized as in the model's training.

        Raises:
            ValueError: a checkpoint is not data alone, or the data YAML holds what `resolve_data` refuses.
        """
        trust = bool(self.options["trust"])
        for given in (model, self.args.model):
            if isinstance(given, str | Path):
                safe_load.check(given, trust=trust)
        chosen = super().get_model(model, trainer)
        if self.dataloader is None:
            provide_fonts()
            if self.args.data:
                self.args.data = resolve_data(self.args.data, split=self.args.split)
            source = chosen or self.args.model
            if not isinstance(source, torch.nn.Module):
                pickled = str(source).endswith(".pt")
                source = safe_load.load_checkpoint(source, trust=trust)[0] if pickled else None
            self._warp = wants_warp(self.options["resize"], source)
        return chosen

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        """Build the data set as upstream does; with `resize=warp`, of images stretched to the input size."""
        fraction = get_split_fraction(self.args.fraction, self.args.split or "val")
        given = {"data": self.data, "batch": batch, "mode": mode, "stride": self.stride, "fraction": fraction}
        return build(img_path, self.args, warp=self._warp, **given)

    def get_dataloader(self, dataset_path: str, batch_size: int) -> Any:
        """Return the loader; with `single_cls` the data has one class, whatever its YAML says."""
        if self.args.single_cls:
            self.data["nc"] = 1
        return super().get_dataloader(dataset_path, batch_size)

    def _compare_classes(self, model: torch.nn.Module) -> None:
        """Refuse data with classes a ported detector has no output for; warn where the numbers mean other things."""
        names = getattr(model, "names", None)
        if not self.training and not self.args.single_cls and isinstance(names, dict):
            pairs = [(names.get(label), name) for label, name in self.data["names"].items()]
            other = [f"'{name}' in the data is '{theirs}' to the model" for theirs, name in pairs if theirs != name]
            if other:
                LOGGER.warning(
                    f"the data's classes are not the model's: {other[0]}{', and so on' if len(other) > 1 else ''}. "
                    "Labels and detections are matched by their numbers"
                )
        net = native(model)
        if isinstance(net, DetectorModel) and self.data["nc"] > len(net.names) and not self.args.single_cls:
            advice = (
                "give single_cls=True, which takes them for one" if len(net.names) == 1 else "take the model's data"
            )
            raise ValueError(
                f"the data has {self.data['nc']} classes and this {net.kind} {len(net.names)}: "
                f"the others would count as never found; {advice}"
            )

    def get_desc(self) -> str:
        """Return the table's header."""
        return str(super().get_desc()) + ("%11s" * 2) % ("Spearman", "(pooled)")

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Keep what NMS is about to see, then apply it."""
        dense = preds[0] if isinstance(preds, (list, tuple)) else preds
        rows = [self._image_entries(image) for image in dense]
        self._entries.extend(torch.cat(rows).cpu().split([len(row) for row in rows]))
        if self._extras:
            found = detections(
                dense,
                self._extras,
                confidence=self.args.conf,
                iou_threshold=self.args.iou,
                max_det=self.args.max_det,
                agnostic=self.args.single_cls or self.args.agnostic_nms,
                multi_label=True,
            )
            return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in found]
        kept: list[dict[str, Tensor]] = super().postprocess(preds)
        return kept

    def print_results(self) -> None:
        """Print upstream's table, divergence included, and COCO's and the proposals' numbers on lines of their own."""
        metrics, asked = self.metrics, (self.metrics.coco, self.metrics.recall, self.metrics.voc)
        metrics.coco, metrics.recall, metrics.voc = {}, {}, {}  # the table's columns are `metrics.keys`
        super().print_results()
        metrics.coco, metrics.recall, metrics.voc = asked
        for title, prefix, values in zip(("COCO", "Proposals", "VOC"), ("coco_", "", "voc_"), asked, strict=True):
            if values:
                named = (f"{key.removeprefix('metrics/' + prefix)} {v:.3f}" for key, v in values.items())
                LOGGER.info(f"{title}: {', '.join(named)}")

    def _image_entries(self, prediction: Tensor) -> Tensor:
        """Return one image's entries from (4 + K, A) dense or (N, 6) final predictions."""
        if self.end2end or prediction.shape[-1] == 6:  # the test upstream's NMS applies
            image_entries = prediction[prediction[:, 4] > SCORE_THRESHOLD, :6][:MAX_ENTRIES].float()  # best first
        else:
            scores = prediction[4 : len(prediction) - len(self._extras)]
            image_entries = entries(ops.xywh2xyxy(prediction[:4].T), scores.T)
        if self.args.single_cls:
            image_entries[:, 5] = 0
        return image_entries

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return one image's statistics; upstream calls this once per image, in order, and stores what it returns."""
        stat: dict[str, np.ndarray] = super()._process_batch(preds, batch)
        stat["score_iou"] = match(self._entries.popleft(), batch["bboxes"].cpu(), batch["cls"].cpu())
        if "coco_objects" in self.metrics.stats:
            shape, original, ratio_pad = batch["imgsz"], batch["ori_shape"], batch["ratio_pad"]
            found = self.scale_preds(preds, batch)
            boxes = torch.as_tensor(ops.scale_boxes(shape, batch["bboxes"].clone(), original, ratio_pad=ratio_pad))
            stat["coco_detections"] = _columns(found["bboxes"], found["conf"], found["cls"])
            stat["coco_objects"] = _columns(boxes, batch["cls"])
        if self.metrics.voc:
            stat["difficult"] = self._difficult[batch["im_file"]]
        return stat


def _columns(boxes: Tensor, *values: Tensor) -> np.ndarray:
    """Return (n, 4 + len(values)) float32 rows."""
    return torch.cat((boxes.float(), *(v.float()[:, None] for v in values)), 1).cpu().numpy()
