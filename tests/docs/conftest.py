"""The desk of the tutorials' reader, shared by all pages: one tiny model is trained once."""

from __future__ import annotations

from pathlib import Path

import pytest
import ultralytics.cfg
from tutorial_desk import lay_out
from ultralytics.utils import SETTINGS


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; what pages write stays there."""
    folder = tmp_path_factory.mktemp("desk")
    lay_out(folder)
    return folder


@pytest.fixture
def desk(laid_out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as the current one; runs go below it, as they would outside of pytest."""
    monkeypatch.chdir(laid_out)
    monkeypatch.setattr(ultralytics.cfg, "TESTS_RUNNING", False)
    monkeypatch.setitem(SETTINGS, "runs_dir", str(laid_out / "runs"))
    return laid_out
