"""Real short trainings with images without labels: every head and mode, resuming, checkpoints, what is refused."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from detector_runs import TINY, detector_yaml, rows, stop_after, train
from nets import BY_FAMILY, SMALL

from mlc_yolo import MLCYOLO, cli
from mlc_yolo.heads.iou_aware import IoUAwareDetect
from mlc_yolo.training import semi_trainer as semi
from mlc_yolo.training.semi_criterion import ITEMS, SemiLoss
from mlc_yolo.training.semi_trainer import STUDENT, SemiTrainer, unlabeled_source
from mlc_yolo.training.trainer import MLCTrainer

#: The installed program, not `python -m`: upstream treats programs by their name.
PROGRAM = Path(sys.executable).with_name("mlc-yolo")
#: One supervised epoch of two steps, then one with images without labels.
SEMI: dict[str, Any] = {"epochs": 2, "batch": 4, "nbs": 4, "ssl_burn_in": 1, "ssl_ramp": 1}


pytestmark = pytest.mark.usefixtures("narrow_backbones")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images without labels, of sizes that fit nothing, one of them grey; the folder's name has a space."""
    folder = tmp_path_factory.mktemp("no labels") / "my photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(7):
        image = rng.integers(0, 256, (97 + 3 * i, 131 - 5 * i, 3), dtype=np.uint8)
        cv2.rectangle(image, (20, 30), (60 + i, 70), (0, 40 * i, 255), -1)
        cv2.imwrite(str(folder / f"{i}.png"), image if i else image[..., 0])
    return folder


def semi_train(model: MLCYOLO | str | Path, data: Path, photos: Any, run: Path, **options: Any) -> MLCYOLO:
    several = isinstance(photos, list)
    source = [str(each) for each in photos] if several else None if photos is None else str(photos)
    return train(model, data, run, **{**SEMI, "ssl": "sed", "unlabeled": source, **options})


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What is learned ------------------------------------------------------------------------------------------------------

HEADS: list[tuple[str, str, dict[str, Any]]] = [
    ("soft", "yolov8", {"assigner": "mlc"}),
    ("sed", "yolo11", {"iou_head": True}),
    ("pseudo", "yolo11", {"iou_head": False, "assigner": "max_iou"}),
    ("sed", "yolo12n", {"assigner": "mutual_guidance"}),  # for its attention, whose head is YOLO11's
    ("pseudo", "yolo26", {"iou_head": True, "assigner": "atss"}),
    ("sed", "yolo26", {"iou_head": False}),
    ("soft", "retinanet", {"assigner": "mlc"}),
    ("sed", "fcos", {"quality": "centerness"}),
    ("pseudo", "fcos", {"quality": "iou", "assigner": "mlc"}),
    ("sed", "rpn", {"quality": "none"}),
    ("soft", "retinanet_fssd", {"assigner": "mutual_guidance"}),
]


def _source(folder: Path, model: str) -> Any:
    """The YAML of a small net with a head of that name, or of the YOLO of that name."""
    if model.startswith("yolo"):
        return BY_FAMILY.get(model, f"{model}.yaml")
    return detector_yaml(folder, model)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "model", "options"), HEADS, ids=lambda each: each if isinstance(each, str) else "")
def test_every_head_learns_from_images_without_labels(
    mode: str, model: str, options: dict[str, Any], tiny_data: Path, photos: Path, run_dir: Path
) -> None:
    run = run_dir / "run"
    net = MLCYOLO(_source(run_dir, model))
    steps: list[dict[str, float]] = []
    net.add_callback("on_train_batch_end", lambda t: steps.append({n: float(v) for n, v in t.loss_items.items()}))
    trained = semi_train(net, tiny_data, photos, run, ssl=mode, ssl_threshold=1e-4, **options)
    table = rows(run)
    assert len(table) == 2 and len(steps) == 4
    for row in table:
        assert all(math.isfinite(row[name]) for name in row if name.startswith(("train/", "val/", "lr/")))
        assert not any(name.removeprefix("val/") in ITEMS for name in row)
    assert not any(step[name] for step in steps[:2] for name in ITEMS)
    expected = {"ssl_cls", "ssl_scale"} if mode == "sed" else {"ssl_cls"}
    for step in steps[2:]:
        assert {name for name in ("ssl_cls", "ssl_scale") if step[name]} == expected
        assert 0 < step["agree_cls"] <= 1 and 0 <= step["agree_iou"] <= 1
    assert trained.trainer.ema.updates == 4
    assert isinstance(trained.trainer.model.criterion, SemiLoss)
    best = MLCYOLO(run / "weights" / "best.pt")
    assert len(best.predict(torch.rand(1, 3, 64, 64), verbose=False)) == 1


