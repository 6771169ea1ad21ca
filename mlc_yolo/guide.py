"""The help of the command line: one screen, a mode's options, one option with its paper.

It loads neither torch nor Ultralytics, so that help is instant.
"""

from __future__ import annotations

import re
import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlc_yolo.faults import UsageError
from mlc_yolo.modes import MODES, nearest

WIDTH = 96
STOCK_PAGE = "https://docs.ultralytics.com/usage/cfg"

EXAMPLES = """\
    mlc-yolo train model=yolo11n.pt data=mine.yaml epochs=50 nbs=16
    mlc-yolo diagnose model=best.pt data=mine.yaml report=True
    mlc-yolo export model=best.pt format=onnx
"""
WHERE = """\
    mlc-yolo help MODE     what a mode does and takes    mlc-yolo help options   all our options
    mlc-yolo help OPTION   one option, with its paper    mlc-yolo checks         for a bug report
"""

#: Mode -> command lines to copy.
EXAMPLES_OF: dict[str, tuple[str, ...]] = {
    "train": (
        "mlc-yolo train model=yolo11n.pt data=mine.yaml epochs=50 nbs=16",
        "mlc-yolo train model=yolo11n.pt data=mine.yaml epochs=50 nbs=16 assigner=mlc",
        "mlc-yolo train resume=True model=runs/detect/train/weights/last.pt",
    ),
    "val": ("mlc-yolo val model=best.pt data=mine.yaml coco_eval=True",),
    "predict": ("mlc-yolo predict model=best.pt source=photos/ vote=True",),
    "track": ("mlc-yolo track model=best.pt source=street.mp4",),
    "export": (
        "mlc-yolo export model=best.pt format=onnx",
        "mlc-yolo export model=best.pt format=onnx placement=True",
        "mlc-yolo export model=best.pt format=stock",
    ),
    "benchmark": ("mlc-yolo benchmark model=best.pt data=mine.yaml",),
    "tune": ("mlc-yolo tune model=yolo11n.pt data=mine.yaml epochs=30 iterations=20",),
    "diagnose": ("mlc-yolo diagnose model=best.pt data=mine.yaml report=True",),
    "compare": (
        "mlc-yolo compare model=yolo11n.pt data=mine.yaml assigner=tal,mlc seed=0,1,2 epochs=50 nbs=16 report=True",
    ),
    "assignments": ("mlc-yolo assignments model=best.pt data=mine.yaml assigner=tal,mlc",),
    "figure": (
        "mlc-yolo figure amplification",
        "mlc-yolo figure guidance model=best.pt data=mine.yaml",
        "mlc-yolo figure misaligned model=tal.pt other=mlc.pt data=mine.yaml",
    ),
    "reproduce": ("mlc-yolo reproduce mlc_table3_retinanet_ml data=coco.yaml scale=0.05",),
    "convert": (
        "mlc-yolo convert source=VOCdevkit/VOC2007 split=trainval,test output=datasets/voc07",
        "mlc-yolo convert source=train.json,val.json images=train/,val/ output=datasets/mine",
    ),
    "split": ("mlc-yolo split data=mine.yaml percent=5,10 folds=1",),
    "demo": ("mlc-yolo demo",),
}

#: Mode -> argument of that mode alone -> what it does.
OWN_HELP: dict[str, dict[str, str]] = {
    "export": {
        "placement": "For onnx and torchscript: appends to the class scores what the head knows of its boxes, their "
        "predicted IoU and the deviation of each side. The file's metadata names the channels."
    },
    "tune": {
        "iterations": "Trainings of the search.",
        "use_ray": "Searches with Ray Tune.",
        "space": "Hyperparameters and their ranges; from Python only. Empty means Ultralytics' own.",
    },
    "diagnose": {
        "report": "Writes report.html, with photographs, beside the numbers.",
        "remedies": "What is tried without training, each alone: vote, and image sizes, such as vote,640. Empty means "
        "a vote and a size an eighth larger, rounded up to the stride; False nothing.",
    },
    "compare": {
        "baseline": "The variant that the others are compared with, such as assigner=tal. Empty means the first.",
        "executor": "Where the trainings run: local, or ray for a Ray cluster.",
        "jobs": "Trainings at a time.",
        "report": "Writes report.html: tables, curves, and the photographs on which two variants differ most.",
    },
    "assignments": {"count": "Images to draw."},
    "figure": {
        "kind": "Which figure: amplification, guidance or misaligned. The word alone is enough.",
        "other": "The second model of misaligned.",
        "count": "Images to draw.",
    },
    "reproduce": {
        "row": "A row of a paper's table, a file of cfg/paper. The word alone is enough.",
        "results": "CSV that gets a line per run. Empty means cfg/paper/results.csv.",
    },
    "convert": {
        "source": "A VOC folder, or COCO JSON files, separated by commas.",
        "output": "Folder of the new data set.",
        "images": "Folders of the images of each JSON file, separated by commas.",
        "split": "Names of the splits. For VOC those of its lists, such as trainval,test.",
        "link": "Links images. False copies them.",
        "strict": "Stops at the first problem, instead of listing problems in report.txt.",
    },
    "split": {
        "data": "The labelled data set.",
        "percent": "Shares of the training images that keep their labels.",
        "folds": "Draws for each share.",
        "seed": "Seed of the draws.",
        "output": "Folder of the new files. Empty means beside the data set.",
    },
}

