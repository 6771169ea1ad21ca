"""Each upstream behaviour `upstream.py` names, so that a release which changes one fails here and says which."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from collections.abc import Callable
from copy import copy
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import ultralytics
from detector_runs import TINY, rows
from torch import nn
from ultralytics import YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg, get_save_dir
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.augment import Compose, Format, LetterBox
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, exif_size, get_split_fraction
from ultralytics.engine.exporter import Exporter, export_formats
from ultralytics.engine.model import Model
from ultralytics.engine.predictor import BasePredictor
from ultralytics.engine.results import Boxes, Results
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.engine.validator import BaseValidator
from ultralytics.models.yolo.detect import DetectionPredictor, DetectionTrainer, DetectionValidator
from ultralytics.models.yolo.obb import OBBPredictor, OBBValidator
from ultralytics.models.yolo.pose import PosePredictor, PoseValidator
from ultralytics.models.yolo.segment import SegmentationPredictor, SegmentationValidator
from ultralytics.nn import tasks
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.modules.block import TorchVision
from ultralytics.nn.modules.head import OBB, OBB26, Detect, Pose, Pose26, Segment, Segment26
from ultralytics.nn.tasks import DetectionModel, OBBModel
from ultralytics.utils import DEFAULT_CFG, patches
from ultralytics.utils.checks import check_suffix
from ultralytics.utils.loss import BboxLoss, E2ELoss, v8DetectionLoss, v8OBBLoss
from ultralytics.utils.metrics import DetMetrics
from ultralytics.utils.ops import scale_boxes
from ultralytics.utils.torch_utils import ModelEMA, is_qat

from mlc_yolo import upstream as compat
from mlc_yolo.data import datasets
from mlc_yolo.faults import FIRST_STEPS
from mlc_yolo.heads.iou_aware import add_iou_channel


def _model(name: str = "yolo11n") -> DetectionModel:
    model = DetectionModel(f"{name}.yaml", nc=2, verbose=False)
    model.args = DEFAULT_CFG
    return model


def test_the_file_of_defaults_says_in_a_line_what_an_argument_does() -> None:
    text = Path(ultralytics.__file__).with_name("cfg").joinpath("default.yaml").read_text(encoding="utf-8")
    described = re.findall(r"^(\w+):.*# *\S", text, re.MULTILINE)
    assert len(described) > 90 and set(described) <= set(DEFAULT_CFG_DICT) and {"epochs", "conf"} <= set(described)


def test_installed_version_is_in_the_tested_range() -> None:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split("."))

    assert numbers(compat.LOWEST) <= numbers(ultralytics.__version__) < numbers(compat.BELOW)


def test_only_overrides_are_checked_against_the_bases_names() -> None:
    assert get_cfg({**DEFAULT_CFG_DICT, "ours": 1}, {"ours": 2}).ours == 2
    with pytest.raises(SyntaxError):
        get_cfg(DEFAULT_CFG_DICT, {"ours": 2})


def test_class_weights_are_set_after_the_loaders_are_built() -> None:
    source = inspect.getsource(BaseTrainer._setup_train)
    assert source.index("self.model.to(self.device)") < source.index("self._build_train_pipeline()")
    assert source.index("self._build_train_pipeline()") < source.index("self.set_class_weights()")
    assert source.index("self.set_class_weights()") < source.index("self.resume_training(ckpt)")


def test_every_epoch_opens_with_model_train() -> None:
    source = inspect.getsource(BaseTrainer._do_train)
    assert source.index("self.epoch = epoch") < source.index("self._model_train()") < source.index("enumerate(self.")


def test_a_criterion_stays_out_of_the_state_dict() -> None:
    model = _model()
    before = set(model.state_dict())
    model.criterion = v8DetectionLoss(model)
    assert set(model.state_dict()) == before and not isinstance(model.criterion, nn.Module)


def test_only_the_one_to_one_branch_is_asked_for_a_second_topk() -> None:
    asked = []

    def spy(model: nn.Module, tal_topk: int = 10, tal_topk2: int | None = None) -> v8DetectionLoss:
        asked.append(tal_topk2)
        return v8DetectionLoss(model, tal_topk, tal_topk2)

    loss = E2ELoss(_model("yolo26n"), spy)
    assert asked[0] is None and asked[1] is not None
    assert loss.one2many.assigner.topk2 == loss.one2many.assigner.topk
    assert {"o2m", "o2o", "updates"} <= vars(loss).keys()


def test_assigned_targets_come_as_positives_and_boxes() -> None:
    model = _model().train()
    image = torch.zeros(1, 3, 64, 64)
    batch = {"img": image, "batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1), "bboxes": torch.full((1, 4), 0.5)}
    preds = model(image)
    criterion = v8DetectionLoss(model)
    seen: list[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = []
    assigner = criterion.assigner
    criterion.assigner = lambda *inputs: seen.append((inputs, assigner(*inputs))) or seen[0][1]
    (positive, _, boxes, _, _), losses, items = criterion.get_assigned_targets_and_loss(preds, batch)
    anchors = preds["boxes"].shape[-1]
    assert positive.shape == (1, anchors) and positive.dtype == torch.bool and positive.any()
    torch.testing.assert_close(boxes[positive], torch.tensor([[16.0, 16, 48, 48]]).expand(int(positive.sum()), 4))
    ((scores, _, points, labels, goals, mask), (_, _, soft, chosen, slot)) = seen[0]
    assert scores.shape == soft.shape == (1, anchors, 2) and points.shape == (anchors, 2)
    assert (labels.shape, goals.tolist(), mask.tolist()) == ((1, 1, 1), [[[16, 16, 48, 48]]], [[[1]]])
    assert torch.equal(chosen, positive) and slot.shape == (1, anchors) and (soft.sum(-1) > 0).sum() <= positive.sum()
    assert losses.shape == (3,) and list(items) == ["box_loss", "cls_loss", "dfl_loss"]


def test_the_loss_of_oriented_boxes_assigns_once_and_leaves_out_thin_objects() -> None:
    model = OBBModel("yolo11n-obb.yaml", nc=2, verbose=False).train()
    model.args = DEFAULT_CFG
    thin = torch.tensor([[0.5, 0.5, 0.5, 0.25, 0.3], [0.5, 0.5, 0.5, 1 / 64, 0.3]])
    preds, batch = model(torch.zeros(1, 3, 64, 64)), {"batch_idx": torch.zeros(2), "cls": torch.zeros(2, 1)}
    criterion, seen = v8OBBLoss(model), []
    criterion.assigner.register_forward_hook(lambda module, inputs, assigned: seen.append((inputs, assigned)))
    losses, items = criterion.loss(preds, {**batch, "bboxes": thin})
    ((_, boxes, *_, goals, _), (_, _, _, positive, _)) = seen.pop()
    assert goals.shape == (1, 1, 5) and positive.dtype == torch.bool and not seen
    assert len(losses) == 4 and list(items) == ["box_loss", "cls_loss", "dfl_loss", "angle_loss"]
    cells = torch.zeros(boxes.shape[1], 2)
    rows_, angles = preds["boxes"].transpose(1, 2), preds["angle"].transpose(1, 2)
    decoded = criterion.bbox_decode(cells, rows_, angles)
    assert decoded.shape == boxes.shape and torch.equal(decoded[..., 4:], angles)
    goal = decoded + torch.tensor([0, 0, 0, 0, 0.5])
    chosen, one = torch.zeros_like(positive), torch.ones(1)
    chosen[0, 0] = True
    single = criterion.calculate_angle_loss(decoded, goal, chosen, one, torch.tensor(1.0))
    torch.testing.assert_close(
        criterion.calculate_angle_loss(decoded, goal, chosen, 3 * one, torch.tensor(2.0)), 1.5 * single
    )


def test_validators_of_tasks_take_detections_and_what_follows_them_from_detections_validator() -> None:
    for kind in (SegmentationValidator, PoseValidator, OBBValidator):
        assert "super().postprocess(preds" in inspect.getsource(kind.postprocess) and '"extra"' in inspect.getsource(
            kind.postprocess
        )
        assert issubclass(kind, DetectionValidator)
        assert "self.match_predictions(" in inspect.getsource(kind._process_batch)
    head = OBB(2, ch=(16, 16, 16))
    assert head.ne == 1


def test_constructors_of_task_validators_set_nothing_that_validation_does_not_set_anew() -> None:
    for kind in (SegmentationValidator, PoseValidator, OBBValidator):
        made, plain = (vars(each(args={"imgsz": 64})) for each in (kind, DetectionValidator))
        assert set(made) - set(plain) <= {"process", "sigma", "kpt_shape"}
        for name in set(made) - set(plain):
            assert made[name] is None and f"self.{name} = " in inspect.getsource(kind.init_metrics)
    assert "self.process(proto[i], coefficient, pred[" in inspect.getsource(SegmentationValidator.postprocess)


def test_predictors_of_tasks_postprocess_as_detections_does_and_make_results_of_its_rows() -> None:
    for kind in (SegmentationPredictor, PosePredictor, OBBPredictor):
        assert issubclass(kind, DetectionPredictor)
        assert list(inspect.signature(kind.construct_result).parameters)[1:5] == ["pred", "img", "orig_img", "img_path"]
        assert ("postprocess" in vars(kind)) == (kind is SegmentationPredictor)
    assert "super().postprocess(preds[0], img, orig_imgs, protos=" in inspect.getsource(
        SegmentationPredictor.postprocess
    )


def test_box_loss_weighs_by_target_scores_and_divides_by_their_sum() -> None:
    torch.manual_seed(0)
    loss, anchors = BboxLoss(16), 4
    distances, points = torch.randn(1, anchors, 64), torch.full((anchors, 2), 5.0)
    boxes, goal = torch.rand(1, anchors, 4).cumsum(-1), torch.rand(1, anchors, 4).cumsum(-1)
    positive = torch.tensor([[True, True, False, False]])
    size, strides = torch.tensor([64.0, 64.0]), torch.full((anchors, 1), 8.0)

    def value(weights: list[float], total: float) -> torch.Tensor:
        scores = torch.tensor([weights]).unsqueeze(-1)
        return torch.stack(loss(distances, boxes, points, goal, scores, torch.tensor(total), positive, size, strides))

    first, second = value([1, 0, 9, 9], 1), value([0, 1, 9, 9], 1)
    torch.testing.assert_close(value([0.5, 2, 9, 9], 4), (0.5 * first + 2 * second) / 4)


@pytest.mark.parametrize("head", [Segment, Segment26, Pose, Pose26, OBB, OBB26])
def test_heads_of_tasks_call_each_tower_once_and_put_their_values_after_class_scores(head: Any) -> None:
    made = head(nc=3, ch=(16, 16)).eval()
    made.stride = torch.tensor([8.0, 16.0])
    images, calls = [torch.rand(1, 16, 8, 8), torch.rand(1, 16, 4, 4)], [0, 0]

    def counting(level: int) -> Any:
        def tower(features: torch.Tensor) -> torch.Tensor:
            calls[level] += 1
            return made.cv2[level](features)  # type: ignore[no-any-return]

        return tower

    raw = made.forward_head(images, **{**made.one2many, "box_head": [counting(0), counting(1)]})
    assert calls == [1, 1] and "iou" not in raw
    decoded = made._inference(raw)
    assert torch.equal(decoded[:, 4:7], raw["scores"].sigmoid()) and decoded.shape[1] > 7


@pytest.mark.parametrize("end2end", [False, True])
def test_fusing_leaves_the_branch_that_is_used_with_its_channel(end2end: bool) -> None:
    model = _model("yolo26n")
    add_iou_channel(model.model[-1])
    model.eval().end2end = end2end
    image = torch.rand(1, 3, 64, 64)
    before = model(image)[0]
    after = model.fuse(verbose=False)(image)[0]
    torch.testing.assert_close(after[..., :4], before[..., :4], rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_loading_takes_every_tensor_that_agrees_and_unknown_yaml_keys_are_kept() -> None:
    source, target = _model(), _model()
    target.model[-1].extra = nn.Conv2d(1, 1, 1)
    target.load(source, verbose=False)
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    kept = DetectionModel({**source.yaml, "mlc": {"iou_head": True}}, verbose=False)
    assert kept.yaml["mlc"] == {"iou_head": True}


def test_metrics_are_a_table_of_keys_means_and_class_results() -> None:
    metrics = DetMetrics({0: "a"})
    assert isinstance(metrics.stats, dict) and all(isinstance(value, list) for value in metrics.stats.values())
    assert len(metrics.keys) == len(metrics.mean_results())


def test_a_model_without_a_checkpoint_is_built_by_the_trainer() -> None:
    source = inspect.getsource(Model.train)
    assert 'if not args.get("resume") and self.ckpt:' in source and "self.trainer.get_model(" in source
    assert list(inspect.signature(Model._new).parameters) == ["self", "cfg", "task", "verbose"]
    assert inspect.getsource(BaseTrainer.setup_model).index("return") < inspect.getsource(
        BaseTrainer.setup_model
    ).index("load_checkpoint")


def test_names_may_be_frozen_and_the_rest_is_made_to_train() -> None:
    source = inspect.getsource(BaseTrainer._setup_train)
    assert 'f"model.{x}." for x in freeze_list' in source and "v.requires_grad = True" in source
    assert source.index("self.setup_model()") < source.index("self.args.freeze")


def test_the_scheduler_is_a_lambda_of_the_epoch() -> None:
    trainer = SimpleNamespace(
        args=SimpleNamespace(cos_lr=False, lrf=0.1), epochs=4, optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0)
    )
    BaseTrainer._setup_scheduler(trainer)
    assert isinstance(trainer.scheduler, torch.optim.lr_scheduler.LambdaLR) and trainer.lf(0) == 1.0


def test_checkpoints_are_written_by_attribute_and_not_read() -> None:
    source = inspect.getsource(BaseTrainer.save_model)
    assert source.count("self.last") == source.count("self.last.write_bytes(") == 1
    assert source.count("self.best.") == source.count("self.best.write_bytes(") == 1
    epochs = '(self.wdir / f"epoch{self.epoch}.pt").write_bytes('
    assert source.count("self.wdir") == source.count(epochs) + source.count("self.wdir.mkdir(") == 2
    assert source.count("write_bytes(") == 3, "nothing else is written"
    assert "if self.best_fitness == self.fitness:" in source
    assert "if (self.save_period > 0) and (self.epoch % self.save_period == 0):" in source
    assert source.count("self.ema") == source.count("self.ema.ema") + source.count("self.ema.updates") == 2
    assert source.count("self.optimizer") == source.count("self.optimizer.state_dict()") == 1


def test_a_quantised_model_is_told_by_its_layers() -> None:
    layer = type("TensorQuantizer", (nn.Identity,), {})()
    assert is_qat(nn.Sequential(layer)) and not is_qat(nn.Sequential(nn.Identity()))
    source = inspect.getsource(BaseTrainer.save_model)
    assert source.index("qat_state(ema)") < source.index("deepcopy(ema).half()") < source.index("strip_qat(ema)")


def test_the_end_of_a_run_strips_and_validates_and_does_no_more() -> None:
    lines = [line.partition("#")[0].strip() for line in inspect.getsource(BaseTrainer.final_eval).splitlines()]
    assert [line for line in lines if line][2:] == [
        "model = self.best if self.best.exists() else None",
        "with torch_distributed_zero_first(LOCAL_RANK):",
        "if RANK in {-1, 0}:",
        "ckpt = strip_optimizer(self.last) if self.last.exists() else {}",
        "if model:",
        'strip_optimizer(self.best, updates={"train_results": ckpt.get("train_results")})',
        "if model:",
        'LOGGER.info(f"\\nValidating {model}...")',
        "self.validator.args.plots = self.args.plots",
        "self.validator.args.compile = False",
        "self.metrics = self.validator(model=model)",
        'self.metrics.pop("fitness", None)',
        "self.epoch += 1",
        'self.run_callbacks("on_fit_epoch_end")',
        "self.epoch -= 1",
    ]


def test_steps_are_counted_from_minus_one_and_the_mosaic_is_closed_where_there_is_one() -> None:
    source = inspect.getsource(BaseTrainer._do_train)
    assert source.index("last_opt_step = -1") < source.index("while True:")
    assert "ni = i + nb * epoch" in source and "if ni - last_opt_step >= self.accumulate:" in source
    assert source.index("mosaic_closed = not self.args.close_mosaic") < source.index("while True:")
    closing = "if not mosaic_closed and epoch >= self.epochs - self.args.close_mosaic:"
    assert source.index("self._model_train()") < source.index(closing) < source.index("self.train_loader.reset()")


def test_a_loader_goes_on_with_one_iterator_whose_batches_can_be_passed_over() -> None:
    numbers = list(range(5))
    orders = []
    for passed in (0, 5):
        loader = build_dataloader(numbers, batch=2, workers=0, device="cpu")
        loader.collate_fn = list
        assert loader.iterator is None
        loader.iterator = loader._get_iterator()
        begun = loader.generator.get_state()
        loader.generator.manual_seed(0)  # the order is drawn with the first batch
        loader.generator.set_state(begun)
        for _ in range(passed):
            loader.iterator._next_index()
        batches = [batch for _ in range(3) for batch in loader]
        orders.append(batches)
    assert orders[0][5:] == orders[1][:4] and sorted(itertools.chain(*orders[0][:3])) == numbers


@pytest.mark.slow
def test_the_images_mosaics_choose_from_are_a_list_that_loading_appends_to(watched: WatchedTrainer) -> None:
    dataset = watched.build_dataset(watched.data["train"], "train", 4)
    dataset.buffer.clear()
    for index in (2, 0, 1):
        dataset.load_image(index)
    assert dataset.buffer == [2, 0, 1]


def test_checkpoints_are_opened_where_their_names_lead() -> None:
    loading, safe = inspect.getsource(tasks.load_checkpoint), inspect.getsource(tasks.torch_safe_load)
    assert (
        'check_file(weight, download_dir=SETTINGS["weights_dir"])' in loading and "torch_safe_load(weight)" in loading
    )
    assert "file = attempt_download_asset(weight)" in safe
    resuming = inspect.getsource(BaseTrainer.check_resume)
    assert "exists = isinstance(resume, (str, Path)) and Path(resume).exists()" in resuming
    assert "check_file(resume) if exists else get_latest_run()" in resuming


def test_what_a_models_yaml_can_call() -> None:
    source = inspect.getsource(tasks.parse_model)
    assert re.findall(r"\w*eval\((?!\))", source) == ["eval(", "literal_eval("] and "eval(act)" in source
    for looked_up in ("getattr(torch.nn, m[3:])", 'getattr(__import__("torchvision").ops, m[16:])', "globals()[m]"):
        assert source.count(looked_up) == 1


def test_loading_sets_these_attributes_of_a_model() -> None:
    source = inspect.getsource(Model._load)
    assert set(re.findall(r"self\.(\w+)(?= =|, self\.ckpt =)", source)) == {
        *("model", "ckpt", "task", "overrides", "ckpt_path", "model_name")
    }


@pytest.mark.slow
def test_class_branches_are_as_wide_as_classes_or_as_the_weights() -> None:
    def width(classes: int) -> int:
        return int(DetectionModel("yolo11n.yaml", nc=classes, verbose=False).model[-1].cv3[0][-1].in_channels)

    assert [width(classes) for classes in (3, 80, 300)] == [64, 80, 100]


def test_a_models_layers_are_run_in_turn() -> None:
    model = DetectionModel.__new__(DetectionModel)
    nn.Module.__init__(model)
    model.model = nn.Sequential(nn.Flatten(), nn.Identity())
    for i, layer in enumerate(model.model):
        layer.i, layer.f = i, -1
    model.save = []
    assert model._predict_once(torch.zeros(1, 2, 3)).shape == (1, 6)


def test_a_pytorch_model_is_found_inside_the_backend() -> None:
    net = _model().eval()
    backend = AutoBackend(net, device=torch.device("cpu"), fuse=False, verbose=False)
    assert backend.format == "pt" and isinstance(backend.model, DetectionModel)
    assert not any(isinstance(module, DetectionModel) for module in backend.modules())


@pytest.mark.slow
def test_what_a_callback_adds_to_an_exporters_metadata_is_read_back_from_the_file(tmp_path: Path) -> None:
    class Doubled(Detect):
        def _inference(self, x: dict[str, Any]) -> torch.Tensor:
            return 2 * super()._inference(x)

    seen: list[tuple[int, ...]] = []

    def note(exporter: Any) -> None:
        assert not list(tmp_path.glob("*.torchscript")) and exporter.model.names == {0: "a", 1: "b"}
        seen.append(exporter.output_shape)
        exporter.metadata["own"] = "one,two"

    net = _model().eval()
    net.task, net.args = "detect", {"data": ""}
    net.names, net.pt_path = {0: "a", 1: "b"}, str(tmp_path / "net.pt")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = 2 * net(image)[0]
    net.model[-1].__class__ = Doubled
    exporter = Exporter(overrides={"format": "torchscript", "imgsz": 64, "device": "cpu", "batch": 1})
    exporter.callbacks["on_export_start"].append(note)
    file = exporter(model=net)
    backend = AutoBackend(file, device=torch.device("cpu"))
    assert backend.metadata["own"] == "one,two" and seen == [tuple(expected.shape)]
    torch.testing.assert_close(backend(image), expected, rtol=1e-4, atol=1e-3)


def test_what_the_exporter_sets_on_a_head_is_there_from_the_start() -> None:
    assert all(hasattr(Detect, name) for name in ("export", "format", "dynamic", "xyxy", "max_det"))


def test_pillows_own_open_is_kept_where_upstream_replaces_it() -> None:
    assert patches._image_open.__module__ == "PIL.Image"
    assert "jpg" in IMG_FORMATS and callable(exif_size)


def test_results_are_made_of_rows() -> None:
    assert list(inspect.signature(DetectionPredictor.construct_results).parameters) == [
        *("self", "preds", "img", "orig_imgs")
    ]


def test_the_tuners_command_is_ours_only_while_it_runs() -> None:
    trainer = importlib.import_module("ultralytics.engine.trainer")
    stock = trainer._YOLO_CLI_COMMAND
    with pytest.raises(RuntimeError), compat.training_command(["ours"]):
        assert trainer._YOLO_CLI_COMMAND == ["ours"]
        raise RuntimeError
    assert trainer._YOLO_CLI_COMMAND is stock


# A short run, watched -------------------------------------------------------------------------------------------------


class WatchedTrainer(DetectionTrainer):
    """Upstream's trainer, noting what it calls.

    Attributes:
        calls: what is called, in order, the criterion included.
        asked: for how many batches an epoch the warm-up was asked.
        built: arguments of `build_dataset`.
        sizes: of images, as the criterion sees them.
        batches: whether the criterion's batches have the entry that `preprocess_batch` adds.
        rates: learning rate of each step.
        loaded: of each loading, whether the model equals the checkpoint's already and the checkpoint has the entry
            added to it, and whether the average is a new one after it, and enabled.
    """

    ema: Any = None

    def __init__(self, **overrides: Any) -> None:
        self.calls: list[str] = []
        self.asked: list[int] = []
        self.built: list[tuple[Any, ...]] = []
        self.sizes: set[int] = set()
        self.batches: list[bool] = []
        self.rates: list[float] = []
        self.loaded: list[tuple[bool, ...]] = []
        super().__init__(overrides=overrides)

    def set_model_attributes(self) -> None:
        self.calls.append("set_model_attributes")
        super().set_model_attributes()
        self.args.imgsz = 64

    def _build_train_pipeline(self) -> None:
        self.calls.append("_build_train_pipeline")
        super()._build_train_pipeline()

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        self.built.append((img_path, mode, batch))
        return super().build_dataset(img_path, mode, batch)

    def set_class_weights(self) -> None:
        self.calls.append("set_class_weights")
        super().set_class_weights()
        self.model.criterion = WatchedLoss(self.model, self.see)

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        self.calls.append("resume_training")
        assert self.ema is not None
        super().resume_training(ckpt)

    def _get_warmup_iterations(self, num_batches: int) -> int:
        self.asked.append(num_batches)
        assert isinstance(super()._get_warmup_iterations(num_batches), int)
        return 2

    def _model_train(self) -> None:
        self.calls.append("_model_train")
        super()._model_train()

    def _close_dataloader_mosaic(self) -> None:
        self.calls.append("_close_dataloader_mosaic")
        super()._close_dataloader_mosaic()

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.calls.append("preprocess_batch")
        return {**super().preprocess_batch(batch), "ours": self}

    def see(self, batch: dict[str, Any]) -> None:
        self.calls.append("criterion")
        self.sizes.add(batch["img"].shape[-1])
        self.batches.append(batch.get("ours") is self)
        if self.calls.count("criterion") == 1:
            raise RuntimeError("CUDA out of memory")

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        self.calls.append("_load_checkpoint_state")
        saved, trained = ckpt["ema"].float().state_dict(), self.model.state_dict()
        equal = all(torch.equal(saved[name], value) for name, value in trained.items())
        old = self.ema
        old.enabled = False
        super()._load_checkpoint_state(ckpt)
        self.loaded.append((equal, "ours" in ckpt, self.ema is not old, self.ema.enabled))


class WatchedLoss:
    """Upstream's criterion, which shows its batch, and has one more item in training."""

    def __init__(self, model: nn.Module, see: Callable[[dict[str, Any]], None]) -> None:
        self.loss = v8DetectionLoss(model)
        self.see = lambda batch: see(batch) if torch.is_grad_enabled() else None

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.see(batch)
        losses, items = self.loss(preds, batch)
        return losses, {**items, "ours": losses.detach().sum()} if torch.is_grad_enabled() else items


