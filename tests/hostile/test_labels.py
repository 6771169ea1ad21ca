"""Label files: each is read, or named in the log with what is wrong."""

from __future__ import annotations

import codecs
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from .reading import NAMES, Found, encoded, read

IMAGE = encoded(".png")
GOOD = "1 0.5 0.5 0.4 0.4"

NUMBERS = st.one_of(
    st.floats(0, 1).map(lambda value: f"{value:.6f}"),
    st.sampled_from(
        ["nan", "inf", "-inf", "-0.5", "-0.004", "1.005", "1.02", "1e400", "1e-45", "2147483648", "0", "-0", "1,5"]
    ),
)
CLASSES = st.one_of(
    st.sampled_from(["0", "1", "2"]),
    st.sampled_from(["0", "1", "2", "3", "2.0", "1.5", "-1", "2147483648", "9" * 30, "nan", "inf", "cat", "0x1"]),
)
FRACTIONS = st.floats(0, 1).map(lambda value: f"{value:.6f}")
SOUND = st.tuples(st.sampled_from(["0", "1", "2"]), *[FRACTIONS] * 4).map(" ".join)
ODD = st.tuples(CLASSES, st.lists(NUMBERS, min_size=4, max_size=4)).map(lambda row: " ".join([row[0], *row[1]]))
SHORT_OR_LONG = st.lists(NUMBERS, max_size=9).map(" ".join)
#: Rows of a file: most are sound, so that one wrong row is seen among right ones.
ROWS = st.lists(st.one_of(*[SOUND] * 6, ODD, ODD, SHORT_OR_LONG), max_size=4)


