"""Splits label a part of the training images, name the rest, keep every class they can, and train as they are."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

from mlc_yolo.data.split import draw, list_images, split

NAMES = ("dog", "car", "bird", "newt")


def rows(labels: list[int]) -> str:
    return "".join(f"{label} 0.5 0.5 0.{i + 1} 0.25\n" for i, label in enumerate(labels))


def write_images(root: Path, part: str, labels: list[list[int] | None]) -> list[Path]:
    """Images <root>/images/<part>/n.png with boxes of these classes; None leaves out the label file."""
    files = []
    for i, each in enumerate(labels):
        file = root / "images" / part / f"{i:03d}.png"
        text = root / "labels" / part / f"{i:03d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        text.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(file), np.full((16, 16, 3), i, np.uint8))
        if each is not None:
            text.write_text(rows(each))
        files.append(file)
    return files


#: 40 images: dogs everywhere, cars in five, one bird, one newt, an empty label file and none.
TRAIN: list[list[int] | None] = [[0]] * 30 + [[0, 0, 1]] * 5 + [[2], [0, 3], [], None, [0]]
#: Drawn of it by seed 0, 10 %, fold 0: what is published as a split must stay one.
GOLDEN = [6, 31, 35, 36]


def both_lists(file: Path) -> list[list[Path]]:
    """The labelled and the unlabelled images of a split's YAML."""
    content = yaml.safe_load(file.read_text())
    return [[Path(line) for line in Path(content[key]).read_text().splitlines()] for key in ("train", "unlabeled")]


def write_set(root: Path, **changes: Any) -> Path:
    """A data set of `TRAIN` and two validation images; `changes` are keys of its YAML, None leaves one out."""
    write_images(root, "train", TRAIN)
    write_images(root, "val", [[0], [1]])
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES)), **changes}
    file = root / "pets.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_set(tmp_path / "a set" / "my pets")


def content(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text()))


def listed(file: Path, key: str) -> list[str]:
    return Path(content(file)[key]).read_text().splitlines()


def numbers(file: Path, key: str = "train") -> list[int]:
    return [int(Path(line).stem) for line in listed(file, key)]


# What is written


def test_a_split_names_every_training_image_once(data: Path, tmp_path: Path) -> None:
    for file in split(data, percent=(10, 50), folds=3, output=tmp_path / "out"):
        labelled, rest = listed(file, "train"), listed(file, "unlabeled")
        assert len(labelled) == (4 if "-10pct-" in file.name else 20)
        assert sorted(labelled + rest) == [str(data.parent / "images" / "train" / f"{i:03d}.png") for i in range(40)]
        assert labelled == sorted(labelled) and rest == sorted(rest)


def test_files_are_named_after_set_percent_and_fold(data: Path, tmp_path: Path) -> None:
    written = split(data, percent="10,12.5", folds=2, output=tmp_path / "out")
    stems = ["pets-10pct-fold0", "pets-10pct-fold1", "pets-12.5pct-fold0", "pets-12.5pct-fold1"]
    assert written == [tmp_path / "out" / f"{stem}.yaml" for stem in stems]
    parts = (".yaml", "-labeled.txt", "-unlabeled.txt")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(stem + part for stem in stems for part in parts)


def test_the_protocol_is_the_default(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40, 100):  # enough for 1 %
        shutil.copy(data.parent / "images" / "train" / "000.png", data.parent / "images" / "train" / f"{i:03d}.png")
    monkeypatch.chdir(tmp_path)
    written = split(data)
    assert {file.parent for file in written} == {tmp_path / "pets-splits"}
    assert [len(numbers(file)) for file in written] == [1] * 5 + [2] * 5 + [5] * 5 + [10] * 5


def test_the_yaml_is_the_sets_own_but_for_the_training_images(tmp_path: Path) -> None:
    data = write_set(
        tmp_path / "set", path=str(tmp_path / "set"), test="images/val", download="https://example.org/a.zip"
    )
    (file,) = split(data, percent=10, folds=1, output=tmp_path / "out")
    assert content(file) == {
        "path": str(tmp_path / "set"),
        "train": str(tmp_path / "out" / "pets-10pct-fold0-labeled.txt"),
        "val": str(tmp_path / "set" / "images" / "val"),
        "test": str(tmp_path / "set" / "images" / "val"),
        "names": dict(enumerate(NAMES)),
        "nc": 4,
        "channels": 3,
        "unlabeled": str(tmp_path / "out" / "pets-10pct-fold0-unlabeled.txt"),
    }


