"""A detection trainer whose runs survive being killed: files are always whole, and resuming is exact.

1. Every checkpoint is written to a folder beside its place, then moved in one step. last.pt moves last, because a run
   resumes from it: by then the epoch's other files are in place.
2. last.pt holds more state than upstream's; see `training.exact_resume`. Its weights are serialised once an epoch.
   best.pt has upstream's form and is serialised only when the epoch is the best so far.
3. At the end both are stripped, and each gets a copy without pickles; see `checkpoints.tensors_file`.

A resumed run restores random states and pending gradients as its first epoch begins, just before images are drawn, so
random numbers drawn while the run is set up have no effect.
"""

from __future__ import annotations

import shutil
from copy import copy
from pathlib import Path
from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK
from ultralytics.utils.torch_utils import is_qat, strip_optimizer, torch_distributed_zero_first, unwrap_model

from mlc_yolo import whole_files
from mlc_yolo.checkpoints import own_files, tensors_file
from mlc_yolo.checkpoints.half_precision import to_half
from mlc_yolo.training import exact_resume


class DurableTrainer(DetectionTrainer):
    """`DetectionTrainer` that can be killed at any point and resumes exactly."""

    args: Any
    model: Any
    ema: Any = None
    last: Any
    best: Any
    _pending = 0  # batches since the last optimizer step
    _put_off = 0  # batches by which a resumed run's first step is put off: upstream counts as if one had just been
    _resumed: dict[str, Any] | None = None  # what last.pt keeps as `resume`, until the first epoch begins

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Restore the checkpoint's arguments as upstream does, but continue in the file's folder: runs may move."""
        super().check_resume(overrides)
        if not self.resume or overrides.get("save_dir") is not None:
            return
        last = Path(self.args.model)
        if last.parent.name == "weights":
            self.args.save_dir = str(last.absolute().parent.parent)
        else:  # taken out of its run: a new folder is made
            self.args.save_dir, self.args.exist_ok = None, False

    def _do_train(self) -> None:
        """Train as upstream does. A run that was killed after its last epoch is only finished."""
        try:
            super()._do_train()
        except _Over:
            LOGGER.info(f"All {self.epochs} epochs are done: finishing {self.last}")
            self.epoch = self.epochs - 1
            self.final_eval()
            if RANK in {-1, 0}:
                if self.args.plots:
                    self.plot_metrics()
                self.run_callbacks("on_train_end")

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as upstream does, then restore the state that upstream does not keep."""
        if self.resume and ckpt is not None and exact_resume.STUDENT in ckpt and ckpt["epoch"] + 1 >= self.epochs:
            raise _Over
        super().resume_training(ckpt)
        if ckpt is None or not self.resume:
            return
        self._take_student(ckpt)
        self._resumed = dict(ckpt.get(exact_resume.RESUME) or {})
        self._forget_rows()
        close = self.args.close_mosaic
        if close and self.start_epoch > self.epochs - close:
            # It was closed before the cut. Upstream would close it in the first epoch and start the loader anew, which
            # gives another order of images. With nothing to close it does not; `_go_on` puts the option back.
            self._close_dataloader_mosaic()
            self._resumed["close_mosaic"], self.args.close_mosaic = close, 0

    def _take_student(self, ckpt: dict[str, Any]) -> None:
        """Give the model the weights that were being trained; upstream gives it the averaged ones."""
        model, student = unwrap_model(self.model), ckpt.get(exact_resume.STUDENT)
        if student is not None and all(value.isfinite().all() for value in student.values()):
            model.load_state_dict({**model.state_dict(), **student})

    def _forget_rows(self) -> None:
        """Drop rows of epochs that are trained again: the run was killed after their row, before their checkpoint."""
        if RANK not in {-1, 0} or not self.csv.exists():
            return
        header, *rows = self.csv.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= self.start_epoch]
        whole_files.write(self.csv, "".join([header, *kept]).encode())

    def _go_on(self, state: dict[str, Any]) -> None:
        """Put random states and pending gradients back.

        Args:
            state: of the checkpoint; nothing of it if upstream wrote that.
        """
        self.args.close_mosaic = state.get("close_mosaic", self.args.close_mosaic)
        if "pending" in state:
            self.accumulate = state["accumulate"]
            self._pending = state["pending"]
            self._put_off = len(self.train_loader) * self.start_epoch - self._pending
            exact_resume.restore_gradients(self.model, state["gradients"])
        if "draws" in state and RANK == -1:  # the states are those of one process
            self._redraw(state["draws"])

    def _draws(self) -> dict[str, Any]:
        """Return the states of the random generators."""
        return exact_resume.draws(self.train_loader)

    def _redraw(self, state: dict[str, Any]) -> None:
        """Put them back."""
        exact_resume.redraw(state, self.train_loader)

    def _model_train(self) -> None:
        """Enter training mode, upstream's first act of every epoch. A resumed run restores its state here."""
        super()._model_train()
        if self._resumed is not None:
            self._go_on(self._resumed)
            self._resumed = None

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Return upstream's loader; the loader of training images can return to a saved position."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        return exact_resume.RecordedLoader.of(loader) if mode == "train" else loader

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step, as upstream counts them."""
        return self._accumulate + self._put_off

    @accumulate.setter
    def accumulate(self, batches: int) -> None:
        self._accumulate = batches

    def _build_train_pipeline(self) -> None:
        """Build upstream's loaders and optimiser, again after memory ran out, and reset the counters."""
        self._pending = self._put_off = 0
        super()._build_train_pipeline()

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Preprocess as upstream does, and count."""
        self._pending += 1
        prepared: dict[str, Any] = super().preprocess_batch(batch)
        return prepared

    def optimizer_step(self) -> None:
        """Step as upstream does, and count."""
        super().optimizer_step()
        self._pending = self._put_off = 0

    def save_model(self) -> Any:
        """Save as upstream does, but move every file in one step, and give last.pt the state for an exact resume.

        Raises:
            OSError: a file cannot be written; the ones before are kept.
        """
        with _Staging(self.last.parent) as staging:
            writer = copy(self)  # upstream saves whatever trainer it is called for
            writer.last, writer.best, writer.wdir = staging / self.last.name, staging / self.best.name, staging
            if not self._needs_stock_checkpoint():  # weights are then serialised once, in last.pt
                writer.ema, writer.optimizer = exact_resume.without_weights(self.ema)
            try:
                saved = super(DurableTrainer, writer).save_model()
            except OSError as error:
                raise OSError(
                    error.errno, f"{self.last} could not be written: {error}; the one before is kept"
                ) from error
            stock = _read(writer.last)
            writer.last.unlink()
            for file in staging.iterdir():
                whole_files.move(file, self.last.parent / file.name)
                own_files.remember(self.last.parent / file.name)
            whole_files.save(self.last, exact_resume.with_state(stock, self, self._state()))
            own_files.remember(self.last)
        return saved

    def _needs_stock_checkpoint(self) -> bool:
        """Whether upstream's own form of this epoch's weights is wanted.

        It becomes best.pt or epoch*.pt. Upstream also mends an average that is not finite while it makes it, and takes
        the quantizers out of a quantised model.
        """
        due = self.best_fitness == self.fitness or (self.save_period > 0 and self.epoch % self.save_period == 0)
        average = self.ema.ema
        return due or is_qat(average) or not all(value.isfinite().all() for value in average.state_dict().values())

    def _state(self) -> dict[str, Any]:
        """Return the run's state that last.pt keeps beside the weights."""
        recorded = isinstance(self.train_loader, exact_resume.RecordedLoader)  # not a loader of the user's own
        return {
            "accumulate": self._accumulate,
            "pending": self._pending,
            "gradients": exact_resume.gradients(self.model) if self._pending else {},
            **({"draws": self._draws()} if recorded else {}),
        }

    def _origin(self) -> dict[str, Any]:
        """Return what finished checkpoints keep of where they come from, beside the arguments."""
        return {}

    def read_results_csv(self) -> dict[str, list[Any]]:
        """Read results.csv; a rank correlation without detections is "nan" there and None here, not a word."""
        import polars

        try:
            return polars.read_csv(self.csv, null_values=["nan"], infer_schema_length=None).to_dict(as_series=False)
        except (OSError, polars.exceptions.PolarsError):
            return {}

    def final_eval(self) -> None:
        """Strip the checkpoints and validate best.pt as upstream does, but every file in one step."""
        with torch_distributed_zero_first(LOCAL_RANK):
            if RANK in {-1, 0}:
                # last.pt comes last: while it is whole, the run can be resumed to be brought to its end.
                last = _read(self.last) if self.last.exists() else {}
                if self.best.exists():
                    updates = {"train_results": last.get("train_results"), **self._origin()}
                    _strip(self.best, _read(self.best), updates)
                if last:
                    _strip(self.last, last, self._origin())
        if not self.best.exists():
            return
        LOGGER.info(f"\nValidating {self.best}...")
        self.validator.args.plots = self.args.plots
        self.validator.args.compile = False
        self.metrics = self.validator(model=self.best)
        self.metrics.pop("fitness", None)
        self.epoch += 1  # upstream logs the best epoch's results as those of one more
        self.run_callbacks("on_fit_epoch_end")
        self.epoch -= 1