#: Options that matter after training. The others change a training alone.
AFTER_TRAINING = (
    *("rescore", "nms_by", "vote", "vote_iou", "vote_sigma", "min_iou", "sort", "show_sigma", "resize"),
    *("coco_eval", "voc_eval", "calibrate", "trust"),
)
_TRAINING_MODES = ("train", "tune", "compare", "reproduce", "demo")


def overview() -> str:
    """Return the help that fits one screen: modes, three examples, where to look."""
    modes = "".join(f"    {name:<13}{mode.purpose}\n" for name, mode in MODES.items())
    return f"mlc-yolo MODE key=value ...\n{modes}\n{EXAMPLES}\n{WHERE}"


def help_on(topic: str) -> str:
    """Return the help on a mode, on an option, or on all our options.

    Args:
        topic: a mode, one of our options, an argument of Ultralytics or of one mode, or "options".

    Raises:
        UsageError: none of these; the nearest are named.
    """
    from mlc_yolo.options.specification import specifications

    topic = topic.lower().removesuffix("=")
    if topic in {"option", "options"}:
        return f"Options of mlc-yolo. Every argument of Ultralytics works too: {STOCK_PAGE}\n\n{_options()}"
    if topic in MODES:
        return _mode(topic)
    if topic in specifications():
        return _option(topic)
    own = {name: text for texts in OWN_HELP.values() for name, text in texts.items()}
    if topic in own:
        return _own(topic)
    stock = _stock()
    if topic in stock:
        return f"{topic}={stock[topic][0]}\n\n{_wrap(stock[topic][1])}\n\nAn argument of Ultralytics: {STOCK_PAGE}\n"
    near = nearest(topic, [*MODES, *specifications(), *own, *stock])
    raise UsageError(f"'{topic}' is neither a mode nor an option.{near}")


def values_of(spec: dict[str, Any]) -> str:
    """Return the values an option takes, in words.

    Args:
        spec: its entry of cfg/mlc.yaml.

    Example:
        >>> values_of({"type": "number", "above": 0, "maximum": 1})
        'number > 0, <= 1'
    """
    if "choices" in spec:
        return ", ".join([*spec["choices"], *(f"{short} = {full}" for short, full in spec.get("aliases", {}).items())])
    values = str(spec["type"])
    values += f" >= {spec['minimum']}" if "minimum" in spec else ""
    values += f" > {spec['above']}" if "above" in spec else ""
    return values + (f", <= {spec['maximum']}" if "maximum" in spec else "")


def _mode(name: str) -> str:
    mode = MODES[name]
    parts = [f"mlc-yolo {name}: {mode.purpose}\n", "".join(f"    {line}\n" for line in EXAMPLES_OF[name])]
    if name in OWN_HELP:
        defaults = {**({mode.bare: None} if mode.bare else {}), **mode.own}
        lines = [_line(own, defaults.get(own), text, own in mode.required) for own, text in OWN_HELP[name].items()]
        parts.append("Of this mode alone:\n" + "".join(lines))
    if mode.stock:
        training = name in _TRAINING_MODES
        parts.append(f"Options of mlc-yolo:\n{_options(None if training else AFTER_TRAINING)}")
        parts.append(f"Every argument of Ultralytics works too: {STOCK_PAGE}\n")
    parts.append("mlc-yolo help OPTION says more about one.\n")
    return "\n".join(parts)


def _options(names: tuple[str, ...] | None = None) -> str:
    """Return our options, or those of `names`, with the first sentence of their help."""
    from mlc_yolo.options.specification import specifications

    known = specifications()
    chosen = known if names is None else [name for name in names if name in known]
    return "".join(_line(name, known[name]["default"], _first(known[name]["help"])) for name in chosen)


def _option(name: str) -> str:
    from mlc_yolo.options.specification import specifications

    spec = specifications()[name]
    default = "empty" if spec["default"] is None else spec["default"]
    lines = [name, "", _wrap(spec["help"]), "", f"    default   {default}", f"    values    {values_of(spec)}"]
    if "source" in spec:
        lines.append(f"    source    {spec['source']}")
    return "\n".join(lines) + "\n"


def _own(name: str) -> str:
    lines = []
    for mode, texts in OWN_HELP.items():
        if name in texts:
            lines.append(f"Of {mode} alone:\n{_line(name, MODES[mode].own.get(name), texts[name])}")
    return "\n".join(lines)


def _line(name: str, default: Any, text: str, required: bool = False) -> str:
    shown = "..." if required else "" if default is None else _text(default)
    body = textwrap.wrap(text, WIDTH - 28, break_long_words=False, break_on_hyphens=False)
    head = f"    {f'{name}={shown}':<23} "
    return head + f"\n{'':28}".join(body) + "\n"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _first(text: str) -> str:
    """Return the first sentence.

    Example:
        >>> _first("Exponent of eq. 7. 0 weighs all alike.")
        'Exponent of eq. 7.'
    """
    return re.split(r"(?<!eq\.)(?<=\.)\s", text, maxsplit=1)[0]


def _wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


@cache
def _stock() -> dict[str, tuple[str, str]]:
    """Return Ultralytics' arguments: name -> (default, what its file of defaults says), read as text."""
    found = find_spec("ultralytics")
    file = Path(str(found.origin)).with_name("cfg") / "default.yaml" if found else None
    if file is None or not file.is_file():
        return {}
    lines = re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*#[ \t]*(.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: (default, said) for name, default, said in lines}
