"""What a run writes loads, whatever its task and wherever its data came from, and is of use in every mode."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from nets import SMALL
from ultralytics.utils import checks

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints.safe_load import RefusedCheckpoint, check

#: Task -> the head of a small net: the layers that it takes, its name and its arguments.
TASKS: dict[str, list[Any]] = {
    "detect": [[3, 4, 5], 1, "Detect", ["nc"]],
    "segment": [[3, 4, 5], 1, "Segment", ["nc", 32, 64]],
    "pose": [[3, 4, 5], 1, "Pose", ["nc", "kpt_shape"]],
    "obb": [[3, 4, 5], 1, "OBB", ["nc", 1]],
    "classify": [-1, 1, "Classify", ["nc"]],
    "semantic": [[3, 4], 1, "SemanticSegment", ["nc"]],
}
#: What plain Ultralytics leaves as `train_args["data"]` where a run's data came from an address: it writes the YAML
#: that it unpacked or converted for detection and the like, and what it was given for classification. Its platform's
#: trainings name their archive.
ADDRESSES = {
    "archive": "https://example.org/users/u/datasets/d/parts.zip",
    "YAML": "https://example.org/assets/parts.yaml",
    "NDJSON": "https://example.org/parts.ndjson",
    "list": ["parts.yaml", "https://example.org/assets/parts.yaml"],
}
TINY: dict[str, Any] = {"imgsz": 32, "batch": 4, "workers": 0, "device": "cpu", "plots": False}


def _data(task: str, root: Path) -> Path:
    """Write four images of two classes, used to train and to validate, with the labels of a task; return `data=`."""
    rng = np.random.default_rng(0)
    for label, index in ((label, index) for label in (0, 1) for index in (0, 1)):
        image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        name = f"{label}{index}"
        if task == "classify":
            for split in ("train", "val"):
                folder = root / split / f"class{label}"
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{name}.png"), image)
            continue
        for folder in ("images", "labels", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        corners = "0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8"
        row = {"segment": corners, "obb": corners, "pose": "0.5 0.5 0.6 0.6 0.4 0.4 2 0.6 0.6 2"}
        (root / "labels" / f"{name}.txt").write_text(f"{label} {row.get(task, '0.5 0.5 0.6 0.6')}\n")
        mask = np.full((32, 32), label, np.uint8)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    if task == "classify":
        return root
    own = {"pose": {"kpt_shape": [2, 3]}, "semantic": {"masks_dir": "masks"}}.get(task, {})
    content = {"path": str(root), "train": "images", "val": "images", "names": {0: "a", 1: "b"}, **own}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def _net(task: str, folder: Path) -> Path:
    """Write the YAML of a small net of a task."""
    config = {**yaml.safe_load(Path(SMALL).read_text()), "head": [TASKS[task]], "kpt_shape": [2, 3]}
    (folder / "net.yaml").write_text(yaml.safe_dump(config))
    return folder / "net.yaml"


def _from(file: Path, source: Any, name: str) -> Path:
    """Write a copy of a checkpoint whose run was trained on another source."""
    content = torch.load(file, weights_only=False)
    content["train_args"]["data"] = source
    copy = file.with_name(f"{name}.pt")
    torch.save(content, copy)
    return copy


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: Any, *_: Any, **__: Any) -> None:
        pytest.fail(f"{url} is fetched")

    for name in ("check_file", "check_yaml"):
        function = getattr(checks, name)
        monkeypatch.setattr(
            checks, name, lambda file, *more, function=function, **named: (
                fetch(file) if "example.org" in str(file) else function(file, *more, **named)
            )
        )  # fmt: skip
    monkeypatch.setattr("ultralytics.data.utils.safe_download", fetch)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("task", TASKS)
def test_what_a_run_writes_serves_every_mode_wherever_its_data_came_from(
    task: str, tmp_path: Path, run_dir: Path
) -> None:
    data = _data(task, tmp_path / "set")
    cut = tmp_path / "cut.pt"

    def keep(trainer: Any) -> None:
        check(trainer.last)
        if trainer.epoch == 0:
            shutil.copy(trainer.last, cut)

    net = MLCYOLO(_net(task, tmp_path), task=task)
    net.add_callback("on_model_save", keep)
    net.train(data=str(data), epochs=2, project=str(run_dir), name="run", **TINY)
    best = run_dir / "run" / "weights" / "best.pt"
    here = {"project": str(run_dir), "exist_ok": True, **TINY}
    image = np.zeros((32, 32, 3), np.uint8)

    own = MLCYOLO(best)
    assert own.task == task and len(own.predict(image, **here)) == 1
    assert own.val(**here).fitness >= 0, "on the data that the checkpoint names"
    # Tasks that read their data alike tell their addresses alike: one kind of address is then enough.
    addresses = ADDRESSES if task in {"detect", "classify"} else {"archive": ADDRESSES["archive"]}
    for name, source in {**addresses, "platform": "ul://someone/datasets/parts"}.items():
        model = MLCYOLO(_from(best, source, name))
        assert len(model.predict(image, **here)) == 1
        if name == "archive":
            assert model.val(data=str(data), **here).fitness >= 0
        if name in addresses:
            with pytest.raises(RefusedCheckpoint, match=r"was trained on .* give data="):
                MLCYOLO(_from(best, source, name)).val(**here)
    assert Path(MLCYOLO(_from(best, ADDRESSES["archive"], "exported")).export(format="torchscript", imgsz=32)).is_file()

    for name, source in addresses.items():
        with pytest.raises((RefusedCheckpoint, FileNotFoundError), match=r"was trained on .* give data="):
            MLCYOLO(_from(cut, source, name)).train(resume=True)
    own_place: list[tuple[str, dict[str, str]]] = [(str(data), {})] if task == "detect" else []
    for source, given in (*own_place, (ADDRESSES["archive"], {"data": str(data)})):
        resumed = MLCYOLO(_from(cut, source, "resumed"))
        resumed.train(resume=True, **given)
        assert resumed.trainer.epoch == 1 and resumed.trainer.start_epoch == 1
