"""The paper's figures from real models and data: files, what is drawn, and every wrong argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from detectors.lively import lively_detector
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nets import SMALL_NETS
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.assigners import MaxIoU, MutualGuidance
from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.checkpoints.marker import write_marker
from mlc_yolo.figures import amplification, guidance, misaligned
from mlc_yolo.figures.assignments import draw_assignments, open_split, scenes
from mlc_yolo.figures.draw import draw_figure
from mlc_yolo.model import MLCYOLO
from mlc_yolo.plots.amplified_iou import Pairs
from mlc_yolo.plots.guidance_stages import GuidedImage
from mlc_yolo.plots.misaligned_pairs import ComparedImage, Total

SVG = "{http://www.w3.org/2000/svg}"
KINDS = ["amplification", "guidance", "misaligned"]


@pytest.fixture(scope="module")
def yolo() -> MLCYOLO:
    """An untrained yolov8n; these tests do not change its weights."""
    torch.manual_seed(0)
    return MLCYOLO(SMALL_NETS["yolov8n"])


@pytest.fixture
def lively(iou_aware: Callable[..., DetectionModel]) -> MLCYOLO:
    """A yolov8n whose detections vary."""
    return wrap(iou_aware("yolov8n", torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))))


def wrap(net: Any, name: str = "yolov8n.yaml") -> MLCYOLO:
    model = MLCYOLO(name)
    net.args, net.names = model.model.args, {0: "square", 1: "disc", 2: "cross"}
    model.model = net
    return model


def arguments(data: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    return {"data": str(data), "imgsz": 96, "count": 1, "project": str(run_dir), "device": "cpu"} | changes


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """What is handed to a plot, which then draws its headline alone: drawing is tested by itself, and slow."""
    calls: list[tuple[Any, ...]] = []
    module = {"amplification": amplification, "guidance": guidance, "misaligned": misaligned}[name.partition("_")[0]]

    def plot(*args: Any, **_: Any) -> Figure:
        calls.append(args)
        figure = Figure((1, 1))
        figure.text(0, 0, name)
        return figure

    monkeypatch.setattr(module, name, plot)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_command_writes_a_png_and_an_svg(kind: str, yolo: MLCYOLO, tiny_data: Path, run_dir: Path) -> None:
    other = {"other": MLCYOLO(SMALL_NETS["yolov8n"])} if kind == "misaligned" else {}
    png, svg = draw_figure(kind, yolo, **other, **arguments(tiny_data, run_dir))
    assert (png, svg) == (run_dir / kind / f"{kind}.png", run_dir / kind / f"{kind}.svg")
    assert min(cv2.imread(str(png)).shape[:2]) > 600
    root = ElementTree.parse(svg).getroot()
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    (title,) = [each.text for each in root.iter(f"{SVG}title")]
    assert len(title) > 20 and title in texts  # text is text
    (description,) = [e.text for e in root.iter("{http://purl.org/dc/elements/1.1/}description")]
    assert description.endswith(".")


@pytest.mark.slow
def test_the_curves_need_no_model(run_dir: Path) -> None:
    png, svg = draw_figure("amplification", project=str(run_dir), name="curves")
    assert png.parent == svg.parent == run_dir / "curves"


@pytest.mark.slow
def test_the_same_command_writes_the_same_files(yolo: MLCYOLO, tiny_data: Path, run_dir: Path) -> None:
    first, second = (draw_figure("guidance", yolo, **arguments(tiny_data, run_dir)) for _ in range(2))
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)] == [True, True]


def test_pairs_are_those_of_objects_and_priors_with_the_score_of_the_objects_class(
    lively: MLCYOLO, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, "amplification_figure")
    draw_figure("amplification", lively, mg_sigma=1.5, prior_scale=3.0, **arguments(tiny_data, run_dir))
    pairs: Pairs = calls[0][0]
    split = open_split(lively, str(tiny_data), {"imgsz": 96, "device": "cpu"})
    (scene,) = scenes(lively.model, split, split.with_objects(1), prior_scale=3.0)
    expected = []
    for box, label in zip(scene.targets.boxes[0], scene.targets.labels[0], strict=True):
        for prior, scores in zip(scene.priors.boxes, scene.predictions.scores[0], strict=True):
            iou = float(pairwise_iou(box[None], prior[None]))
            expected += [(iou, float(scores[label]))] if iou > 0 else []
    assert pairs.sigma == 1.5
    assert np.column_stack((pairs.ious, pairs.scores)) == pytest.approx(np.array(expected), abs=1e-6)


def test_positives_are_the_assigners_and_static_ones_those_of_the_prior_iou(
    lively: MLCYOLO, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, "guidance_figure")
    draw_figure("guidance", lively, mg_sigma=1.2, **arguments(tiny_data, run_dir, count=9))
    images: list[GuidedImage] = calls[0][0]
    assert [each.source for each in images] == ["0.png", "3.png", "2.png"]  # 2, 3 and 5 objects, then no more
    split = open_split(lively, str(tiny_data), {"imgsz": 96, "device": "cpu"})
    for each, scene in zip(images, scenes(lively.model, split, [0, 3, 2], prior_scale=5.0), strict=True):
        inputs = (scene.predictions, scene.priors, scene.targets)
        guided = MutualGuidance(sigma=1.2)(*inputs)
        assert torch.equal(each.l2c, guided.classification.positive[0])
        assert torch.equal(each.c2l, guided.localization.positive[0])
        assert torch.equal(each.static, MutualGuidance(tasks="l2c")(*inputs).localization.positive[0])
        assert torch.equal(each.static & MaxIoU()(*inputs).classification.positive[0], each.static)
        assert torch.equal(each.prior_boxes, scene.priors.boxes)
    assert any(not torch.equal(each.static, each.l2c) for each in images)


@pytest.mark.slow
def test_resize_overrules_the_models_own(
    lively: MLCYOLO, yolo: MLCYOLO, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, "misaligned_figure")
    kept = []
    for resize in ("letterbox", "warp", None):
        given = (
            arguments(tiny_data, run_dir, count=9, resize=resize) if resize else arguments(tiny_data, run_dir, count=9)
        )
        images, _ = compare(lively, yolo, calls, **given)
        kept.append({tuple(row) for each in images for row in each.models[0].detections.tolist()})
    assert kept[0] == kept[2] != kept[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_ported_detectors_have_figures_too(kind: str, tiny_data: Path, run_dir: Path) -> None:
    model = wrap(lively_detector(kind, nc=3, width=64), f"{kind}-r18-fpn.yaml")
    for figure, other in (("guidance", None), ("misaligned", model), ("amplification", None)):
        paths = draw_figure(figure, model, other=other, **arguments(tiny_data, run_dir, imgsz=64))
        assert all(path.stat().st_size > 10_000 for path in paths)


def compare(model: MLCYOLO, other: Any, calls: list[Any], **given: Any) -> tuple[list[ComparedImage], list[Total]]:
    draw_figure("misaligned", model, other=other, **given)
    images, totals, _ = calls[-1]
    return images, totals


def test_detections_are_those_of_predict_and_came_out_of_the_candidates(
    lively: MLCYOLO, yolo: MLCYOLO, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, "misaligned_figure")
    images, totals = compare(lively, yolo, calls, **arguments(tiny_data, run_dir, count=9))
    assert sorted(each.source for each in images) == ["0.png", "2.png", "3.png"]
    folder = tiny_data.parent / "images" / "val"
    for each in images:
        (result,) = lively.predict(folder / each.source, imgsz=96, iou=0.5, device="cpu", verbose=False)
        found = each.models[0]
        assert len(found.detections) > 3
        assert torch.equal(found.detections, result.boxes.data)
        rows = {tuple(row) for row in found.candidates.tolist()}
        assert {tuple(row) for row in found.detections.tolist()} <= rows
        assert len(rows) > 2 * len(found.detections)
        assert np.array_equal(each.image, cv2.imread(str(folder / each.source))[..., ::-1])
    assert [total.objects for total in totals] == [10, 10]
    assert totals[0].misaligned == sum(len(each.models[0].misaligned) for each in images)


def test_objects_lie_as_labelled(
    yolo: MLCYOLO, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, "misaligned_figure")
    images, _ = compare(yolo, yolo, calls, **arguments(tiny_data, run_dir))
    assert images[0].source == "0.png"  # the first, where no two differ
    rows = np.loadtxt(tiny_data.parent / "labels" / "val" / "0.txt", ndmin=2)
    height, width = images[0].image.shape[:2]
    corners = np.column_stack((rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2))
    assert images[0].gt_boxes.numpy() == pytest.approx(corners * (width, height, width, height), abs=0.01)


def test_a_large_photograph_is_shrunk_with_everything_on_it(
    lively: MLCYOLO, tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "big.png"), np.full((400, 1280, 3), 90, np.uint8))
    (tmp_path / "labels" / "big.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path.as_posix()}\ntrain: images\nval: images\nnames: [square, disc, cross]\n")
    calls = spy(monkeypatch, "misaligned_figure")
    images, _ = compare(lively, lively, calls, **arguments(data, run_dir))
    assert images[0].image.shape == (200, 640, 3)
    assert images[0].gt_boxes.tolist() == [[240, 50, 400, 150]]
    assert images[0].models[0].candidates[:, 2].max() <= 640


def test_images_where_the_models_differ_come_first(
    yolo: MLCYOLO, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both lose the same in the first and the third image; the second model alone loses one in the second."""
    order = iter([[], [], [], [0], [0, 1], [0, 1]])
    monkeypatch.setattr(misaligned, "_lost", lambda _: next(order))
    calls = spy(monkeypatch, "misaligned_figure")
    images, _ = compare(yolo, yolo, calls, **arguments(tiny_data, run_dir))
    assert [each.source for each in images] == ["2.png"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("runs/static/weights/best.pt", "runs/guided/weights/best.pt"), ["static", "guided"]),
        (("a/static.pt", "a/guided.pt"), ["static", "guided"]),
        (("runs/one/weights/best.pt", "runs/one/weights/best.pt"), ["one", "one"]),
        (("a/x.pt", "a/x.pt"), ["x", "x"]),
    ],
)
def test_models_are_called_what_tells_them_apart(paths: tuple[str, str], names: list[str], yolo: MLCYOLO) -> None:
    pair = [MLCYOLO(SMALL_NETS["yolov8n"]) for _ in paths]
    for model, path in zip(pair, paths, strict=True):
        model.ckpt_path = path
    assert misaligned._distinct_names(*pair) == names


