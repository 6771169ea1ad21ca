"""The criterion: every assigner on every head, against stock losses and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import SMALL
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

from mlc_yolo.assigners import (
    STOCK,
    Assignment,
    Predictions,
    Role,
    Schedule,
    Targets,
    TaskAligned,
    build_assigner,
    yolo_assigner,
)
from mlc_yolo.assigners.assignment import all_negative
from mlc_yolo.boxes import aligned_ciou
from mlc_yolo.coding import decode_dfl, decode_distance
from mlc_yolo.heads.iou_aware import NEUTRAL_BIAS, add_iou_channel
from mlc_yolo.options import specification as options
from mlc_yolo.priors import Priors, grid_priors
from mlc_yolo.training import yolo_criterion as module
from mlc_yolo.training.criteria import build_criterion

ASSIGNERS = ["tal", "max_iou", "fcos", "atss", "mutual_guidance", "mlc"]


def _model(name: str, *, iou: bool = True) -> Any:
    torch.manual_seed(0)
    model = DetectionModel(name if name == SMALL else f"{name}.yaml", nc=3, verbose=False)
    model.args = DEFAULT_CFG
    if iou:
        add_iou_channel(model.model[-1])
    return model.train()


def _batch(rows: list[list[float]], size: tuple[int, int] = (64, 96), images: int = 2) -> dict[str, torch.Tensor]:
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    image = torch.rand((images, 3, *size), generator=torch.Generator().manual_seed(1))
    return {"img": image, "batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:]}


#: Objects that overlap, which tasks may dispute.
CROWD = [[0, 0, 0.4, 0.5, 0.5, 0.6], [0, 2, 0.5, 0.5, 0.5, 0.6], [0, 1, 0.6, 0.5, 0.5, 0.6], [1, 1, 0.5, 0.5, 0.9, 0.9]]
OBJECTS = [[0, 0, 0.3, 0.4, 0.4, 0.5], [0, 2, 0.7, 0.6, 0.3, 0.6], [1, 1, 0.5, 0.5, 0.9, 0.9]]


def _varied(preds: dict[str, Any]) -> dict[str, Any]:
    """Outputs of an untrained model, all alike, moved at random."""
    generator = torch.Generator().manual_seed(2)
    moved = {
        name: value.detach() + 2 * torch.randn(value.shape, generator=generator)
        for name, value in preds.items()
        if name in ("boxes", "scores", "iou")
    }
    return {**preds, **{name: value.requires_grad_() for name, value in moved.items()}}


def _criterion(model: Any, assigner: Any, *, gain: float = 1.0, by_product: bool = True, iou_warmup: int = 0) -> Any:
    main = yolo_assigner(assigner, options.settle(options.defaults())) if isinstance(assigner, str) else assigner
    schedule = Schedule(main, main, 0, iou_warmup)
    return build_criterion(model, schedule=schedule, prior_scale=5.0, iou_gain=gain, by_product=by_product)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "assigners"),
    [
        *((name, ASSIGNERS) for name in ("yolov8n", "yolo11n", "yolo12n", "yolo26n")),
        *((name, ["tal", "mlc"]) for name in ("yolov8-p2", "yolov8-p6", "yolo26-p2")),
    ],
)
def test_every_assigner_trains_every_head(name: str, assigners: list[str]) -> None:
    model = _model(name)
    batch = _batch(OBJECTS, (64, 128))
    for assigner in assigners:
        model.zero_grad()
        losses, items = _criterion(model, assigner)(model(batch["img"]), batch)
        losses.sum().backward()
        assert losses.isfinite().all() and losses.shape == (4,), assigner
        assert next(iter(items)) == "box_loss" and {"iou_loss", "pos_cls", "pos_loc"} <= items.keys(), assigner
        gradients = [parameter.grad for parameter in model.model[-1].cv_iou.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients), assigner


@pytest.mark.parametrize("rows", [[], [[1, 0, 0.5, 0.5, 0.5, 0.5]], [[0, 1, 0.5, 0.5, 0.0, 0.4]]])
def test_batches_without_objects_half_empty_or_with_a_box_without_area_train(rows: list[list[float]]) -> None:
    model = _model(SMALL)
    batch = _batch(rows)
    for assigner in ASSIGNERS:
        losses, items = _criterion(model, assigner)(model(batch["img"]), batch)
        losses.sum().backward()
        assert losses.isfinite().all(), assigner
        if not rows:
            nothing = [items["pos_cls"], items["pos_loc"], losses[0], losses[2], losses[3]]
            assert not any(nothing), assigner


def test_a_thousand_objects_in_one_image_train() -> None:
    model = _model(SMALL)
    generator = torch.Generator().manual_seed(0)
    centre, size = torch.rand((1000, 2), generator=generator), torch.rand((1000, 2), generator=generator) * 0.2
    rows = torch.cat((torch.zeros(1000, 2), centre, size), 1).tolist()
    batch = _batch(rows, (64, 64))
    for assigner in ASSIGNERS:
        losses, _ = _criterion(model, assigner)(model(batch["img"]), batch)
        assert losses.isfinite().all(), assigner


@pytest.mark.parametrize(("name", "stock"), [("yolo11n", v8DetectionLoss), ("yolo26n", E2ELoss)])
def test_tal_without_iou_channel_gives_stock_losses_exactly(name: str, stock: type) -> None:
    model, batch = _model(name, iou=False), _batch(OBJECTS)
    preds = model(batch["img"])
    expected, expected_items = stock(model)(preds, batch)
    losses, items = _criterion(model, "tal")(preds, batch)
    assert torch.equal(losses, expected)
    assert all(torch.equal(items[key], value) for key, value in expected_items.items())


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_per_task_path_gives_the_stock_losses_for_the_stock_assignment(name: str) -> None:
    model, batch = _model(name), _batch(OBJECTS)
    preds = model(batch["img"])
    expected, _ = _criterion(model, "tal")(preds, batch)
    losses, _ = _criterion(model, TaskAligned())(preds, batch)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(losses, torch.zeros_like(losses))


@pytest.mark.parametrize("assigner", ["mlc", "mutual_guidance"])
def test_iou_loss_is_mean_squared_error_over_positives_of_either_task(assigner: str) -> None:
    """An anchor both tasks claim, for different objects, learns the IoU with localisation's: it is the box's."""
    model, batch = _model("yolo11n"), _batch(CROWD)
    preds = _varied(model(batch["img"]))
    criterion = _criterion(model, assigner, gain=2.0)
    seen: list[tuple[Predictions, Targets, Assignment]] = []
    decide = criterion.schedule.main

    def spy(predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        seen.append((predictions, targets, decide(predictions, priors, targets)))
        return seen[-1][2]

    losses, _ = _criterion(model, spy, gain=2.0)(preds, batch)
    predictions, targets, assignment = seen[0]
    cls, loc = assignment.classification, assignment.localization
    differ = cls.positive & loc.positive & (cls.gt_index != loc.gt_index)
    assert bool(differ.any()) == (assigner == "mutual_guidance")
    errors = []
    for b, a in (assignment.classification.positive | assignment.localization.positive).nonzero().tolist():
        task = loc if loc.positive[b, a] else cls
        box, goal = predictions.boxes[b, a], targets.boxes[b, task.gt_index[b, a]]
        left_top, right_bottom = torch.maximum(box[:2], goal[:2]), torch.minimum(box[2:], goal[2:])
        overlap = (right_bottom - left_top).clamp(0).prod()
        iou = overlap / ((box[2:] - box[:2]).prod() + (goal[2:] - goal[:2]).prod() - overlap)
        errors.append((preds["iou"][b, 0, a].sigmoid() - iou) ** 2)
    expected = 2.0 * torch.stack(errors).mean() * len(batch["img"])
    torch.testing.assert_close(losses[3], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "branches"), [("yolo11n", [None]), ("yolo26n", ["one2many", "one2one"])])
@pytest.mark.parametrize("assigner", ["tal", "mlc"])
def test_by_product_the_class_loss_is_that_of_the_score_detections_are_ranked_by(
    name: str, branches: list[str | None], assigner: str
) -> None:
    """The same loss as a head's whose class logits are the log-odds of class score times IoU."""
    model, batch = _model(name), _batch(OBJECTS)
    raw = model(batch["img"])
    raw = _varied(raw) if branches == [None] else {branch: _varied(raw[branch]) for branch in branches}
    parts = [raw if branch is None else raw[branch] for branch in branches]
    decide = build_assigner(assigner, options.settle(options.defaults()))
    seen: list[torch.Tensor] = []
    decided: list[Assignment] = []

    def spy(predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        seen.append(predictions.scores)
        decided.append(decide(predictions, priors, targets))
        return decided[-1]

    def loss(decision: Any, *, by_product: bool) -> torch.Tensor:
        criterion = _criterion(model, decision, by_product=by_product)
        if name == "yolo26n":
            criterion.one2one.schedule = criterion.one2many.schedule
        return criterion(raw, batch)[0]

    losses = loss(spy, by_product=True)
    for scores, part in zip(seen, parts, strict=True):
        torch.testing.assert_close(scores, part["scores"].transpose(1, 2).sigmoid())  # the class score alone
        part["scores"] = (part["scores"].double().sigmoid() * part["iou"].double().sigmoid()).logit().float()
    again = iter(decided)
    torch.testing.assert_close(losses, loss(lambda *inputs: next(again), by_product=False))


@pytest.mark.parametrize("by_product", [True, False])
def test_negatives_teach_the_channel_by_product_and_only_then(by_product: bool) -> None:
    model, batch = _model("yolo11n"), _batch(OBJECTS)
    raw = _varied(model(batch["img"]))
    criterion = _criterion(model, TaskAligned(), by_product=by_product)
    predictions, priors, targets = criterion.assigner_inputs(raw, batch)
    positive = TaskAligned()(predictions, priors, targets).classification.positive
    criterion(raw, batch)[0].sum().backward()
    taught = raw["iou"].grad[:, 0] != 0
    assert positive.any() and not positive.all()
    assert torch.equal(taught, torch.ones_like(positive) if by_product else positive)


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
@pytest.mark.parametrize("form", [{"by_product": False}, {"iou_warmup": 1}])
def test_under_a_channel_that_the_classes_do_not_know_the_stock_losses_stay(name: str, form: dict[str, Any]) -> None:
    """By the assigner that upstream's criterion holds, one for each branch."""
    model, batch = _model(name), _batch(CROWD)
    raw = model(batch["img"])
    raw = _varied(raw) if "boxes" in raw else {branch: _varied(raw[branch]) for branch in ("one2many", "one2one")}
    criterion = _criterion(model, "tal", **form)
    losses, items = criterion(raw, batch)
    stock, stock_items = (E2ELoss if name == "yolo26n" else v8DetectionLoss)(model)(raw, batch)
    torch.testing.assert_close(losses[:3], stock, rtol=1e-4, atol=1e-5)
    for key, value in stock_items.items():
        torch.testing.assert_close(items[key], value, rtol=1e-4, atol=1e-5)
    assert (losses[3] > 0) == ("by_product" in form)


def test_a_fresh_channel_leaves_the_class_loss_as_it_is() -> None:
    model, batch = _model("yolo11n"), _batch(OBJECTS)
    raw = model(batch["img"])
    assert (raw["iou"] == NEUTRAL_BIAS).all()
    losses, _ = _criterion(model, "tal")(raw, batch)
    stock, _ = v8DetectionLoss(model)(raw, batch)
    torch.testing.assert_close(losses[:3], stock, rtol=0.007, atol=0)
    assert losses[1] != stock[1]


def test_iou_loss_moves_no_box() -> None:
    model, batch = _model("yolo11n"), _batch(OBJECTS)
    preds = {k: v.detach().requires_grad_() if torch.is_tensor(v) else v for k, v in model(batch["img"]).items()}
    losses, _ = _criterion(model, "tal")(preds, batch)
    losses[3].backward()
    assert preds["iou"].grad.abs().sum() > 0
    assert preds["boxes"].grad is None or not preds["boxes"].grad.any()


def test_one_to_one_branch_keeps_its_own_assignment() -> None:
    criterion = _criterion(_model("yolo26n"), "mlc")
    assert criterion.one2one.schedule.main is STOCK and criterion.one2many.schedule.main is not STOCK
    assert criterion.one2one.assigner.topk2 == 1
    criterion.schedule = Schedule(TaskAligned(), TaskAligned(topk=1), 2, iou_warmup=3)
    assert criterion.one2one.schedule == Schedule(STOCK, STOCK, 2, iou_warmup=3)


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_half_precision_outputs_give_the_full_precision_losses(assigner: str) -> None:
    model, batch = _model("yolo11n"), _batch(OBJECTS)
    preds = model(batch["img"])
    rounded = {k: v.detach().bfloat16() if torch.is_tensor(v) else v for k, v in preds.items()}
    full = {k: v.float() if torch.is_tensor(v) else v for k, v in rounded.items()}
    criterion = _criterion(model, assigner)
    expected, _ = criterion(full, batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = criterion(rounded, batch)
    torch.testing.assert_close(losses.float(), expected, rtol=0.05, atol=0.02)


def test_class_weights_scale_the_class_loss_of_the_per_task_path() -> None:
    model, batch = _model("yolo11n"), _batch(OBJECTS)
    preds = model(batch["img"])
    plain, _ = _criterion(model, "fcos")(preds, batch)
    model.class_weights = torch.full((3,), 2.0)
    weighted, _ = _criterion(model, "fcos")(preds, batch)
    torch.testing.assert_close(weighted[1], 2 * plain[1])


class _Halves:
    """Two tasks that differ in positives, weights and quality: anchors 0-2 for classes, 2-5 for boxes."""

    def __call__(self, predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:
        batch, anchors = predictions.boxes.shape[:2]
        cls, loc = (all_negative(batch, anchors, predictions.boxes.device) for _ in range(2))
        for task, start, stop, weight, quality in ((cls, 0, 3, 0.5, 0.8), (loc, 2, 6, 0.25, 0.5)):
            task.gt_index[0, start:stop] = 0
            task.role[0, start:stop] = Role.POSITIVE
            task.weight[0, start:stop] = weight
            task.quality[0, start:stop] = quality
        cls.role[0, 10], cls.weight[0, 10] = Role.IGNORED, 0.0
        return Assignment(cls, loc)


def test_each_task_is_weighted_and_normalised_by_its_own_assignment() -> None:
    model, batch = _model("yolo11n"), _batch([[0, 1, 0.5, 0.5, 0.6, 0.6]], images=1)
    preds = model(batch["img"])
    losses, items = _criterion(model, _Halves(), by_product=False)(preds, batch)
    logits = preds["scores"][0].T
    target, weight = torch.zeros_like(logits), torch.ones(len(logits), 1)
    target[:3, 1], weight[:3], weight[10] = 0.8, 0.5, 0.0
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = (bce * weight).sum() / (3 * 0.8) * DEFAULT_CFG.cls  # the normaliser: 3 positives of quality 0.8
    torch.testing.assert_close(losses[1], expected)

    distances, priors = preds["boxes"][0].T.view(-1, 4, 16), grid_priors([(8, 12), (4, 6), (2, 3)], (8, 16, 32))
    goal = torch.tensor([[0.2 * 96, 0.2 * 64, 0.8 * 96, 0.8 * 64]])
    box = decode_distance(decode_dfl(distances[2:6].softmax(-1)) * 8, priors.points[2:6])
    ciou = aligned_ciou(box, goal.expand(4, 4))
    # weight 0.25 * quality 0.5 for each of 4, over the normaliser 4 * 0.5
    torch.testing.assert_close(losses[0], ((1 - ciou) * 0.125).sum() / 2 * DEFAULT_CFG.box, rtol=1e-4, atol=1e-4)
    assert (items["pos_cls"], items["pos_loc"]) == (3, 4)


def test_options_reach_the_assigner() -> None:
    level, every = (
        build_assigner("mlc", {**options.settle(options.defaults()), "mlc_candidates": name}).baseline
        for name in ("level", "inside")
    )
    assert (level.levels, every.levels) == ("range", "all")
    chosen = {"mlc_alpha": 2.0, "mlc_tasks": "cls", "mg_sigma": 1.5, "mg_tasks": "l2c"}
    mlc, mg = (
        build_assigner(name, {**options.settle(options.defaults()), **chosen}) for name in ("mlc", "mutual_guidance")
    )
    assert (mlc.alpha, mlc.tasks, mg.sigma, mg.tasks) == (2.0, "cls", 1.5, "l2c")


def test_priors_of_a_size_are_built_once_also_when_a_validation_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    module._priors_of_size.cache_clear()
    built: list[Any] = []

    def spy(*args: Any, **kwargs: Any) -> Priors:
        built.append(args[0])
        return grid_priors(*args, **kwargs)

    monkeypatch.setattr(module, "grid_priors", spy)
    model, batch = _model("yolo26n"), _batch(OBJECTS)
    criterion = _criterion(model, "mlc")
    with torch.inference_mode():
        criterion(model(batch["img"]), batch)
    for _ in range(2):
        criterion(model(batch["img"]), batch)[0].sum().backward()
    assert built == [((8, 12), (4, 6), (2, 3))]
    wider = _batch(OBJECTS, (64, 128))
    criterion(model(wider["img"]), wider)
    assert len(built) == 2
    module._priors_of_size.cache_clear()
