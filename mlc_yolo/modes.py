"""The modes of the command line: a table with a line per mode, and the function that each line runs.

A new mode is one line of `MODES`, which also makes its help, its argument names and its error messages. Heavy imports
wait until a mode runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlc_yolo.faults import FIRST_STEPS, UsageError, begin_work


class RunsFailed(Exception):
    """Runs of a comparison failed; the log has their errors."""


class Session:
    """The model of a command, and the folder of its files.

    Attributes:
        model: the `MLCYOLO` that was opened last; None before.
        new_folder: where its files go, if that folder was not there before; None where none was announced.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.new_folder: Path | None = None
        self._opened = 0.0

    def open(self, name: Any, arguments: dict[str, Any]) -> Any:
        """Open a model; `task` and `trust` are taken out of the arguments."""
        from ultralytics.utils import LOGGER

        from mlc_yolo.model import MLCYOLO

        task, trust = arguments.pop("task", None), arguments.pop("trust", False)
        self._opened = time.time()
        self.model = MLCYOLO(name, task=task, trust=trust)
        if task not in {None, self.model.task}:
            LOGGER.warning(f"'{name}' is a {self.model.task} model: the task '{task}' is ignored.")
        for step in FIRST_STEPS:
            self.model.add_callback(step, begin_work)
        return self.model

    def warn_of_idle(self, mode: str, arguments: Mapping[str, Any]) -> None:
        """Name the options that do nothing in a mode; other tasks' models refuse most of them by name."""
        from ultralytics.utils import LOGGER

        from mlc_yolo.options.idle import idle_in_mode
        from mlc_yolo.options.of_tasks import FOR_INFERENCE

        takes = arguments if self.model.task == "detect" else {n: v for n, v in arguments.items() if n in FOR_INFERENCE}
        if idle := idle_in_mode(mode, takes):
            LOGGER.warning(idle)

    def announce(self, arguments: Mapping[str, Any], name: str) -> None:
        """Say where the files of a run will go, before anything else is logged.

        Args:
            arguments: of the run; `save_dir`, or `project`, `name` and `exist_ok`, choose the folder.
            name: of the folder where the arguments say nothing.
        """
        from ultralytics.cfg import get_save_dir
        from ultralytics.utils import LOGGER

        if arguments.get("resume"):
            resumed = arguments["resume"] if isinstance(arguments["resume"], str | Path) else self.model.ckpt_path
            folder = Path(str(resumed)).absolute().parent.parent
        else:
            place = dict.fromkeys(("save_dir", "project", "name")) | {"exist_ok": False, **arguments}
            folder = get_save_dir(
                SimpleNamespace(**{**place, "task": getattr(self.model, "task", "detect"), "mode": name})
            )
        self.new_folder = None if folder.exists() else folder
        LOGGER.info(f"Files of this run go to {folder}")

    def leave_no_empty_folder(self) -> None:
        """Remove the folder of a run that was refused or stopped, which upstream makes before it looks at the data."""
        if self.new_folder and self.new_folder.is_dir() and not any(self.new_folder.iterdir()):
            self.new_folder.rmdir()

    def resume_hint(self) -> str:
        """Return how to go on after an interrupted training; a folder may hold the weights of an earlier one."""
        trainer = getattr(self.model, "trainer", None)
        if trainer is None:
            return ""
        earlier = not trainer.resume and trainer.last.exists() and trainer.last.stat().st_mtime < self._opened
        if earlier or not trainer.last.exists():
            return "No checkpoint was written yet: start again."
        from mlc_yolo.checkpoints.safe_load import load_checkpoint

        _, checkpoint = load_checkpoint(trainer.last, trust=True)  # which this very run wrote
        if checkpoint.get("optimizer") is None:  # taken out when the last epoch is done
            return f"The training has ended; judge it with: mlc-yolo val model={trainer.best} data={trainer.args.data}"
        return f"Go on with: mlc-yolo train resume model={trainer.last}"


Runner = Callable[[Session, str, dict[str, Any]], None]


