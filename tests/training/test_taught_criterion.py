"""The criterion with a frozen teacher: agreement is free, gradients go where they should, ranks add up."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from semi_steps import LABELS, learner, net, supervised
from teaching import NAMES, detector, saved, smooth
from torch import Tensor
from two_ranks import on_two_ranks

from mlc_yolo.training.taught_criterion import TAUGHT, TaughtLoss, trusted_boxes
from mlc_yolo.training.teachers import Teachers, load_teachers

BATCH = {"img": smooth(seed=3), **LABELS}

pytestmark = pytest.mark.usefixtures("narrow_backbones")


def taught(student: Any, teachers: Teachers | None, **given: Any) -> TaughtLoss:
    return TaughtLoss(supervised(student), teachers=lambda: teachers, **{"weight": 1.0, **given})  # type: ignore[arg-type,return-value]


def by(file: str | list[str], student: Any) -> Teachers:
    return load_teachers([file] if isinstance(file, str) else file, student, NAMES, trust=False)


def of(student: Any, tmp_path: Path) -> Teachers:
    """The student as it is, frozen."""
    model = deepcopy(student).eval()
    model.names = dict(NAMES)
    return by(saved(model, tmp_path / "t.pt"), student)


def gradient(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11", "yolo26", "retinanet", "fcos"])
def test_a_student_that_is_its_teacher_learns_from_labels_alone(name: str, tmp_path: Path) -> None:
    student = learner(name)
    teachers = of(net(name), tmp_path)
    criterion = taught(student, teachers, temperature=2.0)
    expected, _ = supervised(student)(student(BATCH["img"]), BATCH)
    losses, items = criterion(student(BATCH["img"]), BATCH)
    assert torch.equal(losses[:-2], expected)
    assert items["teach_cls"].abs() < 1e-3 and items["teach_box"].abs() < 1e-2
    losses[-2].backward()  # not of GIoU, which has a kink at agreement: boxes a rounding apart pull
    own = torch.cat([g.flatten() for g in gradient(student).values()]).norm()
    student.zero_grad()
    criterion.teachers = lambda: Elsewhere(teachers.teachers)
    criterion(student(BATCH["img"]), BATCH)[0][-2].backward()
    assert own < 0.1 * torch.cat([g.flatten() for g in gradient(student).values()]).norm()


class Elsewhere(Teachers):
    """Teachers that look at other images."""

    def __call__(self, images: Tensor) -> Any:
        return super().__call__(images.flip(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        *(("yolo11", teacher) for teacher in ("yolov8", "yolo12n", "yolo26")),
        *(("yolo26", teacher) for teacher in ("yolov8n", "yolo26", "yolo11")),
    ],
)
def test_families_and_widths_teach_one_another(student: str, teacher: str, tmp_path: Path) -> None:
    model = learner(student)
    criterion = taught(model, by(saved(detector(teacher, iou_head=True, seed=1), tmp_path / "t.pt"), model))
    losses, items = criterion(model(BATCH["img"]), BATCH)
    assert all(items[term] > 0 for term in TAUGHT) and losses.isfinite().all()
    losses[-2:].sum().backward()
    learned = gradient(model)
    assert any("cv2" in name for name in learned) and any("cv3" in name for name in learned)
    assert any("cv_iou" in name for name in learned)
    assert not any("one2one" in name for name in learned)  # the one-to-many branch alone is taught


def test_classes_that_the_teacher_lacks_are_learned_from_labels_alone(tmp_path: Path) -> None:
    model = learner("yolo11")
    teacher = saved(detector("yolov8", {0: "cross", 1: "lion"}), tmp_path / "t.pt")
    criterion = taught(model, by(teacher, model))
    criterion(model(BATCH["img"]), BATCH)[0][-2:].sum().backward()
    for layers in model.model[-1].cv3:
        assert layers[-1].bias.grad.ne(0).tolist() == [False, False, True]


@pytest.mark.slow
def test_boxes_are_taught_by_distributions_or_by_overlap_but_not_by_both(tmp_path: Path) -> None:
    model = learner("yolo11")
    for teacher, term in (("yolov8", "distributions"), ("yolo26", "boxes")):
        criterion = taught(model, by(saved(detector(teacher), tmp_path / "t.pt"), model))
        seen, gains = [], criterion.innermost.gains()
        raw = model(BATCH["img"])
        criterion.supervised.gains = lambda kept=gains, term=term: type(kept)(0.0, *_only(kept, term))
        seen.append(criterion(raw, BATCH)[1]["teach_box"])
        criterion.supervised.gains = lambda kept=gains, term=term: type(kept)(0.0, *_only(kept, term, without=True))
        seen.append(criterion(raw, BATCH)[1]["teach_box"])
        assert seen[0] > 0 and seen[1] == 0


def _only(gains: Any, term: str, *, without: bool = False) -> list[float]:
    names = ("boxes", "distributions", "quality")
    return [0.0 if (name == term) == without or name == "quality" else getattr(gains, name) for name in names]


def test_a_teacher_hardly_sure_teaches_no_box() -> None:
    assert trusted_boxes(torch.tensor([[0.05, 0.2, 0.9]])).tolist() == [[0, pytest.approx(0.2), pytest.approx(0.9)]]


def test_the_weight_weighs_what_is_taught_alone(tmp_path: Path) -> None:
    model = learner("yolo11")
    teachers = by(saved(detector("yolov8"), tmp_path / "t.pt"), model)
    once, items = taught(model, teachers)(model(BATCH["img"]), BATCH)
    more, again = taught(model, teachers, weight=2.5)(model(BATCH["img"]), BATCH)
    torch.testing.assert_close(more[:-2], once[:-2])
    torch.testing.assert_close(more[-2:], 2.5 * once[-2:])
    torch.testing.assert_close(once[-2:], 2 * torch.stack([items[term] for term in TAUGHT]))  # two images
    assert items["teach_cls"] == again["teach_cls"]


def test_validation_asks_no_teacher() -> None:
    model = learner("yolo26")
    criterion = taught(model, None)
    with torch.no_grad():
        losses, items = criterion(model(BATCH["img"]), BATCH)
    assert not set(TAUGHT) & set(items) and losses.isfinite().all()


def test_a_copy_shares_its_teachers_and_knows_its_supervised_criterion(tmp_path: Path) -> None:
    model = learner("yolo26")
    teachers = by(saved(detector("yolo11"), tmp_path / "t.pt"), model)
    criterion = deepcopy(taught(model, teachers))
    criterion.epoch, criterion.updates = 3, 2
    criterion.update()
    assert criterion.teachers() is teachers
    assert criterion.supervised.one2many.epoch == 3 and criterion.updates == 3 and criterion.o2m < 0.8


def test_half_precision_teaches_about_the_same(tmp_path: Path) -> None:
    model = learner("yolo11")
    given = {**BATCH, "img": smooth(height=256, width=256)}
    criterion = taught(model, by(saved(detector("yolov8"), tmp_path / "t.pt"), model))
    _, single = criterion(model(given["img"]), given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, half = criterion(model(given["img"]), given)
    losses.sum().backward()
    assert all(g.isfinite().all() for g in gradient(model).values())
    for term in TAUGHT:
        assert half[term] == pytest.approx(single[term].item(), rel=0.25, abs=0.02)


# Ranks ----------------------------------------------------------------------------------------------------------------


def _taught_losses(name: str, file: str, images: Tensor) -> Tensor:
    model = learner(name)
    nothing = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    criterion = taught(model, by(file, model))
    return criterion(model(images), {"img": images, **nothing})[0][-2:].detach()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11", "retinanet"])
def test_uneven_ranks_equal_one_process(name: str, tmp_path: Path) -> None:
    """One dark image here, three there: the teacher sees otherwise in it, so that a rank's own mean would not do."""
    images = smooth(4, seed=11)
    images[0] = 0
    teacher = detector("yolov8" if name == "yolo11" else name)
    with torch.no_grad():  # a detector of the student's kind has its weights
        for p in teacher.model[-1].parameters():
            p.mul_(1 + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    file = saved(teacher, tmp_path / "t.pt")
    expected = _taught_losses(name, file, images)
    shares = on_two_ranks(lambda rank: _taught_losses(name, file, images[1:] if rank else images[:1]), tmp_path)
    got = torch.stack(shares).sum(0)
    assert expected.min() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
