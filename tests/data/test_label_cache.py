"""Caches of labels that are more than data are refused before Ultralytics opens them; what it writes itself passes."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import pytest
from nets import SMALL
from numpy.lib.format import write_array
from payload import Evil
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER

from mlc_yolo import MLCYOLO
from mlc_yolo.data import datasets
from mlc_yolo.data.label_cache import check_cache, check_label_caches
from mlc_yolo.data.unlabeled import UnlabeledDataset

DATA = {"names": {0: "a", 1: "b", 2: "c"}, "nc": 3, "channels": 3}
#: The system's own name for what `Evil` calls.
MKDIR = rf"{os.mkdir.__module__}\.mkdir"


Make = Callable[[Path, Evil], None]


def in_an_array(file: Path, evil: Evil) -> None:
    np.save(file, {"labels": evil})


def behind_a_header_of_version_2(file: Path, evil: Evil) -> None:
    with open(file, "wb") as stream:
        write_array(stream, np.array({"labels": evil}, dtype=object), version=(2, 0))


def behind_a_header_of_version_3(file: Path, evil: Evil) -> None:
    with open(file, "wb") as stream:
        write_array(stream, np.array({"labels": evil}, dtype=object), version=(3, 0))


def in_a_list_in_an_array_of_objects(file: Path, evil: Evil) -> None:
    np.save(file, {"labels": np.array([None, [evil]], dtype=object)})


def without_a_header(file: Path, evil: Evil) -> None:
    file.write_bytes(pickle.dumps(evil))


def after_what_a_stand_in_cannot_do(file: Path, evil: Evil) -> None:
    # The empty array of objects takes the item, then comes the call: nothing is known of what follows a failure.
    array = pickle.dumps(np.empty(1, dtype=object), protocol=3)[:-1]
    file.write_bytes(array + b"K\x00N" + pickle.SETITEM + b"0" + pickle.dumps(evil, protocol=3)[2:])


def with_its_end_missing(file: Path, evil: Evil) -> None:
    file.write_bytes(pickle.dumps(evil, protocol=3)[:-1])


def write(make: Make, file: Path, evil: Evil) -> None:
    beside = file.with_suffix(".npy")  # NumPy adds a suffix of its own to others
    make(beside, evil)
    beside.replace(file)


def opened(source: Path, task: str = "detect") -> Any:
    return datasets.build(
        str(source), get_cfg(overrides={"imgsz": 64, "task": task}), warp=False, data=DATA, batch=1, mode="val"
    )


# What runs something --------------------------------------------------------------------------------------------------


MAKERS = [
    (in_an_array, MKDIR),
    (behind_a_header_of_version_2, MKDIR),
    (behind_a_header_of_version_3, MKDIR),
    (in_a_list_in_an_array_of_objects, MKDIR),
    (without_a_header, MKDIR),
    (after_what_a_stand_in_cannot_do, r"what no cache does \(.*item assignment\)"),
    (with_its_end_missing, MKDIR),
]


@pytest.mark.parametrize(("make", "named"), MAKERS)
def test_the_payloads_run_where_nobody_looks_and_are_refused_by_name(
    make: Make, named: str, mark: Path, tmp_path: Path
) -> None:
    file = tmp_path / "train.cache"
    write(make, file, Evil(mark))
    with pytest.raises(ValueError, match=rf"train\.cache is refused: it holds {named}\. .*Delete it"):
        check_cache(file)
    assert not mark.exists()
    with suppress(Exception):  # whatever it is, it comes too late
        np.load(file, allow_pickle=True)
    assert mark.exists()


# What corrupts memory -------------------------------------------------------------------------------------------------


RECONSTRUCT = np.zeros(1).__reduce__()[0]


class Asks:
    """Is unpickled by a call, then given a state."""

    def __init__(self, function: Any, args: tuple[Any, ...], *state: Any) -> None:
        self.reduced = (function, args, *state)

    def __reduce__(self) -> Any:
        return self.reduced


def array(dtype: Any, data: Any, shape: tuple[int, ...] = (1,)) -> Asks:
    return Asks(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


def dtype(kind: str, *state: Any) -> Asks:
    return Asks(np.dtype, (kind, False, True), (3, "|", *state))


ADDRESS = b"A" * 8
FIELDS = (("x",), {"x": (np.dtype("O"), 0)})
NOT_ITS_CONTENT = r"a numpy\.ndarray whose content is not of its type and shape"


@pytest.mark.parametrize(
    ("asks", "named"),
    [
        (Asks(np.ndarray, ((1,), "O", ADDRESS)), r"a call of numpy\.ndarray"),
        (Asks(RECONSTRUCT, (np.ndarray, (9,), b"O")), r"a call of numpy's _reconstruct"),
        (array(np.dtype("O"), ADDRESS), NOT_ITS_CONTENT),
        (array(np.dtype("O"), [], shape=(100_000,)), NOT_ITS_CONTENT),
        (array(np.dtype("O"), [None], shape=(-1, -1)), NOT_ITS_CONTENT),
        (array(np.dtype("f4"), b"", shape=(1, 2)), NOT_ITS_CONTENT),
        (array(np.dtype("f4"), [1.0]), NOT_ITS_CONTENT),
        (array(dtype("O8", None, None, None, -1, -1, 0), ADDRESS), r"numpy\.dtype\('O8', False, True\) with the state"),
        (array(dtype("V8", None, *FIELDS, 8, 1, 0), ADDRESS), r"numpy\.dtype\('V8', False, True\)"),
        (array(dtype("i8", None, *FIELDS, 8, 1, 0), ADDRESS), r"numpy\.dtype\('i8', False, True\) with the state"),
        (array(dtype("i8", (np.dtype("O"), (1,)), None, None, 8, 1, 0), ADDRESS), r"numpy\.dtype\('i8'"),
        (array(np.dtype("i8,O"), ADDRESS * 2), r"numpy\.dtype\('V16', False, True\)"),
        (Asks(np.dtype, ("i8,O", False, True)), r"numpy\.dtype\('i8,O', False, True\)"),
        (Asks(np.dtype, ("f4", True, True)), r"numpy\.dtype\('f4', True, True\)"),
        (np.zeros(1, "M8[s]"), r"numpy\.dtype\('M8'"),
    ],
)
def test_what_only_looks_like_an_array_is_refused_by_name(asks: Any, named: str, tmp_path: Path) -> None:
    file = tmp_path / "train.cache"
    for protocol in (3, 4):  # what NumPy has used
        file.write_bytes(pickle.dumps(asks, protocol=protocol))
        with pytest.raises(ValueError, match=rf"train\.cache is refused: it holds {named}.*Delete it"):
            check_cache(file)


def _piece(what: Any) -> bytes:
    return pickle.dumps(what, protocol=2)[2:-1]


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (b"cnumpy\nndarray\n" + _piece(((1,), "O", 0)) + pickle.NEWOBJ, r"a call of numpy\.ndarray"),
        (b"(cnumpy\nndarray\n" + _piece((1,)) + pickle.OBJ, r"a call of numpy\.ndarray"),
        (b"(" + _piece((1,)) + b"inumpy\nndarray\n", r"a call of numpy\.ndarray"),
        *(
            (b"c" + name + b"\n" + _piece((None, {"__new__": 1})) + pickle.BUILD, "what no cache does")
            for name in (b"numpy\nndarray", b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct")
        ),
    ],
)
def test_no_way_of_pickles_leads_past_the_reader_or_changes_it(program: bytes, named: str, tmp_path: Path) -> None:
    file, honest = tmp_path / "train.cache", tmp_path / "honest.cache"
    file.write_bytes(b"\x80\x02" + program + b".")
    with pytest.raises(ValueError, match=rf"train\.cache is refused: it holds {named}"):
        check_cache(file)
    honest.write_bytes(pickle.dumps(np.zeros(2)))
    assert check_cache(honest)


@pytest.mark.parametrize("kind", ["?", "i1", "u1", "<i8", ">f4", "<f8", "O"])
@pytest.mark.parametrize("shape", [(), (0, 5), (2, 3)])
def test_arrays_of_numbers_and_of_objects_pass(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    content = {"labels": [np.zeros(shape, kind), np.zeros(shape, kind).T], "results": (1, 2), "hash": "x"}
    for version in ((1, 0), (2, 0), (3, 0)):
        with open(tmp_path / "a.cache", "wb") as stream:
            write_array(stream, np.array(content, dtype=object), version=version)
        assert check_cache(tmp_path / "a.cache")
    for protocol in (3, 4):  # what NumPy has used
        (tmp_path / "a.cache").write_bytes(pickle.dumps(content, protocol=protocol))
        assert check_cache(tmp_path / "a.cache")


# What is no cache -----------------------------------------------------------------------------------------------------


NO_CACHES = [
    b"",
    b"no pickle",
    b"PK\x03\x04",
    b"\x93NUMPY\x01\x00",
    b"\x93NUMPY\x01\x00\xff\xff{}",
    b"\x93NUMPY\x09\x00" + bytes(20),
    b"Pname\n.",
]


def test_where_this_reader_stops_numpys_stops_as_well(tmp_path: Path) -> None:
    file = tmp_path / "train.cache"
    np.save(tmp_path / "whole.npy", {"labels": [np.zeros((1, 5), np.float32)], "hash": "x"})
    whole = (tmp_path / "whole.npy").read_bytes()
    for content in [*NO_CACHES, *(whole[:end] for end in range(len(whole)))]:
        file.write_bytes(content)
        assert not check_cache(file)
        with open(file, "rb") as stream, pytest.raises((EOFError, ValueError, pickle.UnpicklingError, BadZipFile)):
            np.load(stream, allow_pickle=True)
    file.write_bytes(whole)
    assert check_cache(file) and np.load(file, allow_pickle=True).item()["hash"] == "x"


def test_an_archive_is_let_pass_and_what_is_in_it_is_never_opened(own_data: Path, mark: Path) -> None:
    file = own_data.parent / "labels" / "val.cache"
    np.savez(file.with_suffix(".npz"), labels=np.array([Evil(mark)], dtype=object))
    file.with_suffix(".npz").replace(file)
    assert not check_cache(file)
    assert len(opened(own_data.parent / "images" / "val")) == 4 and not mark.exists()
    assert len(np.load(file, allow_pickle=True).item()["labels"]) == 4


@pytest.mark.parametrize("content", NO_CACHES)
def test_what_cannot_be_read_is_left_to_ultralytics_which_makes_it_anew(content: bytes, own_data: Path) -> None:
    cache = own_data.parent / "labels" / "val.cache"
    cache.write_bytes(content)
    opened(own_data.parent / "images" / "val")
    assert len(np.load(cache, allow_pickle=True).item()["labels"]) == 4


def test_a_cache_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert not check_cache(tmp_path / "none.cache")


# Where Ultralytics looks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_refuses_it_before_anything_runs(split: str, own_data: Path, mark: Path, run_dir: Path) -> None:
    write(in_an_array, own_data.parent / "labels" / f"{split}.cache", Evil(mark))
    with pytest.raises(ValueError, match=rf"{split}\.cache is refused"):
        MLCYOLO(SMALL).train(data=str(own_data), epochs=1, imgsz=64, project=str(run_dir), plots=False)
    assert not mark.exists()


def test_validation_refuses_it(own_data: Path, mark: Path, run_dir: Path) -> None:
    write(in_an_array, own_data.parent / "labels" / "val.cache", Evil(mark))
    with pytest.raises(ValueError, match=r"val\.cache is refused"):
        MLCYOLO(SMALL).val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
    assert not mark.exists()


def test_images_without_labels_refuse_theirs(own_data: Path, mark: Path) -> None:
    images = own_data.parent / "images" / "train"
    write(in_an_array, images.with_suffix(".unlabeled.cache"), Evil(mark))
    with pytest.raises(ValueError, match=r"train\.unlabeled\.cache is refused"):
        UnlabeledDataset(img_path=str(images), data=DATA, imgsz=64, task="detect")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["train.txt", "train.list", "train"])
def test_a_list_of_any_name_leads_to_the_cache(name: str, own_data: Path, mark: Path) -> None:
    listed = own_data.parent / name
    listed.write_text("".join(f"./images/train/{file.name}\n" for file in (own_data.parent / "images/train").iterdir()))
    write(in_an_array, own_data.parent / "labels" / "train.cache", Evil(mark))
    for look in (opened, check_label_caches):
        with pytest.raises(ValueError, match=r"train\.cache is refused"):
            look(listed)
    assert not mark.exists()


def test_two_dots_behind_a_link_lead_where_the_file_system_says(own_data: Path, mark: Path) -> None:
    root = own_data.parent
    (root / "other" / "sub").mkdir(parents=True)
    shutil.copytree(root / "images" / "val", root / "other" / "there")
    for folder in ("images", "labels"):
        (root / folder / "link").symlink_to(root / "other" / "sub")
    listed = root / "val.txt"
    files = sorted((root / "other" / "there").iterdir())
    listed.write_text("".join(f"{root / 'images'}/link/../there/{file.name}\n" for file in files))
    write(in_an_array, root / "other" / "there.cache", Evil(mark))
    for look in (opened, check_label_caches):
        with pytest.raises(ValueError, match=r"link.\.\..there\.cache is refused"):
            look(listed)
    (root / "other" / "there.cache").unlink()
    assert len(opened(listed)) == len(files) and (root / "other" / "there.cache").is_file(), "the cache it opens"


def test_every_folder_of_labels_of_every_source_is_looked_at(own_data: Path, mark: Path) -> None:
    root = own_data.parent
    shutil.copytree(root / "images" / "val", root / "images" / "val" / "deep")
    sources = [root / "nothing", root / "images" / "val"]
    check_label_caches(sources)
    for name in ("labels/val/deep.cache", "masks/val.cache", "depth/val/deep.cache"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(in_an_array, root / name, Evil(mark))
        with pytest.raises(ValueError, match=rf"{Path(name).name} is refused"):
            check_label_caches(sources)
        (root / name).unlink()
    check_label_caches(sources)
    assert not mark.exists()


def test_looking_ahead_never_fails_on_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.txt").write_text("gone.jpg\n/gone.jpg\nimages/a\0b.jpg\nnotes\n")
    check_label_caches([])
    check_label_caches([tmp_path / name for name in ("none", "empty", "binary", "list.txt", "a" * 5000)])
    check_label_caches(str(tmp_path / "list.txt"))


# What Ultralytics writes ----------------------------------------------------------------------------------------------


def test_what_ultralytics_writes_is_passed_and_read(own_data: Path, run_dir: Path) -> None:
    cache = own_data.parent / "labels" / "val.cache"
    written = []
    for _ in range(2):
        MLCYOLO(SMALL).val(data=str(own_data), imgsz=64, project=str(run_dir), plots=False)
        written.append(cache.stat().st_mtime_ns)
    assert written[0] == written[1]  # the second time it was read, not made anew


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_labels_with_outlines_and_without_any_make_caches_that_pass(task: str, own_data: Path) -> None:
    labels = sorted((own_data.parent / "labels" / "val").iterdir())
    for label, text in zip(labels, ["0 .1 .1 .9 .1 .9 .9\n1 .2 .2 .4 .2 .4 .4 .2 .4\n", ""], strict=False):
        label.write_text(text)
    for label in labels[2:]:
        label.unlink()
    cache = own_data.parent / "labels" / "val.cache"
    first = opened(own_data.parent / "images" / "val", task)
    written = cache.stat().st_mtime_ns
    again = opened(own_data.parent / "images" / "val", task)
    assert check_cache(cache) and cache.stat().st_mtime_ns == written
    assert [len(each["segments"]) for each in again.labels] == [len(each["segments"]) for each in first.labels]
    assert len(again.labels[0]["segments"]) == 2


def test_where_another_process_took_the_old_cache_away_both_go_on(
    own_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = own_data.parent / "labels" / "val.cache"
    cache.write_bytes(b"out of date")
    unlink, taken = Path.unlink, []

    def after_another(file: Path, missing_ok: bool = False) -> None:
        if file == cache and not taken:
            taken.append(file)
            unlink(file)  # there when upstream looked, gone now
        unlink(file, missing_ok)

    monkeypatch.setattr(Path, "unlink", after_another)
    assert len(opened(own_data.parent / "images" / "val")) == 4 and taken
    assert len(np.load(cache, allow_pickle=True).item()["labels"]) == 4


# What is left out -----------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", lambda text, *_, **__: said.append(text) if "left out" in text else None)
    return said


def test_images_that_are_left_out_are_counted_in_one_warning(
    own_data: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = (own_data.parent / folder / "val" for folder in ("images", "labels"))
    assert len(opened(images)) == 4 and not counted
    sorted(labels.iterdir())[0].write_text("7 .5 .5 .2 .2\n")
    next(images.iterdir()).with_name("damaged.png").write_bytes(b"no image")
    for _ in range(2):  # scanned, then from the cache
        counted.clear()
        assert len(opened(images)) == 3
        assert len(counted) == 1 and "val: " in counted[0]
        assert "2 of 5 images are left out because they are damaged or their labels are invalid" in counted[0]
    counted.clear()
    monkeypatch.setattr(datasets, "LOCAL_RANK", 1)
    assert len(opened(images)) == 3 and not counted


def test_images_without_labels_are_counted_as_well(tmp_path: Path, counted: list[str]) -> None:
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.zeros((20, 20, 3), np.uint8))
    (tmp_path / "photos" / "b.png").write_bytes(b"no image")
    for _ in range(2):
        counted.clear()
        UnlabeledDataset(img_path=str(tmp_path / "photos"), data=DATA, imgsz=64, task="detect")
        assert len(counted) == 1 and counted[0].startswith("1 of 2 images are left out")
