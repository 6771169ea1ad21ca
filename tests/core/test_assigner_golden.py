"""Assignments small enough to do by hand; the arithmetic stands beside the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest
import torch

from mlc_yolo.assigners import (
    ATSS,
    Disentangled,
    MaxIoU,
    MutualGuidance,
    MutualGuidance2021,
    MutualLabeling,
    PointInBox,
    Predictions,
    Role,
    Targets,
    TaskAligned,
    TaskAssignment,
    WeighedByScore,
)
from mlc_yolo.assigners.disentangled import Exponents
from mlc_yolo.assigners.mutual_guidance import amplified_iou
from mlc_yolo.assigners.objects import flatten_targets
from mlc_yolo.priors import Priors, grid_priors

N, P, I = int(Role.NEGATIVE), int(Role.POSITIVE), int(Role.IGNORED)  # noqa: E741
Box = Sequence[float]


def targets(*objects: tuple[int, Box]) -> Targets:
    labels = torch.tensor([[label for label, _ in objects]])
    boxes = torch.tensor([[list(box) for _, box in objects]], dtype=torch.float32)
    return Targets(labels, boxes, torch.ones_like(labels, dtype=torch.bool))


def priors(*boxes: Box) -> Priors:
    """Priors of one level whose points are their centres."""
    tensor = torch.tensor(boxes, dtype=torch.float32)
    return Priors(
        (tensor[:, :2] + tensor[:, 2:]) / 2, tensor, torch.full((len(boxes),), 8.0), torch.zeros(len(boxes)).long()
    )


def predictions(scores: Sequence[Sequence[float]], boxes: Sequence[Box]) -> Predictions:
    return Predictions(torch.tensor([scores]), torch.tensor([boxes], dtype=torch.float32))


def unread(anchors: Priors) -> Predictions:
    """Predictions for assigners that do not look at them."""
    return Predictions(torch.zeros(1, len(anchors), 3), torch.zeros(1, len(anchors), 4))


def roles(task: TaskAssignment) -> list[int]:
    return task.role[0].tolist()


def slots(task: TaskAssignment) -> list[int]:
    return task.gt_index[0].tolist()


# TAL ------------------------------------------------------------------------------------------------------------------

SIXTEEN = (0, 0, 16, 16)
QUAD = grid_priors([(2, 2)], [8])  # points (4, 4), (12, 4), (4, 12), (12, 12)


def test_tal_rescales_the_metric_to_the_largest_overlap() -> None:
    # Concentric squares: no centre offset, same aspect, so CIoU = IoU. Anchor 0: IoU 1, metric sqrt(.25) * 1 = .5.
    # Anchor 1: IoU 8 * 8 / 256 = .25, metric 1 * .25^6 = 1/4096. Anchors 2, 3 predict elsewhere: metric 0, negative.
    # Quality = metric / .5 * 1: 1 and 1/2048.
    away = (100, 100, 110, 110)
    decoded = predictions([[0.25], [1.0], [1.0], [1.0]], [SIXTEEN, (4, 4, 12, 12), away, away])
    task = TaskAligned()(decoded, QUAD, targets((0, SIXTEEN))).classification
    assert roles(task) == [P, P, N, N]
    torch.testing.assert_close(task.quality[0], torch.tensor([1.0, 1 / 2048, 0, 0]))


def test_tal_gives_a_contested_anchor_to_the_object_it_overlaps_most_not_to_the_better_metric() -> None:
    # All anchors predict object 0 exactly. Overlap with object 1 is 144 / 256 = .5625.
    # Metrics: object 0 sqrt(.0001) * 1 = .01; object 1 sqrt(1) * .5625^6 = .0317, which is larger and still loses.
    decoded = predictions([[0.0001, 1.0]] * 4, [SIXTEEN] * 4)
    task = TaskAligned()(decoded, QUAD, targets((1, (2, 2, 14, 14)), (0, SIXTEEN))).classification
    assert slots(task) == [1, 1, 1, 1]
    torch.testing.assert_close(task.quality[0], torch.ones(4), rtol=0, atol=1e-6)


def test_tal_trains_the_ten_best() -> None:
    grid = grid_priors([(4, 4)], [8])
    box = (0, 0, 32, 32)
    decoded = predictions([[(a + 1) / 16] for a in range(16)], [box] * 16)
    assert roles(TaskAligned()(decoded, grid, targets((0, box))).classification) == [N] * 6 + [P] * 10


def test_tal_widens_a_small_object_to_the_second_stride() -> None:
    # Strides 8 and 16: the object of 2 px about (16, 16) is searched in (8, 8, 24, 24), which holds the points
    # (12, 12), (20, 12), (12, 20), (20, 20) of the first level; (8, 8) and (24, 24) of the second lie on its edge.
    grid = grid_priors([(4, 4), (2, 2)], [8, 16])
    box = (15, 15, 17, 17)
    decoded = predictions([[0.5]] * 20, [box] * 20)
    task = TaskAligned()(decoded, grid, targets((0, box))).classification
    assert task.positive[0].nonzero()[:, 0].tolist() == [5, 6, 9, 10]


def test_tal_names_no_candidate_of_metric_zero_however_few_anchors_there_are() -> None:
    # Four anchors, two claims and three more wanted; only anchor 0 predicts a box that touches the object.
    away = (100, 100, 110, 110)
    decoded = predictions([[0.25]] * 4, [SIXTEEN, away, away, away])
    objects = flatten_targets(targets((0, SIXTEEN)))
    claims = TaskAligned(topk=2).candidates(decoded, QUAD, objects, extra=3)
    assert claims.pairs.anchor.tolist() == [0] and claims.positive.tolist() == [True]


# Static matching ------------------------------------------------------------------------------------------------------


def test_max_iou_ignores_between_the_thresholds() -> None:
    # Object 15 x 8 = 120. Prior 0: 64 / 120 = .533. Prior 1: 7 * 8 = 56, 56 / (120 + 64 - 56) = .4375. Prior 2: 0.
    anchors = priors((0, 0, 8, 8), (8, 0, 16, 8), (0, 8, 8, 16))
    task = MaxIoU()(unread(anchors), anchors, targets((0, (0, 0, 15, 8)))).classification
    assert roles(task) == [P, I, N] and slots(task) == [0, -1, -1] and task.weight[0].tolist() == [1, 0, 1]


def test_max_iou_forces_every_prior_that_overlaps_an_object_best() -> None:
    # The object of 4 px^2 lies in both priors of 64 px^2: 4 / 64 = .0625 for each, and both are forced.
    anchors = priors((0, 0, 8, 8), (2, 0, 10, 8), (20, 0, 28, 8))
    case = (unread(anchors), anchors, targets((0, (3, 3, 5, 5))))
    assert roles(MaxIoU()(*case).classification) == [P, P, N]
    assert roles(MaxIoU(low_quality=False)(*case).classification) == [N, N, N]


def test_max_iou_gives_a_forced_prior_to_the_object_it_overlaps_most() -> None:
    # Prior 0 is the only one object 0 touches (4 / 64), but it overlaps object 1 fully: torchvision's rule.
    anchors = priors((0, 0, 8, 8), (20, 0, 28, 8))
    task = MaxIoU()(unread(anchors), anchors, targets((0, (2, 2, 4, 4)), (0, (0, 0, 8, 8)))).classification
    assert slots(task) == [1, -1]


def test_max_iou_gives_ties_to_the_lower_object() -> None:
    anchors = priors((0, 0, 8, 8))
    same = (0, (0, 0, 8, 6))
    assert slots(MaxIoU()(unread(anchors), anchors, targets(same, same)).classification) == [0]


def test_fcos_includes_both_ends_of_a_levels_range() -> None:
    # Box 72 x 20. Level 0 (stride 8, farthest side <= 64): columns 12 to 60 have farthest max(x, 72 - x) <= 60; 4 and
    # 68 have 68; rows 4 and 12: 7 * 2 = 14 points. Level 1 (64 to 128): the point (8, 8) has 72 - 8 = 64, an end;
    # (24, 8), (40, 8), (56, 8) have less. Level 2 (>= 128): none.
    grid = grid_priors([(4, 12), (2, 6), (1, 3)], [8, 16, 32])
    task = PointInBox()(unread(grid), grid, targets((0, (0, 0, 72, 20)))).classification
    expected = [12 * row + column for row in (0, 1) for column in range(1, 8)] + [48]
    assert task.positive[0].nonzero()[:, 0].tolist() == expected
    assert (task.role != Role.IGNORED).all()


def test_fcos_with_all_levels_ignores_the_other_points_in_the_box() -> None:
    # As above; further points in the box: (4, 4), (68, 4), (4, 12), (68, 12) and on level 1 (24, 8), (40, 8), (56, 8);
    # on level 2 (16, 16) and (48, 16).
    grid = grid_priors([(4, 12), (2, 6), (1, 3)], [8, 16, 32])
    task = PointInBox(levels="all")(unread(grid), grid, targets((0, (0, 0, 72, 20)))).classification
    ignored = (task.role[0] == Role.IGNORED).nonzero()[:, 0].tolist()
    assert ignored == [0, 8, 12, 20, 49, 50, 51, 60, 61]
    assert int(task.positive.sum()) == 15


def test_fcos_gives_a_point_to_the_smallest_box_and_ties_to_the_lower_object() -> None:
    grid = grid_priors([(1, 3)], [8])  # points (4, 4), (12, 4), (20, 4)
    large, left, right = (0, (0, 0, 24, 8)), (0, (0, 0, 16, 8)), (0, (8, 0, 24, 8))
    task = PointInBox()(unread(grid), grid, targets(large, left, right)).classification
    assert slots(task) == [1, 1, 2]
    assert slots(PointInBox()(unread(grid), grid, targets(large, right, left)).classification) == [2, 1, 1]


def test_atss_takes_mean_plus_standard_deviation() -> None:
    # Object 10 x 8 = 80. IoU with prior 1: 64 / 80 = .8; with 0 and 2: 8 / (80 + 64 - 8) = .0588.
    # Mean .3059; sample deviation sqrt((.4941^2 + 2 * .2471^2) / 2) = .4279; threshold .7338 < .8.
    grid = grid_priors([(1, 3)], [8], scale=1)
    task = ATSS()(unread(grid), grid, targets((0, (7, 0, 17, 8)))).classification
    assert roles(task) == [N, P, N]


def test_atss_uses_the_deviation_of_a_sample() -> None:
    # Object (8, 0, 24, 8): IoU 0, .5, .5, 0. Mean .25. The population's deviation .25 would make the threshold .5 and
    # two positives; the sample's, sqrt(4 * .0625 / 3) = .2887, makes it .5387 and none.
    grid = grid_priors([(1, 4)], [8], scale=1)
    assert roles(ATSS()(unread(grid), grid, targets((0, (8, 0, 24, 8)))).classification) == [N] * 4


@pytest.mark.parametrize("side", [1.1, 1.3, 1.7, 1.9, 2.3, 2.9, 3.1, 3.7])
def test_atss_trains_an_object_whose_candidates_are_all_alike(side: float) -> None:
    # One level, and the object inside all nine priors: nine equal IoUs, deviation 0, threshold = mean = IoU.
    # Only the point (12, 12) lies in the box.
    grid = grid_priors([(3, 3)], [8])
    box = (12 - side, 12 - side, 12 + side, 12 + side)
    assert roles(ATSS()(unread(grid), grid, targets((0, box))).classification) == [N] * 4 + [P] + [N] * 4


def test_atss_takes_every_anchor_of_its_nearest_cells() -> None:
    # Two cells of three anchors, topk 1: the candidates are the first cell's three, IoU 16 / 64 = .25, .25 and 1. Mean
    # .5, sample deviation sqrt((.25 + 2 * .0625) / 2) = .433, threshold .933. One candidate alone would be one of the
    # two small ones, which lie a trifle nearer.
    small, whole = (2, 2, 6, 6), (0, 0, 8, 8)
    boxes = torch.tensor([small, small, whole], dtype=torch.float32)
    points = torch.tensor([[4.0, 4.0], [4.0, 4.0], [4.0625, 4.0]])
    right = torch.tensor([8.0, 0.0])
    anchors = Priors(
        torch.cat((points, points + right)),
        torch.cat((boxes, boxes + right.repeat(2))),
        torch.full((6,), 8.0),
        torch.zeros(6, dtype=torch.int64),
    )
    task = ATSS(topk=1)(unread(anchors), anchors, targets((0, whole))).classification
    assert roles(task) == [N, N, P, N, N, N]


@pytest.mark.parametrize(("depth", "role"), [(2 / 256, N), (3 / 256, P)])
def test_atss_wants_the_point_more_than_a_hundredth_of_a_pixel_inside(depth: float, role: int) -> None:
    grid = grid_priors([(1, 1)], [8])  # the point (4, 4)
    assert roles(ATSS()(unread(grid), grid, targets((0, (4 - depth, 0, 20, 8)))).classification) == [role]


# Mutual Guidance ------------------------------------------------------------------------------------------------------

TEN = (0, 0, 10, 10)
FIVE_PRIORS = priors(*((0, 0, 10, height) for height in (6, 5.5, 4.5, 2)), (50, 50, 60, 60))
FIVE_BOXES = [(0, 0, 10, height) for height in (3, 9, 8, 7)] + [(50, 50, 60, 60)]


def test_mutual_guidance_lets_the_tasks_disagree_about_an_anchor() -> None:
    # Object 10 x 10. Prior IoU .6 .55 .45 .2 0: the first is forced to 1. Np = #(>= .5) = 2, Np + Ni = 3.
    # Decoded IoU .3 .9 .8 .7 0: anchors 1 and 2 are positive for classification, 3 is ignored.
    # Amplified, sigma 2, score 0 0 1 1 0: .6 .55 sqrt(.45) = .671 sqrt(.2) = .447 0: anchors 2 and 0 localise.
    # So anchor 0 learns the box but background, anchor 1 the class but no box.
    decoded = predictions([[0.0], [0.0], [1.0], [1.0], [0.0]], FIVE_BOXES)
    result = MutualGuidance()(decoded, FIVE_PRIORS, targets((0, TEN)))
    assert roles(result.classification) == [N, P, P, I, N]
    assert roles(result.localization) == [P, N, P, N, N]
    assert result.classification.weight[0].tolist() == [1, 1, 1, 0, 1]


# The shape of the paper's figure 2. The object is 10 x 10 px; every box has its top left corner and width, so that a
# height of h px is an IoU of h / 10. Scores are 0 or 1; with sigma 2 the amplified IoU is the prior IoU at score 0,
# its root at score 1.
#   prior  IoU   static     decoded  cls        score  amplified          loc
#   A      .90   positive   .95      positive   1      1 (best, forced)   positive
#   B      .80   positive   .90      positive   1      .894^2 = .80       positive
#   C      .70   positive   .20      negative   1      .837^2 = .70       positive   the paper's C
#   D      .65   positive   .88      positive   1      .806^2 = .65       positive
#   E      .60   positive   .80      positive   0      .60                -          C's contrary
#   F      .50   positive   .30      negative   0      .50                -          dropped by both
#   G      .48   ignored    .60      ignored    1      .693^2 = .48       positive
#   H      .45   ignored    .85      positive   1      .671^2 = .45       positive   promoted by both
#   I      .40   ignored    .70      ignored    0      .40                -
#   J      .36   negative   .75      positive   0      .36                -
#   K      .30   negative   .50      ignored    0      .30                -
#   L      .20   negative   .10      negative   1      .447^2 = .20       -
#   M      .10   negative   .00      negative   1      .316^2 = .10       -
# Np = A to F = 6, F at the threshold itself; Ni = G, H, I = 3, I at the threshold itself.
# Decoded, falling: A B D H E J | I G K | F C L, and M misses. Amplified, falling: A B C D G H | E F L I J M K.
FIGURE_PRIORS = priors(*((0, 0, 10, h) for h in (9, 8, 7, 6.5, 6, 5, 4.8, 4.5, 4, 3.6, 3, 2, 1)))
FIGURE = predictions(
    [[p] for p in (1.0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1)],
    [(0, 0, 10, h) for h in (9.5, 9, 2, 8.8, 8, 3, 6, 8.5, 7, 7.5, 5, 1, 0)],
)


@pytest.mark.parametrize(
    ("tasks", "classification", "localization"),
    [
        ("both", "PPNPPNIPIPINN", "PPPPNNPPNNNNN"),
        ("l2c", "PPNPPNIPIPINN", "PPPPPPNNNNNNN"),
        ("c2l", "PPPPPPIIINNNN", "PPPPNNPPNNNNN"),
    ],
)
def test_mutual_guidance_labels_thirteen_anchors_as_in_the_papers_figure_two(
    tasks: Literal["both", "l2c", "c2l"], classification: str, localization: str
) -> None:
    result = MutualGuidance(tasks=tasks)(FIGURE, FIGURE_PRIORS, targets((0, TEN)))
    role = {"N": N, "P": P, "I": I}
    assert roles(result.classification) == [role[letter] for letter in classification]
    assert roles(result.localization) == [role[letter] for letter in localization]


def test_mutual_guidance_counts_after_the_objects_have_contended() -> None:
    # Objects X 10 x 10 and Y 10 x 6 share a corner; priors of heights 10, 8, 6, 5.5 and boxes that predict X, X, Y, Y.
    # IoU with X 1 .8 .6 .55, with Y .6 .75 1 .917 (6/10, 6/8, 6/6, 5.5/6). Priors 0 and 1 stay with X, 2 and 3 with Y:
    # Np = 2 each, though X alone would have counted 4. Decoded likewise: 1 and .6 against .6 and 1.
    anchors = priors(*((0, 0, 10, h) for h in (10, 8, 6, 5.5)))
    decoded = predictions([[0.0]] * 4, [TEN, TEN, (0, 0, 10, 6), (0, 0, 10, 6)])
    result = MutualGuidance()(decoded, anchors, targets((0, TEN), (0, (0, 0, 10, 6))))
    assert slots(result.classification) == slots(result.localization) == [0, 0, 1, 1]


def test_mutual_guidance_of_one_task_leaves_the_other_to_static_matching() -> None:
    # Static: prior IoU 1 (forced) .55 | .45 | .2 0.
    decoded = predictions([[0.0], [0.0], [1.0], [1.0], [0.0]], FIVE_BOXES)
    case = (decoded, FIVE_PRIORS, targets((0, TEN)))
    l2c, c2l = MutualGuidance(tasks="l2c")(*case), MutualGuidance(tasks="c2l")(*case)
    assert roles(l2c.classification) == [N, P, P, I, N] and roles(l2c.localization) == [P, P, N, N, N]
    assert roles(c2l.classification) == [P, P, I, N, N] and roles(c2l.localization) == [P, N, P, N, N]


def test_mutual_guidance_never_promotes_a_box_that_misses_the_object() -> None:
    # Np = 2, but only anchor 3 predicts a box that touches the object.
    boxes = [(50, 50, 60, 60)] * 3 + [TEN, (50, 50, 60, 60)]
    result = MutualGuidance()(predictions([[0.0]] * 5, boxes), FIVE_PRIORS, targets((0, TEN)))
    assert roles(result.classification) == [N, N, N, P, N]


def test_mutual_guidance_never_promotes_a_reversed_box() -> None:
    # Np = 2 again; (8, 8, 2, 2) lies within the object's bounds but has no area.
    boxes = [(8, 8, 2, 2)] * 3 + [TEN, (8, 8, 2, 2)]
    result = MutualGuidance()(predictions([[0.0]] * 5, boxes), FIVE_PRIORS, targets((0, TEN)))
    assert roles(result.classification) == [N, N, N, P, N]


def test_mutual_guidance_forces_one_prior_for_an_object_below_every_threshold() -> None:
    # 4 / 64 = .0625 with both priors: the lower one is forced, Np = 1.
    anchors = priors((0, 0, 8, 8), (2, 0, 10, 8))
    result = MutualGuidance()(predictions([[0.0]] * 2, [(3, 3, 5, 5)] * 2), anchors, targets((0, (3, 3, 5, 5))))
    assert roles(result.localization) == [P, N] and roles(result.classification) == [P, N]


def test_mutual_guidance_gives_a_prior_two_objects_force_to_the_lower_object() -> None:
    # Both objects have prior 0 as their best (48 / 64 and 32 / 64): both are 1 there, and the lower object gets it.
    anchors = priors((0, 0, 8, 8))
    decoded = predictions([[0.0]], [(0, 0, 8, 8)])
    weak, strong = (0, (0, 0, 8, 4)), (0, (0, 0, 8, 6))
    assert slots(MutualGuidance()(decoded, anchors, targets(weak, strong)).localization) == [0]
    assert slots(MutualGuidance()(decoded, anchors, targets(strong, weak)).classification) == [0]


def test_mutual_guidance_counts_a_shared_best_prior_for_every_object_that_shares_it() -> None:
    # Np = 1 for both objects, who share prior 0. Decoded IoU: 1 and 4 / 6 for the lower, 4 / 6 and 1 for the other:
    # each has a box of its own to classify. To localise there is prior 0 alone, which goes to the lower.
    anchors = priors((0, 0, 8, 8), (50, 50, 58, 58))
    decoded = predictions([[0.0]] * 2, [(0, 0, 8, 4), (0, 0, 8, 6)])
    result = MutualGuidance()(decoded, anchors, targets((0, (0, 0, 8, 4)), (0, (0, 0, 8, 6))))
    assert slots(result.classification) == [0, 1] and slots(result.localization) == [0, -1]


def test_amplified_iou_is_equation_one() -> None:
    # (3 - .5) / 3 = 5/6; .5^(5/6) = .5612. Score 0 changes nothing; sigma 1.5, score 1: .125^(1/3) = .5.
    torch.testing.assert_close(amplified_iou(torch.tensor(0.5), torch.tensor(0.5), sigma=3), torch.tensor(0.56123102))
    torch.testing.assert_close(amplified_iou(torch.tensor(0.3), torch.tensor(0.0)), torch.tensor(0.3))
    torch.testing.assert_close(amplified_iou(torch.tensor(0.125), torch.tensor(1.0), sigma=1.5), torch.tensor(0.5))


# MLC ------------------------------------------------------------------------------------------------------------------

# Object 10 x 10; prior IoU .6 .55 | .45 .42 | 0: two positives of the baseline, two it ignores, one negative.
# I = .9 .3 .8 .2. Otsu on .2 .3 | .8 .9: 4 * (.25 - .85)^2 = 1.44, the most (the cuts beside it: 3 * (.2 - 2/3)^2 =
# .653 and 3 * (.4333 - .9)^2 = .653). tau_loc = (.3 + .8) / 2 = .55.
# S = .1 .7 .6 .2. By the same shape tau_cls = (.2 + .6) / 2 = .4.
RETINA_PRIORS = priors(*((0, 0, 10, height) for height in (6, 5.5, 4.5, 4.2)), (50, 50, 60, 60))
RETINA = predictions(
    [[0.1], [0.7], [0.6], [0.2], [0.9]], [(0, 0, 10, height) for height in (9, 3, 8, 2)] + [(50, 50, 60, 60)]
)


@pytest.mark.parametrize(
    ("alpha", "at_a_quarter", "at_a_fifth", "at_seven_twentieths"),
    [
        (0.0, 1.0, 1.0, 1.0),
        (0.5, 0.5, 0.2**0.5, 0.35**0.5),
        (2.0, 0.0625, 0.04, 0.1225),
    ],
)
def test_mlc_is_equations_four_to_eight(
    alpha: float, at_a_quarter: float, at_a_fifth: float, at_seven_twentieths: float
) -> None:
    result = MutualLabeling(baseline=MaxIoU(), alpha=alpha)(RETINA, RETINA_PRIORS, targets((0, TEN)))
    # Eq. 4: I > .55 for anchors 0 and 2. Eq. 5: 1 and 3 are negatives. Eq. 7: anchor 2 weighs |.8 - .55|^alpha and
    # anchor 3 |.2 - .55|^alpha, because the baseline ignored them; 0 and 1 weigh 1.
    assert roles(result.classification) == [P, N, P, N, N]
    weight = torch.tensor([1, 1, at_a_quarter, at_seven_twentieths, 1])
    torch.testing.assert_close(result.classification.weight[0], weight)
    # Eq. 6: S > .4 for anchors 1 and 2. Eq. 8: anchor 2 weighs |.6 - .4|^alpha. The rest has no box to learn.
    assert roles(result.localization) == [I, P, P, I, N]
    torch.testing.assert_close(result.localization.weight[0], torch.tensor([0, 1, at_a_fifth, 0, 1]))
    assert result.classification.quality[0].tolist() == [1, 0, 1, 0, 0]


def test_mlc_of_one_task_leaves_the_other_to_the_baseline() -> None:
    case = (RETINA, RETINA_PRIORS, targets((0, TEN)))
    cls = MutualLabeling(baseline=MaxIoU(), tasks="cls")(*case)
    loc = MutualLabeling(baseline=MaxIoU(), tasks="loc")(*case)
    assert roles(cls.classification) == [P, N, P, N, N] and roles(cls.localization) == [P, P, I, I, N]
    assert roles(loc.classification) == [P, P, I, I, N] and roles(loc.localization) == [I, P, P, I, N]


def test_mlc_keeps_the_baselines_labels_where_otsu_has_no_cut() -> None:
    # Every candidate predicts the object exactly: I = 1 for all. S differs and still cuts localisation.
    decoded = Predictions(RETINA.scores, torch.tensor(TEN, dtype=torch.float32).expand(1, 5, 4))
    result = MutualLabeling(baseline=MaxIoU())(decoded, RETINA_PRIORS, targets((0, TEN)))
    assert roles(result.classification) == [P, P, I, I, N]
    assert result.classification.weight[0].tolist() == [1, 1, 0, 0, 1]
    assert roles(result.localization) == [I, P, P, I, N]


def test_mlc_of_two_different_candidates_trains_the_higher() -> None:
    anchors = priors((0, 0, 10, 6), (0, 0, 10, 5.5))
    decoded = predictions([[0.2], [0.3]], [(0, 0, 10, 5), (0, 0, 10, 4)])
    result = MutualLabeling(baseline=MaxIoU())(decoded, anchors, targets((0, TEN)))
    assert roles(result.classification) == [P, N] and roles(result.localization) == [I, P]


def test_mlc_of_a_single_candidate_keeps_it() -> None:
    anchors = priors((0, 0, 10, 2))  # forced, IoU .2
    result = MutualLabeling(baseline=MaxIoU())(predictions([[0.2]], [TEN]), anchors, targets((0, TEN)))
    assert roles(result.classification) == [P] and roles(result.localization) == [P]


def test_task_aligned_mlc_cuts_the_aligned_candidates_and_rescales_per_task() -> None:
    # Concentric squares of side 16, 8, 12, 4 in the 16 px object: I = CIoU = 1, .25, .5625, .0625. S = .04 .81 .64 .01.
    # Metric sqrt(S) * I^6 = .2, .9 / 4096 = 2.197e-4, .8 * .5625^6 = .025341, .1 / 16^6 = 5.96e-9.
    # tau_loc: cuts of .0625 .25 .5625 1 give 3 * (.0625 - .6042)^2 = .880, 4 * (.15625 - .78125)^2 = 1.5625 and
    # 3 * (.2917 - 1)^2 = 1.505: between .25 and .5625, tau_loc = .40625. tau_cls = (.04 + .64) / 2 = .34.
    decoded = predictions([[0.04], [0.81], [0.64], [0.01]], [SIXTEEN, (4, 4, 12, 12), (2, 2, 14, 14), (6, 6, 10, 10)])
    result = MutualLabeling(alpha=0.5)(decoded, QUAD, targets((0, SIXTEEN)))
    # Positives weigh 1; their targets are .2 / .2 * 1 and .025341 / .2 * 1. What is dropped weighs |I - tau|^.5:
    # |.25 - .40625|^.5 = .39528 and |.0625 - .40625|^.5 = .58630.
    assert roles(result.classification) == [P, N, P, N]
    torch.testing.assert_close(result.classification.quality[0], torch.tensor([1, 0, 0.126705, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        result.classification.weight[0], torch.tensor([1, 0.395285, 1, 0.586302]), rtol=0, atol=1e-6
    )
    # Among anchors 1 and 2 the largest metric is .025341 and the largest overlap .5625:
    # 2.197e-4 / .025341 * .5625 = .0048773 and .5625.
    assert roles(result.localization) == [I, P, P, I]
    torch.testing.assert_close(
        result.localization.quality[0], torch.tensor([0, 0.0048773, 0.5625, 0]), rtol=0, atol=1e-6
    )
    assert result.localization.weight[0].tolist() == [0, 1, 1, 0]


# The continued rule of Mutual Guidance --------------------------------------------------------------------------------


def test_the_continued_rule_trains_as_many_anchors_as_the_best_qualities_add_up_to() -> None:
    # Decoded IoU .3 .9 .8 .7 0 adds up to 2.7: the 2 best, 1 and 2, have their IoU as class target; none is ignored.
    # Prior IoU .6 .55 .45 .2 0, times sqrt(e) = 1.6487 at score 1: .6 .55 .7419 .3297, together 2.22: anchors 2 and 0.
    decoded = predictions([[0.0], [0.0], [1.0], [1.0], [0.0]], FIVE_BOXES)
    result = MutualGuidance2021()(decoded, FIVE_PRIORS, targets((0, TEN)))
    assert roles(result.classification) == [N, P, P, N, N]
    assert roles(result.localization) == [P, N, P, N, N]
    expected = torch.tensor([[0, 0.9, 0.8, 0, 0], [0.6, 0, 0.741925, 0, 0]])
    torch.testing.assert_close(result.classification.quality, expected[:1])
    torch.testing.assert_close(result.localization.quality, expected[1:])


def test_the_continued_rule_weighs_a_box_by_one_at_most_and_ranks_by_what_is_above() -> None:
    # .6 * e^.5 = .989 and .9 * e^.5 = 1.484, with .5 together 2.49: two positives; the second counts and weighs 1.
    anchors = priors((0, 0, 10, 6), (0, 0, 10, 9), (0, 0, 10, 5))
    given = predictions([[1.0], [1.0], [0.0]], [(0, 0, 10, 10)] * 3)
    result = MutualGuidance2021()(given, anchors, targets((0, TEN)))
    assert roles(result.localization) == [P, P, N]
    torch.testing.assert_close(result.localization.quality, torch.tensor([[0.989233, 1.0, 0.0]]))
    # Two objects whose amplified IoU is above 1: the prior goes to the one it suits better, though it comes second.
    both = targets((0, (0, 0, 10, 8)), (0, TEN))
    result = MutualGuidance2021()(given, priors((0, 0, 10, 9.5), (0, 0, 10, 9), (30, 30, 40, 40)), both)
    assert slots(result.localization)[0] == 1


# DDOD and boxes weighed by the score ----------------------------------------------------------------------------------


def test_ddod_takes_each_tasks_best_by_its_own_metric() -> None:
    # A 16 x 16 object whose four points see IoU 1, .5, .25 and 0 (top left corner, full width): k = floor(1.75) = 1.
    # Classes, s^.2 u^.8: .2^.2 = .7248 and 1 * .5^.8 = .5743: anchor 0. Boxes, (s u)^.5: sqrt(.2) = .4472 and
    # sqrt(.5) = .7071: anchor 1. The quality of an only positive is its IoU.
    boxes = [SIXTEEN, (0, 0, 16, 8), (0, 0, 16, 4), (40, 40, 50, 50)]
    result = Disentangled()(predictions([[0.2], [1.0], [0.1], [1.0]], boxes), QUAD, targets((0, SIXTEEN)))
    assert (roles(result.classification), roles(result.localization)) == ([P, N, N, N], [N, P, N, N])
    torch.testing.assert_close(result.classification.quality, torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(result.localization.quality, torch.tensor([[0, 0.5, 0, 0]]))


def test_ddod_rescales_each_metric_to_the_largest_iou_of_the_tasks_positives() -> None:
    # IoU 1, 1, .5, .5 makes k = 3. Boxes, (s u)^.5 with s = .25, 1, 1, .1: .5, 1, .7071, .2236: anchors 1, 2, 0.
    boxes = [SIXTEEN, SIXTEEN, (0, 0, 16, 8), (0, 8, 16, 16)]
    result = Disentangled()(predictions([[0.25], [1.0], [1.0], [0.1]], boxes), QUAD, targets((0, SIXTEEN)))
    torch.testing.assert_close(result.localization.quality, torch.tensor([[0.5, 1.0, 0.707107, 0.0]]))


def test_boxes_weighed_by_score_keep_labels_and_class_targets() -> None:
    boxes = [SIXTEEN, (0, 0, 16, 8), (0, 0, 16, 4), (40, 40, 50, 50)]
    given = predictions([[0.2, 0.9], [1.0, 0.3], [0.1, 0.7], [1.0, 1.0]], boxes), QUAD, targets((1, SIXTEEN))
    plain, weighed = TaskAligned()(*given), WeighedByScore(TaskAligned())(*given)
    assert torch.equal(weighed.classification.quality, plain.classification.quality)
    assert roles(weighed.localization) == roles(plain.localization) == [P, P, P, N]
    torch.testing.assert_close(weighed.localization.quality, torch.tensor([[0.9, 0.3, 0.7, 0.0]]))


# Wrong use ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MaxIoU(positive_iou=0.3, negative_iou=0.4), "negative_iou <= positive_iou"),
        (lambda: MaxIoU(positive_iou=1.5), "positive_iou"),
        (lambda: MaxIoU(negative_iou=-0.1), "negative_iou"),
        (lambda: PointInBox(levels="some"), "'range' or 'all'"),
        (lambda: MutualGuidance(sigma=1.0), "above 1"),
        (lambda: MutualGuidance(sigma=float("nan")), "above 1"),
        (lambda: MutualGuidance(tasks="cls"), "'l2c'"),
        (lambda: MutualGuidance(negative_iou=0.0), "negative_iou"),
        (lambda: MutualGuidance2021(sigma=0.0), "above 0"),
        (lambda: Exponents(-0.5, 0.5), "score >= 0"),
        (lambda: Exponents(0.5, 0.0), "iou > 0"),
        (lambda: MutualLabeling(alpha=-0.1), "0 or more"),
        (lambda: MutualLabeling(alpha=float("nan")), "0 or more"),
        (lambda: MutualLabeling(tasks="l2c"), "'cls'"),
    ],
)
def test_an_assigner_refuses_values_outside_its_domain(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_predictions_and_targets_refuse_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"scores \(B, A, K\)"):
        Predictions(torch.zeros(1, 3, 2), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"scores \(B, A, K\)"):
        Predictions(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"labels \(B, M\)"):
        Targets(torch.zeros(1, 2), torch.zeros(1, 3, 4), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"labels \(B, M\)"):
        Targets(torch.zeros(1, 2), torch.zeros(1, 2, 4), torch.zeros(1, 3))
