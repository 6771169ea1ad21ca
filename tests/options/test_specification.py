"""The options: told apart from upstream's, checked, and refused with the nearest valid value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo.detectors.config import QUALITIES
from mlc_yolo.options.specification import (
    OWN,
    defaults,
    settle,
    specifications,
    validated,
    warmup_epochs,
)


def test_every_default_passes_its_own_check_unchanged() -> None:
    assert validated(defaults()) == defaults()


def test_no_option_shadows_one_of_ultralytics() -> None:
    assert not set(specifications()) & set(DEFAULT_CFG_DICT)


def test_every_option_says_what_it_takes_and_why() -> None:
    for name, spec in specifications().items():
        assert spec["help"].strip().endswith("."), name
        assert ("choices" in spec) != (spec.get("type") in ("number", "bool", "epochs", "path")), name
        assert set(spec) <= {
            "default",
            "choices",
            "aliases",
            "type",
            "minimum",
            "maximum",
            "above",
            "help",
            "source",
        }, name


def test_defaults_are_a_copy() -> None:
    defaults()["mg_tasks"] = "changed"
    assert defaults()["mg_tasks"] == "both"


# Names and choices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("asigner", "assigner"), ("mlc_alfa", "mlc_alpha"), ("iouhead", "iou_head"), ("coco_evals", "coco_eval")],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(KeyError, match=rf"'{name}' is not an option of mlc-yolo\. Did you mean '{nearest}'\?"):
        validated({name: 1})


def test_a_name_like_no_other_gets_no_advice() -> None:
    with pytest.raises(KeyError) as error:
        validated({"zzzzqqqq": 1})
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("assigner", "mutual-guidance", "mutual_guidance"),
        ("assigner", "mutual_guidence", "mutual_guidance"),
        ("assigner", "maxiou", "max_iou"),
        ("assigner", "TAAL", "tal"),
        ("assigner_base", "max-iou", "max_iou"),
        ("mlc_candidates", "insde", "inside"),
        ("mlc_tasks", "boht", "both"),
        ("mg_tasks", "l2cc", "l2c"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_nearest_one(name: str, value: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"must be one of .*\. Did you mean '{nearest}'\?") as error:
        validated({name: value})
    assert all(choice in str(error.value) for choice in specifications()[name]["choices"])
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", ["mlc", "mutual_guidance", "mg"])
def test_the_warm_up_needs_an_assigner_that_does_not_learn_from_predictions_of_both_tasks(value: str) -> None:
    with pytest.raises(ValueError, match="assigner_base"):
        validated({"assigner_base": value})


@pytest.mark.parametrize("value", [3, True, 0.5])
def test_a_choice_that_is_no_word_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="must be one of tal, max_iou"):
        validated({"assigner": value})


@pytest.mark.parametrize(
    ("given", "canonical"),
    [("mg", "mutual_guidance"), ("MG", "mutual_guidance"), (" Mlc ", "mlc"), ("TAL", "tal"), ("fcos", "fcos")],
)
def test_case_spaces_and_aliases_are_resolved(given: str, canonical: str) -> None:
    assert validated({"assigner": given}) == {"assigner": canonical}


# Numbers and switches -------------------------------------------------------------------------------------------------

NUMBERS = sorted(name for name, spec in specifications().items() if spec.get("type") == "number")
BOOLS = sorted(name for name, spec in specifications().items() if spec.get("type") == "bool")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_must_be_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}=.* must be a finite number"):
        validated({name: value})


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "ssl_reweight"])  # once a switch
@pytest.mark.parametrize("value", ["0.5", True, [1], {}])
def test_a_number_must_be_a_number(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}=.*{type(value).__name__}.* must be a number"):
        validated({name: value})


@pytest.mark.parametrize("name", BOOLS)
@pytest.mark.parametrize("value", [0, 1, "True", "yes", 0.0])
def test_a_switch_must_be_true_or_false(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}=.* must be True or False"):
        validated({name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mlc_alpha", -0.1, "must be 0 or more"),
        ("iou_warmup", 2.5, "must be whole epochs, or a fraction of the run below 1"),
        ("iou_gain", -1, "must be 0 or more; its default is 1.0"),
        ("assigner_warmup", -1, "must be 0 or more"),
        ("mg_sigma", 1, "must be above 1; its default is 2.0"),
        ("mg_sigma", 0.5, "must be above 1; its default is 2.0"),
        ("prior_scale", 0, "must be above 0; its default is 5.0"),
        ("assigner_warmup", 2.5, "must be whole epochs, or a fraction of the run below 1"),
    ],
)
def test_a_number_outside_its_domain_is_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} {message}"):
        validated({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mlc_alpha", 0),
        ("mlc_alpha", 2),
        ("mg_sigma", 1.01),
        ("assigner_warmup", 0),
        ("assigner_warmup", 0.4),
        ("assigner_warmup", 12),
        ("assigner_warmup", 12.0),
        ("iou_gain", 0),
        ("iou_head", False),
        ("iou_head", True),
        ("rescore", False),
    ],
)
def test_a_value_in_its_domain_stays_as_it_is(name: str, value: Any) -> None:
    assert validated({name: value}) == {name: value}


@pytest.mark.parametrize("name", sorted(specifications()))
def test_empty_is_allowed_where_empty_is_the_default_and_only_there(name: str) -> None:
    spec = specifications()[name]
    if spec["default"] is None:
        assert validated({name: None}) == {name: None}
    elif "none" in spec.get("choices", ()):  # the word, as a YAML file or Python may write it
        assert validated({name: None}) == {name: "none"}
    else:
        with pytest.raises((TypeError, ValueError), match=name):
            validated({name: None})


# Warm-up --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "assigner", "epochs", "expected"),
    [
        (None, "mlc", 100, 40),
        (None, "mlc", 5, 2),
        (None, "mlc", 1, 0),
        (None, "tal", 100, 0),
        (None, "mutual_guidance", 100, 0),
        (0, "mlc", 100, 0),
        (3, "tal", 100, 3),
        (3.0, "mlc", 4, 3),
        (0.5, "mlc", 10, 5),
        (0.5, "mlc", 1, 0),
        (0.999, "mlc", 10, 9),
        (1, "mlc", 2, 1),
        # 0.29 * 100 is 28.999999999999996 in floating point.
        (0.29, "mlc", 100, 29),
        (0.58, "mlc", 50, 29),
    ],
)
def test_a_warm_up_is_a_number_of_epochs(warmup: float | None, assigner: str, epochs: int, expected: int) -> None:
    length = warmup_epochs(warmup, assigner, epochs)
    assert length == expected and isinstance(length, int)


@pytest.mark.parametrize(("warmup", "epochs"), [(1, 1), (10, 10), (12, 10), (12.0, 5)])
def test_a_warm_up_that_leaves_no_epoch_is_refused(warmup: float, epochs: int) -> None:
    message = rf"assigner_warmup={warmup:g} must end before the run of epochs={epochs}: 'mlc' would never train"
    with pytest.raises(ValueError, match=message):
        warmup_epochs(warmup, "mlc", epochs)


@pytest.mark.parametrize("epochs", range(1, 30))
@pytest.mark.parametrize("warmup", [None, 0, 0.1, 0.4, 0.9, 0.999999])
def test_a_fraction_always_leaves_an_epoch(warmup: float | None, epochs: int) -> None:
    assert 0 <= warmup_epochs(warmup, "mlc", epochs) < epochs


# What empty options mean ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", OWN)
def test_empty_options_mean_what_the_model_was_published_with(detector: str | None) -> None:
    settled = settle(defaults(), detector)
    assert {name: settled[name] for name in OWN[detector]} == OWN[detector]
    assert validated(settled) == settled
    assert settle({**defaults(), "mlc_alpha": 1.0, "assigner": "mlc"}, detector)["mlc_alpha"] == 1.0


def test_every_detector_has_options_of_its_own() -> None:
    assert set(OWN) == {None, *QUALITIES}


def test_a_yolo_has_no_candidates_of_its_own_but_the_task_aligned_ones() -> None:
    with pytest.raises(ValueError, match="mlc_candidates=own is for the ported detectors"):
        settle({**defaults(), "mlc_candidates": "own"})


@pytest.mark.parametrize(
    ("option", "detector", "message"),
    [
        ({"iou_head": False}, "fcos", "iou_head is for YOLO: choose what this fcos predicts .*quality=none"),
        ({"iou_head": True}, "retinanet", "iou_head is for YOLO: .*quality=iou"),
        ({"quality": "none"}, None, "quality=none is for the ported detectors .*iou_head=False"),
        ({"align_gain": 1.0}, None, "align_gain=1.0 is for the ported detectors"),
        ({"mg_rule": "2021", "mg_tasks": "l2c"}, None, "mg_rule=2021 guides both tasks: leave mg_tasks=l2c out"),
        ({"iou_training": "product"}, "fcos", "iou_training=product is for YOLO, not for a fcos"),
    ],
)
def test_what_a_layer_predicts_has_one_name_a_kind_of_model(
    option: dict[str, Any], detector: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settle({**defaults(), **option}, detector)


@pytest.mark.parametrize("given", [16, [16], (16,), "16"])
def test_one_step_of_the_learning_rate_may_be_written_in_any_way(given: Any) -> None:
    assert validated({"lr_steps": given}) == {"lr_steps": [16]}


def test_several_steps_of_the_learning_rate() -> None:
    assert validated({"lr_steps": "16, 18"}) == validated({"lr_steps": (16, 18)}) == {"lr_steps": [16, 18]}


@pytest.mark.parametrize("given", ["18,16", [0, 3], [4, 4], [], ""])
def test_steps_must_rise_from_epoch_one(given: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"lr_steps=.* must be"):
        validated({"lr_steps": given})


@pytest.mark.parametrize("given", [1.5, "soon", True, {}])
def test_steps_must_be_epochs(given: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"lr_steps=.* must be"):
        validated({"lr_steps": given})


# Images without labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("photos", "photos"),
        ("my photos/of, cats", ["my photos/of", "cats"]),
        (2024, "2024"),
        (Path("photos/more"), str(Path("photos/more"))),
        (["a", Path("b c")], ["a", "b c"]),
        (("a", "b.txt"), ["a", "b.txt"]),
        (None, None),
    ],
)
def test_paths_may_be_one_or_several_and_become_texts(given: Any, canonical: Any) -> None:
    assert validated({"unlabeled": given}) == {"unlabeled": canonical}


def test_a_folder_with_a_comma_in_its_name_is_one_path(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert validated({"unlabeled": str(tmp_path / "a,b")}) == {"unlabeled": str(tmp_path / "a,b")}


@pytest.mark.parametrize("given", ["", [], (), True, 0.5, {}, ["a", ""], ["a", 3], ["a", None], b"a"])
def test_what_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"unlabeled=.* must be a path, or a list of paths"):
        validated({"unlabeled": given})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ssl_ema", 1.001, "must be 1 or less; its default is 0.9996"),
        ("ssl_ema", -0.1, "must be above 0"),
        ("ssl_threshold", 1.5, "must be 1 or less; its default is 0.7"),
        ("ssl_threshold", 0, "must be above 0; its default is 0.7"),
        ("ssl_ratio", 0, "must be above 0; its default is 1"),
        ("ssl_reweight", -1, "must be 0 or more"),
        ("teacher_weight", -1, "must be 0 or more; its default is"),
        ("teacher_temperature", 0, "must be above 0; its default is"),
        ("ssl_weight", -1, "must be 0 or more; its default is 0.5"),
        ("ssl_burn_in", 1.5, "must be whole epochs, or a fraction of the run below 1"),
        ("ssl_ramp", 2.5, "must be whole epochs, or a fraction of the run below 1"),
    ],
)
def test_numbers_of_learning_without_labels_have_bounds(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validated({name: value})


@pytest.mark.parametrize(("given", "power"), [(True, 2), (False, 0), (1, 1), (0, 0), (2.0, 2)])
def test_re_weighting_is_an_exponent_and_was_a_switch(given: Any, power: float) -> None:
    checked = validated({"ssl_reweight": given})["ssl_reweight"]
    assert checked == power and not isinstance(checked, bool)


@pytest.mark.parametrize("name", sorted(name for name, spec in specifications().items() if "maximum" in spec))
def test_the_largest_value_is_allowed(name: str) -> None:
    largest = specifications()[name]["maximum"]
    assert validated({name: largest}) == {name: largest}


@pytest.mark.parametrize(
    ("given", "nearest"), [("seed", "sed"), ("psuedo", "pseudo"), ("Softt", "soft"), ("non", "none")]
)
def test_a_wrong_way_of_learning_without_labels_is_refused_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"must be one of none, pseudo, soft, sed.* Did you mean '{nearest}'"):
        validated({"ssl": given})
