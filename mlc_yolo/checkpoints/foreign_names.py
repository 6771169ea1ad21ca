"""Find classes and functions in a model that would make its checkpoint be refused, before it is written.

The model is pickled to nowhere: what the pickler would write by name is noted and looked up as it would be on opening.
Tensors, which need no names of their own, are passed over.
"""

from __future__ import annotations

import io
import pickle
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from mlc_yolo.checkpoints.pickled_names import is_plain
from mlc_yolo.checkpoints.stand_ins import stand_in

__all__ = ["foreign_names"]


def foreign_names(model: nn.Module, *, without: Any = None) -> list[str]:
    """Return the dotted names in a model for which a checkpoint of it needs `trust=True`.

    Args:
        model: the model; a forward hook on it is saved with it.
        without: a part that is not saved, such as the criterion.

    Returns:
        Sorted names; empty for a model that opens without.
    """
    names = _Names(without)
    with suppress(pickle.PicklingError, TypeError, AttributeError):  # saving will say what cannot be pickled
        names.dump(model)
    return sorted(name for name in names.seen if stand_in(name) is None and not is_plain(name))


class _Names(pickle.Pickler):
    """Collects the names that a pickle would refer to; its output is discarded."""

    def __init__(self, without: Any) -> None:
        super().__init__(io.BytesIO(), protocol=2)  # torch's
        self.seen: set[str] = set()
        self._without = without

    def persistent_id(self, obj: Any) -> str | None:
        """Return a name for objects that need no inspection; None for others."""
        if isinstance(obj, type | FunctionType | BuiltinFunctionType):
            self.seen.add(f"{obj.__module__}.{obj.__qualname__}")
            return "by name"
        passed = isinstance(obj, torch.Tensor | torch.dtype | torch.device)
        return "passed over" if passed or (obj is not None and obj is self._without) else None