@pytest.mark.slow
def test_a_weight_of_zero_is_supervised_training(tiny_data: Path, photos: Path, run_dir: Path) -> None:
    trainers = [
        semi_train(SMALL, tiny_data, photos, run_dir / name, **options).trainer
        for name, options in (("none", {"ssl": "none"}), ("zero", {"ssl_weight": 0}), ("sed", {}))
    ]
    none, zero, sed = (weights(trainer.model) for trainer in trainers)
    assert same(none, zero) and not same(none, sed)
    assert same(*(weights(trainer.ema.ema) for trainer in trainers[:2]))
    assert (run_dir / "none" / "results.csv").read_text().splitlines()[0].count("ssl_") == 0


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "images"), [(0.5, 2), (1, 4), (4, 7)])
def test_a_step_has_its_ratio_of_images_without_labels(
    ratio: float, images: int, tiny_data: Path, photos: Path, run_dir: Path
) -> None:
    net, seen = MLCYOLO(SMALL), []
    net.add_callback("on_train_start", lambda trainer: _spy(trainer, seen))
    semi_train(net, tiny_data, photos, run_dir / "run", ssl="soft", ssl_ratio=ratio, val=False, save=False)
    assert [len(batch["unlabeled"]["weak"]) if "unlabeled" in batch else 0 for batch in seen] == [0, 0, images, images]
    assert all(views.shape[1:] == (3, 64, 64) for batch in seen[2:] for views in batch["unlabeled"].values())


def _spy(trainer: Any, seen: list[dict[str, Any]]) -> None:
    """Keep every batch that a trainer preprocesses."""
    original = trainer.preprocess_batch

    def preprocess(batch: dict[str, Any]) -> dict[str, Any]:
        seen.append(original(batch))
        return seen[-1]

    trainer.preprocess_batch = preprocess


def _workers(trainer: Any) -> None:
    trainer.args.workers = 2  # upstream takes none on a CPU


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"multi_scale": 0.25, "imgsz": 128},
        {"rect": True, "cache": "ram", "deterministic": False},
        {"workers": 2},
        {"resize": "warp", "val": False, "save": False},
        {"plots": True, "close_mosaic": 1, "single_cls": True, "ssl_threshold": 1e-4, "ssl": "pseudo"},
    ],
    ids="-".join,
)
def test_options_of_a_run_go_along(options: dict[str, Any], tiny_data: Path, photos: Path, run_dir: Path) -> None:
    net = MLCYOLO(SMALL)
    if "workers" in options:
        net.add_callback("on_pretrain_routine_start", _workers)
    semi_train(net, tiny_data, photos, run_dir / "run", **options)
    table = rows(run_dir / "run")
    assert len(table) == 2 and table[1]["train/agree_cls"] > 0
    assert all(math.isfinite(row[name]) for row in table for name in row if "loss" in name or "ssl" in name)
    assert (run_dir / "run" / "ssl_agreement.png").exists() == bool(options.get("plots"))
    assert (run_dir / "run" / "unlabeled_batch0.jpg").exists() == bool(options.get("plots"))


