"""Priors of one size are built once: a bounded memory of the latest sizes, shared by all models.

Heads keep no priors themselves, so that neither checkpoints nor copies of a model hold any.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import torch

from mlc_yolo.priors import Priors

#: Sizes remembered per kind of head. The priors of the largest, RPN's at 1333 x 800 px, take 12 MB.
REMEMBERED = 8


def built_once(build: Callable[..., Priors]) -> Callable[..., Priors]:
    """Make a builder of priors return the same object for the same arguments, the device among them.

    The tensors are shared: nobody may write to them. They are built outside inference mode, so that training can use
    what a validation built. Exports and compilation always build, because there sizes may be symbols.

    Args:
        build: a pure function of hashable arguments.
    """

    @lru_cache(maxsize=REMEMBERED)
    def remembered(*arguments: object) -> Priors:
        with torch.inference_mode(False):
            return build(*arguments)

    @wraps(build)
    def priors(*arguments: object) -> Priors:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return build(*arguments)
        return remembered(*arguments)

    return priors
