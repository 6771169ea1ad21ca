"""The example programs run on the demo set with a tiny budget."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tutorial_desk import TINY

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_an_assigner_of_ones_own_trains_and_is_drawn(desk: Path) -> None:
    pictures = _load("own_assigner").main("mine.yaml", "yolo11n.pt", **TINY, val=False)
    assert pictures and all(picture.is_file() for picture in pictures)


@pytest.mark.slow
def test_variants_are_compared_from_python_and_written_as_a_page(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = _load("compare_variants").main("mine.yaml", "yolo11n.pt", **TINY, seed=[0])
    assert said.startswith("assigner=mlc: AP ")
    assert Path(capfd.readouterr().out.rpartition("page: ")[2].splitlines()[0]).is_file()
