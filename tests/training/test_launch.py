"""Several processes, launched by Ultralytics' generated command and file, or by torchrun on two nodes."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import gloo_trainer
import numpy as np
import psutil
import pytest
import torch
from gloo_trainer import GlooTrainer
from nets import SMALL, SMALL26
from ultralytics.utils import YAML

COMMON = {
    **{"epochs": 2, "imgsz": 64, "batch": 8, "nbs": 8, "workers": 0, "device": "cpu", "plots": False, "amp": False},
    "iou_head": True,
}


@pytest.mark.slow
def test_the_generated_command_and_file_carry_options_and_criterion(
    tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(1)
    for i in range(8):
        cv2.imwrite(str(photos / f"{i}.png"), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    ours = {"assigner": "mutual_guidance", "ssl": "sed", "ssl_burn_in": 1, "unlabeled": [str(photos)]}
    run = run_dir / "run"
    place = {"model": SMALL26, "data": str(tiny_data), "project": str(run_dir), "name": "run", "exist_ok": True}
    GlooTrainer(overrides={**COMMON, **place, **ours}).train()

    arguments = YAML.load(run / "args.yaml")
    assert {name: arguments[name] for name in ours} == ours
    assert {(seen["criterion"], seen["assigner"]) for seen in same_on_both(run)} == {("SemiLoss", "MutualGuidance")}
    rows = results(run)
    assert len(rows) == 2 and float(rows[-1]["train/pos_cls"]) > 0 and float(rows[-1]["train/iou_loss"]) > 0
    assert float(rows[0]["train/agree_cls"]) == 0 < float(rows[-1]["train/agree_cls"])


@pytest.mark.slow
def test_two_nodes_train_together_and_resume_after_they_were_killed(tiny_data: Path, run_dir: Path) -> None:
    run = run_dir / "run"
    place = {"data": str(tiny_data), "project": str(run_dir), "name": "run", "exist_ok": True}
    options = {**COMMON, **place, "model": SMALL, "assigner": "mlc", "assigner_warmup": 2, "epochs": 8}
    nodes = two_nodes(options, run_dir / "first.log", torchrun=True)
    while not (run / "weights" / "last.pt").exists():
        assert all(node.poll() is None for node in nodes), (run_dir / "first.log").read_text()
        time.sleep(0.02)
    for process in [each for node in nodes for each in (node, *psutil.Process(node.pid).children(recursive=True))]:
        with suppress(psutil.NoSuchProcess):  # one ends where its other end is gone
            process.kill()
        process.wait()
    assert 1 <= len(results(run)) < 8 and not list(run.glob("*.seen"))

    nodes = two_nodes({"resume": str(run / "weights" / "last.pt")}, run_dir / "second.log", torchrun=False)
    assert [node.wait(timeout=300) for node in nodes] == [0, 0], (run_dir / "second.log").read_text()
    assert {(seen["criterion"], seen["assigner"]) for seen in same_on_both(run)} == {("PerTaskLoss", "MutualLabeling")}
    assert [int(row["epoch"]) for row in results(run)] == [1, 2, 3, 4, 5, 6, 7, 8]


def two_nodes(overrides: dict[str, Any], log: Path, *, torchrun: bool) -> list[subprocess.Popen[bytes]]:
    """Start a training on two machines of one process each, as torchrun takes this one for.

    Without torchrun its processes are started as it starts them, which saves those that only watch.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    script = [str(Path(gloo_trainer.__file__)), json.dumps(overrides)]
    with open(log, "w") as file:
        return [
            subprocess.Popen(
                [
                    sys.executable,
                    *(["-m", "torch.distributed.run", *where, f"--node-rank={node}"] if torchrun else []),
                    *script,
                ],
                env={**os.environ, **({} if torchrun else {**place, "RANK": str(node)})},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            for node in range(2)
        ]


def same_on_both(run: Path) -> list[dict[str, Any]]:
    """What each rank has seen, once both are known to have half of each batch and the same weights."""
    ranks = [torch.load(run / f"rank{rank}.seen") for rank in (0, 1)]
    assert [seen["batch"] for seen in ranks] == [4, 4]
    trained = [name for name in ranks[0]["weights"] if not name.endswith(("running_mean", "running_var"))]
    assert any("cv_iou" in name for name in trained)
    for name in trained:  # a rank's running statistics are its own
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), name
    return ranks


def results(run: Path) -> list[dict[str, str]]:
    with open(run / "results.csv", newline="") as file:
        return list(csv.DictReader(file))
