"""MLCYOLO: Ultralytics' `YOLO` with our trainer, validator, exporter formats and options."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.engine import options
from mlc_yolo.engine.stock_export import NEEDS_STOCK, export_stock, to_stock
from mlc_yolo.engine.trainer import MLCTrainer
from mlc_yolo.engine.tuner import MLCTuner
from mlc_yolo.engine.validator import MLCValidator
from mlc_yolo.heads.iou_aware import check_head, has_iou_channel, set_rescore


class MLCYOLO(YOLO):
    """A YOLO whose training samples are chosen per task and whose scores know how well the box sits.

    Takes every argument of `ultralytics.YOLO`'s methods and the options of `cfg/mlc.yaml`.

    Example:
        >>> model = MLCYOLO("yolo11n.yaml")  # doctest: +SKIP
        >>> model.train(data="mine.yaml", assigner="mlc", epochs=100)  # doctest: +SKIP
        >>> model.val()  # doctest: +SKIP
    """

    def __init__(self, model: str | Path | Model = "yolo11n.yaml", task: str | None = None, verbose: bool = False):
        """Load or build a model.

        Args:
            model: checkpoint, exported model or model YAML, by path or by upstream's name.
            task: upstream's task name; guessed when left out.
            verbose: log the model's summary.

        Raises:
            TypeError: a model family that is no YOLO with a `Detect`-like head (RT-DETR, YOLO-World, YOLOE).
            FileNotFoundError: no such file.
        """
        try:
            super().__init__(model, task=task, verbose=verbose)
        except NotImplementedError as error:  # a YAML whose head upstream cannot place
            raise TypeError(_expected(model, "of another family")) from error
        if not isinstance(self, MLCYOLO):  # upstream swaps the class for families of its own
            family = type(self).__name__
            raise TypeError(_expected(model, f"a model for ultralytics.{family}"))

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Upstream's classes by task, with ours for detection."""
        ours = {
            "model": DetectionModel,
            "trainer": MLCTrainer,
            "validator": MLCValidator,
            "predictor": DetectionPredictor,
        }
        return {**super().task_map, "detect": ours}

    def train(self, trainer: Any = None, **kwargs: Any) -> Any:
        """Train. `assigner` takes a name or an assigner object; `data` left out means the demo set.

        Args:
            trainer: trainer class; ours when left out.
            **kwargs: upstream's training arguments and the options of `cfg/mlc.yaml`.

        Returns:
            The final validation's metrics.

        Raises:
            ValueError: an option outside its domain, or one this model cannot have.
            TypeError: an option of the wrong type, or a head that cannot carry the IoU channel.
            SyntaxError: an unknown argument.
        """
        custom = None
        if callable(kwargs.get("assigner")):
            custom = kwargs.pop("assigner")
        ours = self._checked(kwargs)
        if self.task != "detect":
            if custom is not None:
                raise ValueError(f"an assigner object trains detection models; this one is a {self.task} model")
            return super().train(trainer, **kwargs)

        self._refuse_unsupported_head(ours)
        kwargs.update(ours)
        if not kwargs.get("resume") and not kwargs.get("cfg"):
            data: Any = kwargs.get("data")
            several = isinstance(data, list | tuple)  # upstream fine-tunes on each in turn
            kwargs["data"] = [resolve_data(each) for each in data] if several else resolve_data(data)
        chosen = trainer or self._smart_load("trainer")
        return super().train(chosen if custom is None else partial(chosen, assigner=custom), **kwargs)

    def val(self, validator: Any = None, **kwargs: Any) -> Any:
        """Validate, with the divergence metrics; `coco_eval=True` adds pycocotools' numbers.

        Args:
            validator: validator class; ours when left out.
            **kwargs: upstream's validation arguments and the options of `cfg/mlc.yaml`.

        Returns:
            The metrics object.
        """
        kwargs.update(self._prepared(kwargs))
        if kwargs.get("data") is not None:
            kwargs["data"] = resolve_data(kwargs["data"])
        elif self.task == "detect" and not self.overrides.get("data"):
            kwargs["data"] = resolve_data(None)
        return super().val(validator, **kwargs)

    def predict(self, source: Any = None, stream: bool = False, predictor: Any = None, **kwargs: Any) -> Any:
        """Predict as upstream does; `rescore=False` ranks by the class score alone."""
        self._prepared(kwargs)
        _, stock = options.split(kwargs)
        return super().predict(source=source, stream=stream, predictor=predictor, **stock)

    def export(self, **kwargs: Any) -> str:
        """Export as upstream does; `format="stock"` writes a checkpoint that needs nothing of ours.

        Formats whose exporter would drop or refuse the IoU channel are exported from that stock form.

        Args:
            **kwargs: upstream's export arguments and `rescore`.

        Returns:
            Path of the exported file.
        """
        self._prepared(kwargs)
        _, stock = options.split(kwargs)
        target = str(stock.get("format", "")).lower()
        if target == "stock":
            self._check_is_pytorch_model()
            return str(export_stock(self.model, self._stock_path()))
        if target in NEEDS_STOCK and has_iou_channel(self.model):
            if target == "imx" and getattr(self.model.model[-1], "rescore", False):
                raise ValueError("format=imx has no room for the predicted IoU: export with rescore=False")
            plain = YOLO(self.model_name or self.overrides.get("model"), task=self.task)
            plain.model = to_stock(self.model)
            return plain.export(**stock)
        return super().export(**stock)

    def benchmark(self, data: str | None = None, format: str = "", verbose: bool | float = False, **kwargs: Any) -> Any:
        """Benchmark export formats as upstream does; `data` left out means the demo set."""
        self._prepared(kwargs)
        _, stock = options.split(kwargs)
        return super().benchmark(data=resolve_data(data), format=format, verbose=verbose, **stock)

    def assignments(self, **kwargs: Any) -> list[Path]:
        """Draw which anchors each task trains as positive, under two assigners side by side.

        Args:
            **kwargs: arguments of `engine.assignments.draw_assignments` and the options of `cfg/mlc.yaml`.

        Returns:
            Paths of the pictures.
        """
        from mlc_yolo.engine.assignments import draw_assignments  # matplotlib, only when asked for

        return draw_assignments(self, **kwargs)

    def tune(self, use_ray: bool = False, iterations: int = 10, *args: Any, **kwargs: Any) -> Any:
        """Tune hyperparameters as upstream does, training every candidate with our options."""
        if use_ray or self.task != "detect":
            return super().tune(use_ray, iterations, *args, **kwargs)
        self._check_is_pytorch_model()
        kwargs.update(self._checked(kwargs))
        kwargs["data"] = resolve_data(kwargs.get("data"))
        if "optimizer" not in (kwargs.get("space") or {}):
            kwargs.setdefault("optimizer", "AdamW")
        tuner = MLCTuner(args={**self.overrides, **kwargs, "mode": "train"}, _callbacks=self.callbacks)
        return tuner(iterations=iterations)

    def _checked(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return our options among `kwargs`, checked; refuse them on models of other tasks."""
        ours, _ = options.split(kwargs)
        if ours and self.task != "detect":
            raise ValueError(
                f"{', '.join(ours)} belong to detection models; '{self.overrides.get('model')}' is a {self.task} "
                "model. Leave them out, or take a detection model"
            )
        return options.check(ours)

    def _prepared(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Check our options and apply `rescore`, the one that acts at inference."""
        ours = self._checked(kwargs)
        if "rescore" in ours:
            if not isinstance(self.model, torch.nn.Module):
                raise ValueError("rescore is fixed in an exported model: export again with rescore=False")
            set_rescore(self.model, ours["rescore"])
            self.predictor = None  # it wraps a copy of the model
        return ours

    def _refuse_unsupported_head(self, ours: dict[str, Any]) -> None:
        """Fail before any file is touched if the head is no plain `Detect`."""
        if isinstance(self.model, DetectionModel) and ours.get("iou_head") is not False:
            layers: Any = self.model.model
            check_head(layers[-1])

    def _stock_path(self) -> Path:
        origin = Path(self.ckpt_path or self.model_name or "model.pt")
        return origin.with_name(f"{origin.stem}_stock.pt")


def _expected(model: Any, got: str) -> str:
    return f"expected a yolov8, yolo11, yolo12 or yolo26 model, but '{model}' is {got}"