def _read(file: Path) -> dict[str, Any]:
    """Return a checkpoint that upstream has just written for us."""
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    return checkpoint


def _strip(file: Path, checkpoint: dict[str, Any], updates: dict[str, Any]) -> None:
    """Strip a checkpoint, which is read already, as upstream does, and remove the state that only resuming needs."""
    resuming = (exact_resume.STUDENT, exact_resume.RESUME)
    with _Staging(file.parent) as staging:
        staged = staging / file.name
        checkpoint = {name: value for name, value in checkpoint.items() if name not in resuming}
        to_half(checkpoint["ema"] or checkpoint["model"])  # upstream would let large weights overflow here
        torch.save(checkpoint, staged)
        stripped = strip_optimizer(staged, updates=updates)
        whole_files.move(staged, file)
        own_files.remember(file)
    try:
        tensors_file.save(file.with_suffix(tensors_file.SUFFIX), stripped["model"], stripped["train_args"])
    except ValueError as error:  # layers of the user's own; the checkpoint is there
        LOGGER.warning(str(error))


class _Over(Exception):
    """Raised on resuming a run whose epochs are all done."""


class _Staging:
    """A folder beside the checkpoints where upstream writes them first; removed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".part"

    def __enter__(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run killed here
        self.folder.mkdir(parents=True)
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
