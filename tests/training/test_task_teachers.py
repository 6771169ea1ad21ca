"""Teachers of segmentation, pose and oriented boxes: what they see, what their students learn, which are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import enliven
from teaching import saved, smooth
from ultralytics.nn.tasks import OBBModel, PoseModel, SegmentationModel
from ultralytics.utils import DEFAULT_CFG

from mlc_yolo import MLCYOLO
from mlc_yolo.assigners import STOCK, Schedule
from mlc_yolo.box_kinds import ORIENTED
from mlc_yolo.heads.iou_aware import add_iou_channel
from mlc_yolo.oriented import aligned_probiou
from mlc_yolo.training.criteria import build_criterion
from mlc_yolo.training.dense_outputs import Gains
from mlc_yolo.training.distilling import compared
from mlc_yolo.training.task_trainers import TASK_TRAINERS
from mlc_yolo.training.taught_criterion import taught_gains
from mlc_yolo.training.teachers import load_teachers

NAMES = {0: "a", 1: "b"}
RUN: dict[str, Any] = {"imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "device": "cpu", "plots": False, "epochs": 1}
MODELS = {"segment": SegmentationModel, "pose": PoseModel, "obb": OBBModel}
Make = Callable[..., Any]


@pytest.fixture
def make(net: Callable[..., str]) -> Make:
    """A function (task, family=11, iou_head=False) -> a net of two classes whose predictions vary."""

    def made(task: str, family: int = 11, *, iou_head: bool = False) -> Any:
        torch.manual_seed(0)
        model = MODELS[task](net(task, family), nc=2, verbose=False).eval()
        if iou_head:
            add_iou_channel(model.model[-1])
        enliven(model, smooth())
        model.names, model.args = dict(NAMES), DEFAULT_CFG
        return model

    return made


@pytest.mark.parametrize(
    ("task", "family", "iou_head"),
    [("segment", 11, True), ("segment", 26, False), ("pose", 26, True), ("obb", 11, True), ("obb", 26, False)],
)
def test_a_teacher_sees_boxes_and_classes_as_its_model_decodes_them(
    task: str, family: int, iou_head: bool, make: Make, tmp_path: Path
) -> None:
    model = make(task, family, iou_head=iou_head)
    model.end2end = False
    with torch.no_grad():
        (output, *_) = model(smooth())
    decoded = (output[0] if isinstance(output, tuple) else output).transpose(1, 2)
    seen = load_teachers([saved(model, tmp_path / "t.pt")], make(task), NAMES, trust=False)(smooth())
    torch.testing.assert_close(seen.logits.sigmoid(), decoded[..., 4:6], rtol=1e-3, atol=1e-3)
    boxes = torch.cat((decoded[..., :4], decoded[..., -1:]), -1)
    if task != "obb":
        half = decoded[..., 2:4] / 2
        boxes = torch.cat((decoded[..., :2] - half, decoded[..., :2] + half), -1)
    torch.testing.assert_close(seen.boxes, boxes, rtol=1e-3, atol=0.05)
    assert (seen.kind is ORIENTED) == (task == "obb") and (seen.quality is not None) == iou_head
    assert not seen.boxes.requires_grad


@pytest.mark.parametrize("family", [11, 26])
def test_an_oriented_student_is_pulled_to_its_teachers_boxes_angles_included(
    family: int, make: Make, tmp_path: Path
) -> None:
    model = make("obb", family).train()
    file = saved(make("obb", family), tmp_path / "t.pt")
    teacher = load_teachers([file], model, NAMES, trust=False)(smooth())
    schedule: Schedule[Any] = Schedule(STOCK, STOCK, 0, 0)
    criterion = build_criterion(model, schedule=schedule, prior_scale=5.0, iou_gain=1.0).branches()[0][1]
    raw = model.eval()(smooth())[1]
    student = criterion.dense(raw.get("one2many", raw))
    trusted = torch.zeros(student.logits.shape[:2])
    trusted[:, ::7] = 1
    gains = taught_gains(Gains(0.0, 7.5, 1.5, 0.0), student, teacher)
    assert gains == Gains(0.0, 7.5, 1.5 if family == 11 else 0.0, 0.0)
    learned = partial(compared, trusted=trusted, totals=torch.tensor([1.0, trusted.sum()]), gains=gains, power=0)
    torch.testing.assert_close(learned(student, teacher)[1], torch.tensor(0.0), rtol=0, atol=0.02)

    moved = teacher.boxes + torch.tensor([0.0, 0.0, 0.0, 0.0, 0.2])
    other = type(teacher)(teacher.logits, moved, teacher.distributions, None, teacher.sizes, teacher.kind)
    apart = 1 - aligned_probiou(student.boxes[trusted > 0], moved[trusted > 0]).mean()
    loss = learned(student, other)[1]
    torch.testing.assert_close(loss, 7.5 * apart, rtol=0.02, atol=0.02)
    (of_angles,) = torch.autograd.grad(loss, raw.get("one2many", raw)["angle"])
    assert of_angles.isfinite().all() and (of_angles[:, 0][trusted > 0] < 0).float().mean() > 0.9
    assert not of_angles[:, 0][trusted == 0].any()


def test_distributions_of_sides_are_compared_where_both_boxes_have_the_same_sides(make: Make, tmp_path: Path) -> None:
    model = make("obb")
    teacher = load_teachers([saved(model, tmp_path / "t.pt")], model, NAMES, trust=False)(smooth())
    assert teacher.distributions is not None
    trusted = torch.ones(teacher.logits.shape[:2])
    gains, totals = Gains(0.0, 0.0, 1.0, 0.0), torch.tensor([1.0, trusted.sum()])

    def loss(turn: float) -> torch.Tensor:
        boxes = teacher.boxes + torch.tensor([0.0, 0.0, 0.0, 0.0, turn])
        turned = type(teacher)(teacher.logits, boxes, -teacher.distributions, None, teacher.sizes, ORIENTED)
        return compared(teacher, turned, trusted, totals, gains, power=0)[1]

    assert loss(0.5) > 0.01 and torch.equal(loss(0.5), loss(0.0))
    assert loss(torch.pi / 2) == loss(torch.pi) == 0  # there left is the teacher's top, or its right


@pytest.mark.slow
@pytest.mark.parametrize(("task", "family"), [("segment", 12), ("pose", 26), ("obb", 8)])
def test_a_run_learns_from_its_teacher_beside_the_tasks_own_losses(
    task: str,
    family: int,
    make: Make,
    net: Callable[..., str],
    labelled: Callable[[str], Path],
    run_dir: Path,
    tmp_path: Path,
) -> None:
    teacher = saved(make(task), tmp_path / "t.pt")
    model = MLCYOLO(net(task, family))
    model.train(data=str(labelled(task)), teacher=teacher, project=str(run_dir), name="run", val=False, **RUN)
    assert type(model.trainer) is TASK_TRAINERS[task]
    header, row = (line.split(",") for line in (run_dir / "run" / "results.csv").read_text().splitlines())
    values = dict(zip(header, row, strict=True))
    own = {"segment": "seg_loss", "pose": "pose_loss", "obb": "angle_loss"}[task]
    assert all(float(values[f"train/{name}"]) > 0 for name in ("teach_cls", "teach_box", own))


@pytest.mark.parametrize(
    ("student", "teachers", "message"),
    [
        ("segment", ["obb"], "predicts oriented boxes, the student upright ones: give a teacher of upright boxes"),
        ("obb", ["pose"], "predicts upright boxes, the student oriented ones: give a teacher of oriented boxes"),
        ("obb", ["obb", "obb"], "oriented boxes of several teachers have no mean"),
    ],
)
def test_teachers_of_other_boxes_and_several_of_oriented_ones_are_refused_before_there_is_a_folder(
    student: str,
    teachers: list[str],
    message: str,
    make: Make,
    net: Callable[..., str],
    labelled: Callable[[str], Path],
    run_dir: Path,
    tmp_path: Path,
) -> None:
    files = [saved(make(task), tmp_path / f"{at}.pt") for at, task in enumerate(teachers)]
    with pytest.raises(ValueError, match=message):
        MLCYOLO(net(student)).train(data=str(labelled(student)), teacher=files, project=str(run_dir), **RUN)
    assert not run_dir.exists() or not list(run_dir.iterdir())
