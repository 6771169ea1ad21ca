"""Locks where there are some, and what happens where there are none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mlc_yolo import locks
from mlc_yolo.compare import run
from mlc_yolo.paper.reproduce import COLUMNS, append_line

fcntl = pytest.importorskip("fcntl")


def _fail_with(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, errno.errorcode[number])

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_work_goes_on_and_that_is_said_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fail_with(number, monkeypatch)
    locks._say_once.cache_clear()
    with run._locked(tmp_path), run._locked(tmp_path):
        pass
    for row in ("a", "b"):
        append_line(tmp_path / "results.csv", {**dict.fromkeys(COLUMNS), "row": row})
    assert [line.split(",")[0] for line in (tmp_path / "results.csv").read_text().splitlines()] == ["row", "a", "b"]
    assert sum("No locks" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_only_contention_means_that_another_process_works(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(number, monkeypatch)
    with pytest.raises(RuntimeError, match="another process works"), run._locked(tmp_path):
        pass
