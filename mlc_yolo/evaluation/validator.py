"""Validation: everything Ultralytics measures, plus divergence and, on request, COCO's AP and AR.

The samples of divergence are taken from what the model hands to NMS; an end-to-end model, or an export with NMS inside,
hands over its final boxes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import DEFAULT_CFG, LOGGER, ops

from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.checkpoints import safe_load
from mlc_yolo.checkpoints.marker import wants_warp
from mlc_yolo.data.class_names import warn_of_other_names
from mlc_yolo.data.datasets import build
from mlc_yolo.data.flags import difficult_rows, read_flags
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.evaluation.augmentation import augmenting
from mlc_yolo.evaluation.detection_metrics import MLCMetrics
from mlc_yolo.evaluation.divergence_rows import HEADER
from mlc_yolo.evaluation.placement import Placement, Placing, placed_detections
from mlc_yolo.evaluation.postprocess import extra_channels, native
from mlc_yolo.metrics import proposals
from mlc_yolo.metrics.coverage import coverage, edge_errors
from mlc_yolo.metrics.divergence import MAX_ENTRIES, SCORE_THRESHOLD, entries, match
from mlc_yolo.options.arguments import Arguments, stock_only
from mlc_yolo.oriented import extent, pairwise_probiou

#: The confidence Ultralytics validates detectors at unless told otherwise.
LOWEST_CONFIDENCE = 0.001
#: Detections from this confidence on are asked how sure they are of their sides: prediction's own threshold.
SURE = 0.25


class MLCValidator(DetectionValidator):
    """Ultralytics' detection validator that also measures divergence, for stock models and ours alike.

    Those of the other tasks derive from it; see `task_validators`.

    Attributes:
        arguments: what was asked for.
        metrics: the metrics, divergence included.
        oriented: whether boxes are rows (x, y, w, h, r), compared by probiou, instead of xyxy.
    """

    oriented: ClassVar[bool] = False
    metrics: MLCMetrics
    _model: torch.nn.Module  # what `init_metrics` saw

    def __init__(
        self,
        dataloader: Any = None,
        save_dir: Path | None = None,
        args: dict[str, Any] | SimpleNamespace | None = None,
        _callbacks: dict[str, Any] | None = None,
        *,
        arguments: Arguments | None = None,
    ) -> None:
        """Take upstream's arguments.

        Args:
            dataloader: upstream's.
            save_dir: upstream's.
            args: upstream's; in a validation of its own, started without `MLCYOLO`, our options beside them.
            _callbacks: upstream's.
            arguments: what `MLCYOLO` or the trainer was asked for; `args` then are what upstream made of it.
        """
        self.arguments = arguments or Arguments.of(args)
        super().__init__(dataloader, save_dir, stock_only(args), _callbacks)
        ours = self.arguments.ours
        self.metrics = MLCMetrics(coco_eval=ours["coco_eval"], voc_eval=ours["voc_eval"])
        self._warp = False
        self._difficult: dict[str, np.ndarray] = {}  # image file -> (M,) bool
        self._entries: deque[Tensor] = deque()  # of the current batch, an image each, on the CPU
        self._extras: tuple[str, ...] = ()
        self._raw_outputs = True  # whether the last batch's were from before NMS
        self._sigmas: deque[Tensor] = deque()  # of the current batch's detections, an image each
        self._edges: list[Tensor] = []  # (k, 9) an image: errors, deviations and the object's area in original px
        self._placing = Placing.of(ours)
        self._augmented = ExitStack()

    def __call__(self, trainer: Any = None, model: Any = None, **kwargs: Any) -> Any:
        """Validate as upstream does; the arguments and the result are its own."""
        with self._augmented:  # entered by `init_metrics`, the first hook that sees the model
            return super().__call__(trainer, model, **kwargs)

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
        self._sigmas.clear()
        self._edges.clear()
        self._extras = extra_channels(model)
        self._model = model
        self._placing.check(model, augment=self.args.augment and not self.training)
        if self.args.augment and not self.training and self.args.task == "detect":
            self._augmented.enter_context(augmenting(native(model)))
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
        opened, trust = model or self.args.model, self.arguments.trust  # a model in memory was looked at when opened
        if trainer is None and isinstance(opened, str | Path):
            safe_load.check(opened, trust=trust)
        chosen = super().get_model(model, trainer)
        if self.dataloader is None:
            provide_fonts()
            if self.args.data:
                self.args.data = resolve_data(self.args.data, split=self.args.split)
            source = chosen or self.args.model
            if not isinstance(source, torch.nn.Module):
                pickled = str(source).endswith(".pt")
                source = safe_load.load_checkpoint(source, trust=trust)[0] if pickled else None
            self._warp = wants_warp(self.arguments.ours["resize"], source)
        return chosen

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        """Build the data set as upstream does; with `resize=warp`, of images stretched to the input size."""
        fraction = get_split_fraction(self.args.fraction, self.args.split or "val")
        choices = {"data": self.data, "batch": batch, "mode": mode, "stride": self.stride, "fraction": fraction}
        return build(img_path, self.args, warp=self._warp, **choices)

    def get_dataloader(self, dataset_path: str, batch_size: int) -> Any:
        """Return the loader; with `single_cls` the data has one class, whatever its YAML says."""
        if self.args.single_cls:
            self.data["nc"] = 1
        return super().get_dataloader(dataset_path, batch_size)

    def _compare_classes(self, model: torch.nn.Module) -> None:
        """Refuse data with classes a ported detector has no output for; warn where the numbers mean other things."""
        names = getattr(model, "names", None)
        if not self.training and not self.args.single_cls and isinstance(names, dict):
            warn_of_other_names(self.data["names"], names, "Labels and detections are matched by their numbers")
        net = native(model)
        if isinstance(net, DetectorModel) and self.data["nc"] > len(net.names) and not self.args.single_cls:
            advice = (
                "give single_cls=True, which takes them for one" if len(net.names) == 1 else "take the model's data"
            )
            raise ValueError(
                f"the data has {self.data['nc']} classes and this {net.kind} {len(net.names)}: "
                f"objects of the others would count as missed; {advice}"
            )

    def get_desc(self) -> str:
        """Return the table's header."""
        return str(super().get_desc()) + HEADER

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Keep what NMS is about to see, then apply it; columns after the class scores become "extra"."""
        placement = self._placement(preds)
        self._raw_outputs = not self._is_final(placement.dense)
        rows = [self._image_entries(image) for image in placement.dense]
        self._entries.extend(torch.split(torch.cat(rows).cpu(), [len(row) for row in rows]))
        images, anchors = self._placed(placement.dense, placement)
        if not self.training and not self.oriented:  # whose sides lie along axes of their own
            self._sigmas.extend(placement.columns(i, anchor)[:, 1:].cpu() for i, anchor in enumerate(anchors))
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in images]

    def _placed(self, dense: Tensor, placement: Placement) -> tuple[list[Tensor], list[Tensor]]:
        """Return the detections of a batch's outputs and their anchors, as `placed_detections` does."""
        return placed_detections(
            dense,
            self._extras,
            self._placing,
            placement,
            confidence=self.args.conf,
            iou_threshold=self.args.iou,
            max_det=self.args.max_det,
            agnostic=self.args.single_cls or self.args.agnostic_nms,
            multi_label=True,
            end2end=self.end2end,
            num_classes=self._num_classes,
            rotated=self.oriented,
        )

    @property
    def overlap(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What boxes are compared by: of (M, 4) or (M, 5) and (N, 4) or (N, 5), (M, N) in [0, 1]."""
        return pairwise_probiou if self.oriented else pairwise_iou

    @property
    def _num_classes(self) -> int:
        """How many channels are class scores; 0 where all are that `_extras` does not name."""
        return 0 if self.args.task == "detect" else self.nc

    def _placement(self, preds: Any) -> Placement:
        """Return what a batch's outputs say about its boxes."""
        return Placement(self._model, preds)

    def _is_final(self, dense: Tensor) -> bool:
        """Tell whether outputs need no NMS, by the test upstream's applies."""
        return bool(self.end2end) or dense.shape[-1] == 6

    def get_stats(self) -> dict[str, Any]:
        """Return the metrics as upstream does, and measure how honest the deviations of sides are."""
        if self.training:
            trained: dict[str, Any] = super().get_stats()
            return trained
        rows = torch.cat(self._edges or [torch.zeros(0, 9)]).double().numpy()
        self.metrics.coverage = coverage(rows[:, :4], rows[:, 4:8], rows[:, 8])
        stats: dict[str, Any] = super().get_stats()
        return stats

    def _edge_rows(self, sigmas: Tensor, preds: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """Return the errors of an image's confident detections, their deviations and the objects' areas: (k, 9)."""
        sure = (preds["conf"].cpu() >= SURE) & sigmas.isfinite().all(1)
        boxes, labels = preds["bboxes"].cpu()[sure], preds["cls"].cpu()[sure]
        index, errors, areas = edge_errors(boxes, labels, batch["bboxes"].cpu(), batch["cls"].cpu())
        gain_y, gain_x = batch["ratio_pad"][0]
        return torch.cat((errors, sigmas[sure][index], areas[:, None] / (gain_y * gain_x)), 1)

    def print_results(self) -> None:
        """Print the table, divergence included, and COCO's, the proposals' and VOC's numbers on lines of their own."""
        metrics = self.metrics
        _print_row("all", self.seen, metrics.nt_per_class.sum(), metrics.table_row())
        if not metrics.nt_per_class.sum():
            LOGGER.warning("the data has no objects, so detections cannot be judged")
        if self.args.verbose and not self.training and self.nc > 1:
            for i, label in enumerate(metrics.ap_class_index):
                images, objects = metrics.nt_per_image[label], metrics.nt_per_class[label]
                _print_row(self.names[label], images, objects, metrics.class_result(i))
        sections = (("COCO", "coco_", metrics.coco), ("Proposals", "", metrics.recall), ("VOC", "voc_", metrics.voc))
        for title, prefix, values in sections:
            if values:
                named = (f"{key.removeprefix('metrics/' + prefix)} {v:.3f}" for key, v in values.items())
                LOGGER.info(f"{title}: {', '.join(named)}")
        if metrics.coverage is not None and metrics.coverage.count:
            LOGGER.info(f"Placement: {metrics.coverage.text()}")

    def _image_entries(self, prediction: Tensor) -> Tensor:
        """Return one image's entries from (4 + K + E, A) dense or (N, 6 + E) final predictions."""
        if self._is_final(prediction):
            rows = prediction[prediction[:, 4] > SCORE_THRESHOLD][:MAX_ENTRIES].float()  # best first
            columns = (rows[:, :4], rows[:, -1:], rows[:, 4:6]) if self.oriented else (rows[:, :6],)
            image_entries = torch.cat(columns, 1)
        else:
            image_entries = entries(self._dense_boxes(prediction), self._dense_scores(prediction))
        if self.args.single_cls:
            image_entries[:, -1] = 0
        return image_entries

    def _dense_boxes(self, prediction: Tensor) -> Tensor:
        """Return the boxes of one image's dense output (4 + K + E, A), (A, 4) or (A, 5)."""
        boxes = prediction[:4].T
        return torch.cat((boxes, prediction[-1:].T), 1) if self.oriented else ops.xywh2xyxy(boxes)

    def _dense_scores(self, prediction: Tensor) -> Tensor:
        """Return the class scores of one image's dense output (4 + K + E, A), (A, K)."""
        stop = 4 + self._num_classes if self._num_classes else len(prediction) - len(self._extras)
        return prediction[4:stop].T

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return one image's statistics; upstream calls this once per image, in order, and stores what it returns."""
        stat: dict[str, np.ndarray] = super()._process_batch(preds, batch)
        return {**stat, **self._own_statistics(preds, batch)}

    def _own_statistics(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return one image's statistics beside upstream's."""
        stat: dict[str, np.ndarray] = {}
        if self._sigmas:
            self._edges.append(self._edge_rows(self._sigmas.popleft(), preds, batch))
        objects = batch["bboxes"].cpu(), batch["cls"].cpu()
        stat["score_iou"] = match(self._entries.popleft(), *objects, overlap=self.overlap)
        if "coco_objects" in self.metrics.stats:
            stat["coco_detections"] = _columns(self.to_original(preds["bboxes"], batch), preds["conf"], preds["cls"])
            stat["coco_objects"] = _columns(self.to_original(batch["bboxes"], batch), batch["cls"])
        if self.metrics.voc:
            stat["difficult"] = self._difficult[batch["im_file"]]
        return stat

    def to_original(self, boxes: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return boxes of the network's input in pixels of the original image, (n, 4) xyxy; around oriented ones."""
        scaled = self.scaled(boxes, batch)
        return extent(scaled) if self.oriented else scaled

    def scaled(self, boxes: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return boxes of the network's input in pixels of the original image, (n, 4) xyxy or (n, 5) oriented."""
        place = {"ratio_pad": batch["ratio_pad"], "xywh": self.oriented}
        return torch.as_tensor(ops.scale_boxes(batch["imgsz"], boxes.clone(), batch["ori_shape"], **place))


def _print_row(name: str, images: int, objects: int, values: Sequence[float]) -> None:
    """Log a row of the table, in the columns of `get_desc`."""
    LOGGER.info(("%22s" + "%11i" * 2 + "%11.3g" * len(values)) % (name, images, objects, *values))


def _columns(boxes: Tensor, *values: Tensor) -> np.ndarray:
    """Return (n, 4 + len(values)) float32 rows."""
    return torch.cat((boxes.float(), *(v.float()[:, None] for v in values)), 1).cpu().numpy()
