"""Runs that are killed, or find the disk full, leave whole files, and resuming gives the whole run's weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detector_runs import detector_yaml, rows
from nets import SMALL, SMALL26

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints.safe_load import check
from mlc_yolo.training.exact_resume import RESUME, STUDENT

#: Two batches an epoch and a step every three: gradients are pending where epochs end. The assigner switches at 3.
RUN = {
    **{"imgsz": 64, "batch": 4, "nbs": 12, "seed": 0, "plots": False, "epochs": 4, "close_mosaic": 1, "workers": 0},
    **{"optimizer": "SGD", "lr0": 0.005, "warmup_epochs": 1, "assigner": "mlc", "assigner_warmup": 2},
}
SHORT = {"epochs": 2, "assigner_warmup": 1}
#: What is trained -> its options, where it is killed, and in which epoch, the first being 0.
CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "yolo11": ({}, "validation", 3),  # goes on in the epoch that closes the mosaic
    "yolo26": ({"optimizer": "AdamW"}, "write", 1),  # before the switch
    "retinanet": ({}, "step", 2),  # at the switch
    "sed": ({"ssl": "sed", "ssl_burn_in": 1, "ssl_ramp": 1, "close_mosaic": 2}, "step", 3),  # with the mosaic closed
    "full": (SHORT, "full", 1),
    "saved": (SHORT, "fitness", 1),  # the last epoch is saved, the run is not brought to its end
    "stripped": (SHORT, "stripped", 1),  # best.pt is
}

#: Trains each case in a process of its own, forked once all is imported, and kills it; or keeps a whole run's weights.
#: Some upstream versions draw otherwise in a process' first run, so each is the first one of its own.
PROGRAM = """
import json, os, resource, signal, sys, traceback
import polars, thop  # which a training imports on its way
import torch
from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints import tensors_file
from mlc_yolo import whole_files

torch.set_num_threads(1)
move = whole_files.move


def train(model, options, point, epoch):
    now = {"epoch": -1}

    def die(*_):
        if now["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    def half(source, target):
        if target.name == "last.pt" and now["epoch"] == epoch:
            source.write_bytes(source.read_bytes()[:9999])
            die()
        move(source, target)

    def fill(trainer):
        if now["epoch"] == epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    def keep(trainer):
        nets = (trainer.model, trainer.ema.ema)
        torch.save([net.state_dict() for net in nets], os.path.join(options["project"], options["name"] + ".end"))

    net = MLCYOLO(model)
    net.add_callback("on_train_epoch_start", lambda trainer: now.update(epoch=trainer.epoch))
    if point == "write":
        whole_files.move = half
    elif point == "stripped":
        save = tensors_file.save
        tensors_file.save = lambda *args: (save(*args), die())
    elif point == "full":
        net.add_callback("on_train_epoch_end", fill)
    elif point == "whole":
        net.add_callback("on_train_end", keep)
    else:
        after = {"step": "on_train_batch_end", "validation": "on_val_batch_end", "fitness": "on_fit_epoch_end"}
        net.add_callback(after[point], die)
    try:
        net.train(**options)
    except OSError as error:
        with open(os.path.join(options["project"], "said"), "w") as file:
            file.write(str(error))


for case in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            train(*case)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    print("\\nended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def cut(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """The options of a case, and the folder of its run, which has been killed."""
    folder = tmp_path_factory.mktemp("killed")
    given = {}
    for name, (own, point, epoch) in CASES.items():
        model = detector_yaml(folder, name) if name == "retinanet" else SMALL26 if name == "yolo26" else SMALL
        unlabeled = {"unlabeled": str(tiny_data.parent / "images" / "train")} if "ssl" in own else {}
        place = {"data": str(tiny_data), "project": str(folder)}
        given[name] = str(model), {**RUN, **own, **unlabeled, **place}, point, epoch
    cases = [(model, {**options, "name": name}, *end) for name, (model, options, *end) in given.items()]
    wholes = [
        (model, {**options, "name": f"{name}-whole", "save": False}, "whole", 0)
        for name, (model, options, point, _) in given.items()
        if point in {"step", "validation", "write"}
    ]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(cases + wholes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("ended")]
    full = list(CASES).index("full")
    assert lines == ["ended 1" if i == full else "ended -9" for i in range(len(CASES))] + ["ended 1"] * 4, ended.stdout
    return lambda name: (given[name][1], folder / name)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="processes are killed by SIGKILL")
@pytest.mark.parametrize("name", ["yolo11", "yolo26", "retinanet", "sed"])
def test_resuming_a_killed_run_gives_the_whole_runs_weights(name: str, cut: Any) -> None:
    options, folder = cut(name)
    killed = CASES[name][2]
    last = folder / "weights" / "last.pt"
    check(last)
    saved = torch.load(last, weights_only=False)
    assert saved["epoch"] == killed - 1 and {STUDENT, RESUME} <= saved.keys()
    assert bool(saved[RESUME]["gradients"]) == (saved[RESUME]["pending"] > 0)
    if name == "yolo11":
        assert saved[RESUME]["pending"] > 0

    ends: list[dict[str, torch.Tensor]] = []

    def keep(trainer: Any) -> None:
        ends.extend(net.state_dict() for net in (trainer.model, trainer.ema.ema))

    resumed = MLCYOLO(last)
    resumed.add_callback("on_train_end", keep)
    resumed.train(resume=True)

    whole = torch.load(folder.with_name(f"{name}-whole.end"))
    for expected, got in zip(whole, ends, strict=True):  # the student's weights, and the average's
        assert expected.keys() == got.keys()
        assert [key for key, value in expected.items() if not torch.equal(value, got[key])] == []
    assert [row["epoch"] for row in rows(folder)] == [1, 2, 3, 4]
    assert resumed.trainer.args.close_mosaic == options["close_mosaic"]
    names = sorted(path.name for path in last.parent.iterdir())
    assert names == ["best.pt", "best.safetensors", "last.pt", "last.safetensors"]
    assert not {STUDENT, RESUME} & torch.load(last, weights_only=False).keys()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="processes are killed by SIGKILL")
@pytest.mark.parametrize("name", ["saved", "stripped"])
def test_a_run_that_was_killed_after_its_last_epoch_is_brought_to_its_end(name: str, cut: Any) -> None:
    _, folder = cut(name)
    last = folder / "weights" / "last.pt"
    assert (
        torch.load(last, weights_only=False)["optimizer"] is not None and not last.with_suffix(".safetensors").exists()
    )
    resumed = MLCYOLO(last)
    resumed.train(resume=True)
    assert [row["epoch"] for row in rows(folder)][:2] == [1, 2] and resumed.metrics.box.map >= 0
    for file in (last, last.with_name("best.pt")):
        saved = torch.load(file, weights_only=False)
        assert saved["optimizer"] is None and not {STUDENT, RESUME} & saved.keys()
        assert file.with_suffix(".safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_checkpoints_before_and_says_so(cut: Any) -> None:
    _, folder = cut("full")
    weights = folder / "weights"
    said = (folder.parent / "said").read_text()
    assert "last.pt could not be written" in said and "the one before is kept" in said and "too large" in said
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.pt"]
    for path in weights.iterdir():
        assert torch.load(path, weights_only=False)["epoch"] == 0
