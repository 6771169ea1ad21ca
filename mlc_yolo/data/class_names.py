"""Class names of a data set beside those of a model: labels and outputs are matched by their numbers."""

from __future__ import annotations

from collections.abc import Mapping

from ultralytics.utils import LOGGER


def warn_of_other_names(data: Mapping[int, str], model: Mapping[int, str], consequence: str) -> None:
    """Warn where a number means one class in the data and another to the model.

    Args:
        data: class names by label.
        model: the model's.
        consequence: what follows from it, for the message.
    """
    pairs = [(name, model.get(label)) for label, name in data.items()]
    other = [f"'{name}' in the data is '{theirs}' to the model" for name, theirs in pairs if theirs != name]
    if other:
        more = ", and so on" if len(other) > 1 else ""
        LOGGER.warning(f"the data's classes differ from the model's: {other[0]}{more}. {consequence}")
