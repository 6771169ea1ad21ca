"""The sampler of proposals: how many, which, uniformly, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from mlc_yolo.assigners import Role, TaskAssignment
from mlc_yolo.assigners.assignment import all_negative
from mlc_yolo.assigners.sampling import sample_balanced, sample_positives


def assignment(role: torch.Tensor, seed: int = 0) -> TaskAssignment:
    """Random objects, weights and qualities for the roles given."""
    generator = torch.Generator().manual_seed(seed)
    positive = role == Role.POSITIVE
    return TaskAssignment(
        gt_index=torch.randint(0, 5, role.shape, generator=generator).where(positive, -1),
        role=role.to(torch.int8),
        weight=(torch.rand(role.shape, generator=generator) + 0.1).where(role != Role.IGNORED, 0),
        quality=(torch.rand(role.shape, generator=generator) + 0.1).where(positive, 0),
    )


def random_assignment(seed: int, batch: int = 6, anchors: int = 60) -> TaskAssignment:
    """Images from hardly any to nearly only positives; the first has none, the second no negative."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.linspace(0.02, 0.9, batch)[:, None]
    draw = torch.rand(batch, anchors, generator=generator)
    role = torch.where(draw < share, Role.POSITIVE, Role.NEGATIVE)
    role[torch.rand(batch, anchors, generator=generator) < 0.2] = Role.IGNORED
    role[0, role[0] == Role.POSITIVE] = Role.NEGATIVE
    role[1, role[1] == Role.NEGATIVE] = Role.IGNORED
    return assignment(role, seed)


def counts(task: TaskAssignment, role: Role) -> list[int]:
    return (task.role == role).sum(1).tolist()


def equal(first: TaskAssignment, second: TaskAssignment) -> bool:
    return all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(TaskAssignment))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_negatives_fill_the_room_that_positives_leave() -> None:
    # Of 8: at most 4 positives. Rows: 6 positives and 6 negatives; 1 and 11; 6 and 2; none and 12; 12 and none.
    role = torch.zeros(5, 12, dtype=torch.int8)
    for image, (positives, ignored) in enumerate(((6, 0), (1, 0), (6, 4), (0, 0), (12, 0))):
        role[image, :positives] = Role.POSITIVE
        role[image, positives : positives + ignored] = Role.IGNORED
    sampled = sample_balanced(assignment(role), size=8, generator=generator())
    assert counts(sampled, Role.POSITIVE) == [4, 1, 4, 0, 4]
    assert counts(sampled, Role.NEGATIVE) == [4, 7, 2, 8, 0]
    assert counts(sampled, Role.IGNORED) == [4, 4, 6, 4, 8]


@pytest.mark.parametrize(
    ("size", "fraction"), [(16, 0.5), (9, 0.5), (10, 0.25), (7, 0.0), (7, 1.0), (500, 0.5), (0, 0.5)]
)
@pytest.mark.parametrize("seed", range(3))
def test_it_draws_as_many_as_torchvision(seed: int, size: int, fraction: float) -> None:
    task = random_assignment(seed)
    sampled = sample_balanced(task, size=size, positive_fraction=fraction, generator=generator(seed))
    # Torchvision's labels: -1 ignored, 0 negative, above 0 positive.
    labels = torch.where(task.role == Role.IGNORED, -1, task.role).long()
    positive, negative = BalancedPositiveNegativeSampler(size, fraction)(list(labels))
    assert counts(sampled, Role.POSITIVE) == [int(mask.sum()) for mask in positive]
    assert counts(sampled, Role.NEGATIVE) == [int(mask.sum()) for mask in negative]


