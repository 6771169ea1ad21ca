"""Trainers of segmentation, pose and oriented boxes: `MLCTrainer`, over Ultralytics' trainer of the task.

Each stands before upstream's trainer of its task in the order of bases, so everything that `MLCTrainer` does not do
itself (targets, plots) is that trainer's. A teacher teaches boxes and classes; masks and keypoints are learned from
labels alone. Validation is upstream's, and measures divergence too.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.nn.tasks import OBBModel, PoseModel, SegmentationModel

from mlc_yolo.evaluation.task_validators import MLCOrientedValidator, MLCPoseValidator, MLCSegmentationValidator
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.options.arguments import stock_only
from mlc_yolo.training.taught_trainer import TaughtTrainer
from mlc_yolo.training.trainer import MLCTrainer


class _TaskTrainer(TaughtTrainer):
    """What these tasks share."""

    validator_class: ClassVar[type[MLCValidator]]

    def get_validator(self) -> Any:
        """Return the validator of the task."""
        settings = {"save_dir": self.save_dir, "args": stock_only(self.args), "_callbacks": self.callbacks}
        return self.validator_class(self.test_loader, arguments=self.arguments, **settings)


class MLCSegmentationTrainer(_TaskTrainer, SegmentationTrainer):
    """`SegmentationTrainer` whose assigner is chosen by options."""

    validator_class = MLCSegmentationValidator

    def new_network(self, cfg: Any, *, verbose: bool) -> SegmentationModel:
        """Return the network of a YAML for the data's classes and channels."""
        return SegmentationModel(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=verbose)


class MLCPoseTrainer(_TaskTrainer, PoseTrainer):
    """`PoseTrainer` whose assigner is chosen by options."""

    validator_class = MLCPoseValidator

    def _prepare(self, run: Any) -> dict[str, Any]:
        """Refuse as `MLCTrainer` does, and data without keypoints.

        Raises:
            ValueError: as there, or the data YAML does not say how many keypoints there are.
        """
        settled = super()._prepare(run)
        if self._known_data is not None and "kpt_shape" not in self._known_data[1]:
            raise ValueError(
                f"data={run.data} has no kpt_shape: a pose model needs data whose YAML gives the number of keypoints "
                "and their values, such as kpt_shape: [17, 3]"
            )
        return settled

    def new_network(self, cfg: Any, *, verbose: bool) -> PoseModel:
        """Return the network of a YAML for the data's classes, channels and keypoints."""
        shape = self.data["kpt_shape"]
        return PoseModel(cfg, nc=self.data["nc"], ch=self.data["channels"], data_kpt_shape=shape, verbose=verbose)


class MLCOrientedTrainer(_TaskTrainer, OBBTrainer):
    """`OBBTrainer` whose assigner is chosen by options."""

    validator_class = MLCOrientedValidator

    def new_network(self, cfg: Any, *, verbose: bool) -> OBBModel:
        """Return the network of a YAML for the data's classes and channels."""
        return OBBModel(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=verbose)


#: Task -> trainer, of the tasks beside detection whose training takes our assigners.
TASK_TRAINERS: dict[str, type[MLCTrainer]] = {
    "segment": MLCSegmentationTrainer,
    "pose": MLCPoseTrainer,
    "obb": MLCOrientedTrainer,
}
