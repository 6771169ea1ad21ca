"""One training of a comparison, as a process of its own: `python -m mlc_yolo.compare.cell FOLDER DEVICE`.

What it leaves in its folder tells where to go on after it was killed, at whatever moment:

1. `cell.yaml`, written by whoever starts it: the options and their digest.
2. `weights/last.pt`, replaced in one step after every epoch: training goes on from it.
3. `epochs.csv`, a line per epoch: seconds of training without validation, peak memory, device.
4. `records.npz`, written last and in one step: finished.

Judged are the last epoch's weights, not the best epoch's: those are chosen on the images that then judge them, which
favours what varies most from epoch to epoch.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from ultralytics.utils.torch_utils import get_cpu_info

from mlc_yolo.checkpoints.safe_load import load_checkpoint
from mlc_yolo.compare.parent import end_with_parent
from mlc_yolo.evaluation.recording import record
from mlc_yolo.model import MLCYOLO

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: Files of a cell's folder.
SPECIFICATION, EPOCHS, RECORDS, LOG, LAST = "cell.yaml", "epochs.csv", "records.npz", "log.txt", "weights/last.pt"
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training cost.

    Attributes:
        number: from 1.
        seconds: of training, without validation and saving.
        memory: peak in MiB: of the epoch's tensors on a GPU, else of the process so far; nan where unknown.
        device: its name.
    """

    number: int
    seconds: float
    memory: float
    device: str


def read_epochs(folder: Path) -> list[Epoch]:
    """Return what each epoch trained so far cost; of one that was repeated, the last time."""
    path = folder / EPOCHS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines[1:] if line.endswith("\n")]
    epochs = {int(row[0]): Epoch(int(row[0]), float(row[1]), float(row[2]), row[3]) for row in csv.reader(whole)}
    return [epochs[number] for number in sorted(epochs)]


def run_cell(folder: Path, device: str) -> None:
    """Train what the folder's `cell.yaml` says, from where an earlier process was stopped, and record its validation.

    Args:
        folder: the cell's folder.
        device: one device, as Ultralytics takes it.
    """
    specification = yaml.safe_load((folder / SPECIFICATION).read_text(encoding="utf-8"))
    options: dict[str, Any] = dict(specification["options"])
    name = options.pop("model")
    trust = bool(options.get("trust", False))
    place: dict[str, Any] = {"exist_ok": True, "device": device}
    last = folder / LAST
    trained, planned = _progress(last, trust)
    _forget_after(trained, folder)
    if not trained:
        model = MLCYOLO(name, trust=trust)
        _write_cost(model, folder)
        model.train(**options, project=str(folder.parent), name=folder.name, **place)
    elif trained < planned:
        model = MLCYOLO(last, trust=trust)
        _write_cost(model, folder)
        model.train(resume=True, data=options["data"], save_dir=str(folder), device=device)
    written_here = not trained or trained < planned  # by this process: no stranger's file
    judged = MLCYOLO(last, trust=trust or written_here)
    options["imgsz"] = judged.model.args["imgsz"]  # as rounded in training
    records = record(judged, **options, project=str(folder), name="val", **place)
    replace(records, digest=specification["digest"]).save(folder / RECORDS)


def _progress(last: Path, trust: bool) -> tuple[float, int]:
    """Return how many epochs last.pt was trained, and how many it shall be; infinity for a training that has ended."""
    if not last.exists():
        return 0, 0
    model, checkpoint = load_checkpoint(last, trust=trust)
    ended = checkpoint["epoch"] < 0 or checkpoint.get("optimizer") is None  # its optimizer is dropped at the end
    return math.inf if ended else checkpoint["epoch"] + 1, int(model.args["epochs"])


def _forget_after(trained: float, folder: Path) -> None:
    """Drop lines of epochs that will be trained again: the process was killed after writing them, before last.pt."""
    for path in (folder / EPOCHS, folder / "results.csv"):
        if not path.exists():
            continue
        header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= trained]
        path.write_text("".join([header, *kept]) if kept else "", encoding="utf-8")
        if not kept:
            path.unlink()  # whoever begins it writes the header


def _write_cost(model: MLCYOLO, folder: Path) -> None:
    """Let a training write what its epochs cost."""
    begun = 0.0

    def start(trainer: Any) -> None:
        nonlocal begun
        if trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)
        begun = time.perf_counter()

    def end(trainer: Any) -> None:
        gpu = trainer.device.type == "cuda"
        if gpu:
            torch.cuda.synchronize(trainer.device)
        seconds = time.perf_counter() - begun
        memory = torch.cuda.max_memory_allocated(trainer.device) / _MEBIBYTE if gpu else _process_memory()
        name = torch.cuda.get_device_name(trainer.device) if gpu else get_cpu_info()
        path = folder / EPOCHS
        new = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(("epoch", "seconds", "memory", "device"))
            writer.writerow((trainer.epoch + 1, f"{seconds:.3f}", f"{memory:.1f}", name))

    model.add_callback("on_train_epoch_start", start)
    model.add_callback("on_train_epoch_end", end)


def _process_memory() -> float:
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MEBIBYTE if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere


if __name__ == "__main__":
    end_with_parent()
    run_cell(Path(sys.argv[1]), sys.argv[2])
