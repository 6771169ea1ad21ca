"""A detection trainer whose assigner, criterion and head are chosen by options; the rest is Ultralytics'."""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import nn
from ultralytics.cfg import cfg2dict, get_cfg
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from mlc_yolo.assigners import Assigner, Schedule, build_assigner
from mlc_yolo.data.resolve import redraw_missing, resolve_data
from mlc_yolo.engine import options
from mlc_yolo.engine.checkpoint import load_stock_weights, wants_iou_channel, write_marker
from mlc_yolo.engine.criterion import build_criterion
from mlc_yolo.engine.validator import MLCValidator
from mlc_yolo.heads.iou_aware import add_iou_channel, set_rescore


class MLCTrainer(DetectionTrainer):
    """`DetectionTrainer` with per-task assigners and a predicted-IoU channel.

    Takes every argument of Ultralytics plus those of `cfg/mlc.yaml`. Works wherever a stock trainer does: Python,
    command line, distributed workers, resuming.

    Example:
        >>> trainer = MLCTrainer(overrides={"model": "yolo11n.yaml", "assigner": "mlc"})  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
        *,
        assigner: Assigner | None = None,
    ) -> None:
        """Check the options, then set up as upstream does.

        Args:
            cfg: base configuration.
            overrides: arguments by name, ours included.
            _callbacks: callbacks by event.
            assigner: an assigner object to use instead of a named one, on a single device.

        Raises:
            ValueError: an option outside its domain, or a warm-up that leaves nothing of the run.
            TypeError: an option of the wrong type.
            SyntaxError: an unknown argument; the nearest known ones are named.
        """
        overrides = dict(overrides or {})
        if assigner is not None:
            overrides["assigner"] = options.CUSTOM
        base = {**options.defaults(), **cfg2dict(cfg)}
        for arguments in (base, overrides):
            arguments.update(options.check(options.split(arguments)[0]))
        self.custom_assigner = assigner
        if not (overrides.get("resume") or base.get("resume")):  # before any file is touched
            overrides["data"] = resolve_data(overrides.get("data") or base.get("data"))
            # Older upstream versions hand a "session" over, which is no argument.
            run = get_cfg(base, {name: value for name, value in overrides.items() if name != "session"})
            self._refuse_missing_assigner(run.assigner)
            options.warmup_epochs(run.assigner_warmup, run.assigner, run.epochs)
        super().__init__(base, overrides, _callbacks)
        if assigner is not None and self.ddp:
            raise ValueError("an assigner object trains on one device: choose one, such as device=0")

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Restore the checkpoint's arguments as upstream does; options it does not know yet get their defaults."""
        super().check_resume(overrides)
        for name, value in options.defaults().items():
            if not hasattr(self.args, name):
                setattr(self.args, name, value)
        if not self.resume:
            return
        self._refuse_missing_assigner(self.args.assigner)
        if self.custom_assigner is not None and self.args.assigner != options.CUSTOM:
            raise ValueError(
                f"this run trains with assigner={self.args.assigner}; it resumes with that, not with an assigner object"
            )
        redraw_missing(self.args.data)

    def get_model(
        self, cfg: str | dict[str, Any] | None = None, weights: nn.Module | None = None, verbose: bool = True
    ) -> DetectionModel:
        """Return a stock detection model, with the IoU channel if it is asked for, and the weights loaded.

        Args:
            cfg: model YAML or its content.
            weights: model to take weights from.
            verbose: log the model's summary.

        Returns:
            The model; every tensor of a stock checkpoint is in place.
        """
        model = DetectionModel(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=verbose and RANK == -1)
        self.set_model_names_for_load(model)
        wanted = wants_iou_channel(self.args.iou_head, weights)
        if wanted:
            add_iou_channel(model.model[-1])
            set_rescore(model, self.args.rescore)
        write_marker(model, iou_head=wanted, rescore=self.args.rescore)
        if weights is not None:
            load_stock_weights(model, weights, verbose=verbose and RANK in {-1, 0})
        return model

    def get_validator(self) -> MLCValidator:
        """Return a validator that measures the divergence of the two tasks as well."""
        return MLCValidator(self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks)

    def set_class_weights(self) -> None:
        """Compute class weights as upstream does, then attach the criterion, which reads them."""
        super().set_class_weights()
        self._attach_criterion()

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as upstream does; it replaces the criterion of a dual-branch head, so ours is attached again."""
        super().resume_training(ckpt)
        if ckpt is None or not self.resume:
            return
        criterion = self._attach_criterion()
        if hasattr(criterion, "update"):  # the branch weights follow the epoch, as upstream restores them
            criterion.updates = self.start_epoch - 1
            criterion.update()

    def schedule(self) -> Schedule:
        """Return which assigner trains in which epoch."""
        ours, _ = options.split(self.args)
        main = self.custom_assigner
        if main is None:
            main = build_assigner(self.args.assigner, ours)
        warmup = options.warmup_length(self.args.assigner_warmup, self.args.assigner, self.epochs)
        return Schedule(build_assigner(self.args.assigner_base, ours), main, min(warmup, max(self.epochs - 1, 0)))

    def read_results_csv(self) -> dict[str, list[Any]]:
        """Read results.csv; a rank correlation without detections is "nan" there and None here, not a word."""
        import polars

        try:
            return polars.read_csv(self.csv, null_values=["nan"], infer_schema_length=None).to_dict(as_series=False)
        except (OSError, polars.exceptions.PolarsError):
            return {}

    def _attach_criterion(self) -> Any:
        model = _trained(unwrap_model(self.model))
        model.criterion = build_criterion(
            model, schedule=self.schedule(), prior_scale=self.args.mg_prior_scale, iou_gain=self.args.iou_gain
        )
        return model.criterion

    def _model_train(self) -> None:
        """Enter training mode, upstream's first act of every epoch, and tell the criterion which epoch it is."""
        super()._model_train()
        criterion: Any = _trained(unwrap_model(self.model)).criterion
        warmup = criterion.schedule.warmup
        if self.args.time and self.epoch < warmup:  # upstream re-estimates the run's length while it trains
            criterion.schedule = self.schedule()
            warmup = criterion.schedule.warmup
        criterion.epoch = self.epoch
        if self.ema:  # gives the validation losses; some upstream versions copy it before the criterion is attached
            _trained(self.ema.ema).criterion = criterion
        if RANK in {-1, 0} and warmup and self.epoch in {self.start_epoch, warmup}:
            stage = self.args.assigner_base if self.epoch < warmup else self.args.assigner
            LOGGER.info(f"assigner: {stage} from epoch {self.epoch + 1}, warm-up ends after epoch {warmup}")

    def _refuse_missing_assigner(self, name: str) -> None:
        """Refuse the name that stands for an assigner object when there is none: a checkpoint does not hold it."""
        if name == options.CUSTOM and self.custom_assigner is None:
            raise ValueError(
                f"assigner={name} stands for an assigner object, which files do not hold: give it again in Python, "
                "MLCYOLO(...).train(..., assigner=your_assigner)"
            )


def _trained(model: nn.Module) -> nn.Module:
    """Return the model our loss trains: the student where upstream distils."""
    return getattr(model, "student_model", model)
