"""MLCYOLO: Ultralytics' `YOLO` with our trainer, validator, exporter formats and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.cfg import check_dict_alignment
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, YAML
from ultralytics.utils.checks import check_yaml

from mlc_yolo.checkpoints import safe_load
from mlc_yolo.checkpoints.marker import read_marker, wants_warp
from mlc_yolo.checkpoints.stock_export import NEEDS_STOCK, export_stock, needs_stock, to_stock
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.data.resolve import resolve_data, resolve_for_upstream
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.evaluation.calibration import calibrate
from mlc_yolo.evaluation.diagnose import diagnose
from mlc_yolo.evaluation.diagnosis import Diagnosis
from mlc_yolo.evaluation.placed_export import noting, placed_model
from mlc_yolo.evaluation.placement import Placing
from mlc_yolo.evaluation.predictor import MLCPredictor
from mlc_yolo.evaluation.task_predictors import PREDICTORS
from mlc_yolo.evaluation.task_validators import TASK_VALIDATORS
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.heads.iou_aware import rank_by_iou, set_rescore
from mlc_yolo.opening import OpenedYOLO
from mlc_yolo.options import specification as options
from mlc_yolo.options.arguments import Arguments
from mlc_yolo.options.of_tasks import FOR_INFERENCE, FOR_TRAINING, because
from mlc_yolo.training.misfits import (
    learns_without_labels,
    refuse_classes,
    refuse_finished,
    refuse_for_detector,
    refuse_for_yolo,
)
from mlc_yolo.training.semi_trainer import SemiTrainer
from mlc_yolo.training.task_trainers import TASK_TRAINERS
from mlc_yolo.training.taught_trainer import TaughtTrainer
from mlc_yolo.training.teachers import refuse_teachers, teacher_files
from mlc_yolo.training.trainer import MLCTrainer
from mlc_yolo.training.tuner import MLCTuner


class MLCYOLO(OpenedYOLO):
    """A YOLO that chooses training samples per task and scores a detection by class and box quality.

    Takes every argument of `ultralytics.YOLO`'s methods and the options of `cfg/mlc.yaml`.

    Example:
        >>> model = MLCYOLO("yolo11n.yaml")  # doctest: +SKIP
        >>> model.train(data="mine.yaml", assigner="mlc", epochs=100)  # doctest: +SKIP
        >>> model.val()  # doctest: +SKIP
    """

    callbacks: dict[str, list[Any]]
    _predicting: Mapping[str, Any] = {}  # our options of the last prediction, as its predictor takes them

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Upstream's classes by task, with ours for detection, and our trainers and validators of other boxes."""
        ours = {"trainer": MLCTrainer, "validator": MLCValidator, "predictor": MLCPredictor, "model": DetectionModel}
        tasks: dict[str, dict[str, Any]] = {**super().task_map, "detect": ours}
        for task, trainer in TASK_TRAINERS.items():
            tasks[task] |= {"trainer": trainer, "validator": TASK_VALIDATORS[task], "predictor": PREDICTORS[task]}
        return tasks

    def _smart_load(self, key: str) -> Any:
        """Return the class for this model's task; of predictors, one that resizes images as the call asked."""
        chosen = super()._smart_load(key)
        return partial(chosen, trust=self.trust, **self._predicting) if chosen in PREDICTORS.values() else chosen

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
        provide_fonts()
        if kwargs.get("resume") is True:
            refuse_finished(self.ckpt or {}, str(self.ckpt_path or self.overrides.get("model")))
        custom = None
        if callable(kwargs.get("assigner")):
            custom = kwargs.pop("assigner")
            if isinstance(custom, type):
                raise TypeError(f"assigner={custom.__name__} is a class; give an instance: {custom.__name__}()")
        own = TASK_TRAINERS.get(self.task)
        learns = own is not None and (trainer is None or own in getattr(trainer, "__mro__", ()))
        arguments = self._arguments(kwargs, fitting=FOR_TRAINING if learns else frozenset())
        asked = arguments.flat()
        if learns or self.task == "detect":
            self._refuse_misfits(arguments)
        if self.task != "detect":
            if custom is not None and not learns:
                raise ValueError(f"no assigner object fits this training of a {self.task} model: leave it out")
            chosen = trainer if custom is None else partial(self._smart_load("trainer"), assigner=custom)
            return super().train(chosen, **self._looked_at(asked))
        if asked.get("cfg"):
            asked.setdefault("trust", self.trust)  # which the file is not asked for
            asked.setdefault("save_dir", None)  # of the run the file comes from, which must not be written over
            if not asked.get("data") and not YAML.load(asked["cfg"]).get("data"):
                asked["data"] = resolve_data(None)
        elif not asked.get("resume"):
            asked["data"] = self._data_to_train(asked)
        chosen = trainer or self._own_trainer(asked) or self._smart_load("trainer")
        return super().train(chosen if custom is None else partial(chosen, assigner=custom), **asked)

    def _looked_at(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return arguments of a training of another task, after checking the files that upstream's trainer opens."""
        for name in ("pretrained", "distill_model", "resume"):
            if isinstance(asked.get(name), str | Path):
                file = safe_load.resumed(asked[name]) if name == "resume" else asked[name]
                safe_load.check(file, trust=self.trust)
        if asked.get("data") is None:
            if asked.get("resume"):
                safe_load.refuse_fetching(self._fetched_data, str(self.ckpt_path))
            return asked
        return {**asked, "data": resolve_for_upstream(asked["data"], split=asked.get("split"))}

    def _data_to_train(self, asked: dict[str, Any]) -> Any:
        """Return `data` for the trainer, which resolves it. Refuse here what upstream would refuse too late.

        Raises:
            ValueError: one of several data YAMLs is refused, or data has several classes for a proposal network.
        """
        data: Any = asked.get("data")
        several = isinstance(data, list | tuple)
        if isinstance(self.model, DetectorModel) and self.model.kind == "rpn" and not asked.get("single_cls"):
            refuse_classes([resolve_data(source) for source in (data if several else [data])])
        return [resolve_data(source, split=asked.get("split")) for source in data] if several else data

    def _own_trainer(self, asked: dict[str, Any]) -> type[MLCTrainer] | None:
        """Return the trainer that a training, or the run that it resumes, needs beside `MLCTrainer`; None if none."""
        resume = asked.get("resume")
        if resume:
            file = None if resume is True and self.ckpt else safe_load.resumed(resume)
            checkpoint = self.ckpt if file is None else safe_load.load_checkpoint(file, trust=self.trust)[1]
            asked = (checkpoint or {}).get("train_args") or {}
        elif asked.get("cfg"):
            asked = {**YAML.load(asked["cfg"]), **asked}
        if learns_without_labels(asked) or asked.get("unlabeled"):
            return SemiTrainer
        return TaughtTrainer if asked.get("teacher") else None

    def val(self, validator: Any = None, **kwargs: Any) -> Any:
        """Validate, with the divergence metrics; `coco_eval=True` adds pycocotools' numbers.

        Args:
            validator: validator class; ours when left out.
            **kwargs: upstream's validation arguments and the options of `cfg/mlc.yaml`.

        Returns:
            Upstream's metrics, such as `box.map` in [0, 1], and `spearman` and `spearman_pooled` in [-1, 1] or nan.
        """
        provide_fonts()
        chosen = validator or self._smart_load("validator")
        arguments = self._prepared(kwargs)
        asked = dict(arguments.stock)
        if isinstance(chosen, type) and issubclass(chosen, MLCValidator):  # it resolves data, and takes our options
            chosen = partial(chosen, arguments=arguments)
        elif further := arguments.explicit - {"trust", *FOR_INFERENCE}:
            got = getattr(chosen, "__name__", chosen)
            raise ValueError(f"{', '.join(sorted(further))}: needs a validator derived from MLCValidator, got {got}")
        elif asked.get("data") is not None:
            asked["data"] = resolve_for_upstream(asked["data"], split=asked.get("split"))
        if not (asked.get("data") or self.overrides.get("data")):
            safe_load.refuse_fetching(self._fetched_data, str(self.ckpt_path))
            if self.task == "detect":
                asked["data"] = resolve_data(None)
        calibrated = arguments.ours["calibrate"] and self.task == "detect"
        if calibrated and not (isinstance(self.model, torch.nn.Module) and self.ckpt_path):
            raise ValueError(f"calibrate=True writes to a checkpoint: give a .pt file, not '{self.model_name}'")
        metrics = super().val(chosen, **asked)
        if calibrated:
            calibrate(self.model, Path(str(self.ckpt_path)), getattr(metrics, "coverage", None), trust=self.trust)
            self.predictor = None
        return metrics

    def predict(self, source: Any = None, stream: bool = False, predictor: Any = None, **kwargs: Any) -> Any:
        """Predict as upstream does; `rescore=False` ranks by the class score alone, `resize` overrules the model's.

        Returns:
            Upstream's results. Of detection, `boxes.sigma` (N, 4) is the standard deviation of left, top, right and
            bottom in px of the image, `boxes.iou` (N,) the predicted IoU in [0, 1]; nan where the head knows none.
        """
        arguments = self._prepared(kwargs)
        if predictor is None and self.task in PREDICTORS:
            every = arguments.ours
            self._predicting = {name: every[name] for name in ("resize", "show_sigma")} | {"placing": Placing.of(every)}
            asked = isinstance(self.predictor, MLCPredictor)
            if not asked or any(getattr(self.predictor, name) != value for name, value in self._predicting.items()):
                self.predictor = None
        return super().predict(source=source, stream=stream, predictor=predictor, **arguments.stock)

    def diagnose(self, **kwargs: Any) -> Diagnosis:
        """Measure what limits this detector, and what helps it without training, by validations.

        Args:
            **kwargs: arguments of `val`; `conf` is the score threshold it is deployed with, in [0, 1], default 0.25;
                `remedies` is what is tried, see `evaluation.diagnose`.

        Returns:
            The diagnosis, which prints as a table with a verdict; `folder` says where its files are.

        Raises:
            ValueError: a task without boxes, a threshold out of its domain, data without objects or of other classes.
        """
        return diagnose(self, **kwargs)

    def export(self, *, placement: bool = False, **kwargs: Any) -> str:
        """Export as upstream does; `format="stock"` writes a checkpoint for plain Ultralytics.

        Formats whose exporter would drop or refuse the IoU channel are exported from that stock form.

        Args:
            placement: for ONNX and TorchScript, append to the output (B, 4 + K, A) what the head knows of its boxes:
                their predicted IoU, then the standard deviation of left, top, right and bottom in pixels of the input.
                The metadata's entry `placement` names the channels; see `evaluation.placed_export`.
            **kwargs: upstream's export arguments and `rescore`.

        Returns:
            Path of the exported file.

        Raises:
            ValueError: a format or a size that this kind of model cannot have, or no placement to export.
            TypeError: `placement` is no bool.
        """
        if not isinstance(placement, bool):
            raise TypeError(f"placement={placement!r} ({type(placement).__name__}) must be True or False.")
        stock = dict(self._prepared(kwargs).stock)
        if stock.get("data") is not None:  # images to calibrate by
            stock["data"] = resolve_for_upstream(stock["data"], split=stock.get("split"))
        target = str(stock.get("format", "")).lower()
        for_yolo = target in {"stock", "edgetpu", *NEEDS_STOCK} or stock.get("dynamic")
        if isinstance(self.model, DetectorModel) and for_yolo:
            asked = "dynamic=True" if stock.get("dynamic") else f"format={target}"
            raise ValueError(
                f"{asked} is for YOLO. Export {self.model.kind} models at a fixed size, to a format that takes any "
                "PyTorch model, such as format=onnx imgsz=640"
            )
        if isinstance(self.model, torch.nn.Module) and wants_warp(None, self.model):
            LOGGER.warning(
                "This model expects images warped to the input. An exported file does not record that: predict and "
                "validate it with resize=warp, or stretch images yourself"
            )
        if placement:
            return self._export_placed(stock)
        if target == "stock":
            self._check_is_pytorch_model()
            path = export_stock(self.model, self._stock_path())
            LOGGER.info(f"Stock checkpoint, for plain Ultralytics: {path}")
            return str(path)
        if isinstance(self.model, torch.nn.Module) and needs_stock(self.model, target):
            if target == "imx" and getattr(self._head(), "rescore", False):
                raise ValueError("format=imx cannot hold the predicted IoU: export with rescore=False")
            plain = YOLO(self.model_name or self.overrides.get("model"), task=self.task)
            plain.model, plain.callbacks = to_stock(self.model), self.callbacks
            return plain.export(**stock)
        return super().export(**stock)

    def _export_placed(self, stock: dict[str, Any]) -> str:
        """Export with `placement=True`: a copy of the model, with a callback that names its channels in the file."""
        self._check_is_pytorch_model()
        if self.task != "detect":
            raise ValueError(f"placement=True is for detection models, but this is a {self.task} model: leave it out")
        plain, callbacks = self.model, self.callbacks
        try:
            note = noting(plain)
            self.model = placed_model(plain, stock)
            self.callbacks = {**callbacks, "on_export_start": [note, *callbacks["on_export_start"]]}
            return str(super().export(**stock))
        finally:
            self.model, self.callbacks = plain, callbacks

    def benchmark(self, data: str | None = None, format: str = "", verbose: bool | float = False, **kwargs: Any) -> Any:
        """Benchmark export formats as upstream does; `data` left out means the demo set.

        Raises:
            ValueError: an option of ours that changes how a file is judged: upstream judges exported files itself.
        """
        arguments, usual = self._prepared(kwargs), options.defaults()
        for name in sorted(arguments.explicit - {"rescore", "trust"}):
            if arguments.ours[name] != usual[name]:
                raise ValueError(
                    f"{name}={arguments.ours[name]} does not go with benchmark, which judges every file by "
                    f"Ultralytics' own validation. Leave it out, and judge a file by mlc-yolo val model=FILE {name}=..."
                )
        return super().benchmark(data=resolve_for_upstream(data), format=format, verbose=verbose, **arguments.stock)

    def track(self, source: Any = None, stream: bool = False, persist: bool = False, **kwargs: Any) -> Any:
        """Track as upstream does, after checking a checkpoint that the tracker's YAML names."""
        if kwargs.get("tracker"):
            named = YAML.load(check_yaml(kwargs["tracker"])).get("model")
            if isinstance(named, str) and named != "auto":
                safe_load.check(named, trust=self.trust)
        return super().track(source, stream, persist, **kwargs)

    def tune(self, use_ray: bool = False, iterations: int = 10, *args: Any, **kwargs: Any) -> Any:
        """Tune hyperparameters as upstream does, training every candidate with our options."""
        if use_ray or self.task != "detect":
            return super().tune(use_ray, iterations, *args, **kwargs)
        self._check_is_pytorch_model()
        arguments = self._arguments(kwargs)
        asked = dict(arguments.stock)
        epochs = asked.get("epochs") or DEFAULT_CFG_DICT["epochs"]
        options.warmup_epochs(arguments.ours["assigner_warmup"], arguments.ours["assigner"], epochs)
        data = asked.get("data")
        # Several data sets judge a setting together.
        asked["data"] = (
            [resolve_data(source) for source in data] if isinstance(data, list | tuple) else resolve_data(data)
        )
        if "optimizer" not in (asked.get("space") or {}):
            asked.setdefault("optimizer", "AdamW")
        run = {**self.overrides, **asked, "mode": "train"}
        return MLCTuner(run, self.callbacks, arguments=arguments, model=self.model)(iterations=iterations)

    def _arguments(self, kwargs: dict[str, Any], *, fitting: frozenset[str] = frozenset()) -> Arguments:
        """Return the arguments of a method, checked, with empty options filled for this model.

        Args:
            kwargs: by name.
            fitting: options of ours that a model of another task takes in this method.

        Raises:
            ValueError: a value outside its domain, or an option of ours on a model of another task.
            TypeError: a value of the wrong type.
        """
        arguments = Arguments.of(kwargs, trust=self.trust)
        if self.task == "detect":
            return arguments.for_model(self._kind()) if isinstance(self.model, torch.nn.Module) else arguments
        if named := [n for n in kwargs if n in arguments.explicit - fitting]:
            why = f" ({because(named)})" if self.task in TASK_TRAINERS else ""
            raise ValueError(
                f"{', '.join(named)}: only for detection models, but '{self.overrides.get('model')}' is a {self.task} "
                f"model{why}. Leave these options out, or use a detection model"
            )
        return replace(arguments, explicit=arguments.explicit & fitting)

    def _prepared(self, kwargs: dict[str, Any]) -> Arguments:
        """Check names and values, and apply `rescore` and `nms_by`, which act at inference, for this call alone."""
        known = {**DEFAULT_CFG_DICT, **options.defaults()}
        upstreams = {"augmentations", "save_dir", "prompts", "persist"}  # which its methods take beside its settings
        check_dict_alignment(known, dict(kwargs), allowed_custom_keys=upstreams)
        arguments = self._arguments(kwargs, fitting=FOR_INFERENCE if self.task in TASK_TRAINERS else frozenset())
        chosen: dict[str, Any] = {n: arguments.ours[n] for n in ("rescore", "nms_by") if n in arguments.explicit}
        if not isinstance(self.model, torch.nn.Module):
            if "rescore" in chosen:
                raise ValueError("rescore is fixed in an exported model: export again with rescore=False")
            if chosen.get("nms_by") == "iou":
                raise ValueError(
                    "nms_by=iou chooses what a checkpoint's scores are, and an exported model's are fixed: leave it out"
                )
        elif self.task in PREDICTORS:
            self._rank(**{**read_marker(self.model), **chosen})
        return arguments

    def _rank(self, *, rescore: bool = True, nms_by: str = "standard", **_: Any) -> None:
        """Make the head rank its boxes so; a predictor wraps a copy of the model and is made anew."""
        head = self._head()
        if rescore != getattr(head, "rescore", rescore):
            set_rescore(self.model, rescore)
            self.predictor = None
        if (nms_by == "iou") != getattr(head, "rank_by_iou", False):
            rank_by_iou(head, nms_by == "iou")
            self.predictor = None

    def _refuse_misfits(self, arguments: Arguments) -> None:
        if isinstance(self.model, DetectorModel):
            name = self.model_name or "model"
            refuse_for_detector(self._config(), name, arguments, has_weights=bool(self.ckpt))
        else:
            refuse_for_yolo(self.model, self.overrides.get("model", ""), arguments)
        ours = arguments.ours
        if files := teacher_files(ours["teacher"]):
            refuse_teachers(files, trust=arguments.trust, student=self.model, teacher_imgsz=ours["teacher_imgsz"])

    def _stock_path(self) -> Path:
        origin = Path(self.ckpt_path or self.model_name or "model.pt")
        return origin.with_name(f"{origin.stem}_stock.pt")
