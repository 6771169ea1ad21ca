"""Every example in a docstring of the pure core is executed."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import mlc_yolo.assigners
import mlc_yolo.losses

MODULES = [
    "mlc_yolo.boxes",
    "mlc_yolo.coding",
    "mlc_yolo.priors",
    *(
        f"{package.__name__}.{module.name}"
        for package in (mlc_yolo.assigners, mlc_yolo.losses)
        for module in pkgutil.iter_modules(package.__path__)
    ),
]
WITH_EXAMPLES = {
    "mlc_yolo.boxes",
    "mlc_yolo.coding",
    "mlc_yolo.priors",
    "mlc_yolo.assigners.candidates",
    "mlc_yolo.assigners.mutual_guidance",
    "mlc_yolo.assigners.otsu",
    "mlc_yolo.assigners.schedule",
    "mlc_yolo.losses.iou_rescoring",
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.failed == 0
    assert result.attempted > 0 or name not in WITH_EXAMPLES