@dataclass(frozen=True)
class Mode:
    """One mode.

    Attributes:
        purpose: for the help, one line.
        run: takes the session, the mode's name and the arguments that were given.
        own: arguments that only some modes take -> their defaults.
        required: arguments that must be given.
        stock: whether it takes Ultralytics' arguments and the options of `cfg/mlc.yaml` too.
        any_task: whether it takes models of every task, not of detection alone.
        bare: the argument that a word without "=" names; empty is none.
    """

    purpose: str
    run: Runner
    own: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    stock: bool = True
    any_task: bool = False
    bare: str = ""


def _method(session: Session, mode: str, arguments: dict[str, Any]) -> None:
    """Run the method of `MLCYOLO` that is called like the mode."""
    if mode == "export":
        arguments["format"] = _export_format(arguments.get("format"))
    model = session.open(_model_name(arguments), arguments)
    if mode in {"train", "val", "tune"}:
        session.announce(arguments, mode)
    session.warn_of_idle(mode, arguments)
    getattr(model, mode)(**arguments)


def _stream(session: Session, mode: str, arguments: dict[str, Any]) -> None:
    """Predict or track image by image, keeping no results in memory."""
    from ultralytics.utils import ASSETS, LOGGER

    model = session.open(_model_name(arguments), arguments)
    arguments = {"save": True, **arguments}
    if arguments["save"]:
        session.announce(arguments, mode)
    if "source" not in arguments:
        arguments["source"] = ASSETS
        LOGGER.warning(f"'source' argument is missing. Using default 'source={ASSETS}'.")
    session.warn_of_idle(mode, arguments)
    # Upstream takes any program whose name ends in "yolo" for its own: then all is done when this returns None.
    for _ in getattr(model, mode)(**arguments, stream=True) or ():
        pass


def _diagnose(session: Session, mode: str, arguments: dict[str, Any]) -> None:
    from ultralytics.utils import LOGGER

    name, report = arguments.pop("model"), _report(arguments)
    model = session.open(name, arguments)
    session.announce(arguments, mode)
    session.warn_of_idle(mode, arguments)
    diagnosis = model.diagnose(**arguments)
    if report:
        from mlc_yolo.report import write_diagnosis

        page = diagnosis.folder / "report.html"
        LOGGER.info(f"Report: {write_diagnosis(diagnosis, page, model=str(name), data=str(arguments['data']))}")


def _compare(_session: Session, _mode: str, arguments: dict[str, Any]) -> None:
    from ultralytics.utils import LOGGER

    from mlc_yolo.compare import compare, split_values

    report = _report(arguments)
    comparison = compare(**split_values(arguments))
    if report:
        from mlc_yolo.report import write_report

        LOGGER.info(f"Report: {write_report(comparison, comparison.folder / 'report.html')}")
    if comparison.failed:
        raise RunsFailed(f"{len(comparison.failed)} of the runs failed: {', '.join(comparison.failed)}")


def _assignments(session: Session, mode: str, arguments: dict[str, Any]) -> None:
    from mlc_yolo.figures.assignments import assigner_pair, draw_assignments

    if "assigner" in arguments:
        assigner_pair(arguments["assigner"])
    model = session.open(_model_name(arguments), arguments)
    session.announce(arguments, mode)
    draw_assignments(model, **arguments)


def _figure(session: Session, _mode: str, arguments: dict[str, Any]) -> None:
    from mlc_yolo.figures.draw import draw_figure

    name, kind = arguments.pop("model", None), arguments.pop("kind", "")
    model = None if name is None else session.open(name, arguments)
    session.announce(arguments, str(kind))
    draw_figure(kind, model, other=arguments.pop("other", None), **arguments)


def _reproduce(session: Session, _mode: str, arguments: dict[str, Any]) -> None:
    from mlc_yolo.paper.reproduce import prepare

    trust = arguments.pop("trust", False)
    run = prepare(arguments.pop("row", ""), data=arguments.pop("data", ""), **arguments)
    model = session.open(run.model, {"trust": trust})
    session.announce(run.arguments, "train")
    run.execute(model)


