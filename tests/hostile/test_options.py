"""Options: every key of ours and of Ultralytics' refuses values of wrong types by name, or has no effect here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo.options import specification as options
from mlc_yolo.options.arguments import Arguments
from mlc_yolo.options.stock_arguments import check_stock

#: Arguments of other modes, of the command line, or read by name later, where what is wrong with them is said.
ELSEWHERE = {
    *("task", "mode", "cfg"),  # settled by the model, the method that is called, and its reader
    *("data", "model", "tracker", "source"),  # looked for as files
    *("device", "imgsz"),  # `select_device` and `check_imgsz` name them
    *("embed", "format", "amp"),
}
WRONG: list[Any] = ["abc", "", [1.5], ["a", None], {"a": 1}, {}, object(), b"abc", float("nan"), 1j]


def refusal(name: str, value: Any) -> str | None:
    """Return the message a training begins with, None if there is none."""
    try:
        get_cfg({**DEFAULT_CFG_DICT, **options.defaults()}, Arguments.of({name: value}).flat())
    except (TypeError, ValueError, SyntaxError) as error:
        return str(error)
    return None


def wrong_for(name: str, value: Any) -> bool:
    """Whether the value is none this option could have."""
    default = {**DEFAULT_CFG_DICT, **options.defaults()}[name]
    spec = options.specifications().get(name)
    if spec and spec.get("type") == "path":
        return not isinstance(value, str) or not value
    if isinstance(default, str) or name in {"project", "name", "pretrained", "resume", "distill_model"}:
        return not isinstance(value, str)
    return True


@pytest.mark.parametrize("name", sorted({**DEFAULT_CFG_DICT, **options.defaults()}.keys() - ELSEWHERE))
def test_a_value_of_a_wrong_type_is_refused_by_name(tried: Counter[str], name: str) -> None:
    for value in WRONG:
        if wrong_for(name, value):
            message = refusal(name, value)
            tried["refused"] += 1
            assert message is not None, f"{name}={value!r} was taken"
            assert name in message, message


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(options.specifications())),
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=9),
        st.sampled_from(["mlc", "tal", "iou", "none", "16,18", "1,a", "sed", "warp"]),
        st.lists(st.one_of(st.integers(-3, 30), st.text(max_size=3)), max_size=3),
        st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    ),
)
def test_any_value_of_ours_is_checked_or_named(tried: Counter[str], name: str, value: Any) -> None:
    try:
        checked = options.validated({name: value})
    except (TypeError, ValueError) as error:
        tried["refused"] += 1
        assert name in str(error)
    else:
        tried["read"] += 1
        assert options.validated(checked) == checked  # what a run's file holds is taken again


@pytest.mark.parametrize(
    "stock",
    [
        {"cache": "ram", "classes": [0, 2], "freeze": 10, "pretrained": True, "resume": False, "time": 0.5},
        {"cache": False, "classes": 1, "freeze": [0, "model.1."], "pretrained": "a.pt", "resume": Path("last.pt")},
        {"cache": "disk", "project": Path("runs"), "name": 5, "pretrained": torch.nn.Identity(), "classes": []},
        dict.fromkeys(("cache", "classes", "freeze", "pretrained", "resume", "time", "project", "name")),
    ],
)
def test_what_ultralytics_documents_is_taken(stock: dict[str, Any]) -> None:
    check_stock(stock)
    assert get_cfg(DEFAULT_CFG_DICT, {name: value for name, value in stock.items() if name != "pretrained"})


@pytest.mark.parametrize(
    ("stock", "message"),
    [
        ({"classes": "cat"}, r"classes='cat' \(str\) must be class numbers, such as classes=\[0,2\]"),
        ({"classes": [-1]}, "classes=.* must be class numbers"),
        ({"freeze": "backbone"}, "freeze='backbone' .* must be a number of layers, or a list"),
        ({"freeze": -1}, "freeze=-1"),
        ({"cache": "rma"}, "cache='rma' .* must be True, False, ram or disk"),
        ({"time": 0}, "time=0 .* must be hours, above 0"),
    ],
)
def test_what_ultralytics_would_ignore_without_a_word_is_refused(stock: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check_stock(stock)
