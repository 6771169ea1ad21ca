"""Caches of labels that are more than data are refused before Ultralytics opens them; what it writes itself passes."""

from __future__ import annotations

import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_yolo import MLCYOLO
from mlc_yolo.data.label_cache import check_cache, check_label_caches
from mlc_yolo.data.unlabeled import UnlabeledDataset


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def in_an_array(file: Path, evil: Evil) -> None:
    np.save(file, {"labels": evil})


def without_a_header(file: Path, evil: Evil) -> None:
    file.write_bytes(pickle.dumps(evil))


def after_what_a_stand_in_cannot_do(file: Path, evil: Evil) -> None:
    # The empty array of objects takes the item, then comes the call: nothing is known of what follows a failure.
    array = pickle.dumps(np.empty(1, dtype=object), protocol=3)[:-1]
    file.write_bytes(array + b"K\x00N" + pickle.SETITEM + b"0" + pickle.dumps(evil, protocol=3)[2:])


def with_its_end_missing(file: Path, evil: Evil) -> None:
    file.write_bytes(pickle.dumps(evil, protocol=3)[:-1])


def write(make: Any, file: Path, evil: Evil) -> None:
    beside = file.with_suffix(".npy")  # NumPy adds a suffix of its own to others
    make(beside, evil)
    beside.replace(file)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set whose caches are the test's."""
    root = tmp_path / "own"
    shutil.copytree(tiny_data.parent, root, ignore=shutil.ignore_patterns("*.cache"))
    data = root / "data.yaml"
    data.write_text(data.read_text().replace(tiny_data.parent.as_posix(), root.as_posix()))
    return data


MAKERS = [in_an_array, without_a_header, after_what_a_stand_in_cannot_do, with_its_end_missing]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_the_payloads_run_where_nobody_looks(make: Any, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.cache"
    write(make, file, Evil(mark))
    with suppress(Exception):  # whatever it is, it comes too late
        np.load(file, allow_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_cache_that_runs_something_is_refused_by_name(make: Any, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.cache"
    write(make, file, Evil(mark))
    with pytest.raises(ValueError, match=r"train\.cache is refused: it holds (posix\.|nt\.|what no).*Delete it"):
        check_cache(file)
    assert not mark.exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_refuses_it_before_anything_runs(split: str, own_data: Path, mark: Path, run_dir: Path) -> None:
    write(in_an_array, own_data.parent / "labels" / f"{split}.cache", Evil(mark))
    with pytest.raises(ValueError, match=rf"{split}\.cache is refused"):
        MLCYOLO("yolo11n.yaml").train(data=str(own_data), epochs=1, imgsz=64, project=str(run_dir), plots=False)
    assert not mark.exists()


def test_validation_refuses_it(own_data: Path, mark: Path, run_dir: Path) -> None:
    write(in_an_array, own_data.parent / "labels" / "val.cache", Evil(mark))
    with pytest.raises(ValueError, match=r"val\.cache is refused"):
        MLCYOLO("yolo11n.yaml").val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
    assert not mark.exists()


def test_images_without_labels_refuse_theirs(own_data: Path, mark: Path) -> None:
    images = own_data.parent / "images" / "train"
    write(in_an_array, images.with_suffix(".unlabeled.cache"), Evil(mark))
    with pytest.raises(ValueError, match=r"train\.unlabeled\.cache is refused"):
        UnlabeledDataset(
            img_path=str(images), data={"names": {0: "a"}, "nc": 1, "channels": 3}, imgsz=64, task="detect"
        )
    assert not mark.exists()


def test_what_ultralytics_writes_is_passed_and_read(own_data: Path, run_dir: Path) -> None:
    cache = own_data.parent / "labels" / "val.cache"
    written = []
    for _ in range(2):
        MLCYOLO("yolo11n.yaml").val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
        written.append(cache.stat().st_mtime_ns)
    assert written[0] == written[1]  # the second time it was read, not made anew


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x93NUMPY\x01\x00"])
def test_what_cannot_be_read_is_left_to_ultralytics_which_makes_it_anew(
    content: bytes, own_data: Path, run_dir: Path
) -> None:
    cache = own_data.parent / "labels" / "val.cache"
    cache.write_bytes(content)
    MLCYOLO("yolo11n.yaml").val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
    assert len(np.load(cache, allow_pickle=True).item()["labels"]) == 4


def test_two_processes_that_make_it_anew_at_once_both_go_on(
    own_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = own_data.parent / "labels" / "val.cache"
    cache.write_bytes(b"out of date")
    unlink = Path.unlink

    def after_another(file: Path, missing_ok: bool = False) -> None:
        unlink(file, missing_ok)
        if file == cache:
            monkeypatch.undo()
            unlink(file)  # as upstream finds it: there when it looked, gone now

    monkeypatch.setattr(Path, "unlink", after_another)
    MLCYOLO("yolo11n.yaml").val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
    assert len(np.load(cache, allow_pickle=True).item()["labels"]) == 4


def test_a_cache_that_is_not_there_is_none(tmp_path: Path) -> None:
    check_cache(tmp_path / "none.cache")
    check_label_caches([])
