"""Open, load and save models, ours and Ultralytics'. Files are checked before anything opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.nn.tasks import DetectionModel, guess_model_task, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from mlc_yolo.checkpoints import safe_load, tensors_file
from mlc_yolo.checkpoints.marker import read_marker, write_marker
from mlc_yolo.detectors.config import bundled, find_config, inherit
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.detectors.weights import is_torchvision, start_from
from mlc_yolo.heads.iou_aware import add_iou_channel, has_iou_channel
from mlc_yolo.suggestions import did_you_mean
from mlc_yolo.upstream import warn_if_untested


class OpenedYOLO(YOLO):
    """Ultralytics' `YOLO`, extended to the ported detectors and to files without pickles.

    Attributes:
        trust: whether checkpoints are opened without being checked.
    """

    predictor: Any
    trust = False

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
            trust: open checkpoints unchecked, this one and those that methods load. They may run programs.

        Raises:
            TypeError: a model family that is no YOLO with a `Detect`-like head (RT-DETR, YOLO-World, YOLOE).
            ValueError: an invalid detector YAML, or a checkpoint that holds more than data.
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
                f"model={model} has no {error}: expected a model, such as model=yolo11n.pt or a model YAML. If it is "
                "the YAML of a data set, give it as data=..."
            ) from error
        except FileNotFoundError as error:
            if near := _near(Path(str(model))):
                raise FileNotFoundError(f"no model '{model}'.{near}") from error
            raise
        if not isinstance(self, OpenedYOLO):  # upstream swaps the class for families of its own
            family = type(self).__name__
            raise TypeError(_expected(model, f"a model for ultralytics.{family}"))
        self.trust = trust
        # An address that the checkpoint names as its data set: it is fetched only where `data=` asks for it.
        self._fetched_data = None
        if not trust and safe_load.is_fetched(self.overrides.get("data")):
            self._fetched_data, self.overrides["data"] = self.overrides["data"], None

    def _new(self, cfg: str, task: str | None = None, verbose: bool = False) -> None:
        """Build a model from a YAML: one of ours by `detectors`, any other as upstream does."""
        config = find_config(cfg)
        if task is not None:
            built = guess_model_task(yaml_model_load(cfg)) if config is None else "detect"
            if built not in {None, task}:
                raise ValueError(
                    f"model={cfg} builds a {built} model, not {task}: leave the task out, or give task={built}"
                )
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
            ValueError: `.safetensors` for a model that its YAML does not build, such as a fused one.
        """
        if str(filename).endswith(tensors_file.SUFFIX):
            self._check_is_pytorch_model()
            tensors_file.save(Path(filename), self.model, (self.ckpt or {}).get("train_args"))
        else:
            super().save(filename)

    def load(self, weights: Any = "yolo11n.pt") -> OpenedYOLO:
        """Load weights as upstream does, a trained IoU channel included.

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
                raise ValueError(f"expected weights of a YOLO, got weights of a {source.kind}: use its model YAML")
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

    def _kind(self) -> str | None:
        """Return which ported detector this is; None is YOLO."""
        return self.model.kind if isinstance(self.model, DetectorModel) else None

    def _head(self) -> Any:
        layers: Any = self.model.model
        return layers[-1]


def _near(path: Path) -> str:
    """Suggest names of models close to a missing one: ours, Ultralytics' and files in its folder."""
    beside = [file.name for file in path.parent.glob("*") if file.suffix in {".pt", ".yaml", ".onnx", ".safetensors"}]
    return did_you_mean(path.name, [*beside, *bundled(), *GITHUB_ASSETS_NAMES], most=3, cutoff=0.75)


def _expected(model: Any, got: str) -> str:
    return f"expected a yolov8, yolo11, yolo12 or yolo26 model, but '{model}' is {got}"
