"""`compare`: run a grid of trainings where it stopped, and return what it found."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, SETTINGS

from mlc_yolo import __version__, whole_files
from mlc_yolo.compare import executors
from mlc_yolo.compare.cell import LAST, LOG, SPECIFICATION, read_epochs
from mlc_yolo.compare.grid import PLACE, Cell, Grid, plan
from mlc_yolo.compare.rehearsal import refusals
from mlc_yolo.compare.results import GRID, Comparison, is_finished, latency_file
from mlc_yolo.faults import begin_work
from mlc_yolo.locks import lock

_NEWS = 30.0  # s between lines about runs that go on
_TAIL = 12  # lines of a failed run's log that are shown
_LATENCY_IMAGES = 8
#: Options of a training that change how long a prediction takes, and that its weights do not hold.
_AFTER_NMS = ("vote", "vote_iou", "vote_sigma", "min_iou", "sort")


def compare(
    *,
    data: Any = None,
    model: Any = "yolo11n.yaml",
    baseline: str | Mapping[str, Any] | None = None,
    executor: str = "local",
    jobs: int | None = None,
    device: Any = None,
    project: str | Path | None = None,
    name: str | None = None,
    exist_ok: bool = False,
    **options: Any,
) -> Comparison:
    """Train every combination of options and compare the results with a baseline's.

    Called again with the same options, also after it was killed, it goes on where it stopped: finished runs are not
    repeated, and a training that was stopped goes on from its last epoch. Lists may have grown meanwhile.

    Args:
        data: data YAML, or several; variants are compared within each.
        model: checkpoint or model YAML, or several.
        baseline: which variant the others are compared with, such as "assigner=tal"; the first value of each list where
            it says nothing.
        executor: "local" for processes on this machine, "ray" for a running Ray cluster (or RAY_ADDRESS) whose machines
            share their files.
        jobs: how many trainings run at once; default one per device, and as many as it has room for on Ray.
        device: devices that the trainings are spread over, one each; default every GPU, else the CPU. Ray chooses its
            own.
        project: folder of comparisons; default "compare" in Ultralytics' runs folder.
        name: of this one's folder. Left out, a comparison of the same options is continued, and one of other options
            gets a new folder.
        exist_ok: without a name, take project/compare and no other folder.
        **options: arguments of a training, upstream's and ours, any of them a list. Those whose one value may be a list
            (lr_steps, classes, freeze, unlabeled) vary when they are a list of lists. `seed` pairs runs.

    Returns:
        The comparison; it prints as a table. `failed` names runs that ended with an error.

    Raises:
        ValueError: options that cannot be, for any of the runs, before any file is touched; or a folder of that name
            with other options.
        RuntimeError: another process works on the same comparison.

    Example:
        >>> comparison = compare(data="mine.yaml", assigner=["tal", "mlc"], seed=[0, 1], epochs=50)  # doctest: +SKIP
        >>> print(comparison)  # doctest: +SKIP
    """
    if executor not in executors.NAMES:
        raise ValueError(f"executor={executor!r} must be one of {', '.join(executors.NAMES)}")
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ValueError(f"jobs={jobs!r} must be a whole number, 1 or more")
    devices = executors.parse_devices(device)
    grid = plan({"model": model, "data": data, **options}, baseline)
    base = Path(project).absolute() if project else Path(SETTINGS["runs_dir"]) / "compare"
    folder = _choose_folder(base, name or "compare", grid, fixed=name is not None or exist_ok)
    LOGGER.info(f"Files of this comparison go to {folder}")
    pending = [cell for cell in grid.cells if not is_finished(cell, folder)]
    for cell in pending:
        _refuse_foreign(folder / cell.name, cell)
    first = {(cell.data, cell.variant): cell for cell in reversed(pending)}  # no check depends on the seed
    if refused := refusals({cell.name: cell.options for cell in first.values()}):
        raise ValueError("\n".join(f"{cell}: {reason}" for cell, reason in refused.items()))

    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        begin_work()
        _write_grid(folder, grid)

        def run(tasks: Sequence[executors.Task]) -> executors.Ended:
            if executor == "ray":
                return executors.run_ray(tasks, jobs=jobs)
            return executors.run_local(tasks, devices=devices, jobs=jobs or len(devices))

        try:
            failed = _train(grid, pending, folder, run)
            _measure_latency(grid, folder, run, written={cell.name for cell in pending})
        except KeyboardInterrupt:
            LOGGER.info(f"\nStopped. What is finished is in {folder}; the same command goes on.")
            raise
        comparison = Comparison(folder, grid, failed)
        comparison.write()
    LOGGER.info(f"\n{comparison}\nTables: {folder}")
    for run_name, tail in failed.items():
        LOGGER.error(f"{run_name} failed; the end of {folder / run_name / LOG}:\n{tail}")
    if failed:
        LOGGER.error("The same command tries them again.")
    return comparison


def _train(grid: Grid, pending: Sequence[Cell], folder: Path, run: Any) -> dict[str, str]:
    """Run what is not finished; return the ends of the logs of what failed."""
    finished = len(grid.cells) - len(pending)
    LOGGER.info(f"{len(grid.cells)} runs in {folder}, {finished} of them finished; the baseline is {grid.baseline}")
    tasks = []
    for cell in pending:
        place = folder / cell.name
        place.mkdir(exist_ok=True)
        specification = {"options": cell.options, "digest": cell.digest, "version": __version__}
        whole_files.write(place / SPECIFICATION, yaml.safe_dump(specification, sort_keys=False))
        tasks.append(executors.Task(cell.name, "mlc_yolo.compare.cell", (str(place),), place / LOG))
    failed = {}
    progress = _Progress(grid, pending, folder)
    for ended in run(tasks):
        if ended is not None:
            task, status = ended
            if not is_finished(grid.cell(task.name), folder):
                failed[task.name] = f"exit status {status}\n{_tail(task.log)}"
            progress.end(task.name)
        progress.tell(at_once=ended is not None)
    return failed


class _Progress:
    """Says how far the grid is and when it may be done."""

    def __init__(self, grid: Grid, pending: Sequence[Cell], folder: Path) -> None:
        self._folder, self._total = folder, len(grid.cells)
        self._planned = {cell.name: int(cell.options.get("epochs") or DEFAULT_CFG_DICT["epochs"]) for cell in pending}
        self._ended: set[str] = set()
        self._start, self._told = time.monotonic(), time.monotonic()
        self._before = sum(self._trained().values())

    def end(self, name: str) -> None:
        """Note that a run has ended, well or not: nothing more is to be waited for."""
        self._ended.add(name)

    def tell(self, *, at_once: bool) -> None:
        """Log a line, if it is time for one."""
        now = time.monotonic()
        if not at_once and now - self._told < _NEWS:
            return
        self._told = now
        trained = self._trained()
        going_on = {name: planned for name, planned in self._planned.items() if name not in self._ended}
        states = [f"{name} epoch {trained[name]}/{planned}" for name, planned in going_on.items() if trained[name]]
        ended = f"{self._total - len(going_on)} of {self._total} runs ended"
        rate = (sum(trained.values()) - self._before) / (now - self._start)
        left = sum(planned - trained[name] for name, planned in going_on.items())
        estimate = [f"about {duration(left / rate)} left"] if left and rate else []
        LOGGER.info("; ".join([ended, *states, *estimate]))

    def _trained(self) -> dict[str, int]:
        return {name: len(read_epochs(self._folder / name)) for name in self._planned}


def duration(seconds: float) -> str:
    """Return a length of time as people say it.

    Example:
        >>> duration(50), duration(600), duration(5000), duration(100000)
        ('1 min', '10 min', '1 h 23 min', '27 h')
    """
    minutes = max(round(seconds / 60), 1)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 600 else f"{minutes // 60} h"


def _measure_latency(grid: Grid, folder: Path, run: Any, *, written: Collection[str]) -> None:
    """Time the variants on each data set, unless it was done for the same runs; log what cannot be timed.

    Args:
        grid: the comparison's.
        folder: its folder.
        run: the executor.
        written: names of the cells that this call trained, whose weights are opened whatever they hold.
    """
    comparison = Comparison(folder, grid)
    tasks = []
    for data in dict.fromkeys(cell.data for cell in grid.cells):
        cells = {cell.variant: cell for cell in reversed(comparison.finished) if cell.data == data}
        if len(cells) < 2:
            continue
        models = {
            variant: {
                "model": str(folder / cell.name / LAST),
                "imgsz": cell.options.get("imgsz") or 640,
                **{name: cell.options[name] for name in _AFTER_NMS if name in cell.options},
            }
            for variant, cell in sorted(cells.items())
        }
        images = comparison.records(next(iter(cells.values())).name).images[:_LATENCY_IMAGES]
        measured = {"models": models, "images": images}
        path = latency_file(folder, data)
        before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        if {name: before.get(name) for name in measured} == measured and "milliseconds" in before:
            continue
        trusted = [name for name, cell in cells.items() if cell.name in written or cell.options.get("trust")]
        whole_files.write(path, yaml.safe_dump({**measured, "trusted": trusted}))
        tasks.append(executors.Task(data, "mlc_yolo.compare.latency", (str(path),), path.with_suffix(".log")))
    for task in tasks:  # one after the other: they would disturb one another
        for ended in run([task]):
            if ended is not None and ended[1]:
                LOGGER.warning(f"latency on {task.name} was not measured:\n{_tail(task.log)}")


def _choose_folder(base: Path, name: str, grid: Grid, *, fixed: bool) -> Path:
    """Return the folder to go on in, or a new one.

    Raises:
        ValueError: the one folder that it may be is of something else.
    """
    for number in count(1):
        folder = base / (name if number == 1 else f"{name}{number}")
        if not folder.exists() or not any(folder.iterdir()):
            return folder
        problem = _mismatch(folder, grid)
        if problem is None:
            return folder
        if fixed:
            raise ValueError(f"{folder} {problem}. Give another name=...")
    raise AssertionError("unreachable")


def _mismatch(folder: Path, grid: Grid) -> str | None:
    """Say how a folder is not of this grid; None if it is, or of a part of it."""
    if not (folder / GRID).exists():
        return "holds no comparison"
    old = yaml.safe_load((folder / GRID).read_text(encoding="utf-8"))
    changes = []
    known = [*old["options"], *old["lists"], *grid.fixed, *grid.lists]
    for name in dict.fromkeys(name for name in known if name not in PLACE):
        before = old["lists"].get(name, [old["options"][name]] if name in old["options"] else None)
        now = grid.lists.get(name, [grid.fixed[name]] if name in grid.fixed else None)
        varied = (name in old["lists"]) == (name in grid.lists)
        if before is None or now is None or not varied or any(value not in now for value in before):
            changes.append(f"{name} was {_told(before)} and is {_told(now)}")
    if changes:
        return f"holds a comparison with other options: {'; '.join(changes)}"
    digests = {cell.name: cell.digest for cell in grid.cells}
    if any(digests.get(name) != digest for name, digest in old["cells"].items()):
        return "holds runs that these options would name otherwise"
    return None


def _refuse_foreign(place: Path, cell: Cell) -> None:
    """Refuse to train a cell in a folder that another training has begun.

    Raises:
        ValueError: its `cell.yaml` names other options, or it holds weights without one.
    """
    file = place / SPECIFICATION
    if file.exists():
        digest = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("digest")
        if digest != cell.digest:
            raise ValueError(
                f"{place} holds a run of other options: expected digest {cell.digest[:12]} in {SPECIFICATION}, got "
                f"{str(digest)[:12]}. Give another name=..., or remove that folder"
            )
    elif (place / LAST).exists():
        raise ValueError(f"{place} holds weights without {SPECIFICATION}: give another name=..., or remove that folder")


def _told(values: Sequence[Any] | None) -> str:
    return "left out" if values is None else ",".join(map(str, values))


def _write_grid(folder: Path, grid: Grid) -> None:
    content = {
        "options": grid.fixed,
        "lists": grid.lists,
        "baseline": grid.chosen,
        "cells": {cell.name: cell.digest for cell in grid.cells},
    }
    whole_files.write(folder / GRID, yaml.safe_dump(content, sort_keys=False))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working on the same comparison; the lock ends with this process, however it ends."""
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError as error:
            raise RuntimeError(f"another process works on {folder}: wait for it, or give another name=...") from error
        yield


def _tail(log: Path) -> str:
    """Return the last lines of a log, without its progress bars' colours and overwritten states."""
    if not log.exists():
        return "(no log)"
    with open(log, "rb") as file:
        file.seek(max(os.path.getsize(log) - 20_000, 0))
        text = file.read().decode("utf-8", errors="replace")
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return "\n".join([line for line in lines if line][-_TAIL:])