def test_ultralytics_trains_on_the_labelled_part(data: Path, tmp_path: Path) -> None:
    (file,) = split(data, percent=20, folds=1, output=tmp_path / "out put")
    found = check_det_dataset(file, autodownload=False)
    dataset = build_yolo_dataset(get_cfg(overrides={"imgsz": 32}), found["train"], 4, found, mode="train")
    assert [Path(each["im_file"]).stem for each in dataset.labels] == [f"{i:03d}" for i in numbers(file)]
    for each in dataset.labels:
        expected = TRAIN[int(Path(each["im_file"]).stem)] or []
        assert sorted(each["cls"].flatten().astype(int).tolist()) == sorted(expected)
    batches = list(build_dataloader(dataset, 4, 0, shuffle=False, rank=-1))
    assert sum(len(batch["img"]) for batch in batches) == 8
    val = build_yolo_dataset(get_cfg(overrides={"imgsz": 32}), found["val"], 2, found, mode="val")
    assert len(val) == 2 and found["nc"] == 4 and found["names"] == dict(enumerate(NAMES))


def test_the_unlabelled_part_is_a_list_that_ultralytics_reads(data: Path, tmp_path: Path) -> None:
    (file,) = split(data, percent=20, folds=1, output=tmp_path / "out")
    found = check_det_dataset(file, autodownload=False)
    dataset = build_yolo_dataset(get_cfg(overrides={"imgsz": 32}), found["unlabeled"], 4, found, mode="train")
    assert [int(Path(name).stem) for name in dataset.im_files] == numbers(file, "unlabeled")


def test_the_table_tells_images_boxes_and_missing_classes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("mlc_yolo.data.split.LOGGER.info", said.append)
    files = split(data, percent=(5, 50), folds=1, output=tmp_path / "out")
    title, head, *lines = said[0].splitlines()
    assert title == f"40 training images -> {tmp_path / 'out'}"
    assert head.split("  ")[0] == "split" and head.endswith("labelled images  boxes  classes missing")
    for file, line in zip(files, lines, strict=True):
        drawn = [TRAIN[i] or [] for i in numbers(file)]
        missing = [name for label, name in enumerate(NAMES) if not any(label in each for each in drawn)]
        stem, images, boxes, rest = line.split(maxsplit=3)
        assert (stem, int(images), int(boxes)) == (file.stem, len(drawn), sum(map(len, drawn)))
        assert rest == (f"{len(missing)}: {', '.join(missing)}" if missing else "none")


# What is drawn


def test_every_class_keeps_an_image(data: Path, tmp_path: Path) -> None:
    for file in split(data, percent=10, folds=20, output=tmp_path / "out"):
        assert {label for i in numbers(file) for label in TRAIN[i] or []} == {0, 1, 2, 3}


def test_the_draw_depends_on_seed_percent_and_fold_alone(data: Path, tmp_path: Path) -> None:
    first = split(data, percent=(20, 30), folds=3, output=tmp_path / "a")
    elsewhere = write_set(tmp_path / "moved" / "other")
    again = split(elsewhere, percent=30, folds=2, output=tmp_path / "b")
    assert [numbers(file) for file in again] == [numbers(file) for file in first[3:5]]
    other = split(data, percent=(20, 30), folds=3, seed=1, output=tmp_path / "c")
    drawn = [tuple(numbers(file)) for file in (*first, *other)]
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn[0]) <= set(drawn[3])  # independent draws: 20 % is no part of 30 %


def test_these_images_were_drawn_in_every_version(data: Path, tmp_path: Path) -> None:
    (file,) = split(data, percent=10, folds=1, output=tmp_path / "out")
    assert numbers(file) == GOLDEN


def test_a_common_class_gives_way_to_rare_ones_by_hand() -> None:
    # Three classes with one image each among 100: a draw of four must hold these three and a common one.
    classes = [Counter({0: 1})] * 97 + [Counter({1: 1}), Counter({2: 5}), Counter({3: 1})]
    for seed in range(20):
        drawn = draw(classes, 4, random.Random(seed))
        assert drawn[1:] == [97, 98, 99] and drawn[0] < 97


def test_one_image_of_several_missing_classes_brings_them_all() -> None:
    # Two images have to do for four classes: 500, which has three of them, and one of class 0.
    classes = [Counter({0: 1})] * 500 + [Counter({1: 1, 2: 1, 3: 1}), *(Counter({label: 1}) for label in (1, 2, 3))]
    for seed in range(20):
        drawn = draw(classes, 2, random.Random(seed))
        assert drawn[0] < 500 and drawn[1] == 500


def test_an_image_is_not_swapped_for_one_that_is_worth_no_more() -> None:
    for seed in range(20):
        order = list(range(3))
        random.Random(seed).shuffle(order)
        assert draw([Counter({label: 1}) for label in range(3)], 2, random.Random(seed)) == sorted(order[:2])


