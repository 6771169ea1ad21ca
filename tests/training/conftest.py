"""Nets and images for the trainings of segmentation, pose and oriented boxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from task_sets import write_net, write_set


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function (task, family=11) -> YAML of a small net with that family's head of the task."""
    return partial(write_net, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function task -> data.yaml of four images."""
    return partial(write_set, tmp_path_factory.getbasetemp())
