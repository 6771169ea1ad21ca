"""Figures 3, 4 and 5 of Mutual Guidance (Zhang et al., ACCV 2020), from any model and data set.

"amplification" is figure 3, "guidance" figure 4, "misaligned" figure 5; what each shows is told in `plots`. What is
drawn comes from where it is used: scores and boxes as the assigner sees them in training, detections and what went into
suppression from one and the same prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from ultralytics.cfg import get_save_dir
from ultralytics.utils import LOGGER, colorstr

from mlc_yolo.figures.amplification import draw_amplification
from mlc_yolo.figures.assignments import check_count
from mlc_yolo.figures.guidance import draw_guidance
from mlc_yolo.figures.misaligned import draw_misaligned
from mlc_yolo.figures.request import Drawn, Request
from mlc_yolo.model import MLCYOLO
from mlc_yolo.options.arguments import Arguments
from mlc_yolo.suggestions import did_you_mean

_KINDS: dict[str, Callable[[Request], Drawn]] = {
    "amplification": draw_amplification,
    "guidance": draw_guidance,
    "misaligned": draw_misaligned,
}


def draw_figure(
    kind: str,
    model: MLCYOLO | None = None,
    *,
    other: MLCYOLO | str | Path | None = None,
    data: str | Path | None = None,
    count: int = 4,
    **kwargs: Any,
) -> list[Path]:
    """Draw one of the paper's figures.

    Args:
        kind: "amplification" (figure 3), "guidance" (figure 4) or "misaligned" (figure 5).
        model: a detection model; "amplification" does without, and with one shows its own pairs beside the curves.
        other: the model to compare with, for "misaligned": a model, or what `MLCYOLO` loads.
        data: the data set; left out, the one the model was trained on, else the demo set.
        count: how many images. "guidance" and "amplification" take the first of the split, those of few objects before
            others; "misaligned" takes, from the first 500, those where most objects are lost by one of the two models
            alone, images of up to ten objects before others.
        **kwargs: upstream's `split` ("val" by default), `imgsz`, `device`, `project`, `name`, `exist_ok` and the like,
            for "misaligned" also those of predict (`conf`, 0.25 by default, and `iou`, 0.5); and the options of
            `cfg/mlc.yaml`, of which `mg_sigma` and `prior_scale` act here, `resize` too, and `rescore` and `nms_by` in
            "misaligned".

    Returns:
        Paths of the PNG and the SVG file, in a run folder of their own.

    Raises:
        ValueError: an unknown kind (the nearest is named), a model that is missing or not asked for, a count below 1, a
            model of another task, data with more classes than a model, a split without objects, or end-to-end
            detections, which know no suppression.
        TypeError: an exported model, or an option of the wrong type.
        FileNotFoundError: no such model, data set or split.
        SyntaxError: an unknown argument.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(_KINDS)}.{did_you_mean(kind, _KINDS)}")
    if model is None and (kind != "amplification" or data is not None):
        raise ValueError(f"kind={kind} draws the predictions of a model: give model=...")
    if (other is not None) != (kind == "misaligned"):
        needs = "compares two models: give other=... too" if other is None else "is of one model: leave out other"
        raise ValueError(f"kind={kind} {needs}")
    check_count(count)
    trust = model is not None and model.trust
    request = Request(model, other, data, count, Arguments.of(kwargs, trust=trust))
    drawn = _KINDS[kind](request)
    return _save(drawn, get_save_dir(drawn.args, name=drawn.args.name or kind), kind)


def _save(drawn: Drawn, folder: Path, kind: str) -> list[Path]:
    """Write a figure as PNG and SVG, its text as text, with a description for those who cannot see it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}.png", folder / f"{kind}.svg"]
    headline = drawn.figure.texts[0].get_text()
    metadata: dict[str, Any] = {"Title": headline, "Description": drawn.description}
    drawn.figure.savefig(paths[0], metadata=metadata)
    # The same command writes the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": kind}):
        drawn.figure.savefig(paths[1], metadata={**metadata, "Date": None})
    LOGGER.info(f"{drawn.description}\nFigure drawn to {colorstr('bold', folder)}")
    return paths