@pytest.mark.slow
# Some upstream versions average nothing where no label is.
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("mode", ["pseudo", "sed"])
def test_images_without_objects_train(mode: str, tiny_data: Path, photos: Path, run_dir: Path) -> None:
    shutil.copytree(tiny_data.parent / "images", run_dir / "images")
    for split in ("train", "val"):
        (run_dir / "labels" / split).mkdir(parents=True)
    data = run_dir / "data.yaml"
    data.write_text(f"path: {run_dir}\ntrain: images/train\nval: images/val\nnames: [one, two]\n")
    for image in (run_dir / "images").rglob("*.png"):
        (run_dir / "labels" / image.parent.name / f"{image.stem}.txt").write_text("")
    semi_train(SMALL, data, photos, run_dir / "run", ssl=mode, ssl_threshold=0.9)
    assert all(math.isfinite(row["train/ssl_cls"]) for row in rows(run_dir / "run"))


@pytest.mark.slow
def test_a_step_that_memory_does_not_hold_is_taken_again(tiny_data: Path, photos: Path, run_dir: Path) -> None:
    net, seen = MLCYOLO(SMALL), []

    def full(trainer: Any) -> None:
        if len(seen) == 1 and not hasattr(trainer, "was_full"):
            trainer.was_full = True
            raise RuntimeError("out of memory")

    def watch(trainer: Any) -> None:
        _spy(trainer, seen)
        original = trainer.preprocess_batch

        def preprocess(batch: dict[str, Any]) -> dict[str, Any]:
            full(trainer)
            return original(batch)

        trainer.preprocess_batch = preprocess

    net.add_callback("on_train_start", watch)
    semi_train(net, tiny_data, photos, run_dir / "run", ssl_burn_in=0, ssl_ramp=0)
    sizes = [(len(batch["img"]), len(batch["unlabeled"]["weak"])) for batch in seen]
    assert sizes == [(4, 4), *[(2, 2)] * 8] and len(rows(run_dir / "run")) == 2


# When -----------------------------------------------------------------------------------------------------------------


def _gains(epochs: int, batches: int, **given: Any) -> list[float]:
    """Return the gain of every step of a run."""
    trainer = SemiTrainer.__new__(SemiTrainer)
    trainer.args = type("Args", (), {"ssl_weight": 2.0, **given})()
    trainer.epochs, trainer.train_loader = epochs, [None] * batches
    gains = []
    for trainer.epoch in range(epochs):
        for trainer._steps in range(batches):
            gains.append(trainer.gain())
    return gains


def test_the_gain_rises_over_the_ramp_from_the_burn_in_on() -> None:
    assert _gains(4, 2, ssl_burn_in=1, ssl_ramp=2) == [0, 0, 0.5, 1, 1.5, 2, 2, 2]
    assert _gains(10, 1, ssl_burn_in=0.3, ssl_ramp=0.2) == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2]
    assert _gains(3, 1, ssl_burn_in=0, ssl_ramp=0) == [2, 2, 2]
    assert _gains(2, 4, ssl_burn_in=0, ssl_ramp=1) == [0.5, 1, 1.5, 2, 2, 2, 2, 2]


@pytest.mark.slow
def test_a_tuned_checkpoint_teaches_from_the_first_step_on(tiny_data: Path, photos: Path, run_dir: Path) -> None:
    tuned = train(SMALL, tiny_data, run_dir / "tuned", epochs=1, batch=4, nbs=4, val=False).trainer
    assert tuned is not None
    net, seen = MLCYOLO(tuned.best), []
    expected = weights(net.model.float())
    net.add_callback("on_train_start", lambda t: seen.append(same(weights(t.ema.ema), expected)))
    net.add_callback("on_train_batch_end", lambda t: seen.append(t.model.criterion.gain > 0 < t.loss_items["ssl_cls"]))
    semi_train(net, tiny_data, photos, run_dir / "run", epochs=1, ssl_burn_in=0, ssl_ramp=0, val=False)
    assert seen == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cut"), [("yolo11", 1), ("yolo26", 2), ("fcos", 3)])
