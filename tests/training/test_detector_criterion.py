"""The detectors' criterion against slow losses, and what it lets through to whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from detector_losses import reference_losses
from torch import Tensor

from mlc_yolo.assigners import (
    Assigner,
    Assignment,
    MutualLabeling,
    PointInBox,
    Predictions,
    Role,
    Schedule,
    Targets,
    TaskAssignment,
    build_assigner,
)
from mlc_yolo.assigners.assignment import all_negative
from mlc_yolo.detectors.config import complete
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.options import specification as options
from mlc_yolo.priors import Priors
from mlc_yolo.training.detector_criterion import DetectorLoss
from mlc_yolo.training.ranks import total_over_ranks

ASSIGNERS = ["own", "atss", "mutual_guidance", "mlc", "tal", "max_iou", "fcos"]
DETECTORS = [("retinanet", "iou"), ("fcos", "iou"), ("rpn", "iou")]
SIZE = (64, 96)

#: Rows of image, class, and centre and sides in fractions: large, small, overlapping; the second image is empty.
OBJECTS = [
    [0, 0, 0.30, 0.40, 0.40, 0.50],
    [0, 2, 0.70, 0.60, 0.30, 0.60],
    [0, 1, 0.35, 0.45, 0.12, 0.20],
    [2, 1, 0.50, 0.50, 0.90, 0.90],
    [2, 2, 0.25, 0.75, 0.30, 0.35],
]
SCENES = {"several": OBJECTS, "one": [[1, 1, 0.5, 0.5, 0.4, 0.6]], "empty": []}


def _batch(rows: list[list[float]]) -> dict[str, Tensor]:
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    return {"batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:]}


@cache
def _model(kind: str, quality: str, follows: str = "paper") -> DetectorModel:
    torch.manual_seed(0)
    classes = 1 if kind == "rpn" else 3
    config = {
        "detector": kind,
        "backbone": "resnet18",
        "width": 64 if kind == "fcos" else 32,
        "nc": classes,
        "quality": quality,
    }
    return DetectorModel(complete({**config, "follows": follows}), verbose=False)


def _raw(kind: str, quality: str, *, images: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Raw predictions as leaves: boxes near their priors, scores and qualities of every size."""
    generator = torch.Generator().manual_seed(seed)
    head = _model(kind, quality).head
    feats = [torch.empty(1, 1, -(-SIZE[0] // int(s)), -(-SIZE[1] // int(s))) for s in head.stride]
    priors = head.priors(feats, scale=5.0)
    boxes = torch.randn((images, len(priors), 4), generator=generator) * 0.3
    if kind == "fcos":
        boxes += (2 * priors.strides).log()[:, None]
    raw = {"boxes": boxes, "scores": torch.randn((images, len(priors), head.nc), generator=generator) * 2 - 1}
    if quality != "none":
        raw["quality"] = torch.randn((images, len(priors)), generator=generator)
    return {**{name: value.to(dtype).requires_grad_() for name, value in raw.items()}, "feats": feats}


def _assigner(kind: str, name: str, **changes: Any) -> Assigner:
    own = _model(kind, "iou").head.own_assigner
    ours = options.settle({**options.defaults(), **changes}, kind)
    return own if name == "own" else build_assigner(name, ours, own=own)


def _criterion(kind: str, quality: str, assigner: Assigner, *, follows: str = "paper", **gains: Any) -> DetectorLoss:
    return DetectorLoss(_model(kind, quality, follows), schedule=Schedule(assigner, assigner, 0), **gains)


def _rows(kind: str, scene: str) -> list[list[float]]:
    """An RPN knows one class."""
    return [[image, 0 if kind == "rpn" else label, *box] for image, label, *box in SCENES[scene]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[TaskAssignment, TaskAssignment]]]:
    """The assignments a criterion trains on, once its sampler drew."""
    seen: list[tuple[TaskAssignment, TaskAssignment]] = []
    original = DetectorLoss._assign

    def spy(self: DetectorLoss, *args: Any) -> tuple[TaskAssignment, TaskAssignment]:
        seen.append(original(self, *args))
        return seen[-1]

    monkeypatch.setattr(DetectorLoss, "_assign", spy)
    yield seen


def _one(task: TaskAssignment, image: int) -> TaskAssignment:
    return TaskAssignment(
        *(getattr(task, name)[image : image + 1] for name in ("gt_index", "role", "weight", "quality"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize(
    ("kind", "quality"), [*DETECTORS, ("fcos", "centerness"), ("fcos", "none"), ("retinanet", "none")]
)
def test_losses_equal_a_slow_reference(kind: str, quality: str, assigner: str, scene: str, drawn: list[Any]) -> None:
    raw, batch = _raw(kind, quality), _batch(_rows(kind, scene))
    decide = _assigner(kind, assigner)
    gains = {"iou_gain": 0.7, "align_gain": 0.4}
    losses, items = _criterion(kind, quality, decide, **gains)(raw, batch)
    left_over = None
    if kind == "rpn":  # what its sampler draws is random
        cls, loc = drawn[0]
        left_over = [Assignment(_one(cls, i), _one(loc, i)) for i in range(3)]
    expected = reference_losses(kind, _model(kind, quality).head, raw, batch, decide, assignments=left_over, **gains)
    counts = {"pos_cls", "pos_loc"}
    assert items.keys() - counts == expected.keys()
    for loss, name in zip(losses.tolist(), [n for n in items if n not in counts], strict=True):
        assert loss == pytest.approx(expected[name], rel=2e-4, abs=1e-6), name
    if scene != "empty" and assigner == "own":
        assert items["pos_cls"] > 0 and all(value > 0 for value in expected.values())
    if scene == "empty":
        assert items["pos_cls"] == items["pos_loc"] == losses[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quality"), [*DETECTORS, ("fcos", "centerness"), ("retinanet", "none")])
@pytest.mark.parametrize("scene", SCENES)
def test_every_parameter_gets_a_finite_gradient_even_without_objects(kind: str, quality: str, scene: str) -> None:
    model = _model(kind, quality).train()
    model.zero_grad()
    image = torch.rand((3, 3, *SIZE), generator=torch.Generator().manual_seed(0))
    decide = _assigner(kind, "mlc")
    losses, _ = _criterion(kind, quality, decide, align_gain=0.5)(model(image), _batch(_rows(kind, scene)))
    losses.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    if scene == "several":
        layer = {"iou": "cv_iou", "centerness": "bbox_ctrness", "none": "bbox_reg"}[quality]
        assert all(g.abs().sum() > 0 for name, g in gradients.items() if layer in name or "cls_logits" in name)


@pytest.mark.parametrize(("kind", "quality"), DETECTORS)
@pytest.mark.parametrize("assigner", ["own", "mutual_guidance", "mlc"])
def test_ignored_anchors_and_those_not_positive_get_no_gradient(
    kind: str, quality: str, assigner: str, drawn: list[Any]
) -> None:
    raw = _raw(kind, quality)
    losses, _ = _criterion(kind, quality, _assigner(kind, assigner))(raw, _batch(_rows(kind, "several")))
    losses.sum().backward()
    cls, loc = drawn[0]
    ignored = cls.role == Role.IGNORED
    assert ignored.any() or kind == "fcos" or assigner == "mlc"  # which leave nothing out of the class loss
    assert not raw["scores"].grad[ignored].any() and raw["scores"].grad[~ignored].all()
    assert not raw["boxes"].grad[~loc.positive].any() and raw["boxes"].grad[loc.positive].any(-1).all()
    either = cls.positive | loc.positive
    assert not raw["quality"].grad[~either].any() and raw["quality"].grad[either].all()


@pytest.mark.parametrize("kind", ["retinanet", "rpn"])
def test_weights_of_relabelled_anchors_reach_the_losses(kind: str, drawn: list[Any]) -> None:
    """The reference multiplies by them too; here, that they are there and that alpha changes the loss."""
    raw, batch = _raw(kind, "iou"), _batch(_rows(kind, "several"))
    found = {}
    for alpha in (0.0, 0.5):
        torch.manual_seed(0)
        found[alpha] = _criterion(kind, "iou", _assigner(kind, "mlc", mlc_alpha=alpha))(raw, batch)[0]
    for task in drawn[1]:
        between = (task.weight > 0) & (task.weight < 1)
        assert between.any() and not ((drawn[0][0].weight > 0) & (drawn[0][0].weight < 1)).any()
    assert found[0.5][0] < found[0.0][0] and found[0.5][1] < found[0.0][1]


class _Halves:
    """Tasks that differ in everything: anchors 0-2 are positive for classes, 2-5 for boxes, 6 is ignored."""

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        batch, anchors = predictions.boxes.shape[:2]
        cls, loc = (all_negative(batch, anchors, predictions.boxes.device) for _ in range(2))
        for task, start, stop, weight in ((cls, 0, 3, 0.5), (loc, 2, 6, 0.25)):
            task.gt_index[0, start:stop] = 0
            task.role[0, start:stop] = Role.POSITIVE
            task.weight[0, start:stop] = weight
            task.quality[0, start:stop] = 1
        cls.role[0, 6], cls.weight[0, 6] = Role.IGNORED, 0.0
        return Assignment(cls, loc)


def test_each_task_is_divided_by_its_own_positives_and_weights_stay_out_of_the_divisor() -> None:
    raw, batch = _raw("retinanet", "iou"), _batch(SCENES["one"])
    batch["batch_idx"] = torch.zeros(1)
    raw["scores"] = torch.zeros_like(raw["scores"]).requires_grad_()
    losses, items = _criterion("retinanet", "iou", _Halves())(raw, batch)
    anchors = 3 * raw["scores"].shape[1]
    # At logit 0 a target 1 costs 0.25 * 0.25 * log 2, a target 0 0.75 * 0.25 * log 2; three classes each.
    positive, negative = (a * 0.25 * torch.tensor(2.0).log() for a in (0.25, 0.75))
    expected = 3 * 0.5 * (positive + 2 * negative) + (anchors - 4) * 3 * negative
    torch.testing.assert_close(losses[1], expected / 3, rtol=1e-5, atol=0)
    single = _criterion("retinanet", "iou", _Halves())
    priors = single.head.priors(raw["feats"], scale=5.0)
    goal = torch.tensor([0.3 * 96, 0.2 * 64, 0.7 * 96, 0.8 * 64])
    errors = (raw["boxes"][0, 2:6] - single.head.encode(goal.expand(4, 4), priors[torch.arange(2, 6)])).abs()
    smooth = torch.where(errors < 0.11, errors**2 / 0.22, errors - 0.055).sum()
    torch.testing.assert_close(losses[0], 0.25 * smooth / 4)
    assert (items["pos_cls"] * 3, items["pos_loc"] * 3) == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "quality"), [*DETECTORS, ("fcos", "centerness")])
def test_half_precision_outputs_give_the_losses_of_their_values(kind: str, quality: str, dtype: torch.dtype) -> None:
    half = _raw(kind, quality, dtype=dtype)
    full = {name: value if name == "feats" else value.detach().float() for name, value in half.items()}
    batch = _batch(_rows(kind, "several"))
    criterion = _criterion(kind, quality, _assigner(kind, "mlc"), align_gain=0.5)
    torch.manual_seed(0)
    expected, _ = criterion(full, batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = criterion(half, batch)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    assert all(half[name].grad.isfinite().all() for name in ("boxes", "scores", "quality"))


def test_only_fcos_as_published_weighs_boxes_by_centerness() -> None:
    batch = _batch(OBJECTS)
    raw = _raw("fcos", "centerness")
    box = {}
    for quality, follows in (
        ("centerness", "paper"),
        ("centerness", "torchvision"),
        ("iou", "paper"),
        ("none", "paper"),
    ):
        head = _model("fcos", quality, follows).head
        given = {**raw, "quality": raw["quality"]} if quality != "none" else {k: raw[k] for k in raw if k != "quality"}
        criterion = _criterion("fcos", quality, head.own_assigner, follows=follows)
        box[quality, follows] = criterion(given, batch)[0][0].item()
        assert head.recipe.weigh_by_centerness == (follows == "paper")
    assert box["iou", "paper"] == box["none", "paper"] != box["centerness", "paper"]


@pytest.mark.parametrize("assigner", ["max_iou", "mutual_guidance"])
def test_points_outside_their_box_have_centerness_zero(assigner: str) -> None:
    """Assigners that match prior boxes train points that FCOS would not: a corner of the image, half an object wide."""
    raw = _raw("fcos", "centerness")
    criterion = _criterion("fcos", "centerness", _assigner("fcos", assigner))
    losses, items = criterion(raw, _batch([[0, 0, 0.02, 0.03, 0.03, 0.05], [1, 1, 0.9, 0.5, 0.01, 0.9]]))
    losses.sum().backward()
    assert items["pos_loc"] > 0 and losses.isfinite().all()
    assert all(raw[name].grad.isfinite().all() for name in ("boxes", "quality", "scores"))


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "rpn"])
def test_the_predicted_iou_starts_to_learn_after_its_warm_up(kind: str) -> None:
    criterion = _criterion(kind, "iou", _assigner(kind, "own"), iou_gain=2.0)
    criterion.schedule = replace(criterion.schedule, iou_warmup=3)
    values = []
    for epoch in (0, 2, 3, 7):
        criterion.epoch = epoch
        raw = _raw(kind, "iou")
        torch.manual_seed(0)
        losses, items = criterion(raw, _batch(_rows(kind, "several")))
        losses.sum().backward()
        assert raw["quality"].grad is not None and bool(raw["quality"].grad.any()) == (epoch >= 3)
        values.append(items["iou_loss"].item())
    assert values[:2] == [0, 0] and values[2] == values[3] > 0


def test_the_schedule_switches_assigners_at_its_epoch() -> None:
    base, main = _assigner("retinanet", "own"), _assigner("retinanet", "mlc")
    criterion = DetectorLoss(_model("retinanet", "iou"), schedule=Schedule(base, main, 2))
    alike = []
    for epoch in (0, 1, 2):
        criterion.epoch = epoch
        _, items = criterion(_raw("retinanet", "iou"), _batch(OBJECTS))
        alike.append(bool(items["pos_cls"] == items["pos_loc"]))
    assert alike == [True, True, False] and isinstance(main, MutualLabeling)


def test_alignment_pulls_both_branches_and_only_positives() -> None:
    raw = _raw("retinanet", "none")
    losses, items = _criterion("retinanet", "none", _assigner("retinanet", "own"), align_gain=0.5)(raw, _batch(OBJECTS))
    assert list(items)[:3] == ["box_loss", "cls_loss", "align_loss"]
    losses[2].backward()
    pulled = raw["scores"].grad.any(-1), raw["boxes"].grad.any(-1)
    assert torch.equal(*pulled) and pulled[0].sum() == 3 * items["pos_cls"] > 0
    assert (raw["scores"].grad != 0).sum() == pulled[0].sum()  # of the object's class alone


def test_an_rpn_relabels_the_whole_group_and_samples_afterwards(drawn: list[Any]) -> None:
    crowd = [[0, 0, 0.1 + 0.09 * i, 0.5, 0.5, 0.8] for i in range(9)] + [[1, 0, 0.5, 0.5, 0.8, 0.8]]
    raw, batch = _raw("rpn", "iou"), _batch(crowd)
    labeller, seen = _assigner("rpn", "mlc", mlc_candidates="inside"), []

    def spy(*args: Any) -> Assignment:
        seen.append(labeller(*args))
        return seen[-1]

    _, items = _criterion("rpn", "iou", spy)(raw, batch)
    whole, (cls, loc) = seen[0], drawn[0]
    assert whole.classification.positive[0].sum() > 128 and whole.localization.positive[0].sum() > 128
    for task, full in ((cls, whole.classification), (loc, whole.localization)):
        assert (task.positive <= full.positive).all() and task.positive.sum(1).max() == 128
        kept = task.role != Role.IGNORED
        assert torch.equal(task.role[kept], full.role[kept]) and torch.equal(task.weight[kept], full.weight[kept])
    assert ((cls.role != Role.IGNORED).sum(1) == 256).all()
    assert items["pos_cls"] * 3 == cls.positive.sum() and items["pos_loc"] * 3 == loc.positive.sum()


def test_an_rpn_samples_both_tasks_alike_where_they_are_one(drawn: list[Any]) -> None:
    _criterion("rpn", "iou", _assigner("rpn", "own"))(_raw("rpn", "iou"), _batch(_rows("rpn", "several")))
    cls, loc = drawn[0]
    assert cls is loc and ((cls.role != Role.IGNORED).sum(1) == 256).all()


def test_static_assigners_are_not_shown_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("predictions were decoded")

    monkeypatch.setattr(DetectorLoss, "_predictions", fail)
    losses, _ = _criterion("fcos", "iou", PointInBox())(_raw("fcos", "iou"), _batch(OBJECTS))
    assert losses.isfinite().all()


class _Counted(PointInBox):
    """A built-in assigner whose call somebody overrides."""

    calls = 0

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        self.calls += 1
        assert predictions.boxes.shape == (*predictions.scores.shape[:2], 4)
        return super().__call__(predictions, priors, targets)


def test_an_overridden_call_of_a_static_assigner_is_called_and_sees_predictions() -> None:
    counted = _Counted()
    criterion = _criterion("fcos", "iou", counted)
    losses, _ = criterion(_raw("fcos", "iou"), _batch(OBJECTS))
    assert counted.calls == 1
    assert torch.equal(losses, _criterion("fcos", "iou", PointInBox())(_raw("fcos", "iou"), _batch(OBJECTS))[0])


def test_what_an_assigner_sees_is_detached_decoded_and_padded() -> None:
    criterion = _criterion("retinanet", "iou", _assigner("retinanet", "own"))
    raw = _raw("retinanet", "iou", dtype=torch.bfloat16)
    rows = [OBJECTS[i] for i in (3, 0, 4, 1, 2)]  # batches need not be sorted by image
    predictions, priors, targets = criterion.assigner_inputs(raw, _batch(rows))
    assert predictions.boxes.dtype == predictions.scores.dtype == torch.float32
    assert not predictions.boxes.requires_grad and len(priors) == predictions.boxes.shape[1]
    assert targets.valid.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
    assert targets.labels[targets.valid].tolist() == [0, 2, 1, 1, 2]
    torch.testing.assert_close(targets.boxes[0, 0], torch.tensor([0.1 * 96, 0.15 * 64, 0.5 * 96, 0.65 * 64]))


def test_evaluation_outputs_give_the_losses_of_the_raw_ones_inside() -> None:
    raw = _raw("fcos", "iou")
    criterion = _criterion("fcos", "iou", PointInBox())
    with torch.inference_mode():
        evaluated = {name: value if name == "feats" else value.detach() for name, value in raw.items()}
        inside, _ = criterion((torch.empty(0), evaluated), _batch(OBJECTS))
    assert torch.equal(inside, criterion(raw, _batch(OBJECTS))[0].detach())


def test_a_sum_crosses_ranks_while_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ranks validate different numbers of batches: one that waits for another there waits for ever.
    def refuse(*_: object) -> None:
        raise AssertionError("asked the other ranks")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", refuse)
    with torch.no_grad():
        assert total_over_ranks(torch.tensor([3])) == 3
    assert not len(total_over_ranks(torch.zeros(0)))  # nothing to ask for
    with pytest.raises(AssertionError, match="asked"):
        total_over_ranks(torch.tensor([3]))
