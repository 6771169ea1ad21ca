"""Assigners beside Ultralytics' own on the same inputs: time, peak memory, and how both grow. `make bench`."""

from __future__ import annotations

import pytest
import torch
from ultralytics.utils.tal import TaskAlignedAssigner

from mlc_yolo.assigners import Predictions, Targets, build_assigner
from mlc_yolo.assigners.objects import flatten_targets
from mlc_yolo.assigners.pairs import pairs_inside
from mlc_yolo.options import specification as options
from mlc_yolo.priors import Priors, grid_priors

from .measuring import DEVICE, MIB, ON_GPU, Run, memory, show, synchronizations, timed

Scene = tuple[Predictions, Priors, Targets]

ASSIGNERS = ["tal", "max_iou", "fcos", "atss", "mutual_guidance", "mlc", "ddod"]
#: No pair that is no candidate may cost memory in these. ATSS looks for each object's nearest points among all.
SPARSE = [name for name in ASSIGNERS if name != "atss"]
CLASSES = 80


def _scene(
    objects: int, *, batch: int, size: int = 640, strides: tuple[int, ...] = (8, 16, 32), side: float = 300
) -> Scene:
    """Objects anywhere, sides from 4 to `side` + 4 px, small ones more often; a predicted box about every anchor."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    priors = grid_priors([(size // s, size // s) for s in strides], strides)
    corner, sides = random(batch, objects, 2) * 0.8 * size, random(batch, objects, 2).square() * side + 4
    boxes = torch.cat((corner, (corner + sides).clamp(max=size)), -1)
    labels = torch.randint(CLASSES, (batch, objects), generator=generator)
    scores = random(batch, len(priors), CLASSES) ** 3
    reach = random(batch, len(priors), 4) * 6 * priors.strides[:, None]
    decoded = torch.cat((priors.points - reach[..., :2], priors.points + reach[..., 2:]), -1)
    priors = grid_priors([(size // s, size // s) for s in strides], strides, device=DEVICE)
    return (
        Predictions(scores.to(DEVICE), decoded.to(DEVICE)),
        priors,
        Targets(labels.to(DEVICE), boxes.to(DEVICE), torch.ones(labels.shape, device=DEVICE)),
    )


def _ours(name: str, scene: Scene) -> Run:
    assigner = build_assigner(name, options.settle(options.defaults()))
    return lambda: assigner(*scene)


def _upstream(scene: Scene) -> Run:
    predictions, priors, targets = scene
    strides = priors.strides.unique().tolist()
    assigner = TaskAlignedAssigner(topk=10, num_classes=CLASSES, alpha=0.5, beta=6.0, stride=strides)
    labels, mask = targets.labels[..., None], targets.valid[..., None].float()
    return lambda: assigner(predictions.scores, predictions.boxes, priors.points, labels, targets.boxes, mask)


@pytest.mark.parametrize("objects", [20, 100, 300])
def test_assigners_against_upstream(objects: int, capsys: pytest.CaptureFixture[str]) -> None:
    scene = _scene(objects, batch=16)
    runs = {"upstream TAL": _upstream(scene), **{name: _ours(name, scene) for name in ASSIGNERS}}
    timing = timed(runs, rounds=5)
    memories = {name: memory(run) for name, run in runs.items()}
    show(capsys, f"assigners, B 16, 640 px, K {CLASSES}, M {objects}", timing, memories)
    with capsys.disabled():
        print("  host synchronisations per call:", {name: synchronizations(run) for name, run in runs.items()})
    assert timing.ratios["mlc"] < 1 and memories["mlc"].peak < memories["upstream TAL"].peak


def _growing(what: str) -> dict[str, Scene]:
    """Scenes with more and more objects or anchors, by what there is how much of, and the pairs of point in object."""
    if what == "M":
        scenes = {f"M {objects}": _scene(objects, batch=4) for objects in (20, 100, 300, 1000)}
    else:
        p2 = (4, 8, 16, 32)
        scenes = {
            "640 px": _scene(50, batch=2),
            "1,280 px": _scene(50, batch=2, size=1280),
            "640 px, P2": _scene(50, batch=2, strides=p2),
            "1,280 px, P2": _scene(50, batch=2, size=1280, strides=p2),
        }
        scenes = {f"A {len(scene[1]):,} ({label})": scene for label, scene in scenes.items()}
    return {f"{label}, {_inside(scene):,} inside": scene for label, scene in scenes.items()}


def _inside(scene: Scene) -> int:
    """Count the pairs of an object and a point in it."""
    _, priors, targets = scene
    return len(pairs_inside(flatten_targets(targets), priors.points))


@pytest.mark.parametrize("name", ["upstream", *ASSIGNERS])
@pytest.mark.parametrize("what", ["M", "A"])
def test_growth(what: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = _growing(what)
    runs = {label: _upstream(s) if name == "upstream" else _ours(name, s) for label, s in scenes.items()}
    timing, memories = timed(runs, rounds=3), {label: memory(run) for label, run in runs.items()}
    show(capsys, f"{name}, growth with {what}", timing, memories)
    assert min(timing.milliseconds.values()) > 0


@pytest.mark.skipif(ON_GPU, reason="single allocations are seen on a CPU only")
@pytest.mark.parametrize("name", SPARSE)
def test_nothing_of_size_b_m_a_is_made_where_candidates_are_few(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    batch, objects = 2, 300
    scene = _scene(objects, batch=batch, size=1280, strides=(4, 8, 16, 32), side=60)
    everything = batch * objects * len(scene[1])
    used = memory(_ours(name, scene))
    title = f"{name}, P2 at 1,280 px, M {objects}, sides to 64 px, B x M x A bools are {everything / MIB:.0f} MiB"
    show(capsys, title, memories={name: used})
    assert used.largest < everything  # a byte an element would be a tensor of bool
