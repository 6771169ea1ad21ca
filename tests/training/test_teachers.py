"""Frozen teachers: what they see, how classes and several of them come together, which files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from payload import Evil
from teaching import NAMES, detector, saved, smooth
from torch.nn.modules.batchnorm import _BatchNorm
from ultralytics.nn.tasks import ClassificationModel
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints.safe_load import RefusedCheckpoint
from mlc_yolo.training.dense_outputs import Dense
from mlc_yolo.training.other_size import resized
from mlc_yolo.training.teachers import (
    averaged,
    digests,
    load_teachers,
    refuse_changed,
    refuse_teachers,
    teacher_files,
)

# What they see --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n", "retinanet", "fcos"])
def test_a_teacher_sees_what_its_detector_decodes(name: str, tmp_path: Path) -> None:
    model = detector(name, iou_head=name == "yolo11n")
    images = smooth()
    with torch.no_grad():
        decoded, raw = model(images)
    seen = load_teachers([saved(model, tmp_path / "t.pt")], detector(name), NAMES, trust=False)(images)
    if name.startswith("yolo"):
        if name == "yolo26n":
            scores = raw["one2many"]["scores"].transpose(1, 2).sigmoid()
        else:
            scores = decoded[:, 4:].transpose(1, 2)  # with an IoU channel, class score times predicted IoU
        torch.testing.assert_close(seen.logits.sigmoid(), scores, rtol=1e-3, atol=1e-3)
        if name != "yolo26n":  # which decodes its other branch
            boxes = xywh2xyxy(decoded[:, :4].transpose(1, 2))
            torch.testing.assert_close(seen.boxes, boxes, rtol=1e-3, atol=0.05)
        assert (seen.distributions is None) == (name == "yolo26n") and (seen.quality is None) == (name != "yolo11n")
    else:
        boxes = model.head.decode(raw["boxes"], model.head.priors(raw["feats"], scale=5.0))
        torch.testing.assert_close(seen.boxes, boxes, rtol=1e-3, atol=0.5)
        assert seen.quality is not None
    assert not seen.logits.requires_grad and not seen.boxes.requires_grad


@pytest.mark.slow
def test_a_teacher_is_frozen(tmp_path: Path) -> None:
    teachers = load_teachers([saved(detector("yolo26n"), tmp_path / "t.pt")], detector("yolo11n"), NAMES, trust=False)
    model = teachers.teachers[0].model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teachers(smooth())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules() if isinstance(module, _BatchNorm))
    assert not any("one2one" in name for name in before)  # nothing is spent on a branch that does not teach


@pytest.mark.slow
def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    model = detector("yolo11n", {0: "Cross", 1: "lion", 2: "square"})
    with torch.no_grad():
        logits = model(smooth())[1]["scores"].transpose(1, 2)
    teachers = load_teachers([saved(model, tmp_path / "t.pt")], detector("yolo11n"), NAMES, trust=False)
    assert teachers.classes.tolist() == [0, 2]
    torch.testing.assert_close(teachers(smooth()).logits, logits[..., [2, 0]], rtol=1e-3, atol=1e-2)


# Exported -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A YOLOv8n's ONNX file for one image of 64 px, and the net."""
    folder = tmp_path_factory.mktemp("exported")
    model = detector("yolov8n", {0: "cross", 1: "lion"})
    made = MLCYOLO(saved(model, folder / "teacher.pt")).export(format="onnx", imgsz=64, simplify=False)
    return Path(made), model