def _convert(_session: Session, _mode: str, arguments: dict[str, Any]) -> None:
    from ultralytics.utils import LOGGER

    from mlc_yolo.conversion.convert import convert

    report = convert(**arguments)
    LOGGER.info(f"{report.text(most=20)}\nThe full list is in {report.output / 'report.txt'}. Train with:")
    LOGGER.info(f"mlc-yolo train model=yolo11n.pt data={report.output / 'data.yaml'}")


def _split(_session: Session, _mode: str, arguments: dict[str, Any]) -> None:
    from ultralytics.utils import LOGGER

    from mlc_yolo.data.split import split

    files = split(**arguments)
    LOGGER.info(f"Train with:\nmlc-yolo train model=yolo11n.pt data={files[0]} ssl=sed")


def _demo(session: Session, _mode: str, arguments: dict[str, Any]) -> None:
    from mlc_yolo.demo import DEFAULTS, run_demo

    model = session.open(arguments.pop("model", "yolo11n.yaml"), arguments)
    session.announce({**DEFAULTS, **arguments}, "train")
    run_demo(model, **arguments)


_TUNE: dict[str, Any] = {"iterations": 10, "use_ray": False, "space": None}
_COMPARE: dict[str, Any] = {"baseline": None, "executor": "local", "jobs": None, "report": False}
_CONVERT: dict[str, Any] = {
    **dict.fromkeys(("source", "output", "images", "split")),
    **{"link": True, "strict": False},
}
_SPLIT: dict[str, Any] = {"data": None, "percent": (1, 2, 5, 10), "folds": 5, "seed": 0, "output": None}
_BOTH = ("source", "output")

#: Ultralytics' modes first, then ours, as the help lists them.
MODES: dict[str, Mode] = {
    "train": Mode("train a model", _method, any_task=True),
    "val": Mode("validate one", _method, any_task=True),
    "predict": Mode("detect objects in images and videos", _stream, any_task=True),
    "track": Mode("follow objects through a video", _stream, any_task=True),
    "export": Mode("write a model for other programs", _method, {"placement": False}, any_task=True),
    "benchmark": Mode("time and judge a model in every export format", _method, any_task=True),
    "tune": Mode("search for better hyperparameters", _method, own=_TUNE, any_task=True),
    "diagnose": Mode(
        "measure what limits a detector, without training",
        _diagnose,
        {"report": False, "remedies": None},
        ("model", "data"),
        any_task=True,
    ),
    "compare": Mode("train every combination of options and judge the differences", _compare, _COMPARE),
    "assignments": Mode("draw which anchors each task trains, under two assigners", _assignments, {"count": 4}),
    "figure": Mode("draw amplification, guidance or misaligned", _figure, {"other": None, "count": 4}, bare="kind"),
    "reproduce": Mode("train and judge a row of the papers' tables", _reproduce, {"results": None}, bare="row"),
    "convert": Mode("turn Pascal VOC XML or COCO JSON into a data set", _convert, _CONVERT, _BOTH, stock=False),
    "split": Mode("split training images into a labelled part and the rest", _split, _SPLIT, ("data",), stock=False),
    "demo": Mode("train, validate and predict on the built-in demo set", _demo),
}


def _report(arguments: dict[str, Any]) -> bool:
    """Take `report` out of the arguments.

    Raises:
        UsageError: neither True nor False.
    """
    report = arguments.pop("report", False)
    if not isinstance(report, bool):
        raise UsageError(f"report={report} must be True or False")
    return report


def _model_name(arguments: dict[str, Any]) -> Any:
    """Take the model's name out of the arguments; without one, name the smallest model to train from scratch."""
    from ultralytics.utils import LOGGER

    name = arguments.pop("model", None)
    if name is None:
        name = "yolo11n.yaml"
        LOGGER.warning(f"'model' argument is missing. Using default 'model={name}'.")
    return name


def _export_format(name: Any) -> str:
    """Return the export format, checked; TorchScript where none is named.

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
        raise UsageError(f"format={name} must be one of {', '.join(known)}.{nearest(str(name), known)}")
    return str(name)


def nearest(word: str, known: Any) -> str:
    """Return the end of a message: the known words nearest to an unknown one."""
    from mlc_yolo.suggestions import did_you_mean

    return did_you_mean(word, known, most=3, cutoff=0.6)