@pytest.mark.slow
def test_the_models_keep_their_weights_and_their_predictors(
    lively: MLCYOLO, yolo: MLCYOLO, tiny_data: Path, run_dir: Path
) -> None:
    before = {name: value.clone() for name, value in lively.model.state_dict().items()}
    for kind in KINDS:
        draw_figure(kind, lively, other=yolo if kind == "misaligned" else None, **arguments(tiny_data, run_dir))
    assert all(torch.equal(value, before[name]) for name, value in lively.model.state_dict().items())
    assert lively.predictor is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("guidence", {}, ValueError, "Did you mean 'guidance'"),
        ("figure3", {}, ValueError, "must be one of amplification, guidance, misaligned"),
        ("guidance", {"count": 0}, ValueError, "1 or more"),
        ("guidance", {"count": 1.5}, ValueError, "whole number"),
        ("guidance", {"model": None}, ValueError, "give model="),
        ("amplification", {"model": None}, ValueError, "give model="),
        ("guidance", {"other": "yolov8n.yaml"}, ValueError, "leave out other"),
        ("misaligned", {}, ValueError, "give other="),
        ("misaligned", {"other": "nowhere.pt"}, FileNotFoundError, "nowhere"),
        ("misaligned", {"other": "yolov8n-seg.yaml"}, ValueError, "is a segment model"),
        ("guidance", {"mg_sigma": 1.0}, ValueError, "above 1"),
        ("amplification", {"mg_sigma": 1.0}, ValueError, "above 1"),
        ("guidance", {"split": "test"}, FileNotFoundError, "test"),
        ("guidance", {"data": "nowhere/data.yaml"}, FileNotFoundError, "nowhere"),
        ("guidance", {"imgzs": 96}, SyntaxError, "imgsz"),
        ("misaligned", {"other": "yolov8n.yaml", "imgzs": 96}, SyntaxError, "imgsz"),
        ("misaligned", {"other": "yolo26n.yaml", "nms": False}, ValueError, "end-to-end"),
    ],
)
def test_wrong_arguments_are_refused_before_a_folder_is_made(
    kind: str,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    yolo: MLCYOLO,
    tiny_data: Path,
    run_dir: Path,
) -> None:
    given = {"model": yolo} | arguments(tiny_data, run_dir) | changes
    with pytest.raises(error, match=message):
        draw_figure(kind, **given)
    assert list(run_dir.iterdir()) == []


