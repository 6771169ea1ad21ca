"""Commands that list images themselves open what a training opens: a folder, a list, several, NDJSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from nets import SMALL
from ultralytics.data import converter

from mlc_yolo.data.datasets import CheckedDataset
from mlc_yolo.data.listing import image_files, printable
from mlc_yolo.data.resolve import open_data
from mlc_yolo.data.split import split
from mlc_yolo.demo import validation_images
from mlc_yolo.model import MLCYOLO


def with_val(data: Path, val: Any) -> str:
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({**content, "val": val}))
    return str(data)


def test_the_demo_shows_images_of_a_folder_a_list_or_several(own_data: Path) -> None:
    folder = own_data.parent / "images" / "val"
    (folder / "Thumbs.db").write_bytes(b"left by another program")
    expected = [str(folder / f"{number}.png") for number in range(3)]
    assert validation_images(with_val(own_data, "images/val"), 3) == expected
    listed = own_data.parent / "val.txt"
    listed.write_text("".join(f"./images/val/{number}.png\r\n" for number in range(4)), newline="")
    assert validation_images(with_val(own_data, "val.txt"), 3) == expected
    assert validation_images(with_val(own_data, ["val.txt", "images/train"]), 99)[-4:] == image_files(folder)


@pytest.fixture
def ndjson(own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[Any]]:
    """An NDJSON file that upstream's converter, which fetches images, would make `own_data` of; and its calls."""
    calls: list[Any] = []

    async def convert(source: Any, *, fraction: Any, split: Any) -> Path:
        calls.append((str(source), fraction, split))
        return own_data

    monkeypatch.setattr(converter, "convert_ndjson_to_yolo", convert)
    file = tmp_path / "set.ndjson"
    file.write_text('{"type": "dataset", "task": "detect", "class_names": {"0": "one"}}\n')
    return str(file), calls


def test_ndjson_is_converted_as_before_a_training(ndjson: tuple[str, list[Any]], own_data: Path) -> None:
    file, calls = ndjson
    assert open_data(file, fraction=0.5)["train"] == str(own_data.parent / "images" / "train")
    assert calls == [(file, 0.5, "val")]


def test_a_program_that_ndjson_leads_to_is_not_run(ndjson: tuple[str, list[Any]], own_data: Path) -> None:
    with_val(own_data, "images/gone")
    own_data.write_text(own_data.read_text() + "download: bash fetch.sh\n")
    with pytest.raises(ValueError, match="holds a program that would fetch it"):
        open_data(ndjson[0])


def test_ndjson_is_split(ndjson: tuple[str, list[Any]], tmp_path: Path) -> None:
    written = split(ndjson[0], percent=50, folds=1, output=tmp_path / "out")
    assert len(yaml.safe_load(written[0].read_text())["names"]) == 3


def test_the_demo_shows_images_of_ndjson(ndjson: tuple[str, list[Any]]) -> None:
    assert len(validation_images(ndjson[0], 2)) == 2


def test_a_training_names_the_list_in_which_blanks_hide_images(
    own_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = own_data.parent / "train.txt"
    listed.write_text("./images/train/0.png \n./images/train/1.png\n./images/train/2.png\n")
    with caplog.at_level("WARNING", "ultralytics"):
        dataset = CheckedDataset(img_path=str(listed), imgsz=64, augment=False, data=open_data(own_data))
    assert [Path(file).name for file in dataset.im_files] == ["1.png", "2.png"]
    assert f"{listed}: 1 paths begin or end with blanks" in caplog.text


def test_a_folder_of_photographs_alone_is_refused_before_a_run_folder_is_made(own_data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is a folder with none or several\. A data YAML names path, train"):
        MLCYOLO(SMALL).train(data=str(own_data.parent / "images"), project=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_names_that_are_not_in_utf8_can_be_shown() -> None:
    assert printable("caf\u00e9.png") == "caf\u00e9.png"
    assert printable(os.fsdecode(b"caf\xe9.png")) == "caf\\udce9.png"
