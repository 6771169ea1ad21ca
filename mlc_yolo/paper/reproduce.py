"""Reproduce a row of the papers' tables: train its file of cfg/paper, validate, append a line to results.csv.

Two ways to a smaller run, which may be combined. `scale=0.05` keeps the epochs, and with them every boundary of the
schedule, and gives each epoch that share of the training images (the first by file name, the same in every epoch):
all stages shrink by the same factor, exactly. `epochs=N` moves the boundaries in proportion, to whole epochs. A warm-up
counted in iterations shrinks by both factors, to whole iterations, so that it stays the same part of the run.
"""

from __future__ import annotations

import csv
import math
import shlex
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from ultralytics.data.build import build_yolo_dataset
from ultralytics.utils import LOGGER, IterableSimpleNamespace
from ultralytics.utils.checks import check_file
from ultralytics.utils.torch_utils import get_cpu_info

from mlc_yolo import __version__
from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.locks import lock
from mlc_yolo.model import MLCYOLO
from mlc_yolo.paper.rows import Row, canonical, find_row, read_row, refuse_unknown, rescaled, shrunk
from mlc_yolo.resources import resource_dir

#: Column -> (name in a validation's `results_dict`, factor to the paper's unit, percent or none).
MEASURED = {
    **{name: (f"metrics/coco_{name}", 100.0) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")},
    "spearman": ("metrics/spearman(B)", 1.0),
    "spearman_pooled": ("metrics/spearman_pooled(B)", 1.0),
    **{f"AR{limit}": (f"metrics/AR@{limit}", 100.0) for limit in (100, 300, 1000)},
    **{f"VOC_{name}": (f"metrics/voc_{name}_11", 100.0) for name in ("AP", "AP50", "AP75")},
}
#: Columns of results.csv. What does not exist is empty. AP, AR, `paper` and `difference` are in percent; AP to APl are
#: COCO's, VOC_* are Pascal VOC's by 11 points, which is another metric: never compare the one with the other.
COLUMNS = (
    *("row", "model", "data", "images", "epochs", "imgsz", "batch", "scale", "seed"),
    *MEASURED,
    *("paper", "difference", "version", "commit", "device", "hours", "date", "command"),
)
#: Where a run happens and is kept, and what its user trusts: no part of the command that repeats its result.
PLACE = frozenset({"device", "workers", "project", "name", "exist_ok", "trust"})
_COCO = range(117_266, 118_288)  # train2017 without and with its images without objects
#: The column that a row is compared by, the first of these that its paper reports -> the training images it was
#: measured with: COCO's, and VOC's trainval of 2007 and 2012. Another set has no paper's number beside it.
PAPER_IMAGES = {"VOC_AP": range(16_551, 16_552), "AP": _COCO, "AR1000": _COCO}


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
        kept["imgsz"] = trainer.args.imgsz  # as rounded
        # Trusted: this very run wrote it.
        metrics = MLCYOLO(trainer.last, trust=True).val(**{**kept, **place})

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
        main = next((name for name in PAPER_IMAGES if name in self.row.paper), None)
        if main and self.comparable and line["images"] in PAPER_IMAGES[main] and line[main] is not None:
            line["paper"] = self.row.paper[main]
            line["difference"] = round(line[main] - line["paper"], 2)
        shown = ", ".join(
            f"{name} {line[name]}" for name in (*MEASURED, "paper", "difference") if line[name] is not None
        )
        LOGGER.info(f"{self.row.name}: {shown}")  # before the file is touched: hours of work stand in this line
        try:
            append_line(self.results, line)
        except (OSError, ValueError):
            spare = Path(trainer.save_dir) / "results_of_row.csv"
            append_line(spare, line)
            LOGGER.error(f"{self.results} could not be written; the line is in {spare}")
            raise
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
    """Train a row of a paper, validate it and append one line to results.csv.

    Args:
        row: path of a row's file, or the name of one in cfg/paper, with or without ".yaml".
        data: data YAML, as for any training.
        scale: share of the training images each epoch sees, in (0, 1]. Not upstream's augmentation of that name,
            which stays as the row's file has it.
        results: CSV to append to; default cfg/paper/results.csv of the checkout, or results.csv in the working
            directory when the package is installed.
        **overrides: training arguments that replace the row's. `epochs` moves lr_steps, close_mosaic and the lengths of
            warm-ups, burn-in and ramp in proportion, unless they are given too.

    Returns:
        The line: column -> value, None where it does not exist. `paper` and `difference` exist only for the row as it
        stands, on the paper's training images.

    Raises:
        FileNotFoundError: no such row or data.
        ValueError: `scale`, `epochs` or a name that cannot be, or a CSV with other columns; all before anything is
            written.
    """
    run = prepare(row, data=data, scale=scale, results=results, **overrides)
    return run.execute(MLCYOLO(run.model, trust=bool(run.arguments.get("trust", False))))


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
    refuse_unknown(overrides, "reproduce")

    overrides = canonical(overrides)
    arguments = {**planned.arguments, "name": planned.name}
    if "epochs" in overrides:
        arguments |= rescaled(planned.arguments, overrides["epochs"], by_hand=overrides)
    arguments = canonical({**arguments, **overrides})  # once more: two options may contradict each other
    if scale != 1:
        arguments["fraction"] = float(scale)
    iterations = arguments.get("warmup_iters")
    if iterations is not None and "warmup_iters" not in overrides:  # it would win over epochs that were set by hand
        arguments["warmup_iters"] = None if "warmup_epochs" in overrides else shrunk(iterations, scale)
    destination = _default_results() if results is None else Path(results)
    if destination.exists():
        _refuse_other_columns(destination, destination.read_text(encoding="utf-8"))
    arguments["data"] = resolve_data(data)
    if "://" not in arguments["data"]:
        check_file(arguments["data"])

    changed = {name for name, value in overrides.items() if planned.arguments.get(name, ...) != value}
    shown = {"data": _data_name(data), **({"scale": scale} if scale != 1 else {})}
    shown |= {name: value for name, value in overrides.items() if name in changed - PLACE}
    return Run(
        row=planned,
        model=str(arguments.pop("model")),
        arguments=arguments,
        data=_data_name(data),
        scale=float(scale),
        results=destination,
        comparable=scale == 1 and changed <= PLACE | {"seed"},
        command=shlex.join(
            ["mlc-yolo", "reproduce", planned.name, *(f"{name}={value}" for name, value in shown.items())]
        ),
    )


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
        lock(file, wait=True)  # until the file is closed
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
    header = next(csv.reader(text.splitlines()), [])
    if text and header != list(COLUMNS):
        odd = sorted(set(header) ^ set(COLUMNS)) or ["their order"]
        raise ValueError(f"{path} has other columns than the results of rows: {', '.join(odd)}. Name another file.")


def _measured(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return the measured columns; None for what is missing, nan, or -1, pycocotools' word for nothing to judge."""
    line: dict[str, float | None] = {}
    for column, (name, factor) in MEASURED.items():
        value = metrics.get(name, math.nan)
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
