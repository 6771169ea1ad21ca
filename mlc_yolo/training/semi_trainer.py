"""Training with few labels and many images without: `TaughtTrainer`, a teacher, and a second data loader.

1. Until the burn-in ends, training is supervised; the teacher is Ultralytics' average of the student's weights.
2. Then each step also sees a batch without labels, by `training.semi_criterion`, whose weight rises over the ramp.
3. The average is what is validated, saved and exported, as Ultralytics' average always is.
4. With `teacher=` those frozen detectors take the average's place as teachers, and teach on labelled images too.

The teacher is an average from the first step on, not a copy of the student made when the burn-in ends (not compared).
With `ssl=none`, or a weight of 0, this is `MLCTrainer`, step by step. SED-style: see `losses.distillation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from ultralytics.data import build_dataloader
from ultralytics.utils import DATASETS_DIR, DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK, YAML, colorstr
from ultralytics.utils.plotting import plot_images
from ultralytics.utils.torch_utils import torch_distributed_zero_first, unwrap_model

from mlc_yolo.checkpoints.marker import wants_warp
from mlc_yolo.data.listing import image_files
from mlc_yolo.data.resolve import open_data
from mlc_yolo.data.shared_images import find_shared
from mlc_yolo.data.unlabeled import UnlabeledDataset
from mlc_yolo.options.specification import changed, warmup_length
from mlc_yolo.plots.ssl_agreement import agreement_figure
from mlc_yolo.training.exact_resume import STUDENT, RecordedLoader
from mlc_yolo.training.misfits import learns_without_labels
from mlc_yolo.training.semi_criterion import ITEMS, SemiLoss
from mlc_yolo.training.taught_criterion import TAUGHT
from mlc_yolo.training.taught_trainer import TaughtTrainer
from mlc_yolo.training.view_teachers import FrozenTeachers, RunningAverage

__all__ = ["STUDENT", "SemiTrainer", "refuse_validation_images", "unlabeled_source"]


class SemiTrainer(TaughtTrainer):
    """`TaughtTrainer` that learns from images without labels too, where `ssl` says so.

    Example:
        >>> options = {"model": "yolo11n.yaml", "data": "few.yaml", "unlabeled": "photos/", "ssl": "sed"}
        >>> trainer = SemiTrainer(overrides=options)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    ema: Any
    train_loader: Any
    learns: ClassVar[frozenset[str]] = frozenset({"teacher", "ssl"})
    untested: ClassVar[tuple[str, ...]] = (*TAUGHT, *ITEMS)

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the images without labels, then set up as `MLCTrainer` does.

        Raises:
            FileNotFoundError: no image without labels where `unlabeled` says.
            ValueError: images of the validation set among them, or options that exclude each other.
        """
        self.unlabeled_loader: Any = None
        self._views: Iterator[dict[str, Any]] | None = None
        self._steps = 0
        super().__init__(cfg, overrides, _callbacks, **kwargs)

    def _prepare(self, run: Any) -> dict[str, Any]:
        """Refuse options as `MLCTrainer` does, and check those of images without labels.

        Raises:
            FileNotFoundError: no image without labels where `unlabeled` says.
            ValueError: as in `MLCTrainer`, or images of the validation set among them.
        """
        settled = super()._prepare(run)
        if not learns_without_labels(vars(run)):
            idle = changed(vars(run), "unlabeled", *(["ssl_"] if run.ssl == "none" else []))
            if idle and RANK in {-1, 0}:
                LOGGER.warning(f"{', '.join(idle)}: no effect, as ssl={run.ssl} trains on labelled images alone")
            return settled
        if run.compile and "," in str(run.device):
            raise ValueError(f"ssl={run.ssl} cannot train a compiled model on several devices: give compile=False")
        if run.distill_model:
            raise ValueError(f"ssl={run.ssl} has a teacher of its own: leave distill_model out")
        if not run.ema and not settled.get("teacher"):
            raise ValueError(f"ssl={run.ssl} uses the averaged weights as its teacher: it needs ema=True")
        source = unlabeled_source(run.unlabeled, run.data)
        refuse_validation_images(image_files(source), run.data, str(run.split or "val"))
        return {**settled, "unlabeled": source}

    @property
    def semi(self) -> bool:
        """Whether anything is learned from images without labels."""
        return learns_without_labels(vars(self.args))

    def set_model_attributes(self) -> None:
        """Attach them as upstream does; then make the image size one that can be halved."""
        super().set_model_attributes()
        if not self.semi:
            return
        step = 2 * max(int(self.model.stride.max()), 32)
        size = math.ceil(self.args.imgsz / step) * step
        if size != self.args.imgsz:
            LOGGER.info(
                f"imgsz={self.args.imgsz} becomes {size}: ssl={self.args.ssl} needs multiples of {step}, to halve it"
            )
            self.args.imgsz = size

    def _build_train_pipeline(self) -> None:
        """Build upstream's loaders and optimiser, then the loader of images without labels."""
        super()._build_train_pipeline()
        if not self.semi:
            return
        absent = np.flatnonzero(self.get_class_counts() == 0)
        if len(absent) and RANK in {-1, 0}:
            names = ", ".join(str(self.data["names"][int(label)]) for label in absent[:10])
            more = ", ..." if len(absent) > 10 else ""
            LOGGER.warning(f"{len(absent)} of {self.data['nc']} classes have no labelled object: {names}{more}")
        batch = max(round(self.train_loader.batch_size * self.args.ssl_ratio), 1)
        with torch_distributed_zero_first(LOCAL_RANK):
            dataset = UnlabeledDataset(
                img_path=self.args.unlabeled,
                imgsz=self.args.imgsz,
                augment=True,
                hyp=self.args,
                cache=self.args.cache or None,
                batch_size=batch,
                prefix=colorstr("unlabeled: "),
                data=self.data,
                task="detect",
                warp=wants_warp(None, unwrap_model(self.model)),
            )
        batch = min(batch, max(len(dataset) // max(self.world_size, 1), 1))
        self._close_unlabeled()  # of before memory ran out
        loader = build_dataloader(
            dataset,
            batch=batch,
            workers=self.args.workers,
            shuffle=True,
            rank=LOCAL_RANK,
            drop_last=True,  # a step's rest of one image would leave normalisation nothing to normalise by
            device=self.device,
        )
        self.unlabeled_loader = RecordedLoader.of(loader)
        self._views = None
        LOGGER.info(f"ssl={self.args.ssl}: {len(dataset)} images without labels, {batch} a step")

    def _close_unlabeled(self) -> None:
        """End the workers of the loader of images without labels, as upstream does of its own."""
        if hasattr(self.unlabeled_loader, "close"):
            self.unlabeled_loader.close()

    def _endless(self) -> Iterator[dict[str, Any]]:
        """Yield batches without labels, shuffled anew each time round."""
        turn = self.epoch
        while True:
            if hasattr(self.unlabeled_loader.sampler, "set_epoch"):
                self.unlabeled_loader.sampler.set_epoch(turn)
            yield from self.unlabeled_loader
            turn += 1

    def _draws(self) -> dict[str, Any]:
        """Return the states of the random generators, those for images without labels included."""
        unlabeled = {"unlabeled": self.unlabeled_loader.place()} if self.semi else {}
        return {**super()._draws(), **unlabeled}

    def _redraw(self, state: dict[str, Any]) -> None:
        """Put them back."""
        if "unlabeled" in state:
            self.unlabeled_loader.go_to(state["unlabeled"])
        super()._redraw(state)

    def gain(self) -> float:
        """Return the weight of the losses without labels at the current step."""
        burn_in, ramp = (
            warmup_length(length, None, self.epochs) for length in (self.args.ssl_burn_in, self.args.ssl_ramp)
        )
        past = self.epoch + (self._steps + 1) / max(len(self.train_loader), 1) - burn_in  # at the end of the step
        if past <= 0:
            return 0.0
        return float(self.args.ssl_weight) * (min(past / ramp, 1.0) if ramp else 1.0)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Preprocess as upstream does, and add a batch without labels once the burn-in is over."""
        batch = super().preprocess_batch(batch)
        criterion = getattr(unwrap_model(self.model), "criterion", None)
        if not self.semi or not isinstance(criterion, SemiLoss):
            return batch
        criterion.gain = self.gain()
        self._steps += 1
        if criterion.gain:
            first = self._views is None
            self._views = self._views or self._endless()
            view = next(self._views)
            moved = {
                name: view[name].to(self.device, non_blocking=self.device.type == "cuda").float() / 255
                for name in ("weak", "strong")
            }
            batch["unlabeled"] = moved
            if first and self.args.plots and RANK in {-1, 0}:
                self._plot_views(moved)
        return batch

    def _plot_views(self, views: dict[str, Any]) -> None:
        """Draw up to four weak views, each above its strong one."""
        shown = torch.cat([views["weak"][:4], views["strong"][:4]], 2)
        none = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0), "bboxes": torch.zeros(0, 4)}
        plot_images({"img": shown, **none}, fname=self.save_dir / "unlabeled_batch0.jpg", on_plot=self.on_plot)

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Plot the labelled images as upstream does."""
        super().plot_training_samples({name: part for name, part in batch.items() if name != "unlabeled"}, ni)

    def _attach_criterion(self) -> Any:
        supervised = super()._attach_criterion()
        if not self.semi:
            return supervised
        args, model = self.args, unwrap_model(self.model)
        sed = args.ssl == "sed"
        model.criterion = SemiLoss(
            supervised,
            mode=args.ssl,
            student=lambda: unwrap_model(self.model),
            teacher=self._view_teacher(),
            power=2 * (args.ssl in {"sed", "dense"}) if args.ssl_reweight is None else args.ssl_reweight,
            scale=sed if args.ssl_scale is None else args.ssl_scale,
            temperature=args.teacher_temperature,
            threshold=args.ssl_threshold,
            nms_iou=args.iou,
            max_det=args.max_det,
        )
        return model.criterion

    def _view_teacher(self) -> RunningAverage | FrozenTeachers:
        """Return who teaches on images without labels: frozen teachers if there are any, else the running average."""
        if self.taught:
            return FrozenTeachers(lambda: self._teachers)  # type: ignore[arg-type,return-value]
        return RunningAverage(lambda: self.ema.ema, lambda: unwrap_model(self.model))

    def _model_train(self) -> None:
        """Enter an epoch; the ranks' teachers become rank 0's, whose buffers upstream does not share."""
        super()._model_train()
        self._steps = 0
        if self.semi and not self.taught and dist.is_initialized():
            for buffer in self.ema.ema.buffers():
                dist.broadcast(buffer, src=0)

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as upstream does, if at all; a new run's average is made by now."""
        super().resume_training(ckpt)
        if self.semi:
            self._set_decay()

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Load as upstream does, on resuming and after a nan; then give the student its own weights.

        Upstream makes the student of the teacher, and a new average.
        """
        super()._load_checkpoint_state(ckpt)
        if not self.semi:
            return
        self._take_student(ckpt)
        self._set_decay()

    def _set_decay(self) -> None:
        """Let the average's decay rise to `ssl_ema`.

        It reaches over the last tenth of the steps so far. Upstream's reaches over about one step in the first 1,000,
        and over a tenth from 20,000 on: a teacher in a short run would be no steadier than its student.

        A frozen teacher leaves the average to upstream.
        """
        if self.taught:
            return
        limit = self.args.ssl_ema
        self.ema.decay = lambda updates: min(limit, (1 + updates) / (10 + updates))

    def final_eval(self) -> None:
        """Strip and validate as `DurableTrainer` does; images without labels are done with."""
        self._close_unlabeled()
        super().final_eval()

    def plot_metrics(self) -> None:
        """Draw upstream's plots, and one of the agreement of teacher and student."""
        super().plot_metrics()
        if self.semi:
            file = self.save_dir / "ssl_agreement.png"
            agreement_figure(self.read_results_csv()).savefig(file, dpi=200)
            self.on_plot(file)


def unlabeled_source(option: Any, data: str) -> list[str]:
    """Return where the images without labels are: as given, else the data YAML's `unlabeled` entry, by absolute path.

    Args:
        option: the option `unlabeled`, relative to the working directory.
        data: data YAML; the paths in it are relative to its `path`, found as upstream finds it, else to its folder.

    Raises:
        ValueError: neither names any.
    """
    if option:
        several = option if isinstance(option, list | tuple) else [option]
        return [str(Path(folder).expanduser().absolute()) for folder in several]
    file = Path(data)
    content = YAML.load(file) if file.suffix in {".yaml", ".yml"} and file.is_file() else {}
    entry = content.get("unlabeled")
    if not entry:
        raise ValueError(
            f"ssl needs images without labels: give unlabeled=path/to/images, or an entry `unlabeled:` in {data}. "
            "`mlc-yolo split data=... percent=10` makes one from a labelled data set"
        )
    root = Path(content.get("path") or file.parent)
    if not (root.is_absolute() or root.exists()):
        root = Path(DATASETS_DIR) / root
    return [str(root.absolute() / folder) for folder in (entry if isinstance(entry, list) else [entry])]


def refuse_validation_images(files: list[str], data: str, split: str) -> None:
    """Refuse images to learn from that are to be validated on.

    Raises:
        ValueError: some are.
    """
    try:
        held_out = image_files(open_data(data, split=split, download=False)[split])
    except FileNotFoundError:  # upstream downloads it, or says what is missing
        return
    shared = find_shared(files, held_out)
    if shared:
        copies = f", {len(shared.copies)} of them as copies" if shared.copies else ""
        raise ValueError(
            f"{len(shared)} of {len(files)} images without labels are in the {split} set of {data}{copies}, "
            f"such as {shared.first}: training on them would falsify the result. Give other images as unlabeled=..."
        )
