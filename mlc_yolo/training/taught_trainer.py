"""Training with frozen teachers: `MLCTrainer`, and `teacher=` beside the labels.

The teachers are no part of the model: they move to its device when the criterion is attached, and a checkpoint keeps
their paths and digests.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from mlc_yolo.options.specification import changed
from mlc_yolo.training import exact_resume
from mlc_yolo.training.taught_criterion import TAUGHT, TaughtLoss
from mlc_yolo.training.teachers import (
    Teachers,
    digests,
    load_teachers,
    refuse_changed,
    refuse_teachers,
    teacher_files,
)
from mlc_yolo.training.trainer import MLCTrainer

#: Under which name a checkpoint keeps the digests of its teachers, by path.
TEACHERS = "teachers"


class TaughtTrainer(MLCTrainer):
    """`MLCTrainer` that learns from frozen teachers too, where `teacher` names any.

    Example:
        >>> trainer = TaughtTrainer(overrides={"model": "yolo11n.yaml", "data": "mine.yaml", "teacher": "big.pt"})
        ... # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    learns: ClassVar[frozenset[str]] = frozenset({"teacher"})
    #: Items of the log that validation does not have.
    untested: ClassVar[tuple[str, ...]] = TAUGHT
    _teachers: Teachers | None = None
    _digests: dict[str, str] | None = None  # of the files, as they were loaded

    def _prepare(self, run: Any) -> dict[str, Any]:
        """Refuse options as `MLCTrainer` does, and teachers that cannot teach.

        Raises:
            FileNotFoundError: there is no such teacher.
            ValueError: as in `MLCTrainer`, or a teacher that cannot teach.
        """
        settled = super()._prepare(run)
        files = teacher_files(run.teacher)
        if not files:
            if (idle := changed(vars(run), "teacher_")) and RANK in {-1, 0}:
                LOGGER.warning(f"{', '.join(idle)}: no effect without a teacher. Name one with teacher=big.pt")
            return settled
        if run.distill_model:
            raise ValueError("teacher and distill_model are two ways of distilling: leave one out")
        if run.teacher_imgsz and run.rect:
            raise ValueError(f"teacher_imgsz={run.teacher_imgsz} needs square images: leave rect=True out")
        description = self._known_data[1] if self._known_data else {}
        names = {0: "item"} if run.single_cls else description.get("names")
        size = run.teacher_imgsz
        refuse_teachers(files, trust=self.arguments.trust, names=names, imgsz=run.imgsz, teacher_imgsz=size)
        return {**settled, "teacher": files if len(files) > 1 else files[0]}

    @property
    def taught(self) -> list[str]:
        """Files of the teachers that this run learns from."""
        return teacher_files(self.args.teacher) if self.args.teacher_weight else []

    def _attach_criterion(self) -> Any:
        """Attach `MLCTrainer`'s criterion, with teachers around it where there are any."""
        supervised = super()._attach_criterion()
        files = self.taught
        if not files:
            return supervised
        model, args = unwrap_model(self.model), self.args
        if self._teachers is None:
            trust, size = self.arguments.trust, int(args.teacher_imgsz) if args.teacher_imgsz else None
            self._digests = digests(files)
            teachers = load_teachers(files, model, self.data["names"], trust=trust, imgsz=size)
            self._teachers = teachers.to(self.device)
            if RANK in {-1, 0}:
                known, verb = len(teachers.classes), "teach" if len(files) > 1 else "teaches"
                at = f" at {size} px" if size else ""
                LOGGER.info(f"teacher: {', '.join(files)} {verb} {known} of {self.data['nc']} classes{at}")
                if not size:
                    self._name_other_sizes(files, teachers)
                if changed(vars(args), "teacher_temperature") and (size or model.model[-1].reg_max == 1):
                    why = f"teacher_imgsz={size}" if size else "a head without them"
                    LOGGER.warning(f"teacher_temperature: no effect, as no distributions are taught with {why}")
        model.criterion = TaughtLoss(
            supervised,
            teachers=lambda: self._teachers,  # type: ignore[arg-type,return-value]
            weight=args.teacher_weight,
            temperature=args.teacher_temperature,
        )
        return model.criterion

    def _name_other_sizes(self, files: list[str], teachers: Teachers) -> None:
        """Say which teachers see images of another size than they were trained on."""
        for file, teacher in zip(files, teachers.teachers, strict=True):
            known: Any = getattr(teacher.model, "args", None)  # what it was trained with
            trained = known.get("imgsz") if isinstance(known, dict) else None
            if isinstance(trained, int) and trained != self.args.imgsz:
                LOGGER.warning(
                    f"teacher={file} was trained at {trained} px and sees images of {self.args.imgsz} px: "
                    f"teacher_imgsz={trained} lets it see them at its own size"
                )

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as `MLCTrainer` does, with the teachers that the run began with.

        Raises:
            FileNotFoundError: a teacher's file is gone.
            ValueError: it is another one now.
        """
        if ckpt is not None and self.resume:
            refuse_changed((ckpt.get(exact_resume.RESUME) or {}).get(TEACHERS, {}), self.taught)
        super().resume_training(ckpt)

    def _state(self) -> dict[str, Any]:
        """Return the run's state that last.pt keeps, the digests of the teachers included."""
        return {**super()._state(), **self._origin()}

    def _origin(self) -> dict[str, Any]:
        """Return what finished checkpoints keep of where they come from: the digests of the teachers."""
        return {TEACHERS: self._digests} if self._digests else {}

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Name the items as upstream does; validation has none of those that nobody labelled."""
        items = super().label_loss_items(loss_items, prefix)
        if prefix != "val":
            return items
        absent = {f"{prefix}/{name}" for name in self.untested}
        if isinstance(items, list):
            return [name for name in items if name not in absent]
        return {name: value for name, value in items.items() if name not in absent}