@pytest.fixture(scope="module")
def watched(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> WatchedTrainer:
    """A run of two epochs of two steps, after memory ran out in the first; the second is done twice, after a nan."""
    place = {"project": str(tmp_path_factory.mktemp("watched")), "name": "run"}
    short = {"epochs": 2, "batch": 4, "nbs": 2, "fraction": 4, "imgsz": 32, "val": False}
    rate = {"lr0": 0.01, "lrf": 1.0, "warmup_bias_lr": 0.0, "close_mosaic": 1}
    trainer = WatchedTrainer(model="yolo11n.yaml", data=str(tiny_data), **{**TINY, **short, **rate, **place})

    def add_entry(trainer: Any) -> None:
        torch.save({**torch.load(trainer.last, weights_only=False), "ours": trainer.epoch}, trainer.last)

    def lose(trainer: Any) -> None:
        if trainer.epoch == 1 and not trainer.loaded:
            trainer.loss = trainer.loss * float("nan")

    trainer.add_callback("on_train_batch_end", lambda t: t.rates.append(t.optimizer.param_groups[0]["lr"]))
    trainer.add_callback("on_train_epoch_end", lose)
    trainer.add_callback("on_model_save", add_entry)
    trainer.train()
    return trainer


@pytest.mark.slow
def test_a_run_is_made_ready_in_this_order_and_loaders_are_made_anew_where_memory_ran_out(
    watched: WatchedTrainer,
) -> None:
    ready = ["set_model_attributes", "_build_train_pipeline", "set_class_weights", "resume_training"]
    cut = ["_model_train", "preprocess_batch", "criterion", "_build_train_pipeline"]
    assert watched.calls[:8] == [*ready, *cut]
    assert watched.sizes == {64}, "the size set with the model's attributes"


def test_a_step_is_preprocessed_once_and_all_of_it_reaches_the_criterion(watched: WatchedTrainer) -> None:
    step = ["preprocess_batch", "criterion"]
    first = ["_model_train", *step, *step]
    second = ["_model_train", "_close_dataloader_mosaic", *step, *step]
    again = ["_model_train", "_load_checkpoint_state", "_model_train", *step, *step]
    assert watched.calls[8:] == [*first, *second, *again], "the mosaic is closed once"
    assert watched.batches == [True] * 7


def test_closing_the_mosaic_is_left_to_the_data_set() -> None:
    closed: list[Any] = []
    dataset = SimpleNamespace(mosaic=True, close_mosaic=lambda hyp: closed.append(hyp))
    trainer = SimpleNamespace(train_loader=SimpleNamespace(dataset=dataset), args=SimpleNamespace(mosaic=1.0))
    DetectionTrainer._close_dataloader_mosaic(trainer)
    assert len(closed) == 1 and not dataset.mosaic


def test_the_warm_up_lasts_as_many_batches_as_the_trainer_says(watched: WatchedTrainer) -> None:
    assert watched.asked == [1, 2], "batches an epoch, before and after memory ran out"
    assert watched.rates == pytest.approx([0, 0.005, 0.01, 0.01, 0.01, 0.01])


def test_the_criterions_items_name_losses_and_validation_may_lack_some(watched: WatchedTrainer) -> None:
    names = ["box_loss", "cls_loss", "dfl_loss", "ours"]
    assert list(watched.loss_names) == names
    assert watched.label_loss_items(prefix="val") == [f"val/{name}" for name in names]
    assert watched.label_loss_items({"ours": torch.ones(())}, prefix="train") == {"train/ours": 1.0}
    row = rows(watched.save_dir)[-1]
    assert row["train/ours"] > 0 and row["val/ours"] == 0 and row["val/box_loss"] > 0


def test_recovering_and_resuming_load_the_model_then_make_a_new_average(watched: WatchedTrainer) -> None:
    assert watched.loaded == [(True, True, True, True)]
    source = inspect.getsource(BaseTrainer.resume_training)
    assert source.index("_load_checkpoint_state(ckpt)") < source.index("init_criterion()")


def test_the_average_has_its_own_criterion_with_the_same_functions(watched: WatchedTrainer) -> None:
    ours, averages = watched.model.criterion, ModelEMA(watched.model).ema.criterion
    assert type(averages) is WatchedLoss and averages is not ours and averages.see is ours.see


def test_stripping_keeps_entries_it_does_not_know(watched: WatchedTrainer) -> None:
    checkpoint = torch.load(watched.last, weights_only=False)
    assert checkpoint["ours"] == 1 and checkpoint["optimizer"] is None and checkpoint["model"].criterion is None


def test_loaders_take_their_data_sets_from_the_trainer_and_validations_is_rectangular(watched: WatchedTrainer) -> None:
    train, val = watched.data["train"], watched.data["val"]
    # Other tests may have it build more.
    assert watched.built[:4] == [(train, "train", 4), (val, "val", 8), (train, "train", 2), (val, "val", 4)]
    assert watched.test_loader.dataset.rect and not watched.args.rect
    assert not watched.train_loader.dataset.rect and "shape" in watched.train_loader.dataset.labels[0]


def test_the_average_moves_by_its_decay_while_it_is_enabled() -> None:
    model = nn.Linear(1, 1)
    asked: list[int] = []
    average = ModelEMA(model)
    average.decay = lambda updates: asked.append(updates) or 0.75
    with torch.no_grad():
        start = model.weight.clone()
        model.weight += 1
    average.update(model)
    torch.testing.assert_close(average.ema.weight, start + 0.25)
    average.enabled = False
    average.update(model)
    torch.testing.assert_close(average.ema.weight, start + 0.25)
    assert asked == [1] == [average.updates] and not average.ema.training


def test_a_head_in_evaluation_gives_what_training_gives_beside_decoded_boxes() -> None:
    image = torch.zeros(1, 3, 64, 64)
    for name, branches in (("yolo11n", None), ("yolo26n", {"one2many", "one2one"})):
        model = _model(name)
        decoded, raw = model.eval()(image)
        trained = model.train()(image)
        assert decoded.shape[0] == 1 and raw.keys() == trained.keys()
        parts = [raw, trained] if branches is None else [each[branch] for each in (raw, trained) for branch in branches]
        assert branches is None or raw.keys() == branches
        for part in parts:
            assert part["scores"].shape == (1, 2, 84) and part["boxes"].shape[2] == 84
            assert [tuple(level.shape[2:]) for level in part["feats"]] == [(8, 8), (4, 4), (2, 2)]


# Data sets ------------------------------------------------------------------------------------------------------------


def _photo(folder: Path, height: int = 40, width: int = 60) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 200  # blue, in BGR
    path = folder / f"{height}x{width}.png"
    cv2.imwrite(str(path), image)
    return path


def _dataset(source: Path, kind: type[YOLODataset] = YOLODataset, **options: Any) -> YOLODataset:
    return kind(img_path=str(source), imgsz=64, data={"names": {0: "a"}, "channels": 3}, **options)


def test_images_are_scaled_to_their_long_side_or_stretched(tmp_path: Path) -> None:
    _photo(tmp_path / "images")
    dataset = _dataset(tmp_path / "images", augment=False)
    assert dataset.labels[0]["shape"] == (40, 60)
    assert dataset.load_image(0)[1:] == ((40, 60), (43, 64))
    assert dataset.load_image(0, rect_mode=False)[1:] == ((40, 60), (64, 64))
    view = copy(dataset)
    view.imgsz = 30
    assert view.load_image(0)[0].shape == (20, 30, 3)
    assert _dataset(tmp_path / "images", augment=False, rect=True).labels[0].keys().isdisjoint({"shape"})


class Ours(YOLODataset):
    """Another class, to be made."""

    seen: Any = None

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Any:
        return super().load_image(i, rect_mode=False)

    def build_transforms(self, hyp: Any) -> Compose:
        def note(labels: dict[str, Any]) -> dict[str, Any]:
            self.seen = labels["img"].copy(), labels["cls"], type(labels["instances"]).__name__
            return labels

        return Compose([note, LetterBox(self.imgsz), Format(bbox_format="xywh", normalize=True, batch_idx=True)])


def _labelled(root: Path) -> Path:
    _photo(root / "images")
    (root / "labels").mkdir()
    (root / "labels" / "40x60.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return root / "images"


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_data_set_of_another_class_caches_what_it_loads_and_transforms_it_its_way(cache: str, tmp_path: Path) -> None:
    dataset = _dataset(_labelled(tmp_path), Ours, augment=True, cache=cache)
    assert cache == "disk" or dataset.ims[0].shape == (64, 64, 3)
    assert cache == "ram" or np.load(dataset.npy_files[0]).shape == (40, 60, 3)
    sample = dataset[0]
    image, classes, instances = dataset.seen
    assert image.shape == (64, 64, 3) and image[0, 0].tolist() == [200, 0, 0]
    assert classes.shape == (1, 1) and instances == "Instances"
    assert sample["ratio_pad"] == ((64 / 40, 64 / 60), (0, 0)) and sample["ori_shape"] == (40, 60)
    torch.testing.assert_close(sample["bboxes"], torch.full((1, 4), 0.5))


def _with_globals(function: Any, **names: Any) -> Any:
    """Return a copy of a function that finds these by their global names."""
    copied = FunctionType(function.__code__, {**function.__globals__, **names}, None, function.__defaults__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("more", [{}, {"complete": True}])
def test_the_builder_gives_a_data_set_what_ours_gives_its_own(
    mode: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"names": {0: "a", 1: "b"}, "nc": 2, "channels": 3, **more}
    options = {"imgsz": 64, "fraction": 0.5, "classes": [1], "single_cls": True, "cache": True}
    given: list[dict[str, Any]] = []

    def record(**arguments: Any) -> Any:
        given.append(arguments)
        return SimpleNamespace(labels=[], data=data)

    monkeypatch.setattr(datasets, "CheckedDataset", record)
    for args, rect in ((get_cfg(overrides=options), True), (get_cfg(), False)):
        how = {"mode": mode, "rect": rect, "stride": 16}
        _with_globals(build_yolo_dataset, YOLODataset=record)(args, "images", 2, data, **how, fraction=None)
        datasets.build("images", args, data=data, batch=2, warp=False, **how)
        assert given[-1] == given[-2] and given[-1]["rect"] is rect


def test_trainer_and_validator_give_the_builder_these_arguments() -> None:
    given: list[Any] = []
    args = SimpleNamespace(fraction=0.5, split=None)
    run = SimpleNamespace(args=args, data="data", stride=16, model=SimpleNamespace(stride=torch.tensor([8, 64])))
    for kind in (DetectionTrainer, DetectionValidator):
        build = _with_globals(
            kind.build_dataset,
            build_yolo_dataset=lambda *a, **k: given.append((a, k)),
            unwrap_model=lambda model: model,
        )
        build(run, "images", "val", 2)
    positional, fraction = (args, "images", 2, "data"), get_split_fraction(0.5, "val")
    assert given == [
        (positional, {"mode": "val", "rect": True, "stride": 64}),
        (positional, {"mode": "val", "stride": 16, "fraction": fraction}),
    ]


def test_labels_are_read_by_hooks_and_the_images_kept_are_set(tmp_path: Path) -> None:
    (_labelled(tmp_path) / "broken.png").write_bytes(b"no image")
    found: list[int] = []
    known: list[bool] = []

    class Hooked(YOLODataset):
        def get_labels(self) -> Any:
            found.append(len(self.im_files))
            labels = super().get_labels()
            assert [label["im_file"] for label in labels] == self.im_files
            return labels

        def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
            if not cache_path.exists():
                return self.cache_labels(cache_path), False
            loaded = super()._load_or_scan_cache(cache_path, cache_hash)
            known.append(loaded[1])
            return loaded

    for _ in range(2):
        assert len(_dataset(tmp_path / "images", Hooked, augment=True)) == 1
    assert found == [2, 2] and known == [True]


def test_labels_are_cached_beside_the_folder_of_the_first_images_labels(tmp_path: Path) -> None:
    for folder in ("b", "a/deep"):
        _photo(tmp_path / "images" / folder)
        (tmp_path / "labels" / folder).mkdir(parents=True)
        (tmp_path / "labels" / folder / "40x60.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    for images, cache in (("images", "labels/a/deep.cache"), ("images/b", "labels/b.cache")):
        assert not (tmp_path / cache).exists()
        _dataset(tmp_path / images, augment=False)
        assert np.load(tmp_path / cache, allow_pickle=True).item()["labels"]
    assert len(list(tmp_path.rglob("*.cache"))) == 2


def test_a_data_set_finds_and_checks_its_images_by_hooks(tmp_path: Path) -> None:
    photo = _photo(tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    summaries: list[tuple[int, ...]] = []
    caches: list[tuple[Any, bool]] = []

    class Hooked(YOLODataset):
        def get_img_files(self, img_path: str) -> list[str]:
            return sorted(map(str, Path(img_path).iterdir()))

        def get_label_files(self) -> list[str]:
            self.label_files = [f"{file}.none" for file in self.im_files]
            return self.label_files

        def result_to_label(self, result: list[Any]) -> Any:
            label, missing, found, empty, corrupt, message = super().result_to_label(result)
            assert bool(label) == (not corrupt) == (not message) and (missing, found, empty) == (int(not corrupt), 0, 0)
            return label, 0, int(label is not None), 0, corrupt, message

        def scan_summary(self, nf: int, nm: int, ne: int, nc: int) -> str:
            summaries.append((nf, nm, ne, nc))
            return ""

        def get_labels(self) -> list[dict[str, Any]]:
            self.get_label_files()
            caches.append(self._load_or_scan_cache(tmp_path / "ours.cache", self.get_cache_hash()))
            self.im_files = [label["im_file"] for label in caches[-1][0]["labels"]]
            return caches[-1][0]["labels"]

    for _ in range(2):
        dataset = _dataset(tmp_path / "images", Hooked, augment=True)
        assert dataset.im_files == [str(photo)] and len(dataset) == 1
    assert [known for _, known in caches] == [False, True] and summaries[-1] == (1, 0, 0, 1)
    assert all("broken.png" in cache["msgs"][0] and len(cache["msgs"]) == 1 for cache, _ in caches)
    _photo(tmp_path / "images", 50, 50)
    assert len(_dataset(tmp_path / "images", Hooked, augment=True)) == 2 and not caches[-1][1], "another hash"


def test_a_loader_can_be_gone_through_again_and_drops_what_is_left(tmp_path: Path) -> None:
    for width in (50, 60, 70):
        _photo(tmp_path / "images", 40, width)
    dataset = _dataset(tmp_path / "images", augment=False)
    options = {"workers": 0, "shuffle": True, "rank": -1, "drop_last": True, "device": torch.device("cpu")}
    loader = build_dataloader(dataset, batch=2, **options)
    assert loader.batch_size == 2 and [len(batch["img"]) for _ in range(2) for batch in loader] == [2, 2]
    assert build_dataloader(dataset, batch=8, **options).batch_size == 3


# Prediction and validation --------------------------------------------------------------------------------------------


def test_a_predictor_resizes_and_makes_results_by_these_methods() -> None:
    made: list[tuple[int, ...]] = []

    class Ours(DetectionPredictor):
        def setup_model(self, model: Any, verbose: bool = True) -> None:
            super().setup_model(model, verbose)
            assert isinstance(self.model, AutoBackend)

        def pre_transform(self, im: list[np.ndarray]) -> list[np.ndarray]:
            assert [image.shape for image in im] == [(40, 60, 3)]
            return [LetterBox(self.imgsz, scale_fill=True)(image=image) for image in im]

        def construct_result(self, pred: torch.Tensor, img: torch.Tensor, orig_img: np.ndarray, img_path: str) -> Any:
            assert img.shape == (1, 3, 64, 96) and pred.shape[1:] == (6,)
            made.append(orig_img.shape)
            return super().construct_result(pred, img, orig_img, img_path)

    model = YOLO("yolo11n.yaml")
    image = np.zeros((40, 60, 3), np.uint8)
    model.predict(image, imgsz=(64, 96), verbose=False)
    model.predictor = None
    model.predict(image, imgsz=(64, 96), verbose=False, predictor=Ours)
    kept = model.predictor
    model.predict(image, imgsz=(64, 96), verbose=False)
    assert type(kept) is Ours and model.predictor is kept and made == [(40, 60, 3)] * 2


def test_results_map_their_boxes_into_what_new_gives_and_trackers_pick_rows_then_update_them(tmp_path: Path) -> None:
    updated: list[tuple[int, ...]] = []
    picked: list[int] = []

    class OwnBoxes(Boxes):
        def __getitem__(self, idx: Any) -> Boxes:
            picked.append(len(np.atleast_1d(idx)))
            return OwnBoxes(self.data[idx], self.orig_shape)

    class Own(Results):
        def __init__(self, *args: Any, boxes: torch.Tensor | None = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.boxes = None if boxes is None else OwnBoxes(boxes, self.orig_shape)

        def new(self) -> Any:
            return Own(self.orig_img, self.path, self.names)

        def update(self, boxes: torch.Tensor | None = None, **others: Any) -> None:
            assert boxes is not None and not others
            updated.append(tuple(boxes.shape))
            assert boxes[:, 5].tolist() == pytest.approx([0.9] * len(boxes)), "the score stands before the class"
            assert (boxes[:, 4] >= 1).all(), "and the track before the score"

        def plot(self, *args: Any, **kwargs: Any) -> Any:
            return np.full_like(self.orig_img, 77)

    class Ours(DetectionPredictor):
        def construct_result(self, pred: torch.Tensor, img: torch.Tensor, orig_img: np.ndarray, img_path: str) -> Any:
            rows = torch.tensor([[4.0, 4, 20, 20, 0.9, 0], [30.0, 4, 50, 20, 0.9, 1]])
            return Own(orig_img, img_path, self.model.names, boxes=rows)

    image = np.zeros((40, 60, 3), np.uint8)
    own = Own(image, "", {0: "a"}, boxes=torch.zeros(3, 6))
    assert all(
        type(each.boxes) in (OwnBoxes, Boxes) and type(each) is Own for each in (own[:2], own.cpu(), own.numpy())
    )
    model = YOLO("yolo11n.yaml")
    (result,) = model.track(
        image, imgsz=64, verbose=False, predictor=Ours, save=True, project=str(tmp_path), exist_ok=True
    )
    assert type(result) is Own and updated == [(2, 7)] and picked[-1] == 2
    (drawn,) = (cv2.imread(str(file)) for file in tmp_path.rglob("*.jpg"))
    assert abs(int(drawn.mean()) - 77) <= 1


def test_strides_are_a_row_and_a_sides_logits_stand_together() -> None:
    model = DetectionModel("yolov8n.yaml", nc=2, verbose=False).eval()
    with torch.no_grad():
        decoded, raw = model(torch.rand(1, 3, 64, 96))
    head = model.model[-1]
    assert head.strides.shape == (1, 126) and head.strides[0, [0, 96, 120]].tolist() == [8, 16, 32]
    means = raw["boxes"].reshape(1, 4, 16, 126).softmax(2) * torch.arange(16.0)[:, None]
    left, top, right, bottom = (means.sum(2) * head.strides)[0]
    torch.testing.assert_close(decoded[0, 2:4], torch.stack((left + right, top + bottom)), rtol=1e-4, atol=1e-3)


def test_boxes_are_scaled_by_each_axis_gain_and_clipped() -> None:
    boxes = torch.tensor([[6.0, 8, 30, 80], [-3, 0, 200, 64]])
    scaled = scale_boxes((64, 64), boxes, (32, 128, 3), ratio_pad=((2.0, 0.5), (0, 0)))
    torch.testing.assert_close(scaled, torch.tensor([[12.0, 4, 60, 32], [0, 0, 128, 32]]))


def test_a_validator_gets_its_model_before_its_loader(tiny_data: Path, tmp_path: Path) -> None:
    calls: list[str] = []

    class Stop(Exception):
        pass

    class Ours(DetectionValidator):
        def get_model(self, model: Any, trainer: Any = None) -> Any:
            assert self.dataloader is None and trainer is None
            calls.append("get_model")
            return super().get_model(model, trainer)

        def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
            assert mode == "val" and batch == 2
            calls.append("build_dataset")
            raise Stop

    with pytest.raises(Stop):
        Ours(save_dir=tmp_path, args={"data": str(tiny_data), "imgsz": 64, "batch": 2})(model=_model())
    assert calls == ["get_model", "build_dataset"]


def test_suffixes_are_read_after_a_urls_query_is_cut_off() -> None:
    for name in ("net.pt", "net.", "net.pt.", "net.pt?.yaml", "net.PT "):
        check_suffix(name, ".pt")
    for name in ("net", "net.pth", "net.pt.zip", "net.yaml?.pt"):
        with pytest.raises(AssertionError):
            check_suffix(name, ".pt")


def test_what_a_torchvision_layer_is_given() -> None:
    parameters = inspect.signature(TorchVision.__init__).parameters
    assert list(parameters)[1:3] == ["model", "weights"] and parameters["weights"].default == "DEFAULT"
    source = inspect.getsource(tasks.parse_model)
    assert re.search(r"TorchVision, Index\}\):\s+c2 = args\[0\]\s+c1 = ch\[f\]\s+args = \[\*args\[1:\]\]", source)


def test_exported_models_are_told_by_their_suffixes() -> None:
    assert {".pt", ".onnx", ".torchscript", ".engine"} <= set(export_formats()["Suffix"])


def test_ndjson_is_converted_and_anything_else_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.data import converter
    from ultralytics.data.utils import convert_ndjson_to_yolo_if_needed

    async def convert(source: str, *, fraction: float, split: str) -> tuple[str, float, str]:
        return source, fraction, split

    monkeypatch.setattr(converter, "convert_ndjson_to_yolo", convert)
    assert convert_ndjson_to_yolo_if_needed("a.ndjson", 0.5, split="val") == ("a.ndjson", 0.5, "val")
    assert convert_ndjson_to_yolo_if_needed("a.yaml", 0.5, split="val") == "a.yaml"


def test_a_line_of_a_list_is_a_path_as_it_stands(tiny_data: Path, tmp_path: Path) -> None:
    image = tiny_data.parent / "images" / "train" / "0.png"
    (tmp_path / "list.txt").write_text(f"{image}\n{image} \n {image}\n{image}\n")
    data = {"names": dict(enumerate("abc")), "nc": 3}
    dataset = YOLODataset(img_path=str(image.parent), imgsz=64, augment=False, data=data)
    assert dataset.get_img_files(str(tmp_path / "list.txt")) == [f" {image}", str(image), str(image)]


def test_first_steps_call_back_once_everything_is_checked() -> None:
    first_steps = {
        "on_train_start": (BaseTrainer._do_train, "self._setup_train(", "self._model_train("),
        "on_val_batch_start": (BaseValidator.__call__, "self.init_metrics(", "self.postprocess("),
        "on_predict_batch_start": (BasePredictor.stream_inference, "self.setup_source(", "self.postprocess("),
        "on_export_start": (Exporter.__call__, "raise ValueError", 'f"export_'),
    }
    assert set(first_steps) == set(FIRST_STEPS)
    for event, (method, check, work) in first_steps.items():
        source = inspect.getsource(method)
        assert source.rindex(check) < source.index(f'run_callbacks("{event}")') < source.index(work), event


def test_the_folder_of_a_run_is_named_and_not_made(tmp_path: Path) -> None:
    place = {"save_dir": None, "project": str(tmp_path), "name": None, "exist_ok": False}
    asked = SimpleNamespace(**place, task="detect", mode="val")
    assert get_save_dir(asked) == tmp_path / "val" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["seg", "pose", "obb"])
def test_yolo12s_heads_of_tasks_are_yolo11s(task: str) -> None:
    rows = [tasks.yaml_model_load(f"yolo{family}n-{task}.yaml") for family in (11, 12)]
    assert rows[0]["head"][-1][2:] == rows[1]["head"][-1][2:] and "end2end" not in {*rows[0], *rows[1]}
