"""Pictures of assignments from real models and data: files, what is drawn, and every wrong argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nets import SMALL_NETS
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.assigners import Assignment, MutualGuidance, Predictions, Schedule, Targets, TaskAligned
from mlc_yolo.cli import main
from mlc_yolo.figures import assignments as module
from mlc_yolo.figures.assignments import draw_assignments
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.model import MLCYOLO
from mlc_yolo.priors import Priors
from mlc_yolo.training.criteria import build_criterion


class Recorder:
    """Task-aligned assignment that keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Predictions, Priors, Targets]] = []

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        self.seen.append((predictions, priors, targets))
        return TaskAligned()(predictions, priors, targets)


@pytest.fixture(scope="module")
def yolo() -> MLCYOLO:
    """An untrained yolov8n; these tests do not change its weights."""
    torch.manual_seed(0)
    return MLCYOLO(SMALL_NETS["yolov8n"])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is handed to the plot: one dict per picture, with the image and the figure."""
    calls: list[dict[str, Any]] = []

    def spy(image: np.ndarray, gt_boxes: torch.Tensor, gt_labels: torch.Tensor, names: Any, **rest: Any) -> Figure:
        figure = original(image, gt_boxes, gt_labels, names, **rest)
        calls.append({"image": image, "gt_boxes": gt_boxes, "gt_labels": gt_labels, "figure": figure, **rest})
        return figure

    original = module.assignment_figure
    monkeypatch.setattr(module, "assignment_figure", spy)
    return calls


def arguments(data: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    return {"data": str(data), "imgsz": 96, "count": 1, "project": str(run_dir), "device": "cpu"} | changes


@pytest.mark.slow
@pytest.mark.parametrize("iou_head", [False, True], ids=["stock", "iou-aware"])
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo12n", "yolo26n"])
def test_every_yolo_head_gives_a_picture(name: str, iou_head: bool, tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(f"{name}.yaml")
    if iou_head:
        add_iou_channel(model.model.model[-1])
    (path,) = draw_assignments(model, **arguments(tiny_data, run_dir))
    assert path.parent == run_dir / "assignments"
    assert min(cv2.imread(str(path)).shape[:2]) > 500


@pytest.mark.slow
def test_the_first_images_that_hold_objects_are_drawn(yolo: MLCYOLO, tiny_data: Path, run_dir: Path) -> None:
    # The validation images hold 2, 0, 5 and 3 objects.
    paths = draw_assignments(yolo, **arguments(tiny_data, run_dir))
    assert [path.name for path in paths] == ["0_0.png"]
    paths = draw_assignments(yolo, **arguments(tiny_data, run_dir, count=9))
    assert [path.name for path in paths] == ["0_0.png", "1_2.png", "2_3.png"]
    assert paths[0].parent != run_dir / "assignments"  # a folder of its own


@pytest.mark.slow
def test_another_split_and_run_folder_may_be_chosen(yolo: MLCYOLO, tiny_data: Path, run_dir: Path) -> None:
    chosen = arguments(tiny_data, run_dir, split="train", name="mine", count=2)
    paths = draw_assignments(yolo, **chosen)
    assert [path.relative_to(run_dir).as_posix() for path in paths] == [f"mine/{n}" for n in ("0_0.png", "1_2.png")]
    assert draw_assignments(yolo, **chosen, exist_ok=True) == paths


@pytest.mark.slow
def test_the_same_command_draws_the_same_picture(yolo: MLCYOLO, tiny_data: Path, run_dir: Path) -> None:
    first, second = (draw_assignments(yolo, **arguments(tiny_data, run_dir))[0] for _ in range(2))
    assert first != second
    assert np.array_equal(cv2.imread(str(first)), cv2.imread(str(second)))


@pytest.mark.slow
def test_what_is_drawn_is_what_was_assigned(
    yolo: MLCYOLO, tiny_data: Path, run_dir: Path, drawn: list[dict[str, Any]]
) -> None:
    draw_assignments(yolo, **arguments(tiny_data, run_dir, assigner="tal,mlc"))
    (call,) = drawn
    assert [name for name, _ in call["assignments"]] == ["tal", "mlc"]
    for column, (_, assignment) in enumerate(call["assignments"]):
        for row, task in enumerate((assignment.classification, assignment.localization)):
            collections = call["figure"].axes[2 * row + column].collections
            dots = sum(len(c.get_offsets()) for c in collections if c.get_gid() in {"both", "only"})
            boxes = sum(len(c.get_paths()) for c in collections if c.get_gid() in {"both boxes", "only boxes"})
            assert dots == boxes == int(task.positive.sum()) > 0


@pytest.mark.slow
def test_objects_lie_on_the_image_as_labelled(
    yolo: MLCYOLO, tiny_data: Path, run_dir: Path, drawn: list[dict[str, Any]]
) -> None:
    draw_assignments(yolo, **arguments(tiny_data, run_dir))
    (call,) = drawn
    rows = np.loadtxt(tiny_data.parent / "labels" / "val" / "0.txt", ndmin=2)
    height, width = cv2.imread(str(tiny_data.parent / "images" / "val" / "0.png")).shape[:2]
    left, top, right, bottom = call["view"]
    assert call["image"].shape == (96, 96, 3)
    assert (right - left) / (bottom - top) == pytest.approx(width / height, abs=0.03)
    assert max(right - left, bottom - top) == pytest.approx(96)
    size = np.array([right - left, bottom - top])
    centres = (call["gt_boxes"][:, :2] + call["gt_boxes"][:, 2:]).numpy() / 2
    assert centres == pytest.approx(rows[:, 1:3] * size + (left, top), abs=1)
    assert call["gt_labels"].tolist() == rows[:, 0].astype(int).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_assigners_see_what_they_see_in_training(name: str, tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(f"{name}.yaml")
    drawing, training = Recorder(), Recorder()
    draw_assignments(model, **arguments(tiny_data, run_dir, assigner=drawing), prior_scale=3.0)

    args = get_cfg(overrides={"imgsz": 96})
    model.model.args = args
    data = check_det_dataset(str(tiny_data))
    dataset = build_yolo_dataset(args, data["val"], 1, data, mode="val")
    batch = dataset.collate_fn([dataset[0]])
    schedule = Schedule(TaskAligned(), training, 0)
    criterion = build_criterion(model.model, schedule=schedule, prior_scale=3.0, iou_gain=1.0)
    criterion(model.model(batch["img"].float() / 255), batch)

    for ours, theirs in zip(drawing.seen[0], training.seen[0], strict=True):
        for field, value in vars(theirs).items():
            mine = getattr(ours, field)
            assert torch.equal(mine, value) if torch.is_tensor(value) else mine is value, field


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("tal,mlc", ["tal", "mlc"]),
        ("[mlc, 'mg']", ["mlc", "mutual_guidance"]),
        (["FCOS", "atss"], ["fcos", "atss"]),
        (("mlc",), ["tal", "mlc"]),
        ("max_iou", ["tal", "max_iou"]),
        (MutualGuidance(sigma=1.5), ["tal", "MutualGuidance"]),
        (["mlc", MutualGuidance()], ["mlc", "MutualGuidance"]),
    ],
)
def test_assigners_are_named_alone_in_pairs_or_given_as_objects(
    given: Any, names: list[str], yolo: MLCYOLO, tiny_data: Path, run_dir: Path, drawn: list[dict[str, Any]]
) -> None:
    draw_assignments(yolo, **arguments(tiny_data, run_dir, assigner=given))
    assert [name for name, _ in drawn[0]["assignments"]] == names


@pytest.mark.slow
def test_options_set_up_the_assigners(
    yolo: MLCYOLO, tiny_data: Path, run_dir: Path, drawn: list[dict[str, Any]]
) -> None:
    for candidates in ("inside", "level"):
        draw_assignments(yolo, **arguments(tiny_data, run_dir, count=2), mlc_candidates=candidates, mlc_tasks="loc")
    inside, level = ([int((a.localization.role > 0).sum()) for _, a in call["assignments"]] for call in drawn[1::2])
    assert inside[0] == level[0]
    assert inside[1] > level[1]


@pytest.mark.slow
def test_the_model_keeps_its_weights_and_its_criterion(yolo: MLCYOLO, tiny_data: Path, run_dir: Path) -> None:
    before = {name: value.clone() for name, value in yolo.model.state_dict().items()}
    draw_assignments(yolo, **arguments(tiny_data, run_dir))
    assert all(torch.equal(value, before[name]) for name, value in yolo.model.state_dict().items())
    assert getattr(yolo.model, "criterion", None) is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"assigner": "tal,mutual_guidence"}, ValueError, "Did you mean 'mutual_guidance'"),
        ({"assigner": "tal,mlc,atss"}, ValueError, "two different assigners"),
        ({"assigner": "tal"}, ValueError, "two different assigners"),
        ({"assigner": []}, ValueError, "two different assigners"),
        ({"assigner": "mg,mutual_guidance"}, ValueError, "two different assigners"),
        ({"count": 0}, ValueError, "1 or more"),
        ({"count": 1.5}, ValueError, "whole number"),
        ({"mg_sigma": 1.0}, ValueError, "above 1"),
        ({"split": "test"}, FileNotFoundError, "test"),
        ({"data": "nowhere/data.yaml"}, FileNotFoundError, "nowhere"),
        ({"imgzs": 96}, SyntaxError, "imgsz"),
    ],
)
def test_wrong_arguments_are_refused_before_a_folder_is_made(
    changes: dict[str, Any], error: type[Exception], message: str, yolo: MLCYOLO, tiny_data: Path, run_dir: Path
) -> None:
    with pytest.raises(error, match=message):
        draw_assignments(yolo, **arguments(tiny_data, run_dir) | changes)
    assert list(run_dir.iterdir()) == []


def test_data_with_more_classes_than_the_model_is_refused(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL_NETS["yolov8n"])
    args = model.model.args
    model.model = DetectionModel(SMALL_NETS["yolov8n"], nc=2, verbose=False)
    model.model.args = args
    with pytest.raises(ValueError, match="has 3 classes and the model 2"):
        draw_assignments(model, **arguments(tiny_data, run_dir))


def test_a_split_without_objects_is_refused(yolo: MLCYOLO, tmp_path: Path, run_dir: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "empty.png"), np.full((96, 96, 3), 90, np.uint8))
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path.as_posix()}\ntrain: images\nval: images\nnames: [thing]\n")
    with pytest.raises(ValueError, match="no image of 'val' holds an object"):
        draw_assignments(yolo, **arguments(data, run_dir))


def test_models_of_other_tasks_are_refused(tiny_data: Path, run_dir: Path) -> None:
    with pytest.raises(ValueError, match="is a segment model"):
        draw_assignments(MLCYOLO("yolov8n-seg.yaml"), **arguments(tiny_data, run_dir))


def test_a_fused_end_to_end_model_is_refused(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL_NETS["yolo26n"])
    model.model.model[-1].end2end = True
    model.model.fuse(verbose=False)
    with pytest.raises(ValueError, match="was fused"):
        draw_assignments(model, **arguments(tiny_data, run_dir))


@pytest.mark.slow
def test_the_command_line_draws_them(tiny_data: Path, run_dir: Path) -> None:
    words = [f"{key}={value}" for key, value in arguments(tiny_data, run_dir).items()]
    assert main(["assignments", "model=yolov8n.yaml", "assigner=tal,mg", "mg_sigma=1.5", *words]) == 0
    assert [path.name for path in (run_dir / "assignments").iterdir()] == ["0_0.png"]