@pytest.mark.parametrize("sample", [lambda t: sample_balanced(t, size=20), lambda t: sample_positives(t, limit=5)])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_drawn_stays_as_it_was_and_the_rest_is_ignored(seed: int, sample) -> None:
    task, untouched = random_assignment(seed), random_assignment(seed)
    sampled = sample(task)
    assert equal(task, untouched)
    kept = sampled.role != Role.IGNORED
    assert kept.any() and not kept.all()
    for field in fields(TaskAssignment):
        before, after = getattr(task, field.name), getattr(sampled, field.name)
        assert after.dtype == before.dtype
        assert torch.equal(after[kept], before[kept])
    assert (sampled.gt_index[~kept] == -1).all()
    assert (sampled.weight[~kept] == 0).all() and (sampled.quality[~kept] == 0).all()


def test_every_positive_and_every_negative_is_equally_likely() -> None:
    # 4,000 images alike: 3 of 12 positives and 6 of 20 negatives; five standard deviations either way.
    images = 4000
    role = torch.full((images, 40), int(Role.IGNORED))
    role[:, :12], role[:, 12:32] = Role.POSITIVE, Role.NEGATIVE
    sampled = sample_balanced(assignment(role), size=9, positive_fraction=0.34, generator=generator())
    drawn = (sampled.role != Role.IGNORED).sum(0)
    for anchors, chance in ((slice(0, 12), 3 / 12), (slice(12, 32), 6 / 20)):
        deviation = (images * chance * (1 - chance)) ** 0.5
        assert ((drawn[anchors] - images * chance).abs() < 5 * deviation).all()
    assert (drawn[32:] == 0).all()


def test_images_are_drawn_independently() -> None:
    role = torch.zeros(2, 100)
    role[:, :50] = Role.POSITIVE
    first, second = sample_positives(assignment(role), limit=10, generator=generator()).positive
    assert not torch.equal(first, second)


def test_positives_alone_are_limited_and_negatives_stay() -> None:
    # Rows: 5 positives, 1 negative, 0 ignored; 2, 3, 1; none.
    role = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 2], [0, 0, 0, 0, 0, 2]])
    task = assignment(role)
    sampled = sample_positives(task, limit=3, generator=generator())
    assert counts(sampled, Role.POSITIVE) == [3, 2, 0]
    assert torch.equal(sampled.role == Role.NEGATIVE, task.role == Role.NEGATIVE)
    assert not (sampled.positive & ~task.positive).any()


def test_a_limit_no_image_reaches_changes_nothing() -> None:
    task = random_assignment(0)
    assert equal(sample_positives(task), task)  # 128 of 60 anchors
    assert counts(sample_positives(task, limit=0), Role.POSITIVE) == [0] * 6


def test_fewer_anchors_than_asked_for_are_all_kept() -> None:
    role = torch.zeros(1, 10)
    role[0, :3], role[0, 9] = Role.POSITIVE, Role.IGNORED
    task = assignment(role)
    assert equal(sample_balanced(task), task)  # 256 of 10 anchors


def test_an_image_without_objects_gives_negatives_alone() -> None:
    sampled = sample_balanced(all_negative(2, 300, torch.device("cpu")), generator=generator())
    assert counts(sampled, Role.NEGATIVE) == [256, 256]
    assert counts(sampled, Role.IGNORED) == [44, 44]


@pytest.mark.parametrize(("batch", "anchors"), [(2, 0), (0, 5), (0, 0)])
def test_nothing_to_draw_from_gives_nothing(batch: int, anchors: int) -> None:
    task = all_negative(batch, anchors, torch.device("cpu"))
    for sampled in (sample_balanced(task), sample_positives(task)):
        assert sampled.role.shape == (batch, anchors) and sampled.role.dtype == torch.int8


def test_the_same_generator_draws_the_same_and_another_does_not() -> None:
    task = random_assignment(0)
    first, again, other = (sample_balanced(task, size=20, generator=generator(seed)) for seed in (0, 0, 1))
    assert equal(first, again) and not equal(first, other)


def test_without_a_generator_the_seed_of_torch_decides() -> None:
    task = random_assignment(0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = sample_balanced(task, size=20)
        torch.manual_seed(3)
        assert equal(first, sample_balanced(task, size=20))