@st.composite
def label_files(draw: st.DrawFn) -> tuple[bytes, int]:
    """The bytes of a label file, and how many rows a reader sees if it can read them at all."""
    rows = draw(ROWS)
    if rows and draw(st.booleans()):
        rows.append(draw(st.sampled_from(rows)))  # a box given twice
    end = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    text = end.join(rows) + draw(st.sampled_from(["", end, " ", "\x1a"]))
    content = text.encode(draw(st.sampled_from([*["utf-8"] * 6, "utf-8-sig", "utf-16"])))
    if draw(st.integers(0, 5)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return content, rows_of(content)


def rows_of(content: bytes) -> int:
    """How many rows a reader sees; none in a mark of byte order that was cut off, in which no label can be."""
    if codecs.BOM_UTF8.startswith(content):
        return 0
    return sum(bool(line.strip()) for line in content.decode("utf-8-sig", errors="replace").splitlines())


def folder(files: list[bytes]) -> Path:
    """A folder of one sound image, and one beside each of these label files."""
    root = Path(tempfile.mkdtemp())
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for name, content in {"sound": f"{GOOD}\n".encode(), **{f"case{i}": each for i, each in enumerate(files)}}.items():
        (root / "images" / f"{name}.png").write_bytes(IMAGE)
        (root / "labels" / f"{name}.txt").write_bytes(content)
    return root


def read_all(files: list[bytes], mode: str = "val") -> Found:
    root = folder(files)
    try:
        return read(root / "images", mode)
    finally:
        shutil.rmtree(root)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(files=st.lists(label_files(), min_size=1, max_size=12), mode=st.sampled_from(["train", "val"]))
@example(files=[(b"\xef", 0), (b"\xef\xbb", 0)], mode="train")
def test_no_label_vanishes_without_a_word(tried: Counter[str], files: list[tuple[bytes, int]], mode: str) -> None:
    found = read_all([content for content, _ in files], mode)
    assert not found.errors
    for i, (_, rows) in enumerate(files):
        image = f"case{i}.png"
        objects = found.objects.get(image)
        if objects is None:
            tried["refused"] += 1
            assert f"{image}: ignoring corrupt image/label: " in found.said
            continue
        tried["read"] += 1
        assert len(objects) == rows or f"{image}: {rows - len(objects)} duplicate labels removed" in found.said
        assert np.isin(objects[:, 0], list(NAMES)).all()
        assert np.isfinite(objects).all() and (objects[:, 1:] >= -0.01).all() and (objects[:, 1:] <= 1.01).all()
        if not_in_image(objects):
            tried["warned of"] += 1
            assert "have no area inside their image" in found.said


def not_in_image(objects: np.ndarray) -> bool:
    centre, half = objects[:, 1:3], objects[:, 3:] / 2
    return bool((np.minimum(centre + half, 1) <= np.maximum(centre - half, 0)).any())


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0 nan 0.5 0.2 0.2", "out of bounds coordinates"),
        (b"0 inf 0.5 0.2 0.2", "out of bounds coordinates"),
        (b"0 0.5 0.5 -0.2 0.2", "negative label values"),
        (b"0 0.5 0.5 30 40", "out of bounds coordinates"),
        (b"0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2", "1 duplicate labels removed"),
        (b"2147483648 0.5 0.5 0.2 0.2", "Label class 2147483648 exceeds dataset class count 3"),
        (b"3 0.5 0.5 0.2 0.2", "Label class 3 exceeds dataset class count 3"),
        (b"inf 0.5 0.5 0.2 0.2", "ignoring corrupt image/label"),
        (b"0 0.5 0.5 0.2 0.2\n0 0.5 0.", "ignoring corrupt image/label"),
        (b"0 0.5 0.5 0.2", "labels require 5 columns, 4 columns detected"),
        ("0 0.5 0.5 0.2 0.2".encode("utf-16"), "ignoring corrupt image/label: 'utf-8' codec"),
        (b"\0" * 64, "ignoring corrupt image/label"),
    ],
)
def test_what_is_wrong_with_a_label_file_is_said(tried: Counter[str], content: bytes, message: str, mode: str) -> None:
    found = read_all([content], mode)
    tried["refused"] += 1
    assert "case0.png" in found.said and message in found.said


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf1 0.5 0.5 0.4 0.4\n",
        b"1 0.5 0.5 0.4 0.4\r\n",
        b"\r\n\r\n  1\t0.5 0.5  0.4 0.4 \r\n\r\n",
        b"1.0 0.5 0.5 0.4 0.4",
        b"1 5e-1 .5 0.4 00.4",
    ],
)
def test_the_same_box_written_otherwise_is_the_same_box(tried: Counter[str], content: bytes) -> None:
    found = read_all([content])
    tried["read"] += 1
    assert np.array_equal(found.objects["case0.png"], found.objects["sound.png"])


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t", b"\xef\xbb\xbf"])
def test_an_empty_label_file_is_an_image_without_objects(tried: Counter[str], content: bytes) -> None:
    found = read_all([content])
    tried["read"] += 1
    assert len(found.objects["case0.png"]) == 0 and len(found.samples) == 2


@pytest.mark.parametrize(
    "row", ["0 0.5 0.5 0 0.2", "0 0.5 0.5 0 0", "0 1.005 0.5 0.004 0.2", "0 -0.005 0.5 0.004 0.2", "0 0.5 0.5 1e-9 0.2"]
)
def test_a_box_without_area_in_the_image_is_warned_of(tried: Counter[str], row: str) -> None:
    found = read_all([f"{GOOD}\n{row}\n".encode()])
    tried["warned of"] += 1
    assert "1 boxes in 1 images have no area inside their image, the first in " in found.said
    assert "case0.png: training ignores them" in found.said


def test_sound_labels_are_not_warned_of() -> None:
    assert "no area" not in read_all([b"0 0.5 0.5 1 1\n1 0 0 1 1\n2 0.5 0.5 0.001 0.001"]).said


def test_a_folder_of_nothing_but_broken_labels_says_why(tried: Counter[str]) -> None:
    root = folder([])
    (root / "labels" / "sound.txt").write_text("0 nan 0 0 0")
    with pytest.raises(RuntimeError, match=r"(?s)No valid images found in .*sound.png: ignoring corrupt"):
        read(root / "images", "train")
    tried["refused"] += 1
    shutil.rmtree(root)
