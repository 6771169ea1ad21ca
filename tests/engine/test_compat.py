"""Each upstream behaviour `engine/compat.py` names, so that a release which changes one fails here and says which."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest
import torch
import ultralytics
from torch import nn
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.data.utils import IMG_FORMATS, exif_size
from ultralytics.engine.model import Model
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, patches
from ultralytics.utils.loss import BboxLoss, E2ELoss, v8DetectionLoss
from ultralytics.utils.metrics import DetMetrics

from mlc_yolo.engine import compat
from mlc_yolo.heads.iou_aware import add_iou_channel


def _model(name: str = "yolo11n") -> DetectionModel:
    model = DetectionModel(f"{name}.yaml", nc=2, verbose=False)
    model.args = DEFAULT_CFG
    return model


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
    (positive, _, boxes, _, _), losses, items = v8DetectionLoss(model).get_assigned_targets_and_loss(preds, batch)
    anchors = preds["boxes"].shape[-1]
    assert positive.shape == (1, anchors) and positive.dtype == torch.bool and positive.any()
    torch.testing.assert_close(boxes[positive], torch.tensor([[16.0, 16, 48, 48]]).expand(int(positive.sum()), 4))
    assert losses.shape == (3,) and list(items) == ["box_loss", "cls_loss", "dfl_loss"]


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


@pytest.mark.parametrize("end2end", [False, True])
def test_fusing_leaves_the_branch_that_is_used_with_its_channel(end2end: bool) -> None:
    model = _model("yolo26n")
    add_iou_channel(model.model[-1])
    model.eval().end2end = end2end
    image = torch.rand(1, 3, 64, 64)
    before = model(image)[0]
    after = model.fuse(verbose=False)(image)[0]
    torch.testing.assert_close(after[..., :4], before[..., :4], rtol=1e-4, atol=1e-2)


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
