"""The arguments of a call: our options and Ultralytics', separated, checked and completed once.

Upstream refuses keys it does not know, and hands its own arguments on as one flat namespace. So they are told apart at
the borders: where a method of `MLCYOLO` is called, and where a trainer gets a flat namespace, as workers and resumed
runs do. Everything behind takes an `Arguments` whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from mlc_yolo.options.specification import defaults, settle, validated
from mlc_yolo.options.stock_arguments import check_stock

#: Options of checkpoints written before they were renamed -> their names.
RENAMED = {"mg_prior_scale": "prior_scale"}


@dataclass(frozen=True)
class Arguments:
    """Arguments of one call, checked.

    Attributes:
        ours: every option of `cfg/mlc.yaml` -> its value, the default where it was not given.
        stock: Ultralytics' arguments that were given, by name; unknown names too, which upstream refuses.
        explicit: names in `ours` that the caller set, as opposed to defaults.
    """

    ours: Mapping[str, Any]
    stock: Mapping[str, Any]
    explicit: frozenset[str] = frozenset()

    @classmethod
    def of(cls, arguments: Mapping[str, Any] | SimpleNamespace | None, *, trust: bool = False) -> Arguments:
        """Tell our options from upstream's, resolve aliases and check both.

        Args:
            arguments: by name; None is none.
            trust: what `trust` is unless it is among them.

        Raises:
            ValueError: a value outside its domain; the message names the nearest valid one.
            TypeError: a value of the wrong type.
        """
        stock = stock_only(arguments)
        ours = {name: value for name, value in _mapping(arguments).items() if name not in stock}
        if trust:
            ours.setdefault("trust", True)
        check_stock(stock)
        return cls({**defaults(), **validated(ours)}, stock, frozenset(ours))

    @property
    def trust(self) -> bool:
        """Whether checkpoints are opened without being checked."""
        return bool(self.ours["trust"])

    def for_model(self, detector: str | None) -> Arguments:
        """Return a copy in which empty options have the values they mean for the model.

        Args:
            detector: kind of a ported detector; None is YOLO.

        Raises:
            ValueError: an option that is for models of the other kind.
        """
        return replace(self, ours=settle(self.ours, detector))

    def flat(self) -> dict[str, Any]:
        """Return the explicit arguments in one dict, as upstream passes arguments on."""
        return {**self.stock, **{name: self.ours[name] for name in self.explicit}}


def stock_only(arguments: Mapping[str, Any] | SimpleNamespace | None) -> dict[str, Any]:
    """Return a new dict of the arguments that are not our options."""
    ours = defaults()
    return {name: value for name, value in _mapping(arguments).items() if name not in ours}


def of_checkpoint(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a checkpoint holds, under the names that options have today."""
    return {RENAMED.get(name, name): value for name, value in arguments.items()}


def _mapping(arguments: Mapping[str, Any] | SimpleNamespace | None) -> Mapping[str, Any]:
    if arguments is None:
        return {}
    return arguments if isinstance(arguments, Mapping) else vars(arguments)
