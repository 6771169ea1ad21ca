"""The rewrite of an IoU-aware model with stock layers, judged by plain Ultralytics."""

from __future__ import annotations

import os
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from nets import SMALL26
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import ClassificationModel, DetectionModel

from mlc_yolo.checkpoints.stock_export import NEEDS_STOCK, export_stock, to_stock
from mlc_yolo.heads.iou_aware import has_iou_channel, set_rescore

Make = Callable[..., DetectionModel]

# Scores lie in [0, 1]. Measured with 3 and 80 classes: 2.4e-7 at most in float32, and as much between two models whose
# weights were both stored in half precision.
ROUNDING = 1e-6


def _image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def _scores(model: nn.Module) -> torch.Tensor:
    """Confidences on the test image: (B, K, A), or the best anchors' (B, N) from an end-to-end branch."""
    predictions = model(_image())[0]
    return predictions[..., 4] if model.end2end else predictions[:, 4:]


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo12n", "yolo26n"])
def test_the_rewrite_gives_equal_boxes_and_scores_within_3e_7(iou_aware: Make, name: str, num_classes: int) -> None:
    model = iou_aware(name, _image(), num_classes)
    model.end2end = False
    stock = to_stock(model)
    ours, theirs = model(_image())[0], stock(_image())[0]
    assert torch.equal(theirs[:, :4], ours[:, :4])
    assert (theirs - ours)[:, 4:].abs().max() < ROUNDING
    # the factor is there: without it the scores are far off
    set_rescore(model, False)
    assert (theirs - model(_image())[0])[:, 4:].abs().max() > 0.05


@pytest.mark.parametrize("end2end", [False, True])
def test_both_branches_of_an_end_to_end_model_are_rewritten_and_can_be_fused(iou_aware: Make, end2end: bool) -> None:
    model = iou_aware("yolo26n", _image())
    model.end2end = end2end
    stock = to_stock(model)
    assert stock.end2end == end2end
    assert (_scores(stock) - _scores(model)).abs().max() < ROUNDING
    stock.fuse(verbose=False)
    assert (stock.model[-1].cv2 is None) == end2end
    assert (_scores(stock) - _scores(model)).abs().max() < 1e-5  # batch normalisation folded


@pytest.mark.parametrize("end2end", [False, True])
def test_a_fused_model_is_rewritten_too(iou_aware: Make, end2end: bool) -> None:
    model = iou_aware("yolo26n", _image())
    model.end2end = end2end
    model.fuse(verbose=False)
    stock = to_stock(model)
    assert not has_iou_channel(stock)
    assert (_scores(stock) - _scores(model)).abs().max() < ROUNDING


@pytest.mark.slow
def test_log_odds_are_exact_for_extreme_logits(iou_aware: Make) -> None:
    model = iou_aware("yolov8n", _image(), 1)
    head = model.model[-1]
    for value_a in (-30.0, -8.0, 0.0, 8.0, 30.0):
        for value_b in (-30.0, -8.0, 0.0, 8.0, 30.0):
            for class_branch, iou in zip(head.cv3, head.cv_iou, strict=True):
                nn.init.zeros_(class_branch[-1].weight)
                nn.init.constant_(class_branch[-1].bias, value_a)
                nn.init.zeros_(iou.weight)
                nn.init.constant_(iou.bias, value_b)
            a, b = torch.tensor([value_a, value_b], dtype=torch.float64)
            product = a.sigmoid() * b.sigmoid()
            # log(p / (1 - p)), with 1 - p = sigmoid(-a) + sigmoid(a) sigmoid(-b) free of cancellation
            expected = (product / ((-a).sigmoid() + a.sigmoid() * (-b).sigmoid())).log()
            features = torch.zeros(1, head.cv3[0][0].conv.in_channels, 2, 2)
            logits = to_stock(model).model[-1].cv3[0](features)
            torch.testing.assert_close(logits, torch.full((1, 1, 2, 2), expected.item()), atol=1e-5, rtol=1e-6)


def test_the_original_is_left_as_it_was(iou_aware: Make) -> None:
    model = iou_aware("yolo11n", _image())
    before = model(_image())[0]
    stock = to_stock(model)
    for parameter in stock.parameters():
        nn.init.zeros_(parameter)
    assert has_iou_channel(model) and model.model[-1].rescore
    assert model.yaml["mlc"] == {"iou_head": True}
    assert torch.equal(model(_image())[0], before)


def test_a_model_without_rescoring_becomes_the_stock_architecture(iou_aware: Make) -> None:
    model = iou_aware("yolo26n", _image())
    set_rescore(model, False)
    stock = to_stock(model)
    reference = DetectionModel(SMALL26, nc=3, verbose=False)
    assert stock.state_dict().keys() == reference.state_dict().keys()
    assert torch.equal(stock(_image())[0], model(_image())[0])


def test_a_stock_model_is_copied_unchanged() -> None:
    model = DetectionModel("yolov8n.yaml", nc=3, verbose=False).eval()
    model.criterion = object()
    stock = to_stock(model)
    assert stock is not model and stock.criterion is None
    assert torch.equal(stock(_image())[0], model(_image())[0])


def test_no_trained_weight_is_stored_twice(iou_aware: Make) -> None:
    model = iou_aware("yolov8n", _image())
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (model, to_stock(model)))
    # Per level with K = 3 classes: (2K + 2) K + K into u, (2K + 1) K + K into z
    assert theirs - ours == 3 * (27 + 24)