def test_a_resumed_run_has_its_student_and_its_teacher(
    name: str, cut: int, tiny_data: Path, photos: Path, run_dir: Path
) -> None:
    """Cut in the burn-in of two epochs, at its end, and on the ramp."""
    net = MLCYOLO(_source(run_dir, name))
    net.add_callback("on_model_save", stop_after(cut))
    settings = {"epochs": 5, "ssl_burn_in": 2, "ssl_ramp": 2, "ssl_ema": 0.9, "ssl_weight": 2}
    with pytest.raises(KeyboardInterrupt):
        semi_train(net, tiny_data, photos, run_dir / "run", **settings)
    last = run_dir / "run" / "weights" / "last.pt"
    saved = torch.load(last, weights_only=False)
    student, teacher = saved[STUDENT], {n: v.float() for n, v in saved["ema"].state_dict().items()}
    assert same(student, weights(net.trainer.model)) and not same(student, teacher)

    resumed, started, gains = MLCYOLO(last), [], []
    resumed.add_callback("on_train_start", lambda t: started.append((weights(t.model), weights(t.ema.ema))))
    resumed.add_callback("on_train_start", lambda t: started.append((t.ema.updates, t.ema.decay(1000))))
    resumed.add_callback("on_train_batch_end", lambda t: gains.append(t.model.criterion.gain))
    resumed.train(resume=True)
    (one, other), (updates, decay) = started
    assert same(one, student) and same(other, {n: v.to(other[n].dtype) for n, v in teacher.items()})
    assert updates == saved["updates"] == 2 * cut and decay == 0.9
    assert gains == [0, 0, 0, 0, 0.5, 1, 1.5, 2, 2, 2][2 * cut :]
    assert [row["epoch"] for row in rows(run_dir / "run")] == [1, 2, 3, 4, 5]
    assert resumed.trainer.args.unlabeled == [str(photos)]


@pytest.mark.slow
def test_nan_is_recovered_from_with_student_and_teacher(tiny_data: Path, photos: Path, run_dir: Path) -> None:
    net, saved, found = MLCYOLO(SMALL), [], []

    def poison(trainer: Any) -> None:
        if trainer.epoch == 2 and not saved:
            saved.append(torch.load(trainer.last, weights_only=False)[STUDENT])
            with torch.no_grad():
                trainer.model.model[0].conv.weight.fill_(float("nan"))
        elif trainer.epoch == 2:
            found.append((weights(trainer.model), trainer.ema.decay(10**6)))

    net.add_callback("on_train_epoch_start", poison)
    semi_train(net, tiny_data, photos, run_dir / "run", epochs=3)
    ((student, decay),) = found
    assert same(saved[0], student) and decay == 0.9996
    assert [row["epoch"] for row in rows(run_dir / "run")] == [1, 2, 3]


