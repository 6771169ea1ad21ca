"""Arguments: told apart from upstream's, checked, complete, and resolved for a model."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlc_yolo
from mlc_yolo.cli import UsageError, parse
from mlc_yolo.options.arguments import RENAMED, Arguments, of_checkpoint, stock_only
from mlc_yolo.options.specification import OWN, defaults


@pytest.mark.parametrize("wrap", [dict, lambda mapping: SimpleNamespace(**mapping)])
def test_a_mapping_or_a_namespace_is_taken_apart_and_nothing_is_lost(wrap: Any) -> None:
    given = {"assigner": "mg", "epochs": 3, "iou_head": None, "model": "yolo11n.pt"}
    arguments = Arguments.of(wrap(given))
    assert arguments.stock == {"epochs": 3, "model": "yolo11n.pt"} and arguments.explicit == {"assigner", "iou_head"}
    assert arguments.flat() == {**given, "assigner": "mutual_guidance"}
    assert given["assigner"] == "mg", "what was given is left as it was"


def test_options_that_were_not_given_have_their_defaults() -> None:
    assert Arguments.of(None).ours == Arguments.of({}).ours == defaults()
    assert Arguments.of({}).flat() == {}


def test_settled_arguments_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Arguments.of({}).ours = {}  # type: ignore[misc]


def test_arguments_made_of_arguments_are_the_same() -> None:
    once = Arguments.of({"assigner": "MG", "lr_steps": "1,2", "unlabeled": Path("a"), "epochs": 3})
    assert Arguments.of(once.flat()) == once


@pytest.mark.parametrize("detector", OWN)
def test_for_a_model_empty_options_mean_what_it_was_published_with(detector: str | None) -> None:
    settled = Arguments.of({"epochs": 3}).for_model(detector)
    assert {name: settled.ours[name] for name in OWN[detector]} == OWN[detector]
    assert settled.flat() == {"epochs": 3}, "files keep what was given"


def test_trust_is_what_the_call_says_else_what_the_model_was_opened_with() -> None:
    assert not Arguments.of({}).trust and Arguments.of({}, trust=True).trust and Arguments.of({"trust": True}).trust
    assert not Arguments.of({"trust": False}, trust=True).trust
    assert Arguments.of({}, trust=True).flat() == {"trust": True}, "workers hear of it"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nms": "iou"}, r"nms='iou' .* must be True or False; what NMS ranks by is nms_by=iou"),
        ({"augment": "ssd"}, r"augment='ssd' .* must be True or False; .* is augmentation=ssd"),
    ],
)
def test_a_word_for_upstreams_switch_is_answered_with_the_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Arguments.of(given)


def test_an_old_name_is_answered_with_the_new_one_and_read_from_checkpoints() -> None:
    for old, new in RENAMED.items():
        with pytest.raises(UsageError, match=f"Did you mean '{new}'"):
            parse(["train", f"{old}=2"])
        assert of_checkpoint({old: 2, "epochs": 1}) == {new: 2, "epochs": 1}


def test_upstreams_part_of_a_namespace_holds_none_of_ours() -> None:
    assert stock_only(SimpleNamespace(**defaults(), epochs=3)) == {"epochs": 3}


def _calls(name: str) -> list[str]:
    """Files of the package that call a function or method of that name."""
    root = Path(mlc_yolo.__file__).parent
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


@pytest.mark.slow
def test_arguments_are_told_apart_in_one_place() -> None:
    validators = {"evaluation/validator.py", "training/task_trainers.py"}  # upstream's take its own arguments alone
    assert set(_calls("stock_only")) <= {"options/arguments.py", *validators}