def test_the_rewrite_keeps_device_dtype_mode_and_names(iou_aware: Make) -> None:
    model = iou_aware("yolov8n", _image()).half()
    model.names = {0: "cat", 1: "dog", 2: "cow"}
    stock = to_stock(model)
    assert {p.dtype for p in stock.parameters()} == {torch.float16}
    assert stock.names == model.names
    assert not stock.training and to_stock(model.train()).training


def test_half_precision_inference_stays_within_its_rounding(iou_aware: Make) -> None:
    model = iou_aware("yolov8n", _image())
    # measured 5e-3; the IoU-aware head itself loses as much
    half = to_stock(model).half()(_image().half())[0].float()
    assert (half - model(_image())[0])[:, 4:].abs().max() < 2e-2


def test_the_last_layers_stay_where_exporters_look_for_them(iou_aware: Make) -> None:
    head = to_stock(iou_aware("yolo26n", _image(), 5)).model[-1]
    assert type(head) is Detect
    for convs in (*head.cv2, *head.one2one_cv2, *head.cv3, *head.one2one_cv3):
        assert len(convs) == 3 and type(convs[2]) is nn.Conv2d
    assert {convs[2].out_channels for convs in (*head.cv3, *head.one2one_cv3)} == {5}


def test_augmented_prediction_works_on_the_rewrite(iou_aware: Make) -> None:
    stock = to_stock(iou_aware("yolov8n", _image()))
    assert stock.predict(_image(), augment=True)[0].shape[2] > stock(_image())[0].shape[2]


def test_other_models_are_refused_with_what_to_do(iou_aware: Make, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a detection model, got ClassificationModel"):
        to_stock(ClassificationModel("yolo11n-cls.yaml", nc=3, verbose=False))
    with pytest.raises(TypeError, match=r"got YOLO; for a YOLO object, pass its `.model`"):
        to_stock(YOLO("yolov8n.yaml"))
    with pytest.raises(ValueError, match=r"ending in .pt"):
        export_stock(iou_aware("yolov8n", _image()), tmp_path / "model.onnx")


# the saved file, opened by plain Ultralytics

PLAIN = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "mlc_yolo":
            raise AssertionError("plain Ultralytics asked for mlc_yolo")
sys.meta_path.insert(0, Refuse())
import torch
from ultralytics import YOLO
image = torch.load(sys.argv[1])
for name in sys.argv[2:]:
    model = YOLO(f"{name}.pt")
    assert model.task == "detect" and model.names == {0: "cat", 1: "dog", 2: "cow"}
    model.model.end2end = name == "yolo26n"
    torch.save(model.model(image)[0], f"{name}.out")
    model.predict(image, imgsz=64, verbose=False, save=False)  # fuses
"""


@pytest.mark.slow
@pytest.mark.parametrize("restricted", ["0", "1"])
def test_the_files_open_in_plain_ultralytics_without_us(iou_aware: Make, restricted: str, tmp_path: Path) -> None:
    models = {name: iou_aware(name, _image()) for name in ("yolov8n", "yolo11n", "yolo12n", "yolo26n")}
    for name, model in models.items():
        model.names = {0: "cat", 1: "dog", 2: "cow"}
        model.args = {"task": "detect", "imgsz": 64, "assigner": "mlc"}
        model.end2end = name == "yolo26n"
        export_stock(model, tmp_path / f"{name}.pt")
    torch.save(_image(), tmp_path / "image.pt")
    subprocess.run(
        [sys.executable, "-c", PLAIN, "image.pt", *models],
        check=True,
        env={**os.environ, "ULTRALYTICS_SAFE_LOAD": restricted},
        cwd=tmp_path,
    )
    for name, model in models.items():
        theirs = torch.load(tmp_path / f"{name}.out")
        theirs = theirs[..., 4] if model.end2end else theirs[:, 4:]
        # The file holds half-precision weights, as every finished training does: so does what it is compared with.
        assert (theirs - _scores(deepcopy(model).half().float())).abs().max() < ROUNDING, name


def test_the_file_names_nothing_of_ours(iou_aware: Make, tmp_path: Path) -> None:
    model = iou_aware("yolo26n", _image())
    model.args = {"task": "detect", "assigner": "mlc", "iou_head": True}
    path = export_stock(model, tmp_path / "stock.pt")
    with zipfile.ZipFile(path) as archive:
        pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    words = [argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)]
    assert "ultralytics.nn.modules.head" in "\n".join(words)
    assert not [word for word in words if "mlc" in word or "iou_" in word or "assigner" in word]


def test_a_checkpoint_path_is_as_good_as_a_model(iou_aware: Make, tmp_path: Path) -> None:
    model = iou_aware("yolov8n", _image())
    torch.save({"model": model, "train_args": {"imgsz": 64, "assigner": "mlc"}}, tmp_path / "best.pt")
    export_stock(tmp_path / "best.pt", tmp_path / "from_path.pt")
    export_stock(model, tmp_path / "from_model.pt")
    one, other = (YOLO(tmp_path / f"from_{origin}.pt").model for origin in ("path", "model"))
    assert torch.equal(one(_image())[0], other(_image())[0])
    checkpoint = torch.load(tmp_path / "from_path.pt", weights_only=False)
    assert checkpoint["train_args"]["imgsz"] == 64
    assert "assigner" not in checkpoint["train_args"]


@pytest.mark.parametrize("format", sorted(NEEDS_STOCK))
def test_formats_that_need_the_rewrite_exist_upstream(format: str) -> None:
    from ultralytics.engine.exporter import export_formats

    assert format in export_formats()["Argument"]
