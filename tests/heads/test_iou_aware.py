"""The IoU-aware head against the stock head it extends."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from nets import enliven
from torch import nn
from ultralytics.nn.modules import Classify, Detect, RTDETRDecoder, YOLOEDetect, YOLOESegment, v10Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import strip_optimizer

from mlc_yolo.checkpoints.marker import load_stock_weights, read_marker, wants_iou_channel, write_marker
from mlc_yolo.heads.iou_aware import (
    NEUTRAL_BIAS,
    PAPER_BIAS,
    IoUAwareDetect,
    add_iou_channel,
    has_iou_channel,
    set_rescore,
)

# One family each; the P6 form wants image sides that are multiples of 64.
FAMILIES = ["yolov8n", "yolov8n-p2", "yolov8n-p6", "yolo11n", "yolo12n", "yolo26n", "yolo26n-p2", "yolo26n-p6"]


def _model(name: str = "yolov8n", seed: int = 0) -> DetectionModel:
    """A stock model with three classes, whose logits vary from anchor to anchor."""
    model = _iou_aware(name, seed)
    head = model.model[-1]
    for channel in ("cv_iou", "one2one_cv_iou"):
        head._modules.pop(channel, None)
    del head.rescore
    head.__class__ = Detect
    return model


def _iou_aware(name: str = "yolov8n", seed: int = 0) -> DetectionModel:
    """The same with an IoU channel."""
    torch.manual_seed(seed)
    model = DetectionModel(f"{name}.yaml", nc=3, verbose=False).eval()
    add_iou_channel(model.model[-1])
    enliven(model, _image())
    return model


def _image(height: int = 64, width: int = 128) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_confidence_is_class_score_times_predicted_iou_and_boxes_are_untouched(name: str) -> None:
    model, stock = _iou_aware(name), _model(name)
    model.end2end = stock.end2end = False  # the other branch returns its best anchors only, in another order
    expected = stock(_image())[0]
    predictions, raw = model(_image())
    iou = raw.get("one2many", raw)["iou"]
    assert iou.shape == (2, 1, expected.shape[2])
    assert iou.std() > 1
    assert torch.equal(predictions[:, :4], expected[:, :4])
    torch.testing.assert_close(predictions[:, 4:], expected[:, 4:] * iou.sigmoid())


@pytest.mark.parametrize("name", FAMILIES)
def test_without_rescoring_predictions_equal_the_stock_head(name: str) -> None:
    model = _iou_aware(name)
    set_rescore(model, False)
    assert torch.equal(model(_image())[0], _model(name)(_image())[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_channel_keeps_every_score_to_seven_thousandths(name: str) -> None:
    model = _model(name)
    model.end2end = False
    stock = model(_image())[0]
    add_iou_channel(model.model[-1])
    rescored = model(_image())[0]
    assert torch.equal(rescored[:, :4], stock[:, :4])
    torch.testing.assert_close(rescored[:, 4:], stock[:, 4:] / (1 + math.exp(-5)))
    assert (rescored[:, 4:] >= stock[:, 4:] * 0.993).all()


def test_a_fresh_channel_of_the_papers_form_halves_every_score() -> None:
    model = _model()
    stock = model(_image())[0]
    add_iou_channel(model.model[-1], bias=PAPER_BIAS)
    assert torch.equal(model(_image())[0][:, 4:], stock[:, 4:] * 0.5)


def test_the_iou_logit_reads_what_enters_the_last_box_convolution() -> None:
    model = _iou_aware()
    head = model.model[-1]
    seen: list[torch.Tensor] = []
    for tower in head.cv2:
        tower[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    raw = model(_image())[1]
    expected = torch.cat([conv(features).flatten(2) for conv, features in zip(head.cv_iou, seen, strict=True)], -1)
    assert len(seen) == 3
    assert torch.equal(raw["iou"], expected)


def test_training_mode_gives_the_iou_logits_of_both_branches() -> None:
    model = _iou_aware("yolo26n").train()
    raw = model(_image())
    assert raw["one2many"]["iou"].shape == raw["one2one"]["iou"].shape == (2, 1, 168)  # 128 + 32 + 8 cells
    raw["one2one"]["iou"].sum().backward()
    assert model.model[0].conv.weight.grad is None  # the one-to-one branch is detached from the backbone
    raw["one2many"]["iou"].sum().backward()
    assert model.model[0].conv.weight.grad.abs().sum() > 0


def test_a_fresh_channel_learns_from_the_first_step() -> None:
    model = _model().train()
    head = add_iou_channel(model.model[-1])
    (model(_image())["iou"].sigmoid() - 1).square().sum().backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in head.cv_iou)


def test_adding_the_channel_draws_nothing_from_the_global_generator() -> None:
    model = _model()
    before = torch.get_rng_state()
    add_iou_channel(model.model[-1])
    assert torch.equal(torch.get_rng_state(), before)


def test_adding_the_channel_keeps_every_stock_tensor_and_attribute() -> None:
    model = _model("yolo26n")
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    head = model.model[-1]
    attributes = (head.i, head.f, head.stride.tolist(), head.nc, head.no, head.legacy)
    assert add_iou_channel(head) is head
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in tensors.items())
    assert len(after) - len(tensors) == 12  # weight and bias, three levels, two branches
    assert (head.i, head.f, head.stride.tolist(), head.nc, head.no, head.legacy) == attributes


def test_adding_the_channel_twice_is_adding_it_once() -> None:
    model = _iou_aware()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_rescore(model, False)
    head = add_iou_channel(model.model[-1])
    assert not head.rescore
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("other", [v10Detect, YOLOEDetect, YOLOESegment, RTDETRDecoder, Classify])
def test_heads_of_other_classes_are_refused_by_name_with_what_to_do(other: type[nn.Module]) -> None:
    head = other.__new__(other)
    nn.Module.__init__(head)
    with pytest.raises(TypeError, match=rf"own head of detection.*got {other.__name__}.*iou_head=False"):
        add_iou_channel(head)


def test_the_head_built_directly_equals_the_converted_one() -> None:
    torch.manual_seed(0)
    built = IoUAwareDetect(3, 16, True, [16, 32])
    torch.manual_seed(0)
    converted = add_iou_channel(Detect(3, 16, True, [16, 32]))
    assert built.state_dict().keys() == converted.state_dict().keys()
    assert all(torch.equal(value, converted.state_dict()[name]) for name, value in built.state_dict().items())
    assert built.rescore and converted.rescore


def test_bias_init_resets_the_iou_bias_of_both_branches() -> None:
    head = _iou_aware("yolo26n").model[-1]
    head.bias_init()
    assert all((conv.bias == NEUTRAL_BIAS).all() for conv in (*head.cv_iou, *head.one2one_cv_iou))


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_fusing_changes_scores_by_rounding_only(name: str) -> None:
    model = _iou_aware(name)
    model.end2end = False
    before = model(_image())[0]
    after = model.fuse(verbose=False)(_image())[0]
    assert (after - before)[:, 4:].abs().max() < 1e-5


@pytest.mark.parametrize("end2end", [False, True])
def test_fusing_an_end_to_end_model_keeps_the_iou_channel_of_the_branch_in_use(end2end: bool) -> None:
    model = _iou_aware("yolo26n")
    model.end2end = end2end
    before = model(_image())[0]
    fused = deepcopy(model).fuse(verbose=False)
    head = fused.model[-1]
    assert (head.cv2 is None) == end2end
    torch.testing.assert_close(fused(_image())[0], before, atol=1e-3, rtol=1e-5)
    # and a fused stock model can still be given the channel
    assert add_iou_channel(_model("yolo26n").fuse(verbose=False).model[-1]).rescore


def test_deepcopy_and_pickle_keep_predictions_and_the_rescore_switch() -> None:
    model = _iou_aware()
    set_rescore(model, False)
    twin = pickle.loads(pickle.dumps(deepcopy(model)))
    assert torch.equal(twin(_image())[0], model(_image())[0])
    assert has_iou_channel(twin) and not twin.model[-1].rescore


def test_rescoring_is_switched_on_heads_that_have_it_and_ignored_on_others() -> None:
    model, stock = _iou_aware(), _model()
    set_rescore(model, False)
    set_rescore(stock, False)
    assert not model.model[-1].rescore
    assert not hasattr(stock.model[-1], "rescore")
    assert has_iou_channel(model) and not has_iou_channel(stock)


def test_channels_last_images_of_odd_shape_give_the_same_predictions() -> None:
    model = _iou_aware("yolo11n")
    image = _image(96, 160)
    torch.testing.assert_close(
        model.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))[0],
        _iou_aware("yolo11n")(image)[0],
        atol=1e-3,  # boxes, in pixels
        rtol=1e-4,
    )


def test_half_precision_scores_stay_within_its_rounding() -> None:
    model = _iou_aware()
    full = model(_image())[0]
    half = model.half()(_image().half())[0]
    assert half.dtype == torch.float16
    # 2^-11 relative per layer, over some twenty layers, on logits up to 8: measured 7e-3
    assert (half.float() - full)[:, 4:].abs().max() < 3e-2


def test_augmented_prediction_falls_back_to_one_scale() -> None:
    # Ultralytics augments at prediction time only models whose head is exactly Detect
    model = _iou_aware()
    assert torch.equal(model.predict(_image(), augment=True)[0], model(_image())[0])


# checkpoints


@pytest.mark.parametrize(("name", "tensors"), [("yolov8n", 355), ("yolo11n", 499), ("yolo26n", 708)])
def test_every_tensor_of_a_stock_checkpoint_is_loaded_under_the_channel(name: str, tensors: int) -> None:
    model = _iou_aware(name, seed=1)
    assert load_stock_weights(model, _model(name), verbose=False) == (tensors, tensors)


def test_tensors_of_another_class_count_are_reported_missing() -> None:
    other = DetectionModel("yolov8n.yaml", nc=5, verbose=False)
    # weight and bias of the last class layer, three levels
    assert load_stock_weights(_iou_aware(), {"ema": None, "model": other}, verbose=False) == (349, 355)


@pytest.mark.slow
def test_an_iou_checkpoint_keeps_its_channel_or_loses_it_and_nothing_else() -> None:
    source = _iou_aware(seed=1)
    kept, dropped = _iou_aware(), _model()
    assert load_stock_weights(kept, source, verbose=False) == (355, 355)
    assert torch.equal(kept(_image())[0], source(_image())[0])
    assert load_stock_weights(dropped, source, verbose=False) == (355, 355)
    set_rescore(source, False)
    assert torch.equal(dropped(_image())[0], source(_image())[0])


def test_classes_are_still_matched_by_name() -> None:
    source, target = _model(seed=1), _iou_aware()
    source.names, target.names = {0: "cat", 1: "dog", 2: "cow"}, {0: "cow", 1: "bee", 2: "cat"}
    bias, fresh = source.model[-1].cv3[0][-1].bias.clone(), target.model[-1].cv3[0][-1].bias.clone()
    loaded, total = load_stock_weights(target, source, verbose=False)
    assert torch.equal(target.model[-1].cv3[0][-1].bias, torch.stack([bias[2], fresh[1], bias[0]]))
    assert (loaded, total) == (349, 355)  # re-ordered layers are not counted as taken over


def test_the_log_says_what_was_loaded_and_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("mlc_yolo.checkpoints.marker.LOGGER.info", lines.append)
    load_stock_weights(_iou_aware(), _model())
    assert lines[-1] == "355/355 stock tensors loaded; the 6 tensors of the IoU channel start fresh"
    load_stock_weights(_iou_aware(), _iou_aware())
    assert lines[-1] == "355/355 stock tensors loaded"


def test_iou_head_left_out_means_as_in_the_checkpoint_else_no() -> None:
    for option in (True, False):
        assert all(wants_iou_channel(option, weights) is option for weights in (None, _model(), _iou_aware()))
    assert not wants_iou_channel(None, None)
    assert not wants_iou_channel(None, _model())
    assert wants_iou_channel(None, _iou_aware())


def test_the_marker_survives_stripping_and_a_rebuild_from_the_yaml(tmp_path: Path) -> None:
    model = _iou_aware()
    write_marker(model, iou_head=True)
    torch.save({"model": model, "train_args": {}}, tmp_path / "best.pt")
    strip_optimizer(tmp_path / "best.pt")
    loaded = torch.load(tmp_path / "best.pt", weights_only=False)["model"].float()
    assert read_marker(loaded) == {"iou_head": True}
    rebuilt = DetectionModel(loaded.yaml, nc=4, verbose=False)
    write_marker(rebuilt, iou_head=False)
    assert read_marker(loaded) == {"iou_head": True}  # upstream shares the dict; we do not write to it
    assert read_marker(_model()) == {}


@pytest.mark.slow
def test_restricted_loading_accepts_our_checkpoints(tmp_path: Path) -> None:
    model = _iou_aware()
    torch.save({"model": model, "train_args": {}}, tmp_path / "best.pt")
    code = (
        "import sys, torch, mlc_yolo.heads\n"
        "from ultralytics import YOLO\n"
        "from ultralytics.utils import SAFE_LOAD\n"
        "assert SAFE_LOAD\n"
        "model = YOLO(sys.argv[1]).model\n"
        "torch.save((model.state_dict(), model(torch.ones(1, 3, 64, 64))[0].shape), sys.argv[2])\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "best.pt"), str(tmp_path / "out.pt")]
    subprocess.run(arguments, check=True, env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"})
    # What another process computes may differ in its last digits, with as many threads as it has.
    weights, shape = torch.load(tmp_path / "out.pt")
    assert shape == model(torch.ones(1, 3, 64, 64))[0].shape
    torch.testing.assert_close(weights, model.state_dict(), rtol=0, atol=0)
