"""The command line: `mlc-yolo MODE key=value ...`, parsed and reported as Ultralytics' own.

Nothing heavy is imported before a mode is chosen, so that help is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mlc_yolo import __version__

MODES = ("train", "val", "predict", "track", "export", "benchmark", "tune")
OWN_MODES = ("compare", "assignments", "figure", "reproduce", "convert", "split", "demo")
#: Arguments of convert, and their defaults.
CONVERT = {"source": None, "output": None, "images": None, "split": None, "link": True, "strict": False}
#: Arguments of split, and their defaults.
SPLIT = {"data": None, "percent": (1, 2, 5, 10), "folds": 5, "seed": 0, "output": None}
#: The bare word after a mode, where it takes one.
BARE_WORD = {"reproduce": "row", "figure": "kind"}
SPECIAL = ("help", "version", "checks", "settings", "cfg")

USAGE = """
    mlc-yolo MODE key=value ...

    MODE  train, val, predict, track, export, benchmark, tune   as in Ultralytics, with the options below
          compare       train every combination of options and judge the differences; report=True writes a page
          assignments   draw which anchors each task trains as positive, under two assigners side by side
          figure        draw figure 3, 4 or 5 of Mutual Guidance: amplification, guidance or misaligned
          reproduce     train and judge a row of the paper's tables, or a scaled-down version of it
          convert       make a data set to train on of Pascal VOC XML or COCO JSON annotations
          split         label a part of a data set's training images and name the rest as unlabelled
          demo          train, validate and predict on the built-in demo set

    1. Train with a predicted IoU, and with mutual labelling
        mlc-yolo train model=yolo11n.pt data=mine.yaml epochs=100 imgsz=640
        mlc-yolo train model=yolo11n.pt data=mine.yaml epochs=100 imgsz=640 assigner=mlc

    2. Validate any checkpoint, stock ones too
        mlc-yolo val model=runs/detect/train/weights/best.pt data=mine.yaml coco_eval=True

    3. Predict, or write a checkpoint that plain Ultralytics loads without this package
        mlc-yolo predict model=best.pt source=photos/
        mlc-yolo export model=best.pt format=stock

    4. See who learns what, and the detections that two models misplace
        mlc-yolo assignments model=best.pt data=mine.yaml assigner=tal,mlc
        mlc-yolo figure misaligned model=tal.pt other=mlc.pt data=mine.yaml

    5. See whether it helps: any option may be a list; the same command goes on where it was stopped
        mlc-yolo compare model=yolo11n.pt data=mine.yaml assigner=tal,mlc seed=0,1,2 epochs=50 report=True

    6. Reproduce a row of the paper (files in cfg/paper), here with a twentieth of its iterations
        mlc-yolo reproduce mlc_table3_retinanet_ml data=coco.yaml scale=0.05

    7. Convert annotations; what is wrong with them is reported by file (link=False copies images, strict=True stops)
        mlc-yolo convert source=VOCdevkit/VOC2007 split=trainval,test output=datasets/voc07
        mlc-yolo convert source=train.json,val.json images=train/,val/ output=datasets/mine

    8. Learn from images without labels (or split a labelled set first, to see what they bring)
        mlc-yolo train model=yolo11n.pt data=few.yaml unlabeled=photos/ ssl=sed
        mlc-yolo split data=mine.yaml percent=5,10 folds=1

    Every argument of Ultralytics works (https://docs.ultralytics.com/usage/cfg). Options of mlc-yolo:
"""


class UsageError(Exception):
    """A command line that cannot be run; its text is all the user needs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default `sys.argv[1:]`.

    Returns:
        Exit status: 0, 130 for Ctrl-C, or 2 for what cannot be run as given.
    """
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # upstream would pip install what it misses
    arguments = list(sys.argv[1:] if argv is None else argv)
    word = arguments[0].lstrip("-").lower() if arguments else "help"
    if word in {"help", "h"}:
        print(USAGE + options_help())
        return 0
    if word in {"version", "v"}:
        print(__version__)
        return 0
    if word in {"checks", "settings", "cfg"}:
        return _special(word, arguments[1:])
    if {"help", "--help", "-h"} & set(arguments):
        print(USAGE + options_help())
        return 0
    command = _Command()
    try:
        command.run(*parse(arguments))
    except KeyboardInterrupt:
        print(f"\nmlc-yolo: stopped. {command.resume_hint()}", file=sys.stderr)
        return 130
    except (
        *(UsageError, ValueError, TypeError, SyntaxError, OSError, RuntimeError, ImportError),
        *(AssertionError, KeyError),  # of Ultralytics, such as for pretrained=missing
    ) as error:
        # What is wrong with the input shows before the first epoch and needs no traceback; later it is our fault.
        if command.started() or os.environ.get("MLC_YOLO_TRACEBACK"):
            raise
        hint = "" if isinstance(error, UsageError) else " MLC_YOLO_TRACEBACK=1 shows where this comes from."
        missing = isinstance(error, ModuleNotFoundError) and error.name
        advice = f". Install it, such as with: pip install {missing}" if missing else ""
        said = f"mlc-yolo: {str(error).strip()}{advice}"
        print(f"{said}\n'mlc-yolo help' lists modes and options.{hint}", file=sys.stderr)
        return 2
    return 0


def options_help() -> str:
    """Return our options, a line each: name, default, values, purpose."""
    from mlc_yolo.options.specification import specifications

    lines = []
    for name, spec in specifications().items():
        default = "" if spec["default"] is None else spec["default"]
        values = " | ".join(spec["choices"]) if "choices" in spec else spec["type"]
        lines.append(f"      {f'{name}={default}':<24}{values}\n{'':30}{spec['help']}")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Turn words into a mode and its arguments, all names and all values of ours checked.

    Args:
        arguments: words of the command line.

    Returns:
        mode and arguments by name.

    Raises:
        UsageError: unknown word, name or value; the nearest known ones are named.
    """
    from ultralytics.cfg import DEFAULT_CFG_DICT, TASKS, merge_equals_args, parse_key_value_pair

    from mlc_yolo.options import specification as options

    known = {**CONVERT, **SPLIT, **DEFAULT_CFG_DICT, **options.defaults()}
    known |= dict.fromkeys(("half", "int8", "end2end", "iterations", "space", "use_ray", "count", "save_dir"))
    known |= dict.fromkeys(("row", "results", "kind", "other"))  # of reproduce and figure
    known |= dict.fromkeys(("baseline", "executor", "jobs")) | {"report": False}  # of compare
    words = (*MODES, *OWN_MODES, *SPECIAL, *TASKS)
    overrides: dict[str, Any] = {}
    mode = None
    try:
        merged = merge_equals_args(list(arguments))
    except SyntaxError as error:
        raise UsageError(str(error)) from error
    for word in merged:
        word = word.removeprefix("--").removesuffix(",")
        if "=" in word:
            name, value = _pair(word, parse_key_value_pair)
            given = _read_cfg(value) if name == "cfg" and value else {name: value}
            for each in given:
                if each not in known:
                    raise UsageError(f"'{each}' is not an argument.{_nearest(each, known)}")
            overrides |= given
        elif word in MODES or word in OWN_MODES:
            mode = word
        elif word in TASKS:
            overrides["task"] = word
        elif word in known and (isinstance(known[word], bool) or word in {"half", "int8", "end2end", "nms"}):
            overrides[word] = True
        elif word in known:
            raise UsageError(f"'{word}' needs a value: {word}={known[word]}")
        elif BARE_WORD.get(str(mode), "") not in {"", *overrides}:
            overrides[BARE_WORD[str(mode)]] = word
        else:
            raise UsageError(f"'{word}' is not a mode or argument.{_nearest(word, [*words, *known])}")
    if "mode" in overrides:
        mode = overrides.pop("mode")
    if mode not in (*MODES, *OWN_MODES):
        listed = ", ".join((*MODES, *OWN_MODES))
        raise UsageError(f"expected a mode first, one of {listed}" + (f"; got '{mode}'" if mode else ""))
    if mode == "convert":
        return mode, _convert_arguments(overrides)
    if mode == "split":
        given = _only("split", overrides, SPLIT, required=("data",))
        return mode, {name: str(value) if name in {"data", "output"} else value for name, value in given.items()}
    if mode == "compare":  # checks each run's options itself
        from mlc_yolo.compare import split_values

        return mode, split_values(overrides)
    ours, overrides = options.split(overrides)
    try:
        if mode == "assignments" and "assigner" in ours:
            from mlc_yolo.figures.assignments import assigner_pair

            overrides["assigner"] = ours.pop("assigner")
            assigner_pair(overrides["assigner"])
        overrides.update(options.check(ours))
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    return str(mode), overrides


class _Command:
    """One run of the command line, and what can be said of it when it ends early."""

    def __init__(self) -> None:
        self.model: Any = None

    def run(self, mode: str, overrides: dict[str, Any]) -> None:
        from ultralytics.utils import ASSETS, LOGGER

        if mode == "demo":
            from mlc_yolo.demo import run_demo

            run_demo(**overrides)
            return
        if mode == "convert":
            from mlc_yolo.conversion.convert import convert

            report = convert(**overrides)
            LOGGER.info(f"{report.text(most=20)}\nAll of it is in {report.output / 'report.txt'}. Train with:")
            LOGGER.info(f"mlc-yolo train model=yolo11n.pt data={report.output / 'data.yaml'}")
            return
        if mode == "split":
            from mlc_yolo.data.split import split

            files = split(**overrides)
            LOGGER.info(f"Train with:\nmlc-yolo train model=yolo11n.pt data={files[0]} ssl=sed")
            return
        if mode == "compare":
            from mlc_yolo.compare import compare

            found = compare(**overrides)
            if found.failed:
                raise UsageError(f"{len(found.failed)} of the runs failed: {', '.join(found.failed)}")
            return
        from mlc_yolo.model import MLCYOLO

        trust = overrides.pop("trust", False)
        if mode == "figure":
            from mlc_yolo.figures.draw import draw_figure

            name, other = overrides.pop("model", None), overrides.pop("other", None)
            model = None if name is None else MLCYOLO(name, trust=trust)
            draw_figure(overrides.pop("kind", ""), model, other=other, **overrides)
            return
        if mode == "reproduce":
            from mlc_yolo.paper.reproduce import prepare

            planned = prepare(overrides.pop("row", ""), data=overrides.pop("data", ""), **overrides)
            self.model = MLCYOLO(planned.model, trust=trust)
            planned.execute(self.model)
            return
        if mode == "export":
            overrides["format"] = _export_format(overrides.get("format"))
        name = overrides.pop("model", None)
        if name is None:
            name = "yolo11n.yaml"
            LOGGER.warning(f"'model' argument is missing. Using default 'model={name}'.")
        self.model = MLCYOLO(name, task=overrides.pop("task", None), trust=trust)
        if mode == "assignments":
            from mlc_yolo.figures.assignments import draw_assignments

            draw_assignments(self.model, **overrides)
            return
        if mode in {"predict", "track"}:
            if "source" not in overrides:
                overrides["source"] = ASSETS
                LOGGER.warning(f"'source' argument is missing. Using default 'source={ASSETS}'.")
            # Upstream takes any program whose name ends in "yolo" for its own: then all is done when this returns None.
            results = getattr(self.model, mode)(**{"save": True, **overrides}, stream=True)
            for _ in results or ():
                pass
            return
        getattr(self.model, mode)(**overrides)

    def started(self) -> bool:
        """Whether a training has begun its first epoch."""
        return hasattr(getattr(self.model, "trainer", None), "train_time_start")

    def resume_hint(self) -> str:
        """Return how to go on after an interrupted training."""
        trainer = getattr(self.model, "trainer", None)
        if trainer is None:
            return ""
        if not trainer.last.exists():
            return "No checkpoint was written yet: start again."
        return f"Go on with: mlc-yolo train resume model={trainer.last}"


def _export_format(name: Any) -> str:
    """Return the export format, checked; TorchScript where none is given.

    Raises:
        UsageError: unknown.
    """
    from ultralytics.engine.exporter import export_formats
    from ultralytics.utils import LOGGER

    known = [*export_formats()["Argument"][1:], "stock"]
    if name is None:
        LOGGER.warning("'format' argument is missing. Using default 'format=torchscript'.")
        return "torchscript"
    aliases = {"tensorrt", "trt", "mlmodel", "mlpackage", "mlprogram", "apple", "ios", "coreml"}  # upstream's own
    if str(name).lower() not in {*known, *aliases}:
        raise UsageError(f"format={name} must be one of {', '.join(known)}.{_nearest(str(name), known)}")
    return str(name)


def _convert_arguments(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of convert; names and folders stay texts whatever they look like.

    Raises:
        UsageError: one is missing, or is not of convert.
    """
    given = _only("convert", overrides, CONVERT, required=("source", "output"))
    return {name: value if isinstance(CONVERT[name], bool) else str(value) for name, value in given.items()}


def _only(mode: str, overrides: dict[str, Any], takes: dict[str, Any], *, required: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that are not empty.

    Raises:
        UsageError: one that is required is missing, or one is not of this mode.
    """
    if unknown := [name for name in overrides if name not in takes]:
        raise UsageError(f"{mode} takes {', '.join(takes)}, not {', '.join(unknown)}.")
    if missing := [name for name in required if overrides.get(name) is None]:
        raise UsageError(f"{mode} needs {' and '.join(f'{name}=...' for name in missing)}.")
    return {name: value for name, value in overrides.items() if value is not None}


def _special(word: str, rest: list[str]) -> int:
    from ultralytics.cfg import DEFAULT_CFG_PATH, handle_yolo_settings
    from ultralytics.utils import YAML, checks

    from mlc_yolo.options import specification as options

    actions: dict[str, Callable[[], Any]] = {
        "checks": checks.collect_system_info,
        "settings": lambda: handle_yolo_settings(rest),
        "cfg": lambda: (YAML.print(DEFAULT_CFG_PATH), YAML.print(options.defaults())),
    }
    actions[word]()
    return 0


def _pair(word: str, parser: Callable[[str], tuple[str, Any]]) -> tuple[str, Any]:
    from mlc_yolo.options import specification as options

    try:
        name, value = parser(word)
        if value is None and "none" in options.specifications().get(name, {}).get("choices", ()):
            value = "none"  # a choice of that name, not an empty option
        return name, value
    except (AssertionError, SyntaxError, ValueError, NameError) as error:
        raise UsageError(f"cannot read '{word}': {error}. Write key=value") from error


def _read_cfg(path: Any) -> dict[str, Any]:
    """Return the arguments of a YAML file, but for those that name the run it may come from, and trust."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            read = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cfg={path} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise UsageError(f"cfg={path} must hold 'key: value' lines, got {type(read).__name__}")
    return {str(name): value for name, value in read.items() if name not in {"cfg", "mode", "save_dir", "trust"}}


def _nearest(word: str, known: Any) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


if __name__ == "__main__":
    sys.exit(main())
