"""Two ranks learn from images without labels what one process learns from all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from semi_steps import batch, learner, net, photos, semi, step, supervised
from torch import Tensor, nn
from two_ranks import on_two_ranks

from mlc_yolo.training.semi_criterion import SemiLoss

NAMES = ["yolo11", "yolo26", "retinanet", "fcos"]

pytestmark = pytest.mark.usefixtures("narrow_backbones")
NONE = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}


def _blind_in_the_dark(_: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, dict[str, Any]]) -> None:
    """Let a teacher see nothing in black images."""
    decoded, raw = output
    dark = inputs[0].flatten(1).amax(1) == 0
    decoded[dark, 4:] = 0
    for branch in raw.values() if "one2many" in raw else [raw]:
        branch["scores"][dark] = -20


def _clear_threshold(name: str, weak: Tensor) -> float:
    """The middle of the widest gap between a teacher's best class scores: no rounding carries one across."""
    teacher = net(name)
    teacher.register_forward_hook(_blind_in_the_dark)
    with torch.no_grad():
        raw = teacher(weak)[1]
    scores = raw.get("one2one", raw)["scores"].sigmoid()  # (B, K, A) of a YOLO, (B, A, K) of others
    confidences = scores.amax(1 if name.startswith("yolo") else 2).flatten().sort(descending=True).values[4:41]
    gaps = confidences[:-1] - confidences[1:]
    widest = int(gaps.argmax())
    assert gaps[widest] > 1e-3  # fifty times what the outputs are moved by
    return float(confidences[widest] - gaps[widest] / 2)


def _nudged(amount: float, seed: int) -> Any:
    """A hook that moves a teacher's outputs at random, by far more than an order of summation does."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(_: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, dict[str, Any]]) -> None:
        decoded, raw = output
        branches = list(raw.values()) if "one2many" in raw else [raw]
        for part in (decoded, *(branch[key] for branch in branches for key in ("boxes", "scores"))):
            part += amount * torch.randn(part.shape, generator=generator)

    return nudge


class _Recording(SemiLoss):
    """Keeps the anchors whose boxes are trusted."""

    def _compare(self, student: Any, teacher: Any, trusted: Tensor, *rest: Any) -> Any:
        self.decided.append(trusted > 0)
        return super()._compare(student, teacher, trusted, *rest)


def _decisions(name: str, mode: str, weak: Tensor, strong: Tensor, threshold: float, seed: int | None) -> list[Tensor]:
    """What a step decides by comparing with thresholds: the boxes trusted, the labels' anchors."""
    student, teacher = learner(name), net(name)
    if seed is not None:
        teacher.register_forward_hook(_nudged(2e-5, seed))
    teacher.register_forward_hook(_blind_in_the_dark)
    criterion = semi(student, teacher, mode, threshold=threshold)
    criterion.__class__, criterion.decided = _Recording, []
    criterion.supervised = supervised(student, "fcos")
    schedule = criterion.supervised.schedule

    def spy(*inputs: Any) -> Any:
        assignment = schedule.main(*inputs)
        criterion.decided += [assignment.classification.role, assignment.localization.gt_index]
        return assignment

    criterion.supervised.schedule = replace(schedule, base=spy, main=spy)
    step(criterion, student, {**batch(weak, strong), "img": weak, **NONE})
    return criterion.decided


def _losses(name: str, mode: str, weak: Tensor, strong: Tensor, threshold: float) -> Tensor:
    student, teacher = learner(name), net(name)
    teacher.register_forward_hook(_blind_in_the_dark)
    criterion = semi(student, teacher, mode, threshold=threshold)
    if name == "yolo11":  # upstream's own assigner, run by upstream, normalises each rank by itself
        criterion.supervised = supervised(student, "fcos")
    return step(criterion, student, {**batch(weak, strong), "img": weak, **NONE})[0][-3:].detach()


def _over_two_ranks(
    cut: int, folder: Path, name: str, mode: str, weak: Tensor, strong: Tensor, threshold: float
) -> Tensor:
    """The sum of two ranks' losses, of which the first has `cut` images."""

    def share(rank: int) -> Tensor:
        own = slice(cut, None) if rank else slice(cut)
        return _losses(name, mode, weak[own], strong[own], threshold)

    return torch.stack(on_two_ranks(share, folder)).sum(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    # The one-to-one branch of a YOLO26 keeps upstream's assigner: its pseudo-labels have each rank's normaliser.
    [*((name, "sed") for name in NAMES), ("yolo11", "soft"), *((n, "pseudo") for n in NAMES if n != "yolo26")],
)
@pytest.mark.parametrize("blind", [False, True])
def test_two_ranks_equal_one_process(name: str, mode: str, blind: bool, tmp_path: Path) -> None:
    # Images whose teacher decides clearly, which the first part asserts.
    weak, strong = photos(2, seed=11 if name == "retinanet" else 1), photos(2, seed=9)
    if blind:  # the second rank's teacher
        weak[1] = 0
    threshold = _clear_threshold(name, weak) if mode == "pseudo" else 0.5
    decided = _decisions(name, mode, weak, strong, threshold, None)
    for seed in range(3):  # every value lies clear of its threshold: the order of sums decides nothing
        moved = _decisions(name, mode, weak, strong, threshold, seed)
        assert decided and all(torch.equal(*pair) for pair in zip(decided, moved, strict=True))
    expected = _losses(name, mode, weak, strong, threshold)
    got = _over_two_ranks(1, tmp_path, name, mode, weak, strong, threshold)
    assert expected[0] > 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sed", "dense", "pseudo"])
def test_uneven_ranks_equal_one_process(mode: str, tmp_path: Path) -> None:
    """One image with labels and one without here, two of each there: by the ranks' mean of images, not their own."""
    weak, strong = photos(3, seed=2), photos(3, seed=9)
    threshold = _clear_threshold("yolo11", weak) if mode == "pseudo" else 0.5
    expected = _losses("yolo11", mode, weak, strong, threshold)
    got = _over_two_ranks(1, tmp_path, "yolo11", mode, weak, strong, threshold)
    assert expected[0] > 0
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
