"""The criterion of images without labels: agreement is free, teachers are fixed, statistics stay, ranks add up."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from semi_steps import batch, learner, net, photos, semi, step, supervised
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlc_yolo.losses.distillation import foreground, top_anchors
from mlc_yolo.training.dense_outputs import Dense
from mlc_yolo.training.pseudo_labels import pseudo_labels
from mlc_yolo.training.semi_criterion import ITEMS, SemiLoss
from mlc_yolo.training.yolo_criterion import PerTaskE2ELoss

NAMES = ["yolo11", "yolo26", "retinanet", "fcos"]
pytestmark = pytest.mark.usefixtures("narrow_backbones")
every_net = pytest.mark.parametrize("name", NAMES)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def make_constant(model: Any) -> None:
    """Let each level and cell predict the same: outputs at one scale are those at the other."""
    head = model.model[-1]
    layers = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.copy_(torch.linspace(-1, 1, len(layer.bias)))


# Agreement ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_net
@pytest.mark.parametrize("mode", ["soft", "sed"])
@pytest.mark.parametrize("make", [learner, lambda name: net(name).train()], ids=["fixed", "by batch"])
def test_a_student_that_is_its_teacher_learns_nothing(name: str, mode: str, make: Any) -> None:
    """Whether layers normalise by their statistics or by the batch: the teacher's do as the student's."""
    student, teacher = make(name), net(name).requires_grad_(False)
    criterion = semi(student, teacher, mode, scale=False)
    given = batch(photos())
    losses, items = step(criterion, student, given)
    learned = losses[-3:]
    assert items["ssl_cls"].abs() < 1e-4 and items["ssl_scale"] == 0
    assert items["ssl_box"].abs() < 1e-3
    assert items["agree_cls"] == pytest.approx(1, abs=1e-5)
    if make is learner or name != "yolo26":  # whose boxes are inside out then, and overlap nothing
        assert items["agree_iou"] == pytest.approx(1, abs=1e-4)
    learned.sum().backward()
    own = torch.cat([g.flatten() for g in gradients(student)]).norm()
    student.zero_grad()
    step(criterion, student, batch(photos(), photos(seed=9)))[0][-3:].sum().backward()
    other = torch.cat([g.flatten() for g in gradients(student)]).norm()
    assert own < 1e-2 * other


@pytest.mark.parametrize("name", ["yolo11", "yolo26"])
def test_the_scale_term_is_zero_where_both_scales_say_the_same(name: str) -> None:
    """Constant heads predict one distance in strides everywhere, so level l at 1x is level l - 1 at half scale."""
    student, teacher = learner(name), net(name).requires_grad_(False)
    make_constant(student)
    make_constant(teacher)
    criterion = semi(student, teacher)
    losses, items = step(criterion, student, batch(photos()))
    assert items["ssl_scale"].abs() < 1e-3 and items["ssl_cls"].abs() < 1e-4
    losses[-1].backward()
    assert all(g.abs().max() < 1e-2 for g in gradients(student))


@every_net
def test_a_student_that_sees_otherwise_learns_in_every_term(name: str) -> None:
    student, teacher = learner(name), net(name)
    _, items = step(semi(student, teacher), student, batch(photos(), photos(seed=9)))
    assert all(items[term] > 0 for term in ("ssl_cls", "ssl_scale"))
    assert 0 < items["agree_cls"] < 1 and 0 < items["agree_iou"] < 1


@pytest.mark.slow
def test_descending_brings_the_student_to_the_teacher() -> None:
    student, teacher = learner("yolo11"), net("yolo11").requires_grad_(False)
    with torch.no_grad():
        for p in student.model[-1].parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    criterion = semi(student, teacher, "soft")
    optimizer = torch.optim.Adam(student.model[-1].parameters(), lr=3e-3)
    given = batch(photos())
    seen = []
    for _ in range(12):
        optimizer.zero_grad()
        losses, items = step(criterion, student, given)
        seen.append(torch.stack((items["ssl_cls"], items["ssl_box"])))
        losses[-3:].sum().backward()
        optimizer.step()
    assert (seen[-1] < 0.5 * seen[0]).all()  # measured: 0.15 and 0.37


# What is touched ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_net
@pytest.mark.parametrize("mode", ["pseudo", "soft", "sed"])
def test_no_gradient_and_no_statistic_reaches_the_teacher(name: str, mode: str) -> None:
    student, teacher = net(name).train(), net(name)  # the teacher's parameters would take gradients
    before = deepcopy(teacher.state_dict())
    step(semi(student, teacher, mode), student, batch(photos(), photos(seed=9)))[0].sum().backward()
    assert gradients(student) and not gradients(teacher)
    after = teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and not teacher.training


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name or "tracked" in name}


@pytest.mark.parametrize("name", ["yolo11", "yolo26", "retinanet"])
@pytest.mark.parametrize("mode", ["pseudo", "sed"])
def test_images_without_labels_leave_running_statistics_to_those_with(name: str, mode: str) -> None:
    alone, student = net(name).train(), net(name).train()
    fresh = statistics(student)
    given = batch(photos(), photos(seed=9) * float("nan"))
    supervised(alone)(alone(given["img"]), given)
    layers = [module for module in student.modules() if isinstance(module, _BatchNorm)]
    settings = [(layer.momentum, layer.track_running_stats, layer.training) for layer in layers]
    step(semi(student, net(name), mode), student, given)
    after, expected = statistics(student), statistics(alone)
    assert layers and any(not torch.equal(fresh[key], after[key]) for key in fresh)
    assert all(torch.equal(after[key], expected[key]) for key in expected)
    assert settings == [(layer.momentum, layer.track_running_stats, layer.training) for layer in layers]


def test_layers_are_put_right_after_an_error() -> None:
    student = net("yolo11").train()
    with pytest.raises(RuntimeError):
        step(semi(student, net("yolo11")), student, batch(photos(), photos()[:, :2]))
    assert all(m.track_running_stats for m in student.modules() if isinstance(m, _BatchNorm))


@every_net
def test_without_a_gain_or_views_or_gradients_nobody_is_asked(name: str) -> None:
    student = learner(name)

    def never() -> Any:
        raise AssertionError("asked")

    criterion = semi(student, None)
    criterion.student = criterion.teacher = never
    expected, names = supervised(student)(student(photos(seed=3)), batch())
    criterion.gain = 0.0
    idle, items = step(criterion, student, batch(photos()))
    assert torch.equal(idle[:-3], expected) and not idle[-3:].any() and list(items) == [*names, *ITEMS]
    criterion.gain = 1.0
    assert torch.equal(step(criterion, student, batch())[0], idle)
    with torch.no_grad():
        judged, items = step(criterion, student, batch(photos()))
    assert len(judged) == len(expected) and list(items) == list(names)


@every_net
def test_the_gain_weighs_what_is_learned_without_labels_alone(name: str) -> None:
    student, teacher = learner(name), net(name)
    criterion, given = semi(student, teacher), batch(photos(), photos(seed=9))
    once, items = step(criterion, student, given)
    criterion.gain = 2.5
    more, again = step(criterion, student, given)
    torch.testing.assert_close(more[:-3], once[:-3])
    torch.testing.assert_close(more[-3:], 2.5 * once[-3:])
    assert items["ssl_cls"] == pytest.approx(again["ssl_cls"].item())


class _Capture(SemiLoss):
    """Keeps what is compared."""

    def _compare(self, student: Any, teacher: Any, trusted: Tensor, *rest: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), (student, teacher, foreground(teacher.logits), trusted)]
        return super()._compare(student, teacher, trusted, *rest)


@every_net
def test_the_finest_level_learns_no_boxes(name: str) -> None:
    student, teacher = learner(name), net(name)
    criterion = semi(student, teacher)
    criterion.__class__ = _Capture
    step(criterion, student, batch(photos(), photos(seed=9)))
    strong, _, sure, trusted = criterion.seen[0]
    finest = strong.sizes[0][0] * strong.sizes[0][1] * (strong.logits.shape[1] // sum(h * w for h, w in strong.sizes))
    assert not trusted[:, :finest].any() and sure[:, :finest].all()
    assert trusted[:, finest:].any() and not (trusted[:, finest:] > sure[:, finest:]).any()
    small, paired, _, other = criterion.seen[1]
    assert small.logits.shape == paired.logits.shape and other.shape == trusted[:, finest:].shape


def test_a_copy_is_whole_and_knows_its_supervised_criterion() -> None:
    student = net("yolo26")
    criterion = deepcopy(semi(student, student))
    criterion.epoch, criterion.updates = 3, 2
    assert criterion.supervised.one2many.epoch == 3 and criterion.supervised.updates == 2 and criterion.o2m == 0.8
    criterion.update()
    assert criterion.updates == 3 and criterion.o2m < 0.8 and isinstance(criterion.supervised, PerTaskE2ELoss)
    with pytest.raises(AttributeError):
        _ = criterion.nothing_of_that_name


# Pseudo-labels --------------------------------------------------------------------------------------------------------


def seen_by_hand() -> Dense:
    """Two images of 64 x 128 px, 3 anchors, 2 classes: a sure box, one it suppresses, one below a threshold of 0.7."""
    boxes = torch.zeros(2, 3, 4)
    boxes[0] = torch.tensor([[24.0, 12, 40, 20], [25, 12, 41, 20], [90, 30, 110, 50]])
    scores = torch.zeros(2, 3, 2)
    scores[0] = torch.tensor([[0.1, 0.9], [0.0, 0.8], [0.6, 0.1]])
    return Dense(scores.logit(1e-6), boxes, None, torch.full((2, 3), -2.0), [(1, 3)])


def test_pseudo_labels_by_hand() -> None:
    """The predicted IoU of 0.12 keeps none of them out."""
    labels = pseudo_labels(seen_by_hand(), None, (64, 128), threshold=0.7, nms_iou=0.7, max_det=300)
    assert labels["batch_idx"].tolist() == [0] and labels["cls"].tolist() == [[1.0]]
    torch.testing.assert_close(labels["bboxes"], torch.tensor([[0.25, 0.25, 0.125, 0.125]]))


def test_pseudo_labels_have_the_students_classes_and_all_boxes_where_nms_is_not_needed() -> None:
    mapped = pseudo_labels(seen_by_hand(), torch.tensor([4, 7]), (64, 128), threshold=0.5, nms_iou=1.0, max_det=300)
    assert mapped["cls"].flatten().tolist() == [7.0, 7.0, 4.0]


def test_a_teacher_that_sees_nothing_gives_no_labels() -> None:
    nothing = Dense(torch.full((3, 5, 3), -30.0), torch.zeros(3, 5, 4), None, None, [(1, 5)])
    labels = pseudo_labels(nothing, None, (64, 64), threshold=0.7, nms_iou=0.7, max_det=300)
    assert labels["batch_idx"].shape == (0,) and labels["cls"].shape == (0, 1) and labels["bboxes"].shape == (0, 4)


@every_net
def test_background_without_pseudo_labels_is_divided_by_the_labels_positives(name: str) -> None:
    student, teacher = learner(name), net(name)
    criterion = semi(student, teacher, "pseudo", threshold=0.999999)
    nothing = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    given = batch(photos(), photos(seed=9))
    _, items = step(criterion, student, given)
    raw = student(photos(seed=9))
    alone = criterion.supervised.prepare(raw, {**nothing, "img": photos(seed=9)}, images=1).over_ranks()[1]["cls_loss"]
    positives = 2 * supervised(student)(student(given["img"]), given)[1]["pos_cls"]
    assert positives > 5 and items["ssl_box"] == 0
    if name != "yolo26":  # whose logged class loss is that of one of its branches
        assert items["ssl_cls"] == pytest.approx((alone / positives).item(), rel=1e-4)


@every_net
@pytest.mark.parametrize("threshold", [0.05, 0.999999])
def test_pseudo_labels_are_learned_as_labels_are(name: str, threshold: float) -> None:
    student, teacher = learner(name), net(name)
    criterion = semi(student, teacher, "pseudo", threshold=threshold)
    losses, items = step(criterion, student, batch(photos(), photos(seed=9)))
    assert losses.isfinite().all() and items["ssl_scale"] == 0
    assert (items["ssl_box"] > 0) == (threshold < 0.5) and items["ssl_cls"] > 0


# Dense Teacher's region -----------------------------------------------------------------------------------------------


@every_net
def test_the_region_is_taught_and_all_else_towards_nothing(name: str) -> None:
    student, teacher = learner(name), net(name)
    criterion = semi(student, teacher, "dense", power=2)
    criterion.__class__ = _Capture
    losses, items = step(criterion, student, batch(photos(), photos(seed=9)))
    _, aim, _, trusted = criterion.seen[0]
    real = criterion.supervised.branches()[0][1].dense(_first(teacher(photos())[1])).logits
    region = top_anchors(foreground(real))
    assert region.sum(1).tolist() == [max(1, region.shape[1] // 100)] * 2
    torch.testing.assert_close(aim.logits[region], real[region], rtol=1e-3, atol=1e-3)
    assert aim.logits[~region].sigmoid().max() < 1e-20 and not trusted[~region].any() and trusted[region].all()
    assert losses.isfinite().all() and items["ssl_cls"] > 0 and items["ssl_box"] > 0 and items["ssl_scale"] == 0


def _first(raw: dict[str, Any]) -> dict[str, Any]:
    return raw.get("one2many", raw)


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11", "fcos"])
def test_half_precision_gives_about_the_same_terms(name: str) -> None:
    # Large enough for several cells on the coarsest level at half the scale: on a CPU torch's bfloat16 convolution over
    # one cell reads what is not initialised.
    first, weak, strong = (photos(1, seed=seed, height=384, width=384) for seed in (3, 1, 9))
    student, teacher, given = learner(name), net(name), batch(weak, strong)
    given["img"] = first.expand(2, -1, -1, -1)
    criterion = semi(student, teacher)
    _, single = step(criterion, student, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, half = step(criterion, student, given)
    losses.sum().backward()
    assert all(g.isfinite().all() for g in gradients(student))
    for term in ITEMS:
        assert half[term] == pytest.approx(single[term].item(), rel=0.25, abs=0.02), term


def test_dense_predictions_are_those_the_head_decodes() -> None:
    model = net("yolo11")
    criterion = supervised(model)
    with torch.no_grad():
        decoded, raw = model(photos())
    found = criterion.dense(raw)
    centre, size = decoded[:, :2].transpose(1, 2), decoded[:, 2:4].transpose(1, 2)
    torch.testing.assert_close(found.boxes, torch.cat((centre - size / 2, centre + size / 2), 2), rtol=1e-4, atol=1e-3)
    assert found.sizes == [(8, 16), (4, 8), (2, 4)] and found.distributions.shape == (2, 168, 4, 16)
    torch.testing.assert_close(decoded[:, 4:7].transpose(1, 2), found.logits.sigmoid())  # the product, as trained
    criterion.by_product = False
    apart = criterion.dense(raw)
    torch.testing.assert_close(
        decoded[:, 4:7].transpose(1, 2), apart.logits.sigmoid() * apart.quality.sigmoid()[..., None]
    )
