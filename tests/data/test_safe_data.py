"""What a data set, a configuration or a resumed run must not make happen, in every mode that opens one."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import SMALL
from payload import Evil
from ultralytics import YOLO

from mlc_yolo import MLCYOLO
from mlc_yolo.cli import main
from mlc_yolo.data.resolve import resolve_data, resolve_for_upstream
from mlc_yolo.figures.assignments import draw_assignments

ONCE = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "device": "cpu"}


def program(mark: Path) -> str:
    """The line of a data YAML that has Ultralytics make a folder where images are missing."""
    return f"download: import os; os.mkdir('{mark.as_posix()}')\n"


@pytest.fixture
def evil(mark: Path, tmp_path: Path) -> Path:
    """A checkpoint that runs something."""
    file = tmp_path / "evil.pt"
    torch.save({"model": Evil(mark)}, file)
    return file


# Data sets ------------------------------------------------------------------------------------------------------------

#: What opens a data set -> how; other tasks and these modes leave it to plain Ultralytics.
OPENERS: dict[str, Callable[[str, Path], Any]] = {
    "train": lambda data, folder: MLCYOLO(SMALL).train(data=data, project=str(folder), **ONCE),
    "val": lambda data, folder: MLCYOLO(SMALL).val(data=data, imgsz=64, project=str(folder), plots=False),
    "export": lambda data, folder: MLCYOLO(SMALL).export(format="onnx", int8=True, data=data, imgsz=64),
    "benchmark": lambda data, folder: MLCYOLO(SMALL).benchmark(data=data, format="torchscript", imgsz=64),
    "segment": lambda data, folder: MLCYOLO("yolo11n-seg.yaml").train(data=data, project=str(folder), **ONCE),
    "segment val": lambda data, folder: MLCYOLO("yolo11n-seg.yaml").val(data=data, imgsz=64, project=str(folder)),
    "assignments": lambda data, folder: draw_assignments(MLCYOLO(SMALL), data=data, project=str(folder)),
}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_cache_that_runs_something_is_refused(
    opener: str, own_data: Path, mark: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_dir)
    np.save(run_dir / "cache.npy", {"labels": Evil(mark)})
    (run_dir / "cache.npy").replace(own_data.parent / "labels" / "val.cache")
    with pytest.raises(ValueError, match=r"val\.cache is refused"):
        OPENERS[opener](str(own_data), run_dir)
    assert not mark.exists()


@pytest.mark.parametrize("opener", OPENERS)
def test_a_program_to_download_data_is_refused(
    opener: str, own_data: Path, mark: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_dir)
    own_data.write_text(own_data.read_text().replace("images/val", "images/gone") + program(mark))
    with pytest.raises(ValueError, match=r"gone does not exist\. 'download' holds a program"):
        OPENERS[opener](str(own_data), run_dir)
    assert not mark.exists()


@pytest.mark.parametrize("mode", ["train", "val"])
def test_so_it_is_where_another_split_is_missing(mode: str, own_data: Path, mark: Path, run_dir: Path) -> None:
    own_data.write_text(own_data.read_text() + "test: images/gone\n" + program(mark))
    with pytest.raises(ValueError, match=r"gone does not exist\. 'download' holds a program"):
        getattr(MLCYOLO(SMALL), mode)(data=str(own_data), split="test", imgsz=64, project=str(run_dir))
    assert not mark.exists()


def test_a_yaml_from_an_address_is_read_before_it_is_used(
    own_data: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_data.write_text(own_data.read_text().replace("images/val", "images/gone") + program(mark))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(own_data.parent))
    monkeypatch.chdir(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match=r"gone does not exist\. 'download' holds a program"):
            resolve_data(f" http://127.0.0.1:{server.server_port}/data.yaml")
        server.shutdown()
    assert not mark.exists()


def test_a_folder_of_classes_has_its_caches_looked_at(mark: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "train" / "cat").mkdir(parents=True)
    assert resolve_for_upstream(tmp_path / "set") == str(tmp_path / "set")
    np.save(tmp_path / "cache.npy", {"labels": Evil(mark)})
    (tmp_path / "cache.npy").replace(tmp_path / "set" / "train.cache")
    with pytest.raises(ValueError, match=r"train\.cache is refused"):
        resolve_for_upstream(tmp_path / "set")


# Trust ----------------------------------------------------------------------------------------------------------------


def test_no_file_grants_trust(
    evil: Path, tiny_data: Path, mark: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_dir / "given.yaml"
    config.write_text(
        f"trust: true\npretrained: {evil}\nepochs: 1\nimgsz: 64\nmodel: yolo11n.yaml\ndata: {tiny_data}\n"
    )
    with pytest.raises(ValueError, match=r"evil\.pt is refused"):
        MLCYOLO(SMALL).train(cfg=str(config), project=str(run_dir))
    assert main(["train", f"cfg={config}", f"project={run_dir}"]) == 2
    assert "evil.pt is refused" in capsys.readouterr().err
    assert main(["reproduce", str(config), f"data={tiny_data}", f"project={run_dir}"]) == 2
    assert "trust" in capsys.readouterr().err
    assert not mark.exists()


def test_a_checkpoint_that_a_trackers_yaml_names_is_looked_at(
    evil: Path, tiny_data: Path, mark: Path, tmp_path: Path
) -> None:
    tracker = tmp_path / "tracker.yaml"
    tracker.write_text(f"tracker_type: botsort\nwith_reid: true\nmodel: {evil}\n")
    image = next((tiny_data.parent / "images" / "val").iterdir())
    with pytest.raises(ValueError, match=r"evil\.pt is refused"):
        MLCYOLO(SMALL).track(str(image), tracker=str(tracker), imgsz=64)
    assert not mark.exists()


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("images/train", "images/trainig"), r"'train': there is no .*trainig"),
        (lambda text: text.replace("images/val", "images/vale"), "vale"),
        (lambda text: text.replace("images/train", "labels/train"), r"'train': no images in"),
        (lambda text: text.replace("  2: cross", "nc: 7"), "nc"),
    ],
    ids=["no training images", "no validation images", "a folder without images", "wrong nc"],
)
def test_data_that_is_not_there_is_said_before_a_run_folder_is_made(
    change: Callable[[str], str], said: str, own_data: Path, run_dir: Path
) -> None:
    own_data.write_text(change(own_data.read_text()))
    with pytest.raises((FileNotFoundError, RuntimeError, ValueError, SyntaxError), match=said):
        MLCYOLO(SMALL).train(data=str(own_data), project=str(run_dir), **ONCE)
    assert not list(run_dir.iterdir())


@pytest.mark.slow
def test_a_finished_run_is_not_resumed_as_another_one(tiny_data: Path, run_dir: Path) -> None:
    MLCYOLO(SMALL).train(data=str(tiny_data), project=str(run_dir), name="run", **ONCE)
    last = run_dir / "run" / "weights" / "last.pt"
    with pytest.raises(ValueError, match=r"last\.pt' cannot be resumed, its training has ended\. Give"):
        MLCYOLO(last).train(resume=True)
    with pytest.raises(ValueError, match=r"'yolo11n\.yaml' cannot be resumed, it is not a checkpoint"):
        MLCYOLO("yolo11n.yaml").train(resume=True)
    assert [path.name for path in run_dir.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on_where_it_is_now_also_with_other_images(
    own_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(trainer: Any) -> None:
        raise KeyboardInterrupt

    model = MLCYOLO(SMALL)
    model.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        model.train(data=str(own_data), project=str(run_dir), name="run", **{**ONCE, "epochs": 2, "mosaic": 1.0})
    (run_dir / "run").rename(run_dir / "moved")
    (own_data.parent / "images" / "train" / "7.png").unlink()
    last = run_dir / "moved" / "weights" / "last.pt"
    MLCYOLO(last).train(resume=True)
    assert [path.name for path in run_dir.iterdir()] == ["moved"]
    assert len((run_dir / "moved" / "results.csv").read_text().splitlines()) == 3
    assert "started with 8 images and now has 7" in caplog.text
    assert torch.load(last, weights_only=False)["optimizer"] is None


def test_validation_says_when_the_classes_are_other_ones(
    own_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MLCYOLO(SMALL)
    model.val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
    assert "the data's classes differ from the model's" in caplog.text and "and so on" in caplog.text
    caplog.clear()
    model.model.names = {0: "square", 1: "disc", 2: "cross"}
    model.val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
    assert "the data's classes" not in caplog.text


def test_plain_ultralytics_would_have_run_what_is_refused_here(own_data: Path, mark: Path, run_dir: Path) -> None:
    own_data.write_text(own_data.read_text().replace("images/val", "images/gone") + program(mark))
    with pytest.raises(Exception, match="gone"):
        YOLO(SMALL).val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
    assert mark.exists()
