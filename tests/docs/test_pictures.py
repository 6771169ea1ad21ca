"""The program that makes the pictures: it can start, and what it draws without training is what the pages show."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo.options.arguments import Arguments
from mlc_yolo.options.specification import defaults

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"


@pytest.fixture(scope="module")
def make() -> Iterator[Any]:
    """The program, imported as Python starts it: from its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PICTURES))
        yield importlib.import_module("make")
        for name in ("make", "drawings"):
            sys.modules.pop(name)


def test_what_is_drawn_without_a_model_is_what_the_pages_show(make: Any) -> None:
    drawn = {
        "seam.svg": make.seam(),
        "packages.svg": make.package_map(),
        "rank_inside.svg": make.gains(PICTURES / "rank_inside.csv"),
    }
    for name, picture in drawn.items():
        assert (PICTURES / name).read_text() == f"{picture}\n", f"{name} is old: make pictures"


def test_the_options_of_its_trainings_are_options(make: Any) -> None:
    assert make.GRID.keys() <= {*DEFAULT_CFG_DICT, *defaults()}
    for assigner in make.GRID["assigner"]:
        Arguments.of({**make.GRID, "assigner": assigner, "seed": 0}, trust=False)
