"""A teacher that sees images at another size: which cells it teaches, where its boxes are, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nets import SMALL
from semi_steps import LABELS, learner, supervised
from teaching import NAMES, detector, saved, smooth
from torch import Tensor

from mlc_yolo import MLCYOLO
from mlc_yolo.boxes import aligned_iou
from mlc_yolo.training.dense_outputs import Dense
from mlc_yolo.training.other_size import at_cells, partners, refuse_size, resized
from mlc_yolo.training.taught_criterion import TAUGHT, TaughtLoss
from mlc_yolo.training.teachers import load_teachers

pytestmark = pytest.mark.usefixtures("narrow_backbones")

Sizes = list[tuple[int, int]]


def grid(px: int, strides: tuple[int, ...] = (8, 16, 32)) -> Sizes:
    return [(-(-px // stride), -(-px // stride)) for stride in strides]


def cells(sizes: Sizes, per_cell: int = 1) -> Tensor:
    """(A, 4) xyxy of each anchor's cell, in parts of the image."""
    found = []
    for height, width in sizes:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        corners = torch.stack((x / width, y / height, (x + 1) / width, (y + 1) / height), -1).flatten(0, 1)
        found.append(corners.repeat_interleave(per_cell, 0))
    return torch.cat(found)


def random_dense(sizes: Sizes, per_cell: int = 1, images: int = 2) -> Dense:
    """Random logits, each anchor's cell as its box, and its number as its quality."""
    boxes = cells(sizes, per_cell).expand(images, -1, -1)
    logits = 3 * torch.randn(images, boxes.shape[1], 2, generator=torch.Generator().manual_seed(0))
    distributions = torch.zeros(*boxes.shape, 16)
    return Dense(logits, boxes, distributions, torch.arange(boxes.shape[1]).float().expand(images, -1), sizes)


@pytest.mark.parametrize(
    ("own", "student", "expected"),
    [
        (128, 64, [[0, 1], [2], [2]]),
        (64, 128, [[0], [0], [1, 2]]),
        (160, 128, [[0], [1], [2]]),
        (512, 128, [[0, 1, 2], [2], [2]]),
    ],
)
def test_a_level_is_taught_by_those_whose_cells_cover_as_much(
    own: int, student: int, expected: list[list[int]]
) -> None:
    assert partners(grid(own), grid(student)) == expected


def test_a_cell_takes_the_surest_anchor_by_hand() -> None:
    """Levels of 2 x 2 and 1 x 1 cells teach one of 1 x 1: the fine one's third anchor, then the coarse one's."""
    sizes = [(2, 2), (1, 1)]
    boxes = torch.arange(20.0).view(1, 5, 4)
    seen = Dense(torch.tensor([0.0, 1, 3, 2, -1]).view(1, 5, 1), boxes, None, None, sizes)
    assert at_cells(seen, [(1, 1)]).boxes.tolist() == boxes[:, 2:3].tolist()
    surer = Dense(torch.tensor([0.0, 1, 3, 2, 4]).view(1, 5, 1), boxes, None, None, sizes)
    assert at_cells(surer, [(1, 1)]).boxes.tolist() == boxes[:, 4:].tolist()


def test_at_the_same_size_nothing_changes() -> None:
    seen = random_dense(grid(64))
    assert at_cells(seen, grid(64)) is seen and resized(smooth(2, 64, 64), 64).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("per_cell", [1, 3])
@pytest.mark.parametrize(("own", "student"), [(128, 64), (64, 128), (160, 128), (96, 160), (320, 64)])
def test_class_box_and_quality_are_those_of_one_anchor_that_covers_the_cell(
    own: int, student: int, per_cell: int
) -> None:
    seen = random_dense(grid(own), per_cell)
    brought = at_cells(seen, grid(student))
    mine = cells(grid(student), per_cell)
    assert brought.sizes == grid(student) and brought.logits.shape[1] == len(mine) and brought.distributions is None
    assert brought.quality is not None and seen.quality is not None
    origin = brought.quality.long()
    assert torch.equal(origin % per_cell, torch.arange(len(mine)).expand(2, -1) % per_cell)  # priors of one form
    image = torch.arange(2)[:, None]
    assert torch.equal(brought.logits, seen.logits[image, origin]) and torch.equal(
        brought.boxes, seen.boxes[image, origin]
    )
    assert (aligned_iou(brought.boxes, mine.expand(2, -1, -1)) > 0).all()


@pytest.mark.parametrize(("own", "student"), [(128, 64), (64, 128), (160, 128), (96, 160), (192, 64)])
def test_nothing_that_the_teacher_sees_is_lost(own: int, student: int) -> None:
    """Each anchor in turn is the one that is sure."""
    sizes = grid(own)
    count = len(cells(sizes))
    seen = Dense(torch.eye(count).unsqueeze(-1) * 9, torch.zeros(count, count, 4), None, torch.eye(count), list(sizes))
    brought = at_cells(seen, grid(student)).quality
    assert brought is not None and (brought.sum(1) > 0).all()


@pytest.mark.slow
def test_boxes_are_in_the_students_pixels(tmp_path: Path) -> None:
    model = detector("yolov8")
    file = saved(model, tmp_path / "t.pt")
    images = smooth(2, 64, 64)
    student = detector("yolo11")
    small = load_teachers([file], student, NAMES, trust=False, imgsz=128)(images)
    whole = load_teachers([file], student, NAMES, trust=False)(resized(images, 128))
    assert small.sizes == grid(128)
    torch.testing.assert_close(small.boxes, whole.boxes / 2)
    torch.testing.assert_close(small.logits, whole.logits)


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), [("yolo11", "yolov8"), ("retinanet", "retinanet")])
def test_a_teacher_at_another_size_teaches_boxes_by_overlap(student: str, teacher: str, tmp_path: Path) -> None:
    model = learner(student)
    file = saved(detector(teacher, seed=1), tmp_path / "t.pt")
    teachers = load_teachers([file], model, NAMES, trust=False, imgsz=128)
    criterion = TaughtLoss(supervised(model), teachers=lambda: teachers, weight=1.0)
    given = {"img": smooth(2, 64, 64), **LABELS}
    losses, items = criterion(model(given["img"]), given)
    assert all(items[term] > 0 for term in TAUGHT) and losses.isfinite().all()
    losses[-2:].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_imgsz": 100}, "teacher_imgsz=100 must be a multiple of 32: give 96 or 128"),
        ({"teacher_imgsz": 20}, "must be a multiple of 32: give 32"),
        ({"teacher_imgsz": 0}, "teacher_imgsz=0 must be above 0"),
        ({"teacher_imgsz": 128, "rect": True}, "needs square images: leave rect=True out"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_there_is_a_run_folder(
    options: dict[str, object], message: str, tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    file = saved(detector("yolov8"), tmp_path / "t.pt")
    with pytest.raises(ValueError, match=message):
        MLCYOLO(SMALL).train(data=str(tiny_data), project=str(run_dir), teacher=file, imgsz=64, **options)
    assert not any(run_dir.iterdir())


def test_a_level_of_stride_64_asks_for_multiples_of_64() -> None:
    deep = SimpleNamespace(stride=torch.tensor([8.0, 16.0, 32.0, 64.0]))
    refuse_size(128, deep)
    with pytest.raises(ValueError, match="must be a multiple of 64: give 64 or 128"):
        refuse_size(96, deep)
