"""Short trainings with a frozen teacher: the log, the checkpoints, resuming."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from detector_runs import detector_yaml, rows, stop_after, train
from nets import BY_FAMILY, SMALL
from teaching import detector, saved
from ultralytics import YOLO
from ultralytics.nn.modules.head import Detect

from mlc_yolo import MLCYOLO
from mlc_yolo.training.exact_resume import STUDENT
from mlc_yolo.training.semi_trainer import SemiTrainer
from mlc_yolo.training.taught_trainer import TEACHERS, TaughtTrainer
from mlc_yolo.training.trainer import MLCTrainer

pytestmark = pytest.mark.usefixtures("narrow_backbones")

STOCK: dict[str, Any] = {"assigner": "tal", "iou_head": False, "epochs": 2, "batch": 4, "nbs": 4}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_with_a_teacher_resumes_exactly_and_leaves_a_stock_checkpoint(
    tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    teacher = saved(detector("yolov8"), tmp_path / "teacher.pt")
    whole = train(SMALL, tiny_data, run_dir / "whole", teacher=teacher, **STOCK)
    assert type(whole.trainer) is TaughtTrainer
    table = rows(run_dir / "whole")
    assert all(row["train/teach_cls"] > 0 and row["train/teach_box"] > 0 for row in table)
    assert not any("val/teach" in name for name in table[0])

    net = MLCYOLO(SMALL)
    net.add_callback("on_model_save", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(net, tiny_data, run_dir / "cut", teacher=teacher, **STOCK)
    last = run_dir / "cut" / "weights" / "last.pt"
    kept = last.read_bytes()
    held = torch.load(last, weights_only=False)
    digest = {teacher: hashlib.sha256(Path(teacher).read_bytes()).hexdigest()}
    assert held["resume"][TEACHERS] == digest and set(held[STUDENT]) == set(whole.trainer.model.state_dict())
    resumed = MLCYOLO(last)
    resumed.train(resume=True)
    assert type(resumed.trainer) is TaughtTrainer
    assert same(resumed.trainer.model.state_dict(), whole.trainer.model.state_dict())

    plain = train(SMALL, tiny_data, run_dir / "plain", val=False, **STOCK)
    assert not same(plain.trainer.model.state_dict(), whole.trainer.model.state_dict())
    for name in ("best.pt", "last.pt"):
        checkpoint = torch.load(run_dir / "whole" / "weights" / name, weights_only=False)
        assert checkpoint[TEACHERS] == digest  # by path; upstream strips our options
        without = torch.load(run_dir / "plain" / "weights" / name, weights_only=False)
        assert TEACHERS not in without
    sizes = [(run_dir / run / "weights" / "best.pt").stat().st_size for run in ("whole", "plain")]
    assert sizes[0] < sizes[1] + 10_000
    stock = YOLO(run_dir / "whole" / "weights" / "best.pt")
    assert type(stock.model.model[-1]) is Detect
    assert not any(type(module).__module__.startswith("mlc_yolo") for module in stock.model.modules())
    assert MLCYOLO(run_dir / "whole" / "weights" / "best.pt").names == {0: "square", 1: "disc", 2: "cross"}

    last.write_bytes(kept)
    Path(teacher).unlink()
    with pytest.raises(FileNotFoundError, match=r"teacher=.* there is no such file"):
        MLCYOLO(last).train(resume=True)
    saved(detector("yolov8", seed=1), Path(teacher))
    with pytest.raises(ValueError, match="is not the file that this run began with"):
        MLCYOLO(last).train(resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "teachers", "size"), [("yolo26", ["yolo26", "yolo11"], None), ("retinanet", ["retinanet"], 128)]
)
def test_several_and_other_kinds_and_sizes_teach(
    name: str,
    teachers: list[str],
    size: int | None,
    tiny_data: Path,
    run_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = [saved(detector(each, iou_head=True), tmp_path / f"{each}.pt") for each in teachers]
    source = BY_FAMILY.get(name) or detector_yaml(run_dir, name)
    options = {"epochs": 1, "batch": 4, "nbs": 4, "val": False, "teacher_temperature": 4}
    net, seen = MLCYOLO(source), []
    net.add_callback("on_train_start", lambda trainer: _watch(trainer, seen))
    trained = train(net, tiny_data, run_dir / "run", teacher=files, teacher_imgsz=size, **options)
    assert rows(run_dir / "run")[0]["train/teach_box"] > 0
    steps = len(trained.trainer.train_loader)
    assert seen == [(4, 3, size or 64, size or 64)] * steps * len(files)  # each once a step
    assert "teacher_temperature: no effect, as no distributions are taught with" in caplog.text
    assert caplog.text.count("was trained at 640 px and sees images of 64 px") == (0 if size else len(files))


def _watch(trainer: Any, seen: list[tuple[int, ...]]) -> None:
    """Keep the extent of the images that each teacher sees."""
    for teacher in trainer._teachers.teachers:
        teacher.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))


@pytest.mark.slow
def test_an_exported_detector_teaches(tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    file = MLCYOLO(saved(detector("yolov8"), tmp_path / "t.pt")).export(format="onnx", imgsz=64, simplify=False)
    options = {"epochs": 1, "batch": 4, "nbs": 4, "val": False}
    trained = train(SMALL, tiny_data, run_dir / "run", teacher=file, **options)
    assert rows(run_dir / "run")[0]["train/teach_box"] > 0
    best = torch.load(trained.trainer.best, weights_only=False)
    assert list(best[TEACHERS]) == [file]


@pytest.mark.slow
def test_a_weight_of_zero_asks_no_teacher(tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    teacher = saved(detector("yolov8"), tmp_path / "teacher.pt")
    options = {**STOCK, "epochs": 1, "val": False}
    idle = train(SMALL, tiny_data, run_dir / "idle", teacher=teacher, teacher_weight=0, **options)
    plain = train(SMALL, tiny_data, run_dir / "plain", **options)
    assert same(idle.trainer.model.state_dict(), plain.trainer.model.state_dict())
    assert "train/teach_cls" not in rows(run_dir / "idle")[0]


def test_a_trainer_that_cannot_follow_a_teacher_says_who_can(tiny_data: Path, run_dir: Path) -> None:
    given = {"model": SMALL, "data": str(tiny_data), "project": str(run_dir), "teacher": "big.pt"}
    with pytest.raises(ValueError, match=r"teacher=big.pt teaches a TaughtTrainer"):
        MLCTrainer(overrides=given)
    with pytest.raises(ValueError, match="ssl=soft is learned by SemiTrainer"):
        TaughtTrainer(overrides={**given, "ssl": "soft"})
    with pytest.raises(ValueError, match="two ways of distilling"):
        TaughtTrainer(overrides={**given, "teacher": str(run_dir / "t.pt"), "distill_model": "x.pt"})
    assert issubclass(SemiTrainer, TaughtTrainer) and not any(run_dir.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "name", "reweight", "power", "size"),
    [
        ("sed", "yolo11", None, 2, 128),
        ("soft", "yolo11", None, 0, None),
        ("pseudo", "yolo26", None, 0, 128),
        ("dense", "yolov8", 1, 1, None),
    ],
)
def test_a_frozen_teacher_takes_the_averages_place(
    mode: str,
    name: str,
    reweight: float | None,
    power: float,
    size: int | None,
    tiny_data: Path,
    run_dir: Path,
    tmp_path: Path,
) -> None:
    """On images without labels; those with labels it teaches too."""
    teacher = saved(detector("yolov8", {0: "cross", 1: "square"}), tmp_path / "teacher.pt")
    options = {"ssl": mode, "ssl_burn_in": 0, "ssl_ramp": 0, "ssl_threshold": 0.5, "ema": False}
    options |= {"ssl_reweight": reweight, "teacher_imgsz": size}
    unlabeled = str(tiny_data.parent / "images" / "train")
    net = MLCYOLO(BY_FAMILY[name])
    decays: list[float] = []
    net.add_callback("on_train_start", lambda trainer: decays.append(trainer.ema.decay(10**6)))
    few = {"epochs": 1, "batch": 4, "nbs": 4, "val": False, "unlabeled": unlabeled}
    trained = train(net, tiny_data, run_dir / "run", teacher=teacher, **few, **options)
    criterion = trained.trainer.model.criterion
    assert type(trained.trainer) is SemiTrainer and criterion.teacher.frozen and criterion.power == power
    row = rows(run_dir / "run")[0]
    expected = ["teach_cls", "teach_box", "ssl_cls", "ssl_box", *(["ssl_scale"] if mode == "sed" else [])]
    assert all(row[f"train/{term}"] > 0 for term in expected) and 0 < row["train/agree_cls"] <= 1
    assert decays[0] > 0.99979  # upstream's own: the average teaches nobody


@pytest.mark.slow
def test_an_average_that_teaches_nobody_needs_no_ema(tiny_data: Path, run_dir: Path) -> None:
    given = {"data": str(tiny_data), "project": str(run_dir), "ssl": "soft", "ema": False}
    with pytest.raises(ValueError, match=r"it needs ema=True"):
        MLCYOLO(SMALL).train(unlabeled=str(tiny_data.parent / "images" / "train"), **given)
    assert not any(run_dir.iterdir())
