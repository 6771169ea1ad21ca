"""The losses of RetinaNet, FCOS and RPN: by hand, in closed form, against torchvision, and without positives."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from mlc_yolo.assigners import Role, TaskAssignment
from mlc_yolo.assigners.assignment import all_negative
from mlc_yolo.losses import focal
from mlc_yolo.losses.alignment import alignment_loss
from mlc_yolo.losses.assigned_bce import assigned_bce
from mlc_yolo.losses.box_regression import giou, log_iou, smooth_l1
from mlc_yolo.losses.centerness import centerness, centerness_loss
from mlc_yolo.losses.class_targets import class_targets
from mlc_yolo.losses.focal import assigned_focal

BoxLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
BOX_LOSSES: dict[str, BoxLoss] = {
    "smooth_l1": lambda p, t, w: smooth_l1(p, t, w, beta=1 / 9),
    "l1": lambda p, t, w: smooth_l1(p, t, w, beta=0),
    "giou": giou,
    "log_iou": log_iou,
}
every_box_loss = pytest.mark.parametrize("loss", BOX_LOSSES.values(), ids=BOX_LOSSES)
every_chunk = pytest.mark.parametrize("chunk", [1, 18, 2**18])


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Work on so many logits at once; two images of three classes have six per anchor."""
    monkeypatch.setattr(focal, "_chunk_elements", lambda device: chunk)


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, TaskAssignment]:
    """Two images, five anchors, three classes: hard and soft positives, weighted negatives, ignored anchors."""
    logits = 2 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed))
    task = TaskAssignment(
        gt_index=torch.tensor([[0, -1, 1, -1, -1], [-1, 1, -1, -1, 0]]),
        role=torch.tensor([[1, 0, 1, 2, 0], [0, 1, 0, 2, 1]], dtype=torch.int8),
        weight=torch.tensor([[1.0, 0.5, 0.25, 0.0, 1.0], [1.0, 1.0, 2.0, 0.0, 1.0]]),
        quality=torch.tensor([[1.0, 0.0, 0.5, 0.0, 0.0], [0.0, 0.8, 0.0, 0.0, 1.0]]),
    )
    return logits, torch.tensor([[2, 0], [1, 1]]), task


def hard(task: TaskAssignment) -> TaskAssignment:
    return TaskAssignment(task.gt_index, task.role, task.weight, task.positive.float())


def target(task: TaskAssignment) -> torch.Tensor:
    target = torch.zeros(2, 5, 3)
    for place in ((0, 0, 2), (0, 2, 0), (1, 1, 1), (1, 4, 1)):
        target[place] = task.quality[place[:2]]
    return target