def test_models_of_fewer_classes_than_the_data_are_refused(yolo: MLCYOLO, tiny_data: Path, run_dir: Path) -> None:
    few = wrap(DetectionModel(SMALL_NETS["yolov8n"], nc=2, verbose=False))
    few.model.names = {0: "square", 1: "disc"}
    with pytest.raises(ValueError, match="has 3 classes and the model 2"):
        draw_figure("misaligned", yolo, other=few, **arguments(tiny_data, run_dir))
    with pytest.raises(ValueError, match="has 3 classes and the model 2"):
        draw_figure("guidance", few, **arguments(tiny_data, run_dir))
    assert list(run_dir.iterdir()) == []


def test_a_model_that_warps_is_drawn_on_warped_images_and_its_boxes_come_back(
    lively: MLCYOLO, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_marker(lively.model, resize="warp")
    calls = spy(monkeypatch, "misaligned_figure")
    images, _ = compare(lively, lively, calls, **arguments(tiny_data, run_dir, count=9))
    for each in images:
        assert {tuple(r) for r in each.models[0].detections.tolist()} <= {
            tuple(r) for r in each.models[0].candidates.tolist()
        }
    guided = spy(monkeypatch, "guidance_figure")
    draw_figure("guidance", lively, **arguments(tiny_data, run_dir, count=9))
    assert [each.view for each in guided[0][0]] == [(0, 0, 96, 96)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("bands", [1, 2, 4, 10])
@pytest.mark.parametrize("kind", ["guidance", "misaligned", "assignments"])
def test_pictures_of_any_number_of_bands_show_the_first_three_or_grey(
    kind: str, bands: int, own_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_data.write_text(own_data.read_text() + f"channels: {bands}\n")
    for file in own_data.parent.rglob("*.png"):
        pixels = np.broadcast_to(np.arange(bands, dtype=np.uint8) * 20 + 10, (96, 96, bands))
        pages = [np.ascontiguousarray(pixels[..., band]) for band in range(bands)]
        assert cv2.imwritemulti(str(file.with_suffix(".tiff")), pages)
        file.unlink()
    torch.manual_seed(0)
    model = MLCYOLO(SMALL_NETS["yolov8n"])
    model.model = DetectionModel(SMALL_NETS["yolov8n"], ch=bands, nc=3, verbose=False)
    model.model.args = {"task": "detect"}
    shown: list[np.ndarray] = []
    imshow = Axes.imshow

    def spying(self: Axes, image: np.ndarray, **kwargs: Any) -> Any:
        shown.append(np.asarray(image))
        return imshow(self, image, **kwargs)

    monkeypatch.setattr(Axes, "imshow", spying)
    if kind == "assignments":
        draw_assignments(model, **arguments(own_data, run_dir))
        colours = [10, 30, 50]
    else:
        changes = {"other": model, "conf": 0.001} if kind == "misaligned" else {}
        draw_figure(kind, model, **arguments(own_data, run_dir, **changes))
        colours = [7, 22, 37]  # three quarters, darkened
    expected = colours if bands >= 3 else colours[:1] * 3
    assert shown and all(image[48, 48].tolist() == expected for image in shown)
