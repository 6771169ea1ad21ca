"""What one list of images shares with another is found whatever it is called, and nothing else is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mlc_yolo.data.shared_images import find_shared


def write(file: Path, content: bytes) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return str(file)


def test_links_and_hard_links_are_the_same_file_and_copies_have_the_same_content(tmp_path: Path) -> None:
    others = [write(tmp_path / "val" / f"{number}.png", b"%d" % number * 9) for number in range(4)]
    (tmp_path / "free").mkdir()
    symbolic, hard, copy = (str(tmp_path / "free" / f"{name}.png") for name in ("symbolic", "hard", "copy"))
    os.symlink(others[1], symbolic)
    os.link(others[2], hard)
    shutil.copy(others[3], copy)
    alone = write(tmp_path / "free" / "alone.png", b"9" * 9)  # as large as they are
    shared = find_shared([alone, copy, hard, others[0], symbolic], others)
    assert shared.same == [hard, others[0], symbolic] and shared.copies == [copy]
    assert len(shared) == 4 and shared.first == hard


def test_images_of_one_name_or_one_size_are_not_the_same(tmp_path: Path) -> None:
    others = [write(tmp_path / "val" / "1.png", b"first")]
    files = [write(tmp_path / "free" / "1.png", b"other"), write(tmp_path / "free" / "2.png", b"another")]
    assert not find_shared(files, others)


def test_what_is_missing_or_empty_is_passed_over(tmp_path: Path) -> None:
    empty = [write(tmp_path / name, b"") for name in ("a.png", "b.png")]
    gone = str(tmp_path / "gone.png")
    assert not find_shared([empty[0], gone], [empty[1], gone])
    assert not find_shared([], []) and not find_shared([write(tmp_path / "c.png", b"c")], [])


def test_only_files_of_a_size_that_occurs_are_read(tmp_path: Path) -> None:
    large = write(tmp_path / "large.png", b"large")
    others = [write(tmp_path / "small.png", b"s"), write(tmp_path / "same size.png", b"equal")]
    os.chmod(others[0], 0)  # no root would be refused; the content is never asked for
    assert not find_shared([large], others)
