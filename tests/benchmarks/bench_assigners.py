"""Assigners beside Ultralytics' own, interleaved in one process; ratios last. `make bench`.

One row per assigner: median milliseconds and the ratio to upstream's TaskAlignedAssigner on the same inputs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from ultralytics.utils.tal import TaskAlignedAssigner

from mlc_yolo.assigners import Predictions, Targets, build_assigner
from mlc_yolo.engine import options
from mlc_yolo.priors import grid_priors

ASSIGNERS = ["tal", "max_iou", "fcos", "atss", "mutual_guidance", "mlc"]


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


@pytest.mark.parametrize("objects", [20, 100])
def test_assigners_against_upstream(objects: int, capsys: pytest.CaptureFixture[str]) -> None:
    batch, classes, size, rounds = 16, 80, 640, 5
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    priors = grid_priors([(size // s, size // s) for s in (8, 16, 32)], (8, 16, 32))
    corner, side = random(batch, objects, 2) * 500, random(batch, objects, 2).square() * 300 + 4
    boxes = torch.cat((corner, (corner + side).clamp(max=size)), -1)
    labels = torch.randint(classes, (batch, objects), generator=generator)
    scores = random(batch, len(priors), classes) ** 3
    reach = random(batch, len(priors), 4) * 6 * priors.strides[:, None]
    decoded = torch.cat((priors.points - reach[..., :2], priors.points + reach[..., 2:]), -1)
    predictions, targets = Predictions(scores, decoded), Targets(labels, boxes, torch.ones(labels.shape))

    upstream = TaskAlignedAssigner(topk=10, num_classes=classes, alpha=0.5, beta=6.0, stride=[8, 16, 32])
    mask = torch.ones(batch, objects, 1)
    runs = {"upstream": lambda: upstream(scores, decoded, priors.points, labels[..., None], boxes, mask)}
    for name in ASSIGNERS:
        assigner = build_assigner(name, options.settle(options.defaults()))
        runs[name] = lambda assigner=assigner: assigner(predictions, priors, targets)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_milliseconds(run))
    medians = {name: statistics.median(values) for name, values in times.items()}
    with capsys.disabled():
        print(f"\nB {batch}, {size} px, K {classes}, M {objects}, {torch.get_num_threads()} thread(s), {rounds} rounds")
        for name, median in medians.items():
            print(f"  {name:<16}{median:9.1f} ms   ratio {median / medians['upstream']:.2f}")
    assert all(value > 0 for value in medians.values())
