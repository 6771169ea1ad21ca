"""Reproduce a row of the paper's tables: train its file of cfg/paper, validate, append a line to results.csv.

A row is one flat file of training arguments, so that `cfg=` of any training takes it too. What the paper reports stands
in its header as the comment `# paper: AP=37.1`, in the paper's units, and nowhere else: a nested key would be refused
where the file is used as `cfg=`, and a second file would have to be kept in step.

Two ways to a smaller run, which may be combined. `scale=0.05` keeps the epochs, and with them every boundary of the
schedule, and gives each epoch that share of the training images (the first by file name, the same in every epoch):
all stages shrink by the same factor, exactly. `epochs=N` moves the boundaries in proportion, to whole epochs.
"""

from __future__ import annotations

import csv
import math
import shlex
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from ultralytics.data.build import build_yolo_dataset
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, IterableSimpleNamespace
from ultralytics.utils.checks import check_file
from ultralytics.utils.torch_utils import get_cpu_info

from mlc_yolo import __version__
from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.engine import options
from mlc_yolo.engine.model import MLCYOLO
from mlc_yolo.resources import resource_dir

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

#: Column -> (name in a validation's `results_dict`, factor to the paper's unit, percent or none).
MEASURED = {
    **{name: (f"metrics/coco_{name}", 100.0) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")},
    "spearman": ("metrics/spearman(B)", 1.0),
    "spearman_pooled": ("metrics/spearman_pooled(B)", 1.0),
    **{f"AR{limit}": (f"metrics/AR@{limit}", 100.0) for limit in (100, 300, 1000)},
}
#: Columns of results.csv. What does not exist is empty; AP, AR, `paper` and `difference` are in percent.
COLUMNS = (
    *("row", "model", "data", "images", "epochs", "imgsz", "batch", "scale", "seed"),
    *MEASURED,
    *("paper", "difference", "version", "commit", "device", "hours", "date", "command"),
)
#: Where a run happens and is kept: no part of the command that repeats its result.
PLACE = frozenset({"device", "workers", "project", "name", "exist_ok"})
#: COCO train2017 without and with its images without objects: another training set has no paper's number beside it.
COCO_IMAGES = range(117_266, 118_288)


@dataclass(frozen=True)
class Row:
    """A row of the paper.

    Attributes:
        name: the file's name without ".yaml".
        arguments: its training arguments, `model` among them.
        paper: what the paper reports, by column; AP and AR in percent.
    """

    name: str
    arguments: dict[str, Any]
    paper: dict[str, float]


@dataclass(frozen=True)
class Run:
    """A row about to be trained, everything checked.

    Attributes:
        row: the row as it stands in its file.
        model: what `MLCYOLO` builds.
        arguments: arguments of `MLCYOLO.train`.
        data: the data YAML's name as it was given.
        scale: share of the training images, in (0, 1].
        results: the CSV that gets the line.
        comparable: whether nothing was changed that may change the result.
        command: the command that repeats it anywhere.
    """

    row: Row
    model: str
    arguments: dict[str, Any]
    data: str
    scale: float
    results: Path
    comparable: bool
    command: str

    def execute(self, model: MLCYOLO) -> dict[str, Any]:
        """Train, validate the last epoch's weights as the paper does (not the best epoch's), and append the line.

        Args:
            model: what `self.model` builds, not trained yet.

        Returns:
            The line: column -> value, None where it does not exist.
        """
        start = time.time()
        model.train(**self.arguments)
        hours = (time.time() - start) / 3600
        trainer = model.trainer
        place = {"project": str(trainer.save_dir), "name": "val", "exist_ok": True}
        kept = {name: value for name, value in self.arguments.items() if name not in {"pretrained", "rect"}}
        metrics = MLCYOLO(trainer.last).val(**{**kept, **place})

        line: dict[str, Any] = dict.fromkeys(COLUMNS)
        line |= {
            "row": self.row.name,
            "model": Path(self.model).stem,
            "data": self.data,
            "images": _image_count(trainer),
            "epochs": trainer.args.epochs,
            "imgsz": trainer.args.imgsz,
            "batch": trainer.args.batch,
            "scale": self.scale,
            "seed": trainer.args.seed,
            "version": __version__,
            "commit": _commit(),
            "device": _device_name(trainer),
            "hours": round(hours, 4),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": self.command,
        }
        line |= _measured(metrics.results_dict)
        main = "AP" if "AP" in self.row.paper else "AR1000"
        if self.comparable and line["images"] in COCO_IMAGES and main in self.row.paper and line[main] is not None:
            line["paper"] = self.row.paper[main]
            line["difference"] = round(line[main] - line["paper"], 2)
        shown = ", ".join(
            f"{name} {line[name]}" for name in (*MEASURED, "paper", "difference") if line[name] is not None
        )
        LOGGER.info(f"{self.row.name}: {shown}")  # before the file is touched: hours of work stand in this line
        append_line(self.results, line)
        LOGGER.info(f"Appended to {self.results}")
        return line


def reproduce(
    row: str | Path,
    *,
    data: str | Path,
    scale: float = 1.0,
    results: str | Path | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Train a row of the paper, validate it and append one line to results.csv.

    Args:
        row: path of a row's file, or the name of one in cfg/paper, with or without ".yaml".
        data: data YAML, as for any training.
        scale: share of the training images each epoch sees, in (0, 1]. Not upstream's augmentation of that name,
            which rows leave off.
        results: CSV to append to; default cfg/paper/results.csv of the checkout, or results.csv in the working
            directory when the package is installed.
        **overrides: training arguments that replace the row's. `epochs` moves lr_steps, assigner_warmup, iou_warmup,
            warmup_epochs and close_mosaic in proportion, unless they are given too.

    Returns:
        The line: column -> value, None where it does not exist. `paper` and `difference` exist only for the row as it
        stands, on COCO's training images.

    Raises:
        FileNotFoundError: no such row or data.
        ValueError: `scale`, `epochs` or a name that cannot be, or a CSV with other columns; all before anything is
            written.
    """
    run = prepare(row, data=data, scale=scale, results=results, **overrides)
    return run.execute(MLCYOLO(run.model))


def prepare(
    row: str | Path, *, data: str | Path, scale: float = 1.0, results: str | Path | None = None, **overrides: Any
) -> Run:
    """Check everything and say what will be trained. Arguments and errors are those of `reproduce`."""
    planned = read_row(find_row(row))
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= 1:
        raise ValueError(f"scale={scale} must be above 0 and at most 1: the share of the training images.")
    if scale != 1 and "fraction" in overrides:
        raise ValueError("scale and fraction both choose the share of the training images: give one of them.")
    for name in ("cfg", "resume"):
        if overrides.get(name):
            raise ValueError(f"{name} does not go with a row; use it with: mlc-yolo train {name}={overrides[name]}")
    if not data:
        raise ValueError("data is missing: name the data set to train on, such as data=coco.yaml")
    _refuse_unknown(overrides, "reproduce")

    overrides = _canonical(overrides)
    arguments = {**planned.arguments, "name": planned.name}
    if "epochs" in overrides:
        arguments |= rescaled(planned.arguments, overrides["epochs"], given=overrides)
    arguments = _canonical({**arguments, **overrides})  # once more: two options may contradict each other
    if scale != 1:
        arguments["fraction"] = float(scale)
    destination = _default_results() if results is None else Path(results)
    if destination.exists():
        _refuse_other_columns(destination, destination.read_text(encoding="utf-8"))
    arguments["data"] = resolve_data(data)
    if "://" not in arguments["data"]:
        check_file(arguments["data"])

    changed = {name for name, value in overrides.items() if planned.arguments.get(name, ...) != value}
    told = {"data": _data_name(data), **({"scale": scale} if scale != 1 else {})}
    told |= {name: value for name, value in overrides.items() if name in changed - PLACE}
    return Run(
        row=planned,
        model=str(arguments.pop("model")),
        arguments=arguments,
        data=_data_name(data),
        scale=float(scale),
        results=destination,
        comparable=scale == 1 and changed <= PLACE | {"seed"},
        command=shlex.join(
            ["mlc-yolo", "reproduce", planned.name, *(f"{name}={value}" for name, value in told.items())]
        ),
    )


def find_row(row: str | Path) -> Path:
    """Return the file of a row.

    Args:
        row: a path, or the name of a file in cfg/paper, with or without ".yaml".

    Raises:
        FileNotFoundError: neither; the nearest names are in the message.
    """
    path = Path(row)
    if path.is_file():
        return path
    known = {file.stem: file for file in sorted((resource_dir("cfg") / "paper").glob("*.yaml"))}
    stem = path.name.removesuffix(".yaml")
    if stem in known and path.name == str(row):
        return known[stem]
    near = get_close_matches(stem, known, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Rows: {', '.join(known)}"
    raise FileNotFoundError(f"'{row}' is neither a file nor a row of cfg/paper. {hint}")


def read_row(file: Path) -> Row:
    """Read a row's file.

    Args:
        file: a flat YAML of training arguments, with what the paper reports in a comment `# paper: AP=37.1 AP50=56.0`.

    Raises:
        ValueError: no such YAML, an unknown argument, a value outside its domain, or no model or epochs.
    """
    text = file.read_text(encoding="utf-8")
    try:
        arguments = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(arguments, dict) or not {"model", "epochs"} <= set(arguments):
        raise ValueError(f"{file} must hold 'key: value' lines, with model and epochs among them.")
    _refuse_unknown(arguments, str(file))
    stated = [line.removeprefix("# paper:").split() for line in text.splitlines() if line.startswith("# paper:")]
    try:
        paper = {name: float(value) for name, value in (fact.split("=") for facts in stated for fact in facts)}
    except ValueError as error:
        raise ValueError(f"{file}: expected '# paper: AP=37.1', numbers by column: {error}") from error
    return Row(file.name.removesuffix(".yaml"), _canonical(arguments), paper)


def rescaled(arguments: Mapping[str, Any], epochs: int, *, given: Collection[str] = ()) -> dict[str, Any]:
    """Move a schedule's boundaries to a run of another length, in proportion; what is whole stays whole.

    Args:
        arguments: a row's arguments.
        epochs: the new length, 1 or more.
        given: names that are set by hand: left alone.

    Returns:
        Those of lr_steps, assigner_warmup and iou_warmup (fractions below 1 stay), warmup_epochs and close_mosaic that
        `arguments` has and `given` has not, moved.

    Raises:
        ValueError: so few epochs that two boundaries would fall together or a stage would vanish.

    Example:
        >>> rescaled({"epochs": 24, "lr_steps": [18, 22], "assigner_warmup": 12, "warmup_epochs": 0.06}, 12)
        {'lr_steps': [9, 11], 'assigner_warmup': 6, 'warmup_epochs': 0.03}
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs={epochs} must be a whole number, 1 or more.")
    planned = arguments["epochs"]
    old = {name: arguments[name] for name in _BOUNDARIES if arguments.get(name) is not None and name not in given}
    for name in ("assigner_warmup", "iou_warmup"):
        if 0 < old.get(name, 0) < 1:
            del old[name]

    def moved(length: int) -> dict[str, Any]:
        ratio = length / planned
        return {
            name: [_moved(step, ratio) for step in value] if isinstance(value, list) else _moved(value, ratio)
            for name, value in old.items()
        }

    def fits(length: int) -> bool:
        pairs = sorted(zip(_stages(old, planned), _stages(moved(length), length), strict=True))
        return all(left[0] == right[0] or left[1] < right[1] for left, right in pairwise(pairs))

    if not fits(epochs):
        least = next(length for length in range(epochs + 1, planned + 1) if fits(length))
        settings = ", ".join(f"{name}={value}" for name, value in old.items())
        raise ValueError(
            f"epochs={epochs} leaves nothing of a stage of the row's {planned} epochs ({settings}). "
            f"Take epochs={least} or more, set those by hand too, or shrink every stage alike: scale=0.05"
        )
    return moved(epochs)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line to a results CSV, which is made if it is not there. Several processes may do so at once.

    Args:
        path: the CSV.
        line: column -> value; None is written as nothing.

    Raises:
        ValueError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", newline="", encoding="utf-8") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        file.seek(0)
        text = file.read()
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not text:
            writer.writeheader()
        else:
            _refuse_other_columns(path, text)
            if not text.endswith("\n"):  # edited by hand
                file.write("\n")
        writer.writerow(line)


_WARM_UPS = ("assigner_warmup", "iou_warmup", "warmup_epochs")
_BOUNDARIES = ("lr_steps", *_WARM_UPS, "close_mosaic")


def _moved(value: float, ratio: float) -> float:
    return round(value * ratio) if float(value).is_integer() else value * ratio


def _stages(boundaries: Mapping[str, Any], epochs: int) -> list[float]:
    """Return where stages end, in epochs from the start."""
    ends = [boundaries[name] for name in _WARM_UPS if name in boundaries]
    if "close_mosaic" in boundaries:
        ends.append(epochs - boundaries["close_mosaic"])
    return [0, *ends, *boundaries.get("lr_steps", []), epochs]


def _refuse_unknown(names: Collection[str], where: str) -> None:
    known = {**DEFAULT_CFG_DICT, **options.defaults()}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"{where}: '{name}' is not an argument of a training.{hint}")


def _canonical(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with our options checked and in the form and under the name that `options` gives them."""
    ours, stock = options.split(arguments)
    return {**stock, **options.check(ours)}


def _data_name(data: str | Path) -> str:
    """Return the YAML's name, with its folder's where every data set calls it data.yaml."""
    path = Path(data)
    return "/".join(path.parts[-2:]) if path.name == "data.yaml" else path.name


def _default_results() -> Path:
    folder = resource_dir("cfg")
    if folder.parent == Path(__file__).resolve().parent:  # an installed wheel, whose files are not ours to change
        LOGGER.info("The package is installed: the line goes to results.csv in the working directory.")
        return Path.cwd() / "results.csv"
    return folder / "paper" / "results.csv"


def _refuse_other_columns(path: Path, text: str) -> None:
    found = next(csv.reader(text.splitlines()), [])
    if text and found != list(COLUMNS):
        odd = sorted(set(found) ^ set(COLUMNS)) or ["their order"]
        raise ValueError(f"{path} has other columns than the results of rows: {', '.join(odd)}. Name another file.")


def _measured(found: Mapping[str, float]) -> dict[str, float | None]:
    """Return the measured columns; None for what is missing, nan, or -1, pycocotools' word for nothing to judge."""
    line: dict[str, float | None] = {}
    for column, (name, factor) in MEASURED.items():
        value = found.get(name, math.nan)
        missing = math.isnan(value) or (factor != 1 and value < 0)
        line[column] = None if missing else round(factor * value, 2 if factor != 1 else 3)
    return line


def _image_count(trainer: Any) -> int:
    """Count the images trained on. The process that starts distributed workers has no loader of its own to ask."""
    arguments = IterableSimpleNamespace(**{**vars(trainer.args), "cache": False})
    return len(build_yolo_dataset(arguments, trainer.data["train"], trainer.args.batch, trainer.data))


def _device_name(trainer: Any) -> str:
    if trainer.device.type != "cuda":
        return str(get_cpu_info() if trainer.device.type == "cpu" else trainer.device)
    name = torch.cuda.get_device_name(trainer.device)
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name


def _commit() -> str | None:
    """Return the checkout's commit, with "-dirty" if files differ from it; None outside a checkout or without git."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # git would take a repository further up for ours
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
