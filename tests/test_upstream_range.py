"""The versions of Ultralytics that are asked for, tested and installed are the same ones, wherever they are written."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import ultralytics

from mlc_yolo import upstream as compat

ROOT = Path(__file__).resolve().parents[1]


def _found(pattern: str, file: str) -> str:
    """What the pattern's group matches, the one time that it does."""
    (found,) = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), flags=re.M)
    return str(found)


def test_the_package_asks_for_the_tested_range() -> None:
    assert _found(r'^  "ultralytics>=([^,]+),', "pyproject.toml") == compat.LOWEST
    assert _found(r'^  "ultralytics>=[^,]+,<([^"]+)"', "pyproject.toml") == compat.BELOW


def test_tests_are_installed_with_the_newest_and_run_beside_the_oldest_too() -> None:
    assert _found(r"^ultralytics==(\S+)", "constraints.txt") == compat.NEWEST
    clean = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "ULTRALYTICS"}}
    planned = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
    ).stdout
    assert f'v("ultralytics") == "{compat.LOWEST}"' in planned
    (run,) = [line for line in planned.splitlines() if "tests/test_upstream" in line]
    assert run.startswith(f'PYTHONPATH="{ROOT}/build/ultralytics-{compat.LOWEST}"')


@pytest.mark.parametrize(
    ("version", "said"),
    [(compat.LOWEST, 0), (compat.NEWEST, 0), ("8.4.169", 1), ("8.4.1000", 1), ("8.5.0", 1), ("9.0", 1)],
)
def test_an_untested_version_is_warned_of_once(
    version: str, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ultralytics, "__version__", version)
    compat.warn_if_untested.cache_clear()
    compat.warn_if_untested()
    compat.warn_if_untested()
    compat.warn_if_untested.cache_clear()
    warnings = [record.getMessage() for record in caplog.records if "was tested with" in record.getMessage()]
    assert len(warnings) == said
    assert all(f"Ultralytics {version} is installed" in each and compat.NEWEST in each for each in warnings)