@pytest.mark.slow
def test_an_exported_teacher_sees_what_its_detector_decodes(exported: tuple[Path, Any]) -> None:
    file, model = exported
    images = smooth(3, 64, 64)
    with torch.no_grad():
        decoded = model(images)[0]
    teachers = load_teachers([str(file)], detector("yolo11n"), NAMES, trust=False)
    seen = teachers(images)
    assert teachers.classes.tolist() == [2] and seen.distributions is None and seen.sizes == [(8, 8), (4, 4), (2, 2)]
    torch.testing.assert_close(seen.logits.sigmoid(), decoded[:, 4:5].transpose(1, 2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen.boxes, xywh2xyxy(decoded[:, :4].transpose(1, 2)), rtol=1e-3, atol=0.05)
    with pytest.raises(ValueError, match="takes 64 x 64 px, got 64 x 128"):
        teachers(smooth())


@pytest.mark.parametrize(
    ("student", "imgsz", "message"),
    [
        ("yolov8n-p2", 64, r"has 84 anchors at 64 x 64 px, where strides \[4.* have 340"),
        ("yolo11n", 128, "takes 64 x 64 px, the run imgsz=128"),
        ("fcos", 64, "is an export, which teaches YOLO alone"),
    ],
)
def test_an_exported_teacher_that_does_not_fit_is_refused(
    student: str, imgsz: int, message: str, exported: tuple[Path, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_teachers([str(exported[0])], trust=False, student=detector(student), names=NAMES, imgsz=imgsz)


@pytest.mark.slow
def test_an_exported_teacher_sees_images_at_its_size_where_that_is_asked_for(exported: tuple[Path, Any]) -> None:
    files, student = [str(exported[0])], detector("yolo11")
    refuse_teachers(files, trust=False, student=student, names=NAMES, imgsz=128, teacher_imgsz=64)
    with pytest.raises(ValueError, match=r"takes 64 x 64 px, teacher_imgsz=96: .* or give teacher_imgsz=64"):
        refuse_teachers(files, trust=False, student=student, names=NAMES, imgsz=64, teacher_imgsz=96)
    images = smooth(2, 128, 128)
    seen = load_teachers(files, student, NAMES, trust=False, imgsz=64)(images)
    small = load_teachers(files, student, NAMES, trust=False)(resized(images, 64))
    torch.testing.assert_close(seen.boxes, 2 * small.boxes)
    torch.testing.assert_close(seen.logits, small.logits)


def test_a_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be opened as ONNX"):
        refuse_teachers([str(tmp_path / "t.onnx")], trust=False)


# Several --------------------------------------------------------------------------------------------------------------


def dense(probability: list[float], box: list[float]) -> Dense:
    """One anchor."""
    logits = torch.tensor([[probability]]).logit()
    return Dense(logits, torch.tensor([[box]]), None, None, [(1, 1)])


def test_several_teachers_are_averaged_by_hand() -> None:
    # The first knows classes 0 and 1, the second 1 and 2. Class 1: (.2 + .4) / 2 = .3. Foregrounds .6 and .4.
    one, other = dense([0.6, 0.2], [0.0, 0.0, 10.0, 10.0]), dense([0.4, 0.3], [10.0, 0.0, 20.0, 20.0])
    both = averaged([one, other], [torch.tensor([0, 1]), torch.tensor([1, 2])], 3)
    torch.testing.assert_close(both.logits.sigmoid(), torch.tensor([[[0.6, 0.3, 0.3]]]))
    torch.testing.assert_close(both.boxes, torch.tensor([[[4.0, 0.0, 14.0, 14.0]]]))
    assert both.distributions is None and both.quality is None


@pytest.mark.slow
def test_twice_the_same_teacher_is_that_teacher(tmp_path: Path) -> None:
    file = saved(detector("yolo11n", iou_head=True), tmp_path / "t.pt")
    one, two = (load_teachers([file] * n, detector("yolo11n"), NAMES, trust=False)(smooth()) for n in (1, 2))
    torch.testing.assert_close(two.logits.sigmoid(), one.logits.sigmoid(), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(two.boxes, one.boxes)
    assert one.distributions is not None and two.distributions is not None
    torch.testing.assert_close(two.distributions.softmax(-1), one.distributions.softmax(-1))
    assert one.quality is not None and two.quality is not None
    torch.testing.assert_close(two.quality.sigmoid(), one.quality.sigmoid(), rtol=1e-4, atol=2e-6)


@pytest.mark.slow
def test_teachers_of_other_bins_have_no_common_distributions(tmp_path: Path) -> None:
    files = [saved(detector(name), tmp_path / f"{name}.pt") for name in ("yolo11n", "yolo26n")]
    seen = load_teachers(files, detector("yolo11n"), NAMES, trust=False)(smooth())
    assert seen.distributions is None and seen.boxes.isfinite().all()


# What is refused ------------------------------------------------------------------------------------------------------


def _code(folder: Path) -> Path:
    file = folder / "evil.pt"
    torch.save({"model": Evil(folder / "ran")}, file)
    return file


def _classifier(folder: Path) -> Path:
    return Path(saved(ClassificationModel("yolo11n-cls.yaml", nc=3, verbose=False), folder / "cls.pt"))


def _fused(folder: Path) -> Path:
    model = detector("yolo26n")
    model.model[-1].end2end = True
    return Path(saved(model.fuse(verbose=False), folder / "fused.pt"))


REFUSED = [
    (lambda folder: folder / "none.pt", FileNotFoundError, "there is no such file"),
    (_code, RefusedCheckpoint, "could run a program"),
    (_classifier, ValueError, "ends in Classify: expected the head of a yolov8"),
    (_fused, ValueError, "one-to-one branch alone"),
    (lambda folder: saved(detector("yolov8n-p2"), folder / "p2.pt"), ValueError, r"strides \[4, .* of \[8, 16, 32\]"),
    (lambda folder: saved(detector("fcos"), folder / "f.pt"), ValueError, "is a fcos, the student a YOLO"),
    (
        lambda folder: saved(detector("yolo11n", {0: "lion", 1: "Cat"}), folder / "cats.pt"),
        ValueError,
        "knows lion, Cat; the data has square, disc, cross: no name is in both",
    ),
    (lambda folder: Path(__file__), ValueError, "expected a checkpoint, .pt or .safetensors, or an export, .onnx"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "error", "message"),
    REFUSED,
    ids=["missing", "code", "classification", "fused", "strides", "kind", "classes", "no checkpoint"],
)
def test_a_teacher_that_cannot_teach_is_refused_before_there_is_a_run_folder(
    make: object, error: type[Exception], message: str, tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    file = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(error, match=message):
        MLCYOLO("yolo11n.yaml").train(data=str(tiny_data), project=str(run_dir), teacher=str(file), epochs=1, imgsz=64)
    assert not any(run_dir.iterdir()) and not (tmp_path / "ran").exists()


def test_trust_opens_a_teacher_that_carries_code(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"(?!could run a program)"):
        refuse_teachers([str(_code(tmp_path))], trust=True)
    assert (tmp_path / "ran").exists()


def test_a_teacher_that_has_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.pt"
    file.write_bytes(b"one")
    then = digests([str(file)])
    refuse_changed(then, [str(file)])
    refuse_changed({}, [str(file)])  # of a run that kept none
    file.write_bytes(b"other")
    with pytest.raises(ValueError, match="is not the file that this run began with"):
        refuse_changed(then, [str(file)])


def test_files_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert teacher_files("a.pt") == [str(tmp_path / "a.pt")]
    assert teacher_files(["a.pt", "/b.pt"]) == [str(tmp_path / "a.pt"), "/b.pt"]
    assert teacher_files(None) == []