@pytest.mark.slow
def test_the_teacher_is_what_is_saved_validated_and_exported(tiny_data: Path, photos: Path, run_dir: Path) -> None:
    trained = semi_train(SMALL, tiny_data, photos, run_dir / "run", ssl_ema=0.5, iou_head=True)
    teacher, student = weights(trained.trainer.ema.ema), weights(trained.trainer.model)
    folder = run_dir / "run" / "weights"
    last = torch.load(folder / "last.pt", weights_only=False)
    assert STUDENT not in last and STUDENT not in torch.load(folder / "best.pt", weights_only=False)
    kept_files = ["best.pt", "best.safetensors", "last.pt", "last.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == kept_files
    kept = weights(last["model"])
    assert same(kept, {n: v.half() if v.is_floating_point() else v for n, v in teacher.items()})
    assert not same(kept, {n: v.half() if v.is_floating_point() else v for n, v in student.items()})

    model = MLCYOLO(folder / "last.pt")
    assert type(model.model.model[-1]) is IoUAwareDetect
    place = {"project": str(run_dir), "name": "val", "plots": False, "verbose": False}
    assert np.isfinite(model.val(data=str(tiny_data), **place).box.map)
    exported = model.export(format="onnx", imgsz=64)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        expected = model.model.float().eval()(image)[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_a_run_from_the_command_line_that_is_killed_goes_on(tiny_data: Path, photos: Path, run_dir: Path) -> None:
    options = {**TINY, **SEMI, "epochs": 30, "model": SMALL, "data": tiny_data, "project": run_dir}
    words = [f"{key}={value}" for key, value in options.items()]
    command = [PROGRAM, "train", *words, "name=killed", "ssl=sed", f"unlabeled={photos}", "val=False"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    table, last = run_dir / "killed" / "results.csv", run_dir / "killed" / "weights" / "last.pt"
    for _ in range(1800):
        if table.exists() and len(table.read_text().splitlines()) > 4:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(rows(run_dir / "killed"))
    saved = torch.load(last, weights_only=False)
    assert 3 < done < 30 and saved["epoch"] in (done - 1, done - 2) and saved["train_args"]["ssl"] == "sed"
    assert saved[STUDENT].keys() == saved["ema"].state_dict().keys()
    assert cli.main(["train", "resume", f"model={last}", "time=0.0005"]) == 0
    assert len(rows(run_dir / "killed")) > saved["epoch"] + 1


# Where the images are -------------------------------------------------------------------------------------------------


def _data(folder: Path, tiny_data: Path, **entries: Any) -> Path:
    """Write a data YAML like the tiny one, with other entries; None leaves one out."""
    content = {**yaml.safe_load(tiny_data.read_text()), **entries}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({name: entry for name, entry in content.items() if entry is not None}))
    return file


def test_the_data_file_may_say_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    file = tmp_path / "few.yaml"

    def found(text: str) -> list[str]:
        file.write_text(text)
        return unlabeled_source(None, str(file))

    assert found("path: /data\nunlabeled: more") == [str(Path("/data/more"))]
    assert found("unlabeled: more") == [str(tmp_path / "more")]
    assert found("path: /data\nunlabeled: [a, /b/c d]") == [str(Path("/data/a")), str(Path("/b/c d"))]
    monkeypatch.setattr(semi, "DATASETS_DIR", tmp_path / "sets")
    assert found("path: coco\nunlabeled: more") == [str(tmp_path / "sets" / "coco" / "more")]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert found("path: here\nunlabeled: more.txt") == [str(tmp_path / "here" / "more.txt")]


def test_what_is_given_overrules_the_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("unlabeled: more")
    monkeypatch.chdir(tmp_path)
    assert unlabeled_source("other photos", str(file)) == [str(tmp_path / "other photos")]
    assert unlabeled_source(["a", "/b"], str(file)) == [str(tmp_path / "a"), str(Path("/b"))]


@pytest.mark.slow
def test_the_command_line_trains_with_the_entry_of_the_data_file(
    tiny_data: Path, photos: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(run_dir)
    shutil.copytree(photos, run_dir / "more photos")
    shutil.copytree(tiny_data.parent / "images", run_dir / "images")
    shutil.copytree(tiny_data.parent / "labels", run_dir / "labels")
    data = _data(run_dir, tiny_data, path=None, unlabeled=["more photos", str(photos)])
    options = {**TINY, **SEMI, "ssl": "sed", "model": SMALL, "data": data, "project": run_dir, "name": "run"}
    assert cli.main(["train", *(f"{key}={value}" for key, value in options.items())]) == 0
    assert "ssl=sed: 14 images without labels, 4 a step" in caplog.text
    assert rows(run_dir / "run")[1]["train/agree_cls"] > 0


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"unlabeled": None}, ValueError, r"give unlabeled=path/to/images, or an entry `unlabeled:`"),
        ({"unlabeled": "nowhere"}, FileNotFoundError, "there is no '.*nowhere'"),
        ({"unlabeled": 3}, FileNotFoundError, "there is no .*3"),
        ({"unlabeled": []}, TypeError, "must be a path"),
        ({"ema": False}, ValueError, "it needs ema=True"),
        ({"ssl_ema": 0}, ValueError, "ssl_ema=0 must be above 0"),
        ({"ssl_ema": 2}, ValueError, "ssl_ema=2 must be 1 or less"),
        ({"ssl_burn_in": 2}, ValueError, "ssl_burn_in=2 must end before the run of epochs=2"),
        ({"ssl_burn_in": 1.5}, ValueError, "whole epochs"),
        ({"ssl_threshold": 0}, ValueError, "ssl_threshold=0 must be above 0"),
        ({"ssl_weight": -1}, ValueError, "0 or more"),
        ({"ssl_ratio": 0}, ValueError, "above 0"),
        ({"ssl": "seed"}, ValueError, "Did you mean 'sed'"),
        ({"ssl": True}, ValueError, "must be one of none, pseudo, soft, sed"),
        ({"ssl_scale": "yes"}, TypeError, "True or False"),
        ({"unlabelled": "here"}, SyntaxError, "unlabeled"),
        ({"distill_model": "yolo11n.pt"}, ValueError, "leave distill_model out"),
        ({"device": "0,1", "compile": True}, ValueError, "compile=False"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else "",
)
def test_wrong_options_are_named_and_touch_no_file(
    options: dict[str, Any], error: type[Exception], message: str, tiny_data: Path, photos: Path, run_dir: Path
) -> None:
    with pytest.raises(error, match=message):
        train(SMALL, tiny_data, run_dir / "run", **{**SEMI, "ssl": "sed", "unlabeled": str(photos), **options})
    assert not list(run_dir.iterdir())


def test_a_folder_without_images_is_refused(tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in"):
        semi_train(SMALL, tiny_data, tmp_path / "empty", run_dir / "run")
    assert not list(run_dir.iterdir())


Hide = Callable[[Path, Path], Any]


def _as_list(val: Path, folder: Path) -> Path:
    listed = folder / "list.txt"
    listed.write_text("".join(f"{file}\n" for file in sorted(val.iterdir())[:1]))
    return listed


def _as_link(val: Path, folder: Path) -> Path:
    (folder / "linked").symlink_to(val, target_is_directory=True)
    return folder / "linked"


def _as_linked_image(val: Path, folder: Path) -> Path:
    (folder / "photos").mkdir()
    (folder / "photos" / "other name.png").symlink_to(next(val.iterdir()))
    return folder / "photos"


def _as_hard_links(val: Path, folder: Path) -> Path:
    for number, image in enumerate(sorted(val.iterdir())):
        os.link(image, folder / f"{number} other name.png")
    return folder


def _as_copies(val: Path, folder: Path) -> Path:
    for number, image in enumerate(sorted(val.iterdir())[:2]):
        shutil.copy(image, folder / f"{number} other name.png")
    return folder


HIDDEN: dict[str, tuple[Hide, str]] = {
    "the folder": (lambda val, folder: val, "4 of 4"),
    "its parent": (lambda val, folder: val.parent, "4 of 12"),
    "a way round": (lambda val, folder: val / ".." / "val", "4 of 4"),
    "a list": (_as_list, "1 of 1"),
    "a link": (_as_link, "4 of 4"),
    "a linked image": (_as_linked_image, "1 of 1"),
    "hard links": (_as_hard_links, "4 of 4"),
    "copies": (_as_copies, "2 of 2"),
    "among several": (lambda val, folder: [val.parent / "train", next(val.iterdir())], "1 of 9"),
}


@pytest.mark.parametrize(("hide", "count"), HIDDEN.values(), ids=HIDDEN)
def test_images_of_the_validation_are_refused(
    hide: Hide, count: str, tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    source = hide(tiny_data.parent / "images" / "val", tmp_path / "place")
    with pytest.raises(ValueError, match=f"{count} images without labels are in the val set"):
        semi_train(SMALL, tiny_data, source, run_dir / "run")
    assert not list(run_dir.iterdir())


def test_a_validation_list_is_read_too(tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    val = tiny_data.parent / "images" / "val"
    data = _data(tmp_path, tiny_data, val=str(_as_list(val, tmp_path)))
    with pytest.raises(ValueError, match="1 of 4 images"):
        semi_train(SMALL, data, val, run_dir / "run")
    assert not list(run_dir.iterdir())


@pytest.mark.slow
def test_images_that_cannot_be_read_are_left_out_and_labels_never_read(
    tiny_data: Path, photos: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong labels beside images and a broken file more: the run is the same."""
    found = []
    for name in ("plain", "spoilt"):
        folder = run_dir / "images" / name
        shutil.copytree(photos, folder)
        if name == "spoilt":
            for file in sorted(folder.iterdir()):
                for place in ("labels", "images"):
                    (run_dir / place / name).mkdir(parents=True, exist_ok=True)
                    (run_dir / place / name / f"{file.stem}.txt").write_text("9 0.5 0.5 7 7\nwords\n")
            (folder / "zzz.png").write_bytes(b"not an image")
        net = semi_train(SMALL, tiny_data, folder, run_dir / f"run-{name}", val=False)
        found.append(weights(net.trainer.model))
    assert same(*found)
    assert "zzz.png: ignoring corrupt image" in caplog.text and "7 images without labels" in caplog.text


def test_a_run_whose_images_are_all_broken_says_so(tiny_data: Path, run_dir: Path, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(RuntimeError, match="none of 3 images can be read"):
        semi_train(SMALL, tiny_data, tmp_path, run_dir / "run")


@pytest.mark.slow
def test_missing_classes_and_a_rounded_size_are_said(
    tiny_data: Path, photos: Path, run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _data(tmp_path, tiny_data, names=["square", "disc", "cross", "ring", "star"])
    net = semi_train(SMALL, data, photos, run_dir / "run", imgsz=100, val=False)
    assert "2 of 5 classes have no labelled object: ring, star\n" in caplog.text
    assert "imgsz=100 becomes 128: ssl=sed needs multiples of 64, to halve" in caplog.text
    assert net.trainer.args.imgsz == 128 and "imgsz: 100" not in (run_dir / "run" / "results.csv").read_text()


@pytest.mark.slow
def test_a_level_of_stride_64_takes_a_size_of_multiples_of_128(
    tiny_data: Path, photos: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layers = yaml.safe_load(Path(SMALL).read_text())
    layers["backbone"].append([-1, 1, "Conv", [32, 3, 2]])
    layers["head"] = [[[3, 4, 5, 6], 1, "Detect", ["nc"]]]
    deeper = run_dir / "deeper.yaml"
    deeper.write_text(yaml.safe_dump(layers))
    net = semi_train(deeper, tiny_data, photos, run_dir / "run", imgsz=192, batch=2, fraction=0.5, val=False)
    assert "imgsz=192 becomes 256: ssl=sed needs multiples of 128, to halve" in caplog.text
    assert net.trainer.args.imgsz == 256 and rows(run_dir / "run")[1]["train/agree_cls"] > 0


@pytest.mark.slow
def test_images_of_many_channels_are_refused(tiny_data: Path, photos: Path, run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected images of 1 or 3 channels"):
        semi_train(SMALL, _data(tmp_path, tiny_data, channels=5), photos, run_dir / "run")


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, MLCTrainer), ({"ssl": "none"}, MLCTrainer), ({"ssl": "sed"}, SemiTrainer)],
)
def test_the_trainer_for_images_without_labels_is_taken_for_them_alone(
    options: dict[str, Any], expected: type, tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    seen: list[type] = []

    def stop(trainer: Any) -> None:
        seen.append(type(trainer))
        raise KeyboardInterrupt

    if expected is SemiTrainer:
        (tmp_path / "photos").mkdir()
        shutil.copy(tiny_data.parent / "images" / "train" / "0.png", tmp_path / "photos")
        options = {**options, "unlabeled": str(tmp_path / "photos")}
    model = MLCYOLO(SMALL)
    model.add_callback("on_pretrain_routine_start", stop)
    with pytest.raises(KeyboardInterrupt):
        model.train(data=str(tiny_data), project=str(run_dir), imgsz=64, **options)
    assert seen == [expected]
