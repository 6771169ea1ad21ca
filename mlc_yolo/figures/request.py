"""The request for a figure, and the result of drawing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mlc_yolo.model import MLCYOLO
from mlc_yolo.options.arguments import Arguments

CROWD = 3  # objects; images of more are drawn only where there are not enough of fewer


@dataclass(frozen=True)
class Request:
    """The arguments of `draw_figure`, checked.

    Attributes:
        model: a detection model, or None.
        other: the model to compare with, or what `MLCYOLO` loads, or None.
        data: the data set.
        count: how many images.
        arguments: the others.
    """

    model: Any
    other: Any
    data: str | Path | None
    count: int
    arguments: Arguments

    @property
    def stock(self) -> Mapping[str, Any]:
        """Upstream's arguments."""
        return self.arguments.stock

    def option(self, name: str) -> Any:
        """Return one of our options."""
        return self.arguments.ours[name]


@dataclass(frozen=True)
class Drawn:
    """A figure, ready to be saved.

    Attributes:
        figure: matplotlib's.
        args: upstream's arguments, which name the run folder.
        description: in words, for those who cannot see it.
    """

    figure: Figure
    args: Any
    description: str


def origin(model: MLCYOLO) -> Path:
    """Return where a model comes from."""
    return Path(str(model.ckpt_path or model.model_name or model.overrides.get("model", "model")))


def name_of(model: MLCYOLO) -> str:
    """Return a name that tells a model from others: for "best.pt", that of its run."""
    path = origin(model)
    return path.parent.parent.name if path.parent.name == "weights" else path.stem
