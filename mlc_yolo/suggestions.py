"""The nearest known words to one that is not known, for messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: object, known: Iterable[object], *, most: int = 1, cutoff: float = 0.5) -> str:
    """Return the end of a message that names the words it may have meant.

    Args:
        word: what was given.
        known: words there are.
        most: how many are named at most, nearest first.
        cutoff: least similarity, in [0, 1], as difflib measures it.

    Returns:
        A sentence with a space before it; empty if no known word is near.

    Example:
        >>> did_you_mean("mcl", ["tal", "mlc"])
        " Did you mean 'mlc'?"
        >>> did_you_mean("zzz", ["tal", "mlc"])
        ''
    """
    near = get_close_matches(str(word), [str(name) for name in known], n=most, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