def test_images_that_need_not_change_stay_as_drawn() -> None:
    order = list(range(200))
    random.Random(3).shuffle(order)
    assert draw([Counter({0: 1}), Counter({1: 2})] * 100, 20, random.Random(3)) == sorted(order[:20])


def test_background_images_are_drawn_as_often_as_others() -> None:
    classes = [Counter[int]()] * 100 + [Counter({0: 1})] * 100
    share = np.mean([i < 100 for seed in range(50) for i in draw(classes, 20, random.Random(seed))])
    assert 0.45 < share < 0.55


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 6), max_size=3), min_size=1, max_size=25), st.integers(1, 25), st.integers(0, 1000)
)
def test_a_draw_has_its_size_and_misses_no_more_than_a_plain_one(images: list[set[int]], count: int, seed: int) -> None:
    count = min(count, len(images))
    classes = [Counter(each) for each in images]
    drawn = draw(classes, count, random.Random(seed))
    assert len(set(drawn)) == count and drawn == sorted(drawn) and set(drawn) <= set(range(len(images)))
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)
    assert len(set().union(*(images[i] for i in drawn))) >= len(set().union(*(images[i] for i in order[:count])))
    if count >= 7:  # one for each class there is
        assert set().union(*(images[i] for i in drawn)) == set().union(*images)


# What it reads


@pytest.mark.parametrize("form", ["folder", "list", "dotted list", "several", "images of a link"])
def test_train_may_be_any_source_of_ultralytics(form: str, tmp_path: Path) -> None:
    root = tmp_path / "a set"
    data = write_set(root)
    files = sorted((root / "images" / "train").iterdir())
    train: str | list[str] = "images/train"
    if form == "list":
        (root / "train.txt").write_text("".join(f"{file}\n" for file in reversed(files)))
        train = "train.txt"
    elif form == "dotted list":
        lines = [f"./images/train/{file.name}" for file in files]
        (root / "train.txt").write_text("\ufeff" + "\n".join([*lines, lines[0]]), encoding="utf-8")
        train = "train.txt"
    elif form == "several":
        (root / "train.txt").write_text("".join(f"{file}\n" for file in files[20:]))
        (root / "first.txt").write_text("".join(f"{file}\n" for file in files[:25]))
        train = ["first.txt", "train.txt"]
    elif form == "images of a link":
        files[0].rename(tmp_path / "elsewhere.png")
        files[0].symlink_to(tmp_path / "elsewhere.png")  # its labels are still those beside the link
    data.write_text(yaml.safe_dump({**content(data), "train": train}))
    (file,) = split(data, percent=10, folds=1, output=tmp_path / "out")
    assert sorted(listed(file, "train") + listed(file, "unlabeled")) == [str(each) for each in files]
    assert numbers(file) == GOLDEN


def test_files_that_are_no_images_are_left_out(tmp_path: Path) -> None:
    files = write_images(tmp_path, "train", [[0], [0]])
    (tmp_path / "images" / "train" / "notes.txt").write_text("x")
    (tmp_path / "images" / "train" / "deeper").mkdir()
    deeper = files[1].rename(tmp_path / "images" / "train" / "deeper" / "1.PNG")
    assert list_images(str(tmp_path / "images" / "train")) == [files[0], deeper]


def test_a_set_named_data_yaml_has_its_folders_name(data: Path, tmp_path: Path) -> None:
    data = data.rename(data.with_name("data.yaml"))
    (file,) = split(data, percent=10, folds=1, output=tmp_path / "out")
    assert file.stem == "my pets-10pct-fold0"
    (again,) = split(data.parent, percent=10, folds=1, output=tmp_path / "out")
    assert again == file


def test_a_split_can_be_split_again(data: Path, tmp_path: Path) -> None:
    (half,) = split(data, percent=50, folds=1, output=tmp_path / "out")
    (part,) = split(half, percent=20, folds=1, output=tmp_path / "out")
    assert len(listed(part, "train")) == 4 and set(listed(part, "train")) < set(listed(half, "train"))
    assert sorted(listed(part, "train") + listed(part, "unlabeled")) == listed(half, "train")


# Arguments and wrong input


@pytest.mark.parametrize("percent", ["5,10", "5, 10.0", (5, 10), [5.0, 10], ["5", "10"], (5, 10, 5)])
def test_percents_are_numbers_or_a_text(percent: Any, data: Path, tmp_path: Path) -> None:
    written = split(data, percent=percent, folds="1", output=tmp_path / "out")
    assert [file.stem for file in written] == ["pets-5pct-fold0", "pets-10pct-fold0"]


