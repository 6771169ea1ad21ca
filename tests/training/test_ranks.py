"""The normalisers of a step are summed over ranks at once, whatever is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from semi_steps import batch, learner, net, photos, semi, step, supervised

from mlc_yolo.training.ranks import Pending, joined


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each all-reduce of two ranks summed; the other rank has the same ones."""
    seen: list[int] = []

    def double(counts: torch.Tensor) -> None:
        seen.append(counts.numel())
        counts *= 2

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", double)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("name", "assigner"), [("yolo11", "mlc"), ("yolo26", "mlc"), ("yolo11", "tal"), ("fcos", "")])
def test_a_supervised_step_asks_the_other_ranks_once(name: str, assigner: str, sums: list[int]) -> None:
    model = learner(name)
    supervised(model, assigner)(model(photos(seed=3)), batch())
    assert len(sums) == 1
    with torch.no_grad():
        supervised(model, assigner)(model(photos(seed=3)), batch())
    assert len(sums) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11", "yolo26", "retinanet"])
@pytest.mark.parametrize("mode", ["pseudo", "soft", "sed"])
def test_a_step_with_images_without_labels_asks_the_other_ranks_once(name: str, mode: str, sums: list[int]) -> None:
    student, teacher = learner(name), net(name)
    step(semi(student, teacher, mode), student, batch(photos(), photos(seed=9)))
    assert len(sums) == 1


@pytest.mark.parametrize("mode", ["pseudo", "sed"])
def test_two_equal_ranks_have_the_losses_of_one(mode: str, sums: list[int]) -> None:
    """Normalised by the mean over ranks, times the mean of their images."""
    student, teacher = learner("yolo11"), net("yolo11")
    together, _ = step(semi(student, teacher, mode), student, batch(photos(), photos(seed=9)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: False)
        alone, _ = step(semi(student, teacher, mode), student, batch(photos(), photos(seed=9)))
    assert len(sums) == 1
    torch.testing.assert_close(together, alone)


def test_images_count_for_what_is_learned_without_labels_as_the_ranks_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ranks with 2 and 4 labelled images both multiply by 3, as the supervised loss does."""
    student, teacher = learner("yolo11"), net("yolo11")
    alone, _ = step(semi(student, teacher), student, batch(photos(), photos(seed=9)))

    def other(counts: torch.Tensor) -> None:
        images = counts[-1].item()
        counts *= 2
        counts[-1] = images + 4

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", other)
    uneven, _ = step(semi(student, teacher), student, batch(photos(), photos(seed=9)))
    assert alone[-3:].abs().sum() > 0
    torch.testing.assert_close(uneven[-3:], 1.5 * alone[-3:])


def test_without_counts_nobody_is_asked(sums: list[int]) -> None:
    parts: list[Pending[Any]] = [Pending(torch.zeros(0), lambda _: 1), Pending(torch.zeros(0), lambda _: 2)]
    assert joined(parts).over_ranks() == [1, 2] and not sums
