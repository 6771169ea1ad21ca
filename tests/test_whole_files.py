"""What is written is there whole or not at all, from one place, and JSON is JSON."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest

import mlc_yolo
from mlc_yolo import whole_files

#: Where values become text that is compared or hashed, not written.
HASHING = {"compare/grid.py", "data/resolve.py"}


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.pt"
    whole_files.write(file, b"old")
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda self, target: pytest.fail("not synced") if not synced else _fail())
    with pytest.raises(OSError, match=r"file\.pt could not be written: no space; file\.pt is as it was"):
        whole_files.write(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def _fail() -> None:
    raise OSError(28, "no space")


def test_a_file_that_was_not_there_is_not_there_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: _fail())
    with pytest.raises(OSError, match=r"could not be written: no space$"):
        whole_files.save(tmp_path / "file.pt", {})
    assert not list(tmp_path.iterdir())


def test_a_shared_file_is_written_beside_it_by_each_process_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    move = whole_files.move
    monkeypatch.setattr(whole_files, "move", lambda source, target: (names.append(source.name), move(source, target)))
    whole_files.write(tmp_path / "font.ttf", b"glyphs", shared=True)
    assert str(os.getpid()) in names[0]
    assert [file.name for file in tmp_path.iterdir()] == ["font.ttf"]


def test_text_keeps_its_line_ends_and_letters(tmp_path: Path) -> None:
    whole_files.write(tmp_path / "a.csv", "naïve\r\nœuf\n")
    assert (tmp_path / "a.csv").read_bytes() == "naïve\r\nœuf\n".encode()


def test_a_folder_is_there_once_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "set"
    with whole_files.folder(target) as new:
        (new / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stopped"), whole_files.folder(tmp_path / "set") as new:
        (new / "a.txt").write_text("a")
        raise ValueError("stopped")
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    target = tmp_path / "set"
    target.mkdir()
    with whole_files.folder(target) as new:
        (new / "a.txt").write_text("new")
    with pytest.raises(OSError), whole_files.folder(target) as new:
        (new / "a.txt").write_text("newer")
    assert (target / "a.txt").read_text() == "new"


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    content = {"a": [1.5, float("nan")], "b": {"c": (np.float64("inf"), -float("inf"))}, float("nan"): 0}
    whole_files.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    assert json.loads(text, parse_constant=refuse) == {"a": [1.5, None], "b": {"c": [None, None]}, "nan": 0}


def test_what_json_has_no_type_for_is_an_error_or_made_text() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        whole_files.json_text({"path": Path("a")})
    assert whole_files.json_text({"path": Path("a")}, default=str) == '{"path": "a"}'
    assert whole_files.json_text([object()], default=lambda _: float("nan")) == "[null]"


@pytest.mark.slow
def test_nothing_else_in_the_package_moves_files_into_place_or_writes_json() -> None:
    package = Path(mlc_yolo.__file__).parent
    calls: dict[str, set[str]] = {}
    for file in package.rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        calls[file.relative_to(package).as_posix()] = {ast.unparse(node.func) for node in nodes}
    own = calls.pop("whole_files.py")
    assert {"source.replace", "json.dumps", "tempfile.mkdtemp"} <= own, "the search sees what it is for"
    moving = {"os.replace", "os.rename", "os.fsync", "tempfile.mkdtemp", "json.dump"}
    assert {file: moving & called for file, called in calls.items() if moving & called} == {}
    assert {file for file, called in calls.items() if "json.dumps" in called} == HASHING