def boxes(seed: int, count: int = 20) -> torch.Tensor:
    """(count, 4) xyxy; fp16 holds every coordinate exactly."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 40, (count, 2), generator=generator)
    return torch.cat((corner, corner + torch.randint(8, 60, (count, 2), generator=generator)), 1) / 2


def numeric_gradient(loss: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor, step: float) -> torch.Tensor:
    """Central differences, one coordinate after the other."""
    gradient = torch.zeros_like(at)
    for i in range(at.numel()):
        shift = torch.zeros_like(at)
        shift.view(-1)[i] = step
        gradient.view(-1)[i] = (loss(at + shift) - loss(at - shift)) / (2 * step)
    return gradient


# Focal loss


def test_class_targets_are_the_quality_at_the_objects_class() -> None:
    logits, labels, task = example()
    assert torch.equal(class_targets(logits, labels, task), target(task))


def test_focal_by_hand() -> None:
    # Logit log 3 is p = 3/4. The positive's class: 1/4 * (1/4)^2 * ln(4/3); its other class: 3/4 * (3/4)^2 * ln 4,
    # together weighing 2. Negative of weight 1/2: twice the latter. The ignored anchor: nothing.
    task = TaskAssignment(
        torch.tensor([[0, -1, -1]]),
        torch.tensor([[1, 0, 2]], dtype=torch.int8),
        torch.tensor([[2.0, 0.5, 0.0]]),
        torch.tensor([[1.0, 0.0, 0.0]]),
    )
    one, zero = math.log(4 / 3) / 64, math.log(4) * 27 / 64
    loss = assigned_focal(torch.full((1, 3, 2), math.log(3.0)), torch.tensor([[1]]), task)
    assert loss.item() == pytest.approx(2 * (one + zero) + 0.5 * 2 * zero, rel=1e-6)


@every_chunk
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.25, 1.0), (0.6, 3.0)])
@pytest.mark.usefixtures("chunked")
def test_focal_and_its_gradient_are_torchvisions_weighted_over_anchors(alpha: float, gamma: float) -> None:
    logits, labels, task = example()
    logits.requires_grad_()
    reference = logits.detach().double().requires_grad_()
    loss = assigned_focal(logits, labels, task, alpha=alpha, gamma=gamma)
    expected = (sigmoid_focal_loss(reference, target(task).double(), alpha, gamma) * task.weight[..., None]).sum()
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss.detach(), expected.detach().float())
    torch.testing.assert_close(logits.grad, reference.grad.float())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_the_gradient_of_focal_is_that_of_the_papers_appendix(gamma: float) -> None:
    logits, labels, task = example()
    task = hard(task)
    logits.requires_grad_()
    assigned_focal(logits, labels, task, gamma=gamma).backward()
    # With y = +-1 and q = sigmoid(y x): dL/dx = alpha_t y (1 - q)^gamma (gamma q ln q + q - 1).
    y = 2 * target(task) - 1
    q = (y * logits.detach()).sigmoid()
    closed = torch.where(y > 0, 0.25, 0.75) * y * (1 - q) ** gamma * (gamma * q * q.log() + q - 1)
    torch.testing.assert_close(logits.grad, closed * task.weight[..., None])
    assert (logits.grad[task.role == Role.IGNORED] == 0).all()


def test_focal_with_gamma_zero_and_alpha_one_half_is_half_the_cross_entropy() -> None:
    logits, labels, task = example()
    loss = assigned_focal(logits, labels, task, alpha=0.5, gamma=0.0)
    torch.testing.assert_close(loss, assigned_bce(logits, labels, task) / 2)


@pytest.mark.parametrize(("quality", "best"), [(0.2, 0.05), (0.5, 0.5), (0.8, 0.95), (0.9, 0.99), (1.0, 1.0)])
def test_a_soft_target_is_best_answered_further_from_one_half(quality: float, best: float) -> None:
    logits = torch.linspace(-8, 8, 16001)
    one = torch.ones(1, 1)
    task = TaskAssignment(one.long() - 1, one.to(torch.int8), one, quality * one)
    losses = [assigned_focal(x.view(1, 1, 1), torch.zeros(1, 1).long(), task) for x in logits[::10]]
    lowest = logits[::10][torch.stack(losses).argmin()].sigmoid().item()
    assert lowest == pytest.approx(best, abs=0.005)


def test_focal_of_images_without_objects_trains_background_alone() -> None:
    logits = torch.zeros(2, 5, 3, requires_grad=True)
    task = all_negative(2, 5, logits.device)
    loss = assigned_focal(logits, torch.zeros(2, 0, dtype=torch.int64), task)
    loss.backward()
    assert loss.item() == pytest.approx(30 * 0.75 * 0.25 * math.log(2), rel=1e-6)
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3)])
def test_focal_without_anchors_is_a_differentiable_zero(shape: tuple[int, int, int], slots: int) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    labels = torch.zeros(shape[0], slots, dtype=torch.int64)
    loss = assigned_focal(logits, labels, all_negative(shape[0], shape[1], logits.device))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and loss.dtype == torch.float32


@every_chunk
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("chunked")
def test_focal_of_half_precision_logits_is_that_of_the_same_values_in_single(dtype: torch.dtype) -> None:
    logits, labels, task = example()
    half = logits.to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    first, second = assigned_focal(half, labels, task), assigned_focal(single, labels, task)
    first.backward()
    second.backward()
    assert first.dtype == torch.float32 and half.grad.dtype == dtype
    assert torch.equal(first, second)
    assert torch.equal(half.grad, single.grad.to(dtype))


def test_a_focal_gradient_too_small_for_half_precision_survives_a_loss_scale() -> None:
    # .75 p^2 ln(1 + e^x) with p ~ e^x = e^-10: the gradient is 2.25 e^-30 ~ 2e-13, which fp16 holds only once scaled.
    logits = torch.full((1, 1, 1), -10.0, dtype=torch.float16, requires_grad=True)
    loss = assigned_focal(logits, torch.zeros(1, 0).long(), all_negative(1, 1, logits.device))
    (loss * 2.0**40).backward()
    assert logits.grad.item() == pytest.approx(2.25 * math.exp(-30) * 2**40, rel=1e-2)


def test_autocast_leaves_focal_alone() -> None:
    logits, labels, task = example()
    expected = assigned_focal(logits, labels, task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(assigned_focal(logits, labels, task), expected)


def test_focal_takes_logits_of_any_layout_and_changes_no_input() -> None:
    logits, labels, task = example()
    channels_first = logits.transpose(1, 2).contiguous().requires_grad_()
    loss = assigned_focal(channels_first.transpose(1, 2), labels, task)
    loss.backward()
    plain = logits.clone().requires_grad_()
    expected = assigned_focal(plain, labels, task)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(channels_first.grad.transpose(1, 2), plain.grad)
    assert torch.equal(plain.detach(), logits) and torch.equal(task.quality, example()[2].quality)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_focal_stays_finite_for_extreme_logits(logit: float) -> None:
    _, labels, task = example()
    logits = torch.full((2, 5, 3), logit, requires_grad=True)
    loss = assigned_focal(logits, labels, task)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_focal_keeps_one_tensor_of_the_logits_size_for_the_backward_pass() -> None:
    logits, labels, task = example()
    node = assigned_focal(logits.requires_grad_(), labels, task).grad_fn
    assert [tuple(kept.shape) for kept in node.saved_tensors] == [tuple(logits.shape)]
    # No graph of a chunk hangs on: the only way back leads to the logits.
    assert [step.variable is logits for step, _ in node.next_functions if step is not None] == [True]


def test_focal_without_a_gradient_to_follow_is_the_same_number() -> None:
    logits, labels, task = example()
    expected = assigned_focal(logits.clone().requires_grad_(), labels, task)
    loss = assigned_focal(logits, labels, task)
    assert not loss.requires_grad and torch.equal(loss, expected.detach())


# Boxes


def test_smooth_l1_by_hand() -> None:
    # beta 1/2: |d| = 1/4 costs 1/16, |d| = 1 costs 3/4, 0 costs 0. Rows of weight 2 and 1/2.
    predicted = torch.tensor([[0.25, -1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    loss = smooth_l1(predicted, torch.zeros(2, 4), torch.tensor([2.0, 0.5]), beta=0.5)
    assert loss.item() == pytest.approx(2 * (1 / 16 + 3 / 4) + 0.5 * 3)


def test_smooth_l1_of_beta_zero_is_l1() -> None:
    predicted, wanted, weight = boxes(0), boxes(1), torch.rand(20, generator=torch.Generator().manual_seed(2))
    expected = ((predicted - wanted).abs() * weight[:, None]).sum()
    torch.testing.assert_close(smooth_l1(predicted, wanted, weight, beta=0), expected)


def test_the_gradient_of_smooth_l1_is_the_clipped_difference() -> None:
    predicted = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.arange(6.0)
    smooth_l1(predicted, torch.zeros(6, 4), weight, beta=0.5).backward()
    torch.testing.assert_close(predicted.grad, (predicted.detach() / 0.5).clamp(-1, 1) * weight[:, None])


def test_giou_by_hand() -> None:
    # Overlapping: intersection 2, union 6, enclosing box 6: 1 - 1/3. Apart: union 2, enclosing box 3: 1 - 0 + 1/3.
    predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    wanted = torch.tensor([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 3.0, 1.0]])
    assert giou(predicted, wanted, torch.tensor([3.0, 1.0])).item() == pytest.approx(3 * 2 / 3 + 4 / 3, rel=1e-6)


def test_log_iou_by_hand() -> None:
    # IoU 2/6, 1 and, for boxes apart, the bound 1e-6.
    predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    wanted = torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]])
    loss = log_iou(predicted, wanted, torch.tensor([0.5, 7.0, 1.0]))
    assert loss.item() == pytest.approx(0.5 * math.log(3) + 6 * math.log(10), rel=1e-6)


def test_the_gradient_of_log_iou_in_closed_form() -> None:
    # A box [0, 0, x, 2] inside [0, 0, 4, 2] has IoU x / 4: d(-ln IoU)/dx = -1 / x.
    predicted = torch.tensor([[0.0, 0.0, 3.0, 2.0]], requires_grad=True)
    log_iou(predicted, torch.tensor([[0.0, 0.0, 4.0, 2.0]]), torch.tensor([6.0])).backward()
    assert predicted.grad[0, 2].item() == pytest.approx(-2.0, rel=1e-6)


@every_box_loss
def test_the_gradient_of_a_box_loss_is_its_slope(loss: BoxLoss) -> None:
    # Boxes that overlap well, no two coordinates alike: the losses are smooth at every point visited.
    shift = 3 * torch.rand(6, 4, generator=torch.Generator().manual_seed(3)) - 1.5
    wanted, weight = boxes(0, 6), torch.linspace(0.5, 2, 6)
    predicted = (wanted + shift).requires_grad_()
    loss(predicted, wanted, weight).backward()
    slope = numeric_gradient(lambda at: loss(at, wanted, weight), predicted.detach(), 2**-8)
    torch.testing.assert_close(predicted.grad, slope, rtol=1e-2, atol=2e-3)


@every_box_loss
def test_a_box_loss_is_zero_where_boxes_agree_and_positive_elsewhere(loss: BoxLoss) -> None:
    assert loss(boxes(0), boxes(0), torch.ones(20)).item() == pytest.approx(0, abs=1e-4)
    for row, wanted in zip(boxes(0), boxes(1), strict=True):
        assert loss(row[None], wanted[None], torch.ones(1)).item() > 0.01


@every_box_loss
def test_a_box_loss_is_linear_in_the_weights(loss: BoxLoss) -> None:
    weight = torch.rand(20, generator=torch.Generator().manual_seed(0))
    rows = [loss(p[None], t[None], torch.ones(1)) for p, t in zip(boxes(0), boxes(1), strict=True)]
    torch.testing.assert_close(loss(boxes(0), boxes(1), weight), (torch.stack(rows) * weight).sum())


@every_box_loss
def test_a_box_loss_without_positives_is_a_differentiable_zero(loss: BoxLoss) -> None:
    predicted = torch.zeros(0, 4, requires_grad=True)
    value = loss(predicted, torch.zeros(0, 4), torch.zeros(0))
    value.backward()
    assert value.item() == 0 and value.dtype == torch.float32 and predicted.grad is not None


@every_box_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_box_loss_of_any_precision_is_that_of_the_same_values_in_single(loss: BoxLoss, dtype: torch.dtype) -> None:
    # Times 32 the areas pass 65504, the largest number of fp16.
    predicted, wanted, weight = (32 * boxes(0)).to(dtype), (32 * boxes(1)).to(dtype), torch.ones(20)
    value = loss(predicted, wanted, weight)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(predicted.float(), wanted.float(), weight))


@every_box_loss
def test_boxes_apart_or_without_area_get_a_finite_gradient(loss: BoxLoss) -> None:
    predicted = torch.tensor(
        [[0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 9.0], [2.0, 2.0, 2.0, 2.0]], requires_grad=True
    )
    wanted = torch.tensor([[900.0, 900.0, 901.0, 901.0], [0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 9.0, 9.0], [2.0] * 4])
    value = loss(predicted, wanted, torch.ones(4))
    value.backward()
    assert value.isfinite() and predicted.grad.isfinite().all()


def test_boxes_apart_attract_under_giou_and_not_under_log_iou() -> None:
    wanted = torch.tensor([[10.0, 0.0, 12.0, 2.0]])
    pulls = []
    for loss in (giou, log_iou):
        predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
        loss(predicted, wanted, torch.ones(1)).backward()
        pulls.append(predicted.grad[0, 2].item())
    assert pulls[0] < 0 and pulls[1] == 0


# Centerness


def test_centerness_by_hand() -> None:
    # sqrt(1/4 * 1), sqrt(2/8 * 3/12) and the centre.
    distances = torch.tensor([[1.0, 2.0, 4.0, 2.0], [8.0, 3.0, 2.0, 12.0], [5.0, 7.0, 5.0, 7.0]])
    torch.testing.assert_close(centerness(distances), torch.tensor([0.5, 0.25, 1.0]))


def test_centerness_has_no_unit_and_is_blind_to_mirroring() -> None:
    distances = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) + 0.01
    expected = centerness(distances)
    assert ((expected >= 0) & (expected <= 1)).all()
    torch.testing.assert_close(centerness(distances * 64), expected)
    torch.testing.assert_close(centerness(distances[:, [2, 1, 0, 3]]), expected)
    torch.testing.assert_close(centerness(distances[:, [0, 3, 2, 1]]), expected)


def test_centerness_of_half_precision_and_of_nothing() -> None:
    distances = (1000 * torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) + 1).half()
    assert torch.equal(centerness(distances), centerness(distances.float()))
    assert centerness(torch.zeros(0, 4)).shape == (0,)


def test_the_centerness_loss_by_hand() -> None:
    # p = 1/2, t = .3: ln 2. p = 3/4, t = 1/2: -(ln 3/4 + ln 1/4) / 2 = ln(16/3) / 2.
    loss = centerness_loss(torch.tensor([0.0, math.log(3.0)]), torch.tensor([0.3, 0.5]), torch.tensor(2.0))
    assert loss.item() == pytest.approx((math.log(2) + math.log(16 / 3) / 2) / 2, rel=1e-6)


def test_the_centerness_loss_moves_the_logits_alone() -> None:
    logits = torch.randn(6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = torch.rand(6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    centerness_loss(logits, wanted, torch.tensor(4.0)).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().sigmoid() - wanted.detach()) / 4)
    assert wanted.grad is None


def test_the_centerness_loss_of_half_precision_is_that_of_the_same_values_in_single() -> None:
    logits, wanted = torch.linspace(-9, 9, 7).half(), torch.linspace(0, 1, 7).half()
    loss = centerness_loss(logits, wanted, torch.tensor(7))
    assert loss.dtype == torch.float32
    expected = F.binary_cross_entropy_with_logits(logits.float(), wanted.float())
    torch.testing.assert_close(loss, expected)


def test_the_centerness_loss_without_positives_is_a_differentiable_zero() -> None:
    logits = torch.zeros(0, requires_grad=True)
    loss = centerness_loss(logits, torch.zeros(0), torch.tensor(1))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


# Prediction alignment


def test_the_alignment_loss_by_hand() -> None:
    # ((.9 - .5)^2 + (.2 - .5)^2) / 2 = (.16 + .09) / 2.
    loss = alignment_loss(torch.tensor([0.9, 0.2]), torch.tensor([0.5, 0.5]), torch.tensor(2))
    assert loss.item() == pytest.approx(0.125, rel=1e-6)


def test_the_alignment_loss_pulls_score_and_iou_at_each_other() -> None:
    scores = torch.rand(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ious = torch.rand(6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    alignment_loss(scores, ious, torch.tensor(3.0)).backward()
    torch.testing.assert_close(scores.grad, 2 * (scores - ious).detach() / 3)
    assert torch.equal(ious.grad, -scores.grad)


def test_the_alignment_loss_of_half_precision_is_single() -> None:
    scores, ious = torch.tensor([1e-4, 0.5]).half(), torch.zeros(2).half()
    loss = alignment_loss(scores, ious, torch.tensor(1))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, alignment_loss(scores.float(), ious.float(), torch.tensor(1)))


def test_the_alignment_loss_without_positives_is_a_differentiable_zero() -> None:
    scores, ious = torch.zeros(0, requires_grad=True), torch.zeros(0, requires_grad=True)
    loss = alignment_loss(scores, ious, torch.tensor(1))
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and ious.grad is not None
