"""MLCYOLO: Ultralytics' `YOLO` with our trainer, validator, exporter formats and options."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.cfg import check_dict_alignment
from ultralytics.engine.model import Model
from ultralytics.nn.tasks import DetectionModel, guess_model_task, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, YAML
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from mlc_yolo.checkpoints import safe_load, tensors_file
from mlc_yolo.checkpoints.marker import read_marker, wants_warp, write_marker
from mlc_yolo.checkpoints.sigma_scale import sigma_scale, store_sigma_scale
from mlc_yolo.checkpoints.stock_export import NEEDS_STOCK, export_stock, to_stock
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.data.resolve import resolve_data, resolve_for_upstream
from mlc_yolo.detectors.config import bundled, find_config, inherit
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.weights import is_torchvision, start_from
from mlc_yolo.evaluation.diagnose import diagnose
from mlc_yolo.evaluation.diagnosis import Diagnosis
from mlc_yolo.evaluation.placement import Placing
from mlc_yolo.evaluation.predictor import MLCPredictor
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.heads.iou_aware import add_iou_channel, has_iou_channel, rank_by_iou, set_rescore
from mlc_yolo.metrics.coverage import Coverage
from mlc_yolo.options import specification as options
from mlc_yolo.options.stock_arguments import check_stock
from mlc_yolo.training.misfits import refuse_classes, refuse_finished, refuse_for_detector, refuse_for_yolo
from mlc_yolo.training.semi_trainer import SemiTrainer
from mlc_yolo.training.tuner import MLCTuner
from mlc_yolo.upstream import warn_if_untested


class MLCYOLO(YOLO):
    """A YOLO whose training samples are chosen per task and whose scores know how well the box sits.

    Takes every argument of `ultralytics.YOLO`'s methods and the options of `cfg/mlc.yaml`.

    Example:
        >>> model = MLCYOLO("yolo11n.yaml")  # doctest: +SKIP
        >>> model.train(data="mine.yaml", assigner="mlc", epochs=100)  # doctest: +SKIP
        >>> model.val()  # doctest: +SKIP
    """

    predictor: Any
    trust = False
    _predicting: Mapping[str, Any] = {}  # our options of the last prediction, as its predictor takes them

    def __init__(
        self,
        model: str | Path | Model = "yolo11n.yaml",
        task: str | None = None,
        verbose: bool = False,
        *,
        trust: bool = False,
    ):
        """Load or build a model.

        Args:
            model: checkpoint, exported model or model YAML, by path, by upstream's name or by the name of a detector in
                `cfg/models` (retinanet-r50-fpn.yaml, fcos-r18-fpn.yaml, ...).
            task: upstream's task name; guessed when left out.
            verbose: log the model's summary.
            trust: open checkpoints whatever they hold, this one and those that methods load: they may run programs.

        Raises:
            TypeError: a model family that is no YOLO with a `Detect`-like head (RT-DETR, YOLO-World, YOLOE).
            ValueError: a detector's YAML that is not as it should be, or a checkpoint that is more than data.
            FileNotFoundError: no such file.
        """
        warn_if_untested()
        try:
            if isinstance(model, str | Path) and not self.is_triton_model(str(model)):
                safe_load.check(model, trust=trust)  # before anything: upstream opens some by their names alone
            super().__init__(model, task=task, verbose=verbose)
        except NotImplementedError as error:  # a YAML whose head upstream cannot place
            raise TypeError(_expected(model, "of another family")) from error
        except KeyError as error:  # a YAML without layers
            raise ValueError(
                f"model={model} has no {error}: expected a model, such as model=yolo11n.pt or a model YAML. Is it the "
                "YAML of a data set? That is data=..."
            ) from error
        except FileNotFoundError as error:
            if near := _near(Path(str(model))):
                raise FileNotFoundError(f"no model '{model}'. Did you mean {' or '.join(near)}?") from error
            raise
        if not isinstance(self, MLCYOLO):  # upstream swaps the class for families of its own
            family = type(self).__name__
            raise TypeError(_expected(model, f"a model for ultralytics.{family}"))
        self.trust = trust
        # An address that the checkpoint names as its data set: it is fetched only where `data=` asks for it.
        self._fetched_data = None
        if not trust and safe_load.is_fetched(self.overrides.get("data")):
            self._fetched_data, self.overrides["data"] = self.overrides["data"], None

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Upstream's classes by task, with ours for detection."""
        ours = {
            "model": DetectionModel,
            "trainer": SemiTrainer,
            "validator": MLCValidator,
            "predictor": MLCPredictor,
        }
        return {**super().task_map, "detect": ours}

    def _smart_load(self, key: str) -> Any:
        """Return the class for this model's task; of predictors, one that resizes images as the call asked."""
        chosen = super()._smart_load(key)
        return partial(chosen, **self._predicting) if chosen is MLCPredictor else chosen

    def _new(self, cfg: str, task: str | None = None, verbose: bool = False) -> None:
        """Build a model from a YAML: one of ours by `detectors`, any other as upstream does."""
        config = find_config(cfg)
        if task is not None:
            built = guess_model_task(yaml_model_load(cfg)) if config is None else "detect"
            if built not in {None, task}:
                raise ValueError(f"model={cfg} builds a {built} model, not {task}: leave the task out, or name another")
        if config is None:
            super()._new(cfg, task=task, verbose=verbose)
            return
        self.cfg = self.model_name = str(cfg)
        self.task = "detect"
        self.model = DetectorModel(config, verbose=verbose)
        self.overrides.update(model=self.cfg, task=self.task)
        self.model.args = {**DEFAULT_CFG_DICT, **self.overrides}
        self.model.task = self.task

    def _load(self, weights: str, task: str | None = None) -> None:
        """Load a model: one without pickles by `weights_file`, any other as upstream does."""
        if not str(weights).endswith(tensors_file.SUFFIX):
            super()._load(weights, task=task)
            return
        self.model, self.ckpt = tensors_file.load(weights)
        self.task = self.model.task
        self.overrides = self.model.args = self._reset_ckpt_args(self.model.args)
        self.overrides.update(model=str(weights), task=self.task)
        self.model_name = str(weights)
        self.ckpt_path = self.model.pt_path

    def save(self, filename: str | Path = "saved_model.pt") -> None:
        """Save as upstream does; a name ending in `.safetensors` gets the model without pickles.

        Args:
            filename: the file.

        Raises:
            ValueError: a model that its YAML does not build, such as a fused one, without pickles.
        """
        if str(filename).endswith(tensors_file.SUFFIX):
            self._check_is_pytorch_model()
            tensors_file.save(Path(filename), self.model, (self.ckpt or {}).get("train_args"))
        else:
            super().save(filename)

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
        ours = self._checked(kwargs)
        kwargs = options.split(kwargs)[1]
        if self.task != "detect":
            if custom is not None:
                raise ValueError(f"an assigner object trains detection models; this one is a {self.task} model")
            for name in ("pretrained", "distill_model", "resume"):  # our own trainer looks itself
                if isinstance(kwargs.get(name), str | Path):
                    file = safe_load.resumed(kwargs[name]) if name == "resume" else kwargs[name]
                    safe_load.check(file, trust=self.trust)
            if kwargs.get("data") is not None:
                kwargs["data"] = resolve_for_upstream(kwargs["data"], split=kwargs.get("split"))
            elif kwargs.get("resume"):
                safe_load.refuse_fetching(self._fetched_data, str(self.ckpt_path))
            return super().train(trainer, **kwargs)

        self._refuse_misfits(ours, kwargs)
        kwargs.update(ours)
        if kwargs.get("cfg"):
            kwargs.setdefault("trust", self.trust)  # which the file is not asked for
            kwargs.setdefault("save_dir", None)  # of the run the file comes from, which must not be written over
            if not kwargs.get("data") and not YAML.load(kwargs["cfg"]).get("data"):
                kwargs["data"] = resolve_data(None)
        elif not kwargs.get("resume"):
            data: Any = kwargs.get("data")
            several = isinstance(data, list | tuple)  # upstream fine-tunes on each in turn
            found = [resolve_data(each, split=kwargs.get("split")) for each in (data if several else [data])]
            kwargs["data"] = found if several else found[0]
            if isinstance(self.model, DetectorModel) and self.model.kind == "rpn" and not kwargs.get("single_cls"):
                refuse_classes(kwargs["data"] if several else [kwargs["data"]])
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
        provide_fonts()
        ours = self._prepared(kwargs)
        kwargs = {**options.split(kwargs)[1], **ours}
        if kwargs.get("data") is not None:
            resolve = resolve_data if self.task == "detect" else resolve_for_upstream
            kwargs["data"] = resolve(kwargs["data"], split=kwargs.get("split"))
        elif self._fetched_data and not self.overrides.get("data"):
            safe_load.refuse_fetching(self._fetched_data, str(self.ckpt_path))
        elif self.task == "detect" and not self.overrides.get("data"):
            kwargs["data"] = resolve_data(None)
        if ours.get("calibrate") and not (isinstance(self.model, torch.nn.Module) and self.ckpt_path):
            raise ValueError(f"calibrate=True writes to a checkpoint, and '{self.model_name}' is none: give a .pt file")
        metrics = super().val(validator, **kwargs)
        if ours.get("calibrate"):
            self._calibrate(getattr(metrics, "coverage", None))
        return metrics

    def _calibrate(self, measured: Coverage | None) -> None:
        """Store what makes the standard deviations of this model's boxes honest, here and in its checkpoint.

        Raises:
            ValueError: the head does not say how sure it is, or no detection met an object.
        """
        if measured is None or not measured.count:
            raise ValueError(
                "calibrate=True found no detection whose sides the head states a deviation of: it needs labelled data "
                "and a YOLO that predicts distributions (v8, 11, 12), without augment=True"
            )
        file = Path(str(self.ckpt_path))
        scale = sigma_scale(self.model) * measured.factor
        store_sigma_scale(file, scale, trust=self.trust)
        write_marker(self.model, **{**read_marker(self.model), "sigma_scale": scale})
        self.predictor = None
        LOGGER.info(f"{file} now multiplies the standard deviations of its boxes by {scale:.3f}")

    def predict(self, source: Any = None, stream: bool = False, predictor: Any = None, **kwargs: Any) -> Any:
        """Predict as upstream does; `rescore=False` ranks by the class score alone, `resize` overrules the model's."""
        ours = self._prepared(kwargs)
        _, stock = options.split(kwargs)
        if predictor is None and self.task == "detect":
            every = {**options.defaults(), **ours}
            self._predicting = {name: every[name] for name in ("resize", "show_sigma")} | {"placing": Placing.of(every)}
            asked = type(self.predictor) is MLCPredictor
            if not asked or any(getattr(self.predictor, name) != value for name, value in self._predicting.items()):
                self.predictor = None
        return super().predict(source=source, stream=stream, predictor=predictor, **stock)

    def diagnose(self, **kwargs: Any) -> Diagnosis:
        """Say what holds this detector back; arguments, result and errors are `evaluation.diagnose.diagnose`'s."""
        return diagnose(self, **kwargs)

    def export(self, **kwargs: Any) -> str:
        """Export as upstream does; `format="stock"` writes a checkpoint that needs nothing of ours.

        Formats whose exporter would drop or refuse the IoU channel are exported from that stock form.

        Args:
            **kwargs: upstream's export arguments and `rescore`.

        Returns:
            Path of the exported file.

        Raises:
            ValueError: a format or a size that this kind of model cannot have.
        """
        self._prepared(kwargs)
        _, stock = options.split(kwargs)
        if stock.get("data") is not None:  # images to calibrate by
            stock["data"] = resolve_for_upstream(stock["data"], split=stock.get("split"))
        target = str(stock.get("format", "")).lower()
        for_yolo = target in {"stock", "edgetpu", *NEEDS_STOCK} or stock.get("dynamic")
        if isinstance(self.model, DetectorModel) and for_yolo:
            asked = "dynamic=True" if stock.get("dynamic") else f"format={target}"
            raise ValueError(
                f"{asked} is for YOLO; {self.model.kind} models are exported at a fixed size, to a format that takes "
                "any PyTorch model, such as format=onnx imgsz=640"
            )
        if isinstance(self.model, torch.nn.Module) and wants_warp(None, self.model):
            LOGGER.warning(
                "this model expects images warped to the input, which an exported file does not say: predict and "
                "validate it with resize=warp, or stretch images yourself"
            )
        if target == "stock":
            self._check_is_pytorch_model()
            path = export_stock(self.model, self._stock_path())
            LOGGER.info(f"Stock checkpoint, for plain Ultralytics: {path}")
            return str(path)
        if target in NEEDS_STOCK and has_iou_channel(self.model):
            if target == "imx" and getattr(self._head(), "rescore", False):
                raise ValueError("format=imx has no room for the predicted IoU: export with rescore=False")
            plain = YOLO(self.model_name or self.overrides.get("model"), task=self.task)
            plain.model, plain.callbacks = to_stock(self.model), self.callbacks
            return plain.export(**stock)
        return super().export(**stock)

    def benchmark(self, data: str | None = None, format: str = "", verbose: bool | float = False, **kwargs: Any) -> Any:
        """Benchmark export formats as upstream does; `data` left out means the demo set."""
        self._prepared(kwargs)
        _, stock = options.split(kwargs)
        return super().benchmark(data=resolve_for_upstream(data), format=format, verbose=verbose, **stock)

    def track(self, source: Any = None, stream: bool = False, persist: bool = False, **kwargs: Any) -> Any:
        """Track as upstream does; a checkpoint that the tracker's YAML names is looked at first."""
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
        ours = self._checked(kwargs)
        kwargs = {**options.split(kwargs)[1], **ours}
        run = {**DEFAULT_CFG_DICT, **options.defaults(), **kwargs}
        options.warmup_epochs(run["assigner_warmup"], run["assigner"], run["epochs"])
        kwargs["data"] = resolve_data(kwargs.get("data"))
        if "optimizer" not in (kwargs.get("space") or {}):
            kwargs.setdefault("optimizer", "AdamW")
        tuner = MLCTuner(
            args={**self.overrides, **kwargs, "mode": "train"}, _callbacks=self.callbacks, model=self.model
        )
        return tuner(iterations=iterations)

    def load(self, weights: Any = "yolo11n.pt") -> MLCYOLO:
        """Load weights as upstream does; a trained IoU channel among them comes along.

        Args:
            weights: path, checkpoint or module; for a ported detector also torchvision's weights, a .pth file or the
                name of a weight enum.

        Returns:
            This model.

        Raises:
            ValueError: weights of another detector.
        """
        if isinstance(self.model, DetectorModel) and is_torchvision(weights):
            self.overrides.pop("pretrained", None)
            self._replace(start_from(self._config(), weights))
            self.ckpt, self.ckpt_path = {"model": self.model}, None  # train() starts from this model while it is set
            return self
        if isinstance(weights, str | Path) and str(weights).endswith(tensors_file.SUFFIX):
            weights = tensors_file.load(weights)[0]
        source = weights
        if isinstance(weights, str | Path):
            source = safe_load.load_checkpoint(weights, trust=self.trust)[0]
        if isinstance(source, torch.nn.Module) and isinstance(self.model, DetectionModel):
            if isinstance(source, DetectorModel) and not isinstance(self.model, DetectorModel):
                raise ValueError(f"expected weights of a YOLO, got those of a {source.kind}: take its model YAML")
            if isinstance(self.model, DetectorModel):
                if isinstance(source, DetectorModel) and source.kind == self.model.kind:
                    config = inherit(self.model.yaml, source.yaml)
                    self._replace(DetectorModel(config, nc=self.model.yaml["nc"], verbose=False))
            elif has_iou_channel(source):
                add_iou_channel(self._head())
            if read_marker(source):
                write_marker(self.model, **read_marker(source))
        super().load(weights)
        return self

    def _config(self) -> dict[str, Any]:
        """Return a ported detector's configuration as its YAML has it, or as its checkpoint does."""
        return (find_config(self.cfg) if self.cfg else None) or self.model.yaml

    def _replace(self, model: DetectorModel) -> None:
        """Put another network in place of this one's."""
        model.args, model.task = {**DEFAULT_CFG_DICT, **self.overrides}, self.task
        self.model, self.predictor = model, None

    def _checked(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return our options among `kwargs`, checked; refuse them on models of other tasks."""
        ours, stock = options.split(kwargs)
        check_stock(stock)
        if ours and self.task != "detect":
            raise ValueError(
                f"{', '.join(ours)}: for detection models; '{self.overrides.get('model')}' is a {self.task} model. "
                "Leave out what is named, or take a detection model"
            )
        if self.trust and self.task == "detect":
            ours.setdefault("trust", True)
        return options.check(ours)

    def _prepared(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Check names and our options, and apply `rescore`, the one that acts at inference, for this call alone."""
        known = {**DEFAULT_CFG_DICT, **options.defaults()}
        check_dict_alignment(
            known, dict(kwargs), allowed_custom_keys={"augmentations", "save_dir", "prompts", "persist"}
        )
        ours = self._checked(kwargs)
        if not isinstance(self.model, torch.nn.Module):
            if "rescore" in ours:
                raise ValueError("rescore is fixed in an exported model: export again with rescore=False")
            if ours.get("nms_by") == "iou":
                raise ValueError("nms=iou ranks by the predicted IoU, which exported models hand on no more")
        elif self.task == "detect":
            head = self._head()
            rescore = ours.get("rescore", read_marker(self.model).get("rescore", True))
            if rescore != getattr(head, "rescore", rescore):
                set_rescore(self.model, rescore)
                self.predictor = None  # it wraps a copy of the model
            by_iou = ours.get("nms_by", read_marker(self.model).get("nms_by")) == "iou"
            if by_iou != getattr(head, "rank_by_iou", False):
                rank_by_iou(head, by_iou)
                self.predictor = None
        return ours

    def _head(self) -> Any:
        layers: Any = self.model.model
        return layers[-1]

    def _refuse_misfits(self, ours: dict[str, Any], stock: dict[str, Any]) -> None:
        if isinstance(self.model, DetectorModel):
            name = self.model_name or "model"
            refuse_for_detector(self._config(), name, ours, stock, has_weights=bool(self.ckpt))
        else:
            refuse_for_yolo(self.model, self.overrides.get("model", ""), ours, stock)

    def _stock_path(self) -> Path:
        origin = Path(self.ckpt_path or self.model_name or "model.pt")
        return origin.with_name(f"{origin.stem}_stock.pt")


def _near(path: Path) -> list[str]:
    """Return names like that of a model which is not there: of ours, of Ultralytics and of files beside it."""
    beside = [each.name for each in path.parent.glob("*") if each.suffix in {".pt", ".yaml", ".onnx", ".safetensors"}]
    return get_close_matches(path.name, [*beside, *bundled(), *GITHUB_ASSETS_NAMES], n=3, cutoff=0.75)


def _expected(model: Any, got: str) -> str:
    return f"expected a yolov8, yolo11, yolo12 or yolo26 model, but '{model}' is {got}"