@pytest.mark.parametrize("percent", [0, 100, -5, "ten", "5,,10", "", (), True, None, float("nan"), (5, 200), "5;10"])
def test_a_wrong_percent_is_refused(percent: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="percent takes numbers between 0 and 100"):
        split(data, percent=percent, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("percent", [1, 99.5])
def test_a_percent_that_leaves_a_part_empty_is_refused(percent: float, data: Path, tmp_path: Path) -> None:
    count = 0 if percent == 1 else 40
    with pytest.raises(ValueError, match=rf"percent={percent:g} of 40 training images is {count}"):
        split(data, percent=(10, percent), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("folds", 0), ("folds", 1.5), ("folds", True), ("seed", "x"), ("seed", None)]
)
def test_folds_and_seed_are_whole_numbers(name: str, value: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        split(data, output=tmp_path / "out", **{name: value})


def test_a_second_time_changes_nothing(data: Path, tmp_path: Path) -> None:
    written = split(data, percent=10, folds=2, output=tmp_path / "out")
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "out").iterdir()}
    assert split(data, percent=10, folds=2, output=tmp_path / "out") == written
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "out").iterdir()} == before


def test_other_content_is_never_written_over(data: Path, tmp_path: Path) -> None:
    split(data, percent=10, folds=1, output=tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(FileExistsError, match=r"pets-10pct-fold0-labeled\.txt exists with other content"):
        split(data, percent=(5, 10), folds=1, seed=1, output=tmp_path / "out")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_set_without_labels_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data.parent / "labels")
    with pytest.raises(ValueError, match="No labels for the 40 training images"):
        split(data, percent=10, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line", ["4 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "1.5 .5 .5 .1 .1", "dog .5 .5 .1 .1", "nan 0 0 1 1"]
)
def test_an_image_with_a_wrong_class_is_left_out_as_in_training_and_named(
    line: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data.parent / "labels" / "train" / "007.txt").write_text(f"0 .5 .5 .1 .1\n\n{line}\n")
    with caplog.at_level("WARNING", "ultralytics"):
        written = split(data, percent=10, folds=1, output=tmp_path / "out")
    assert "007.txt, line 3: expected a class from 0 to 3, got" in caplog.text
    assert "007.png" not in [file.name for lists in both_lists(written[0]) for file in lists]


def test_an_image_with_labels_of_another_encoding_is_left_out_as_in_training_and_named(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data.parent / "labels" / "train" / "007.txt").write_bytes("0 .5 .5 .1 .1 # Dürüm".encode("latin-1"))
    with caplog.at_level("WARNING", "ultralytics"):
        written = split(data, percent=10, folds=1, output=tmp_path / "out")
    assert "007.txt is not in UTF-8" in caplog.text
    assert "007.png" not in [file.name for lists in both_lists(written[0]) for file in lists]


def test_an_image_that_no_list_can_name_is_left_out_and_shown(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = data.parent / "images" / "train"
    strange = os.fsencode(images) + b"/caf\xe9.png"
    try:
        os.rename(images / "007.png", strange)
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    with caplog.at_level("WARNING", "ultralytics"):
        written = split(data, percent=10, folds=1, output=tmp_path / "out")
    assert "caf\\udce9.png is not in UTF-8" in caplog.text
    assert sum(len(lists) for lists in both_lists(written[0])) == 39


def test_blanks_in_a_list_hide_an_image_as_in_training_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_set(tmp_path, train="train.txt")
    names = [f"./images/train/{i:03d}.png" for i in range(40)]
    names[3] += "  "
    (tmp_path / "train.txt").write_text("\r\n".join(names), newline="")
    with caplog.at_level("WARNING", "ultralytics"):
        written = split(data, percent=10, folds=1, output=tmp_path / "out")
    assert "train.txt: 1 paths begin or end with blanks, such as './images/train/003.png  '" in caplog.text
    described = check_det_dataset(str(data))
    arguments = get_cfg(overrides={"imgsz": 32, "task": "detect", "data": str(data)})
    trained = build_yolo_dataset(arguments, described["train"], 2, described, mode="val").im_files
    assert sorted(str(file) for lists in both_lists(written[0]) for file in lists) == trained and len(trained) == 39


def test_a_listed_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = write_set(tmp_path, train="train.txt")
    (tmp_path / "train.txt").write_text("./images/train/000.png\n./images/train/gone.png\n")
    with pytest.raises(ValueError, match=r"1 images of .*train\.txt do not exist, .*gone\.png among them"):
        split(data, percent=50, output=tmp_path / "out")


def test_a_source_that_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        list_images(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no images in"):
        list_images(str(tmp_path))


def test_a_data_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        split(tmp_path / "nothing.yaml", output=tmp_path / "out")
