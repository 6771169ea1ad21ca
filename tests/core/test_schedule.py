"""Which assigner trains in which epoch, and which one an option names."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest

from mlc_yolo.assigners import (
    ATSS,
    STOCK,
    Disentangled,
    MaxIoU,
    MutualGuidance,
    MutualGuidance2021,
    MutualLabeling,
    PointInBox,
    Schedule,
    TaskAligned,
    WeighedByScore,
    build_assigner,
    yolo_assigner,
)
from mlc_yolo.options.specification import defaults, settle, specifications, validated


def test_the_base_trains_the_warm_up_and_the_main_assigner_the_rest() -> None:
    base, main = TaskAligned(), MaxIoU()
    schedule = Schedule(base, main, warmup=3)
    assert [schedule.at(epoch) is main for epoch in range(6)] == [False, False, False, True, True, True]
    assert schedule.at(2) is base


def test_without_a_warm_up_the_main_assigner_trains_from_the_start() -> None:
    main = MaxIoU()
    assert Schedule(TaskAligned(), main, warmup=0).at(0) is main


def test_an_epoch_alone_decides_so_that_resuming_needs_no_state() -> None:
    schedule = Schedule(TaskAligned(), MaxIoU(), warmup=3)
    late = schedule.at(5)
    assert schedule.at(1) is schedule.base and schedule.at(5) is late


def test_warm_ups_under_way_move_with_the_run_and_those_that_ended_stay() -> None:
    schedule = Schedule(TaskAligned(), MaxIoU(), warmup=4, iou_warmup=40)
    early, late = schedule.lasting(2, 20, epoch=1), schedule.lasting(9, 6, epoch=5)
    assert (early.warmup, early.iou_warmup) == (2, 20)
    assert (late.warmup, late.iou_warmup) == (4, 6)  # epoch 4 switched: no way back
    assert schedule.warms_up(39) and not late.warms_up(6)
    assert not late.trains_iou(5) and late.trains_iou(6)


def test_ultralytics_own_loss_is_asked_for_by_one_object_that_copies_keep() -> None:
    assert yolo_assigner("tal", settle(defaults())) is STOCK is deepcopy(STOCK) is pickle.loads(pickle.dumps(STOCK))
    assert not callable(STOCK)
    assert type(build_assigner("tal", settle(defaults()))) is TaskAligned  # what draws it
    assert type(yolo_assigner("atss", settle(defaults()))) is ATSS


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tal", TaskAligned),
        ("max_iou", MaxIoU),
        ("fcos", PointInBox),
        ("atss", ATSS),
        ("mutual_guidance", MutualGuidance),
        ("mlc", MutualLabeling),
        ("ddod", Disentangled),
    ],
)
def test_every_name_in_the_options_builds_its_assigner(name: str, kind: type) -> None:
    assert name in specifications()["assigner"]["choices"]
    assert type(build_assigner(name, settle(defaults()))) is kind


def test_no_name_is_left_out() -> None:
    choices = specifications()["assigner"]["choices"]
    assert {type(build_assigner(name, settle(defaults()))) for name in choices} == {
        TaskAligned,
        MaxIoU,
        PointInBox,
        ATSS,
        MutualGuidance,
        MutualLabeling,
        Disentangled,
    }
    assert set(specifications()["assigner_base"]["choices"]) <= set(choices)


def test_the_options_reach_the_assigner() -> None:
    guidance = build_assigner("mutual_guidance", settle(defaults()) | {"mg_sigma": 1.5, "mg_tasks": "l2c"})
    assert isinstance(guidance, MutualGuidance)
    assert (guidance.sigma, guidance.tasks) == (1.5, "l2c")
    labeling = build_assigner(
        "mlc", settle(defaults()) | {"mlc_alpha": 2, "mlc_tasks": "loc", "mlc_candidates": "inside"}
    )
    assert isinstance(labeling, MutualLabeling) and isinstance(labeling.baseline, PointInBox)
    assert (labeling.alpha, labeling.tasks, labeling.baseline.levels) == (2, "loc", "all")


def test_the_rule_of_mutual_guidance_is_an_option() -> None:
    continued = build_assigner("mutual_guidance", settle(defaults()) | {"mg_rule": "2021", "mg_sigma": 1.5})
    assert isinstance(continued, MutualGuidance2021) and continued.sigma == 1.5
    assert validated({"mg_rule": 2021}) == {"mg_rule": "2021"}  # as a command line reads it


def test_boxes_weighed_by_score_wrap_every_assigner_and_take_the_place_of_the_stock_loss() -> None:
    chosen = settle(defaults()) | {"box_weight": "score"}
    for name in specifications()["assigner"]["choices"]:
        weighed = yolo_assigner(name, chosen)
        assert isinstance(weighed, WeighedByScore)
        assert type(weighed.assigner) is type(build_assigner(name, settle(defaults())))
    own = MaxIoU()
    assert build_assigner("max_iou", chosen, own=own).assigner is own


@pytest.mark.parametrize("candidates", specifications()["mlc_candidates"]["choices"])
def test_every_kind_of_candidates_has_a_baseline(candidates: str) -> None:
    labeling = build_assigner("mlc", settle(defaults()) | {"mlc_candidates": candidates}, own=MaxIoU())
    assert isinstance(labeling, MutualLabeling)
    assert type(labeling.baseline) is {"tal": TaskAligned, "own": MaxIoU}.get(candidates, PointInBox)


def test_a_detectors_own_assigner_stands_for_its_class() -> None:
    own = MaxIoU(positive_iou=0.7, negative_iou=0.3)
    assert build_assigner("max_iou", settle(defaults()), own=own) is own
    assert type(build_assigner("fcos", settle(defaults()), own=own)) is PointInBox


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="simota"):
        build_assigner("simota", settle(defaults()))
