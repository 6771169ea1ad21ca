"""A detection trainer whose assigner, criterion and head are chosen by options; the rest is Ultralytics'."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn, optim
from ultralytics.cfg import cfg2dict, get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK, WORLD_SIZE
from ultralytics.utils.torch_utils import unwrap_model

from mlc_yolo.assigners import Assigner, Schedule, StockAssignment, build_assigner, yolo_assigner
from mlc_yolo.checkpoints import safe_load
from mlc_yolo.checkpoints.foreign_names import foreign_names
from mlc_yolo.checkpoints.marker import wants_warp
from mlc_yolo.data.datasets import build
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.data.resolve import look_at_data, redraw_missing, resolve_data
from mlc_yolo.detectors.config import find_config
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.weights import is_torchvision
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.options import specification as options
from mlc_yolo.options.arguments import Arguments, of_checkpoint
from mlc_yolo.options.idle import idle_in_training
from mlc_yolo.options.optimizer_steps import describe_steps
from mlc_yolo.training.criteria import build_criterion
from mlc_yolo.training.detector_criterion import DetectorLoss
from mlc_yolo.training.durable import DurableTrainer
from mlc_yolo.training.misfits import refuse_channels, refuse_devices, refuse_lengths, refuse_other_learning
from mlc_yolo.training.networks import build_detector, build_yolo


class MLCTrainer(DurableTrainer):
    """`DetectionTrainer` with per-task assigners and a predicted-IoU channel.

    Takes every argument of Ultralytics plus those of `cfg/mlc.yaml`. Works wherever a stock trainer does: Python,
    command line, distributed workers, resuming.

    Example:
        >>> trainer = MLCTrainer(overrides={"model": "yolo11n.yaml", "assigner": "mlc"})  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    args: Any
    model: Any
    ema: Any = None
    last: Any
    best: Any
    #: Options that say what else is learned from, beside labels, which this trainer can do.
    learns: ClassVar[frozenset[str]] = frozenset()

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
            ValueError: an option outside its domain, a warm-up that leaves nothing of the run, or a checkpoint that is
                not data alone.
            TypeError: an option of the wrong type.
            SyntaxError: an unknown argument; the nearest known ones are named.
        """
        overrides = {name: value for name, value in (overrides or {}).items() if name != "session"}  # of older upstream
        if assigner is not None:
            overrides["assigner"] = options.CUSTOM
        known = {**options.defaults(), **cfg2dict(cfg), "trust": False}  # no file grants trust
        self.arguments, self.custom_assigner = Arguments.of({**known, **overrides}), assigner
        self._known_data: tuple[str, dict[str, Any]] | None = None  # the argument, and upstream's description of it
        flat = self.arguments.flat()
        known, overrides = ({name: flat[name] for name in part} for part in (known, overrides))
        run = get_cfg(known, overrides)
        if not run.resume:
            overrides.update(self._prepare(run))
            self.arguments = Arguments.of({**flat, **overrides})
        for file in (run.pretrained, run.distill_model):
            self._look_at(file)
        provide_fonts()
        super().__init__(known, overrides, _callbacks)
        if RANK != -1:  # upstream counts the devices of this machine; there may be several
            self.world_size = WORLD_SIZE
        refuse_channels(self.args, self.data["channels"])  # of data that only upstream can open
        if self.args.augmentation == "ssd" and RANK in {-1, 0}:
            LOGGER.info(
                "augmentation=ssd: mosaic, mixup, cutmix, copy_paste, hsv_*, degrees, translate, scale, shear, "
                "perspective, flipud, fliplr, bgr and augmentations have no effect"
            )

    def _prepare(self, run: Any) -> dict[str, Any]:
        """Refuse options and data that cannot be trained, before a run folder is made.

        Args:
            run: arguments of a new run as a namespace, ours included.

        Returns:
            Those that are settled here, by name.

        Raises:
            ValueError: options that exclude each other, that leave nothing of the run, or that the data cannot have.
        """
        refuse_other_learning(run, self.learns)
        self._refuse_missing_assigner(run.assigner)
        if self.custom_assigner is not None:
            refuse_devices(run.device)
        refuse_lengths(run)
        run.data = resolve_data(run.data, split=run.split)
        if RANK == -1 and (description := look_at_data(run.data, split=run.split)):
            self._known_data = run.data, description
            refuse_channels(run, description["channels"])
        return {"data": run.data}

    def get_dataset(self) -> dict[str, Any]:
        """Return upstream's description of the data, made before the run folder where that was possible."""
        if self._known_data is None or self._known_data[0] != self.args.data:
            data: dict[str, Any] = super().get_dataset()
            return data
        _, data = self._known_data
        self.args.data = data["yaml_file"]
        if self.args.single_cls:
            data["names"], data["nc"] = {0: "item"}, 1
        return data

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Restore the checkpoint's arguments as upstream does; options it does not know yet get their defaults.

        Raises:
            ValueError: the checkpoint is not data alone, or what has become of its data YAML is refused.
        """
        trust, asked_for = self.arguments.trust, self.args.data
        if self.args.resume:
            safe_load.check(safe_load.resumed(self.args.resume), trust=trust)
        super().check_resume({name: value for name, value in overrides.items() if name != "trust"})
        if not self.resume:
            return
        # The user's word counts, whatever the checkpoint says.
        self.arguments = Arguments.of({**of_checkpoint(vars(self.args)), "trust": trust})
        vars(self.args).update(self.arguments.ours)
        self._look_at(self.args.distill_model)
        refuse_other_learning(self.args, self.learns)
        self._refuse_missing_assigner(self.args.assigner)
        if self.custom_assigner is not None and self.args.assigner != options.CUSTOM:
            raise ValueError(
                f"this run trains with assigner={self.args.assigner} and resumes with it: leave the assigner object out"
            )
        if not asked_for and not trust:
            safe_load.refuse_fetching(self.args.data, self.args.model)
        redraw_missing(self.args.data)
        self.args.data = resolve_data(self.args.data, split=self.args.split)

    def get_model(
        self, cfg: str | dict[str, Any] | None = None, weights: nn.Module | None = None, verbose: bool = True
    ) -> DetectionModel:
        """Return a detection model with the layers asked for, and the weights loaded.

        Args:
            cfg: model YAML or its content.
            weights: model to take weights from.
            verbose: log the model's summary.

        Returns:
            The model; every tensor of a stock checkpoint is in place.

        Raises:
            ValueError: options or data that this model cannot have.
        """
        common: dict[str, Any] = {
            "name_classes": self.set_model_names_for_load,
            "verbose": verbose and RANK in {-1, 0},
        }
        config = cfg if isinstance(cfg, dict) and "detector" in cfg else find_config(cfg)
        if config is None:
            make = self.new_network
            return build_yolo(cfg, weights, self.arguments, make=make, resuming=bool(self.resume), **common)
        pretrained = None if self.resume else self.args.pretrained
        return build_detector(config, weights, self.arguments, data=self.data, pretrained=pretrained, **common)

    def new_network(self, cfg: Any, *, verbose: bool) -> DetectionModel:
        """Return the network of a YAML for the data's classes and channels."""
        return DetectionModel(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=verbose)

    def setup_model(self) -> Any:
        """Set the model up as upstream does; torchvision weights and frozen stages are the detectors' own."""
        source = self.args.pretrained
        if is_torchvision(source) and not self.resume and not isinstance(self.model, nn.Module):
            config = find_config(self.model)  # upstream would take the file for a checkpoint
            if config is None:
                raise ValueError(f"pretrained={source} holds torchvision weights, which do not fit model={self.model}")
            self.model = self.get_model(cfg=config, verbose=RANK in {-1, 0})
            ckpt = None
        else:
            if not self.resume:  # else `check_resume` has looked
                self._look_at(self.model)
            ckpt = super().setup_model()
        model = _trained(unwrap_model(self.model))
        detector = model.kind if isinstance(model, DetectorModel) else None
        self.arguments = self.arguments.for_model(detector)
        vars(self.args).update(self.arguments.ours)  # what a checkpoint says of its run
        if RANK in {-1, 0} and not self.resume:
            for idle in idle_in_training(self.arguments.ours, self.epochs, detector=detector):
                LOGGER.warning(idle)
        if isinstance(self.model, DetectorModel):
            asked = self.args.freeze
            layers = list(asked) if isinstance(asked, list) else list(range(asked or 0))
            self.args.freeze = [*layers, *(name for name in self.model.frozen if name not in layers)] or None
        return ckpt

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build the data set as upstream does; of other images with `resize=warp` or `augmentation=ssd`."""
        model = unwrap_model(self.model)
        return build(
            img_path,
            self.args,
            warp=wants_warp(None, _trained(model)),
            ssd=self.args.augmentation == "ssd" and mode == "train",
            data=self.data,
            batch=batch,
            mode=mode,
            rect=mode == "val",
            stride=max(int(model.stride.max()), 32),
        )

    def _close_dataloader_mosaic(self) -> None:
        """Switch the mosaic off as upstream does, if there is one."""
        if self.args.augmentation != "ssd":
            super()._close_dataloader_mosaic()

    def _get_warmup_iterations(self, num_batches: int) -> int:
        """Return `warmup_iters`; if empty, the batches of upstream's `warmup_epochs`."""
        asked = self.args.warmup_iters
        if asked is None:
            iterations: int = super()._get_warmup_iterations(num_batches)
            return iterations
        if asked >= num_batches * self.epochs and not self.args.time:  # a timed run may turn out shorter than planned
            raise ValueError(
                f"warmup_iters={asked} must end before the run: epochs={self.epochs} of {num_batches} batches are "
                f"{num_batches * self.epochs} iterations"
            )
        return int(asked)

    def _setup_scheduler(self) -> None:
        """Divide the learning rate by ten at `lr_steps`; without them, schedule as upstream does."""
        super()._setup_scheduler()
        steps = self.args.lr_steps
        if steps:
            self.lf = lambda epoch: 0.1 ** sum(epoch >= step for step in steps)
            self.scheduler = optim.lr_scheduler.LambdaLR(self.optimizer, lr_lambda=self.lf)

    def get_validator(self) -> MLCValidator:
        """Return a validator that measures the divergence of the two tasks as well."""
        validator = MLCValidator(
            self.test_loader,
            save_dir=self.save_dir,
            args=copy(self.args),
            _callbacks=self.callbacks,
            arguments=self.arguments,
        )
        validator.prepare_for(unwrap_model(self.model))
        return validator

    def set_class_weights(self) -> None:
        """Compute class weights as upstream does, then attach the criterion, which reads them."""
        super().set_class_weights()
        self._attach_criterion()

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as `DurableTrainer` does, then attach our criterion again: upstream may have replaced it."""
        super().resume_training(ckpt)
        if ckpt is None or not self.resume:
            return
        criterion = self._attach_criterion()
        criterion = getattr(criterion, "supervised", criterion)
        if hasattr(criterion, "update"):  # the branch weights follow the epoch, as upstream restores them
            criterion.updates = self.start_epoch - 1
            criterion.update()

    def schedule(self) -> Schedule[Any]:
        """Return which assigner trains in which epoch."""
        model = _trained(unwrap_model(self.model))
        own = model.head.own_assigner if isinstance(model, DetectorModel) else None
        ours = self.arguments.ours
        main: Assigner | StockAssignment | None = self.custom_assigner
        if main is None:
            main = build_assigner(self.args.assigner, ours, own=own) if own else yolo_assigner(self.args.assigner, ours)
        name = self.args.assigner_base
        base = build_assigner(name, ours, own=own) if own else yolo_assigner(name, ours)
        return Schedule(base, main, *self._warmups())

    def _warmups(self) -> tuple[int, int]:
        """Return how many epochs the base assigner trains, and how many the predicted IoU does not."""
        args, last = self.args, max(self.epochs - 1, 0)  # the last epoch at least trains what was asked for
        assigner = options.warmup_length(args.assigner_warmup, args.assigner, self.epochs)
        return min(assigner, last), min(options.warmup_length(args.iou_warmup, None, self.epochs), last)

    def validate(self) -> Any:
        """Validate as upstream does; with `ema=False` the weights as they are."""
        self._take_trained_weights()
        return super().validate()

    def _take_trained_weights(self) -> None:
        """With `ema=False`, copy the weights to where upstream expects the averaged ones, buffers included."""
        if self.ema is None or self.ema.enabled:
            return
        trained = unwrap_model(self.model).state_dict()
        with torch.no_grad():
            for name, tensor in self.ema.ema.state_dict().items():  # of a distilled model, the student
                tensor.copy_(trained[name])

    def save_model(self) -> Any:
        """Save as `DurableTrainer` does, with `ema=False` the weights as they are."""
        self._take_trained_weights()  # without a validation nothing has done it
        return super().save_model()

    def _attach_criterion(self) -> Any:
        model = _trained(unwrap_model(self.model))
        common = {"schedule": self.schedule(), "prior_scale": self.args.prior_scale, "iou_gain": self.args.iou_gain}
        if isinstance(model, DetectorModel):
            model.criterion = DetectorLoss(model, **common, align_gain=self.args.align_gain)
        else:
            by_product = self.args.iou_training == "product" and self.args.rescore
            model.criterion = build_criterion(model, **common, by_product=by_product)
        return model.criterion

    def _model_train(self) -> None:
        """Enter training mode, upstream's first act of every epoch, and tell the criterion which epoch it is."""
        super()._model_train()
        for name in getattr(unwrap_model(self.model), "frozen", ()):  # upstream's own test misses a norm of that name
            unwrap_model(self.model).model.get_submodule(name).eval()
        criterion: Any = _trained(unwrap_model(self.model)).criterion
        if self.args.time and criterion.schedule.warms_up(self.epoch):  # upstream re-estimates the run's length
            criterion.schedule = criterion.schedule.lasting(*self._warmups(), epoch=self.epoch)
        warmup = criterion.schedule.warmup
        criterion.epoch = self.epoch
        if self.ema:
            self.ema.enabled = self.args.ema  # upstream makes a new one when it resumes or recovers
            # It gives the validation losses; some upstream versions copy it before the criterion is attached.
            _trained(self.ema.ema).criterion = criterion
        if self.epoch == self.start_epoch:
            self._announce_foreign(criterion)
        if self.epoch == 0 and RANK in {-1, 0} and (steps := describe_steps(self)):
            LOGGER.info(steps)
        if RANK in {-1, 0} and warmup and self.epoch in {self.start_epoch, warmup}:
            stage = self.args.assigner_base if self.epoch < warmup else self.args.assigner
            LOGGER.info(f"assigner: {stage} from epoch {self.epoch + 1}, warm-up ends after epoch {warmup}")

    def _announce_foreign(self, criterion: Any) -> None:
        """Say which classes will make this run's checkpoints need `trust=True` in other processes, if any do."""
        if RANK not in {-1, 0} or self.arguments.trust or not self.ema:
            return
        if names := foreign_names(self.ema.ema, without=criterion):
            LOGGER.warning(
                f"this run's checkpoints will hold {', '.join(names)}, which can be any program: after this run they "
                "open with trust=True only, where that can be imported"
            )

    def final_eval(self) -> None:
        """Strip and validate as `DurableTrainer` does; of a resumed run, best.pt may be another's until now.

        Raises:
            ValueError: it is not data alone.
        """
        if RANK in {-1, 0}:
            for file in filter(Path.exists, (self.best, self.last)):
                self._look_at(file)
        super().final_eval()

    def _look_at(self, file: Any) -> None:
        """Refuse a checkpoint that is not data alone; anything else that an option may be is left to upstream."""
        if isinstance(file, str | Path):
            safe_load.check(file, trust=self.arguments.trust)

    def _refuse_missing_assigner(self, name: str) -> None:
        """Refuse the name that stands for an assigner object when there is none: a checkpoint does not hold it."""
        if name == options.CUSTOM and self.custom_assigner is None:
            raise ValueError(
                f"assigner={name} means an assigner object, which files cannot hold: pass it again in Python, "
                "MLCYOLO(...).train(..., assigner=your_assigner)"
            )


def _trained(model: nn.Module) -> nn.Module:
    """Return the model our loss trains: the student where upstream distils."""
    return getattr(model, "student_model", model)
