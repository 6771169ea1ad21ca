"""No mode reaches for the network or installs anything unless it is asked to: tried with a network that refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

#: Python runs a module of this name when it starts, in every process of a run. Audit hooks see what C code does too.
GUARD = """
import json, os, sys

def watch(event, arguments):
    kind, _, name = event.partition(".")
    if kind == "socket" and name in ("connect", "getaddrinfo", "gethostbyname", "gethostbyaddr", "sendto", "sendmsg"):
        address = arguments[1] if name == "connect" else arguments[0]
        if isinstance(address, (str, bytes)) and name == "connect":
            return  # a socket of this machine's own file system, between processes
        record([event, str(address)])
        raise OSError(f"{event} refused by the test")
    if event == "subprocess.Popen":
        words = [str(word) for word in (arguments[1] if isinstance(arguments[1], (list, tuple)) else [arguments[1]])]
        if {"pip", "uv", "curl", "wget", "git", "apt", "apt-get"} & {word.split("/")[-1] for word in words}:
            record([event, " ".join(words)])

def record(found):
    with open(os.environ["GUARD_LOG"], "a") as log:
        log.write(json.dumps(found) + "\\n")

sys.addaudithook(watch)
"""

DRIVER = """
import json, os, sys
from mlc_yolo.cli import main

for words in json.loads(sys.argv[1]):
    status, log = main(words), os.environ["GUARD_LOG"]
    print("STATUS", words[0], status, os.path.exists(log), flush=True)
"""

MODEL = {
    "nc": 3,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 3 + [[-1, 1, "Conv", [16, 3, 2]]] * 2,
    "head": [[[2, 3, 4], 1, "Detect", ["nc"]]],
}


class Place:
    """A folder, an environment as a user's that has never run Ultralytics, and a record of what was reached for."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        guard = folder / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(GUARD)
        self.log = folder / "reached.jsonl"
        self.model = folder / "small.yaml"
        self.model.write_text(yaml.safe_dump(MODEL))
        root = folder / "data"
        shutil.copytree(data.parent, root)
        (root / "images" / "train" / "broken.jpg").write_bytes(b"no image")  # Ultralytics wants a package to open it
        self.data = root / "data.yaml"
        settings = {"train": "images/train", "val": "images/val", "names": ["square", "disc", "cross"]}
        self.data.write_text(yaml.safe_dump(settings))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO_", "MLC_"))}
        self.environment = kept | {
            "PYTHONPATH": os.pathsep.join([str(guard), str(ROOT)]),
            "GUARD_LOG": str(self.log),
            "YOLO_CONFIG_DIR": str(folder / "config"),
            "MLC_YOLO_CACHE": str(folder / "cache"),
            "HOME": str(folder),
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
        }

    def python(self, code: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.log.unlink(missing_ok=True)
        command = [sys.executable, "-c", code, *words]
        environment = self.environment | variables
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, errors="replace", timeout=600
        )

    def main(self, *commands: list[str]) -> subprocess.CompletedProcess[str]:
        return self.python(DRIVER, json.dumps(commands))

    def reached(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def arguments(self, name: str, **changes: Any) -> list[str]:
        given = {
            "imgsz": 64,
            "project": self.folder / "runs",
            "name": name,
            "exist_ok": True,
            "device": "cpu",
            **changes,
        }
        return [f"{key}={value}" for key, value in given.items()]


@pytest.fixture
def place(tmp_path: Path, tiny_data: Path) -> Place:
    return Place(tmp_path, tiny_data)


@pytest.mark.slow
def test_the_guard_sees_and_refuses(place: Place) -> None:
    code = "import socket; socket.create_connection(('203.0.113.1', 80))"
    assert "refused by the test" in place.python(code).stderr
    assert place.reached() == [["socket.getaddrinfo", "203.0.113.1"]]
    place.python("import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', '--version'])")
    assert place.reached()[0][0] == "subprocess.Popen"


@pytest.mark.slow
def test_no_mode_reaches_for_the_network_or_installs_anything_unless_a_file_is_asked_for_by_name(place: Place) -> None:
    weights = place.folder / "runs" / "train" / "weights" / "best.pt"
    training = {"epochs": 1, "batch": 4, "workers": 0}
    compared = place.arguments("compared", **training, assigner="tal,mlc", plots=False)
    result = place.main(
        ["train", f"model={place.model}", f"data={place.data}", *place.arguments("train", **training)],
        ["val", f"model={weights}", f"data={place.data}", *place.arguments("val", workers=0)],
        ["predict", f"model={weights}", f"source={place.data.parent / 'images' / 'val'}", *place.arguments("predict")],
        ["export", f"model={weights}", "format=torchscript", "imgsz=64"],
        ["export", f"model={weights}", "format=stock"],
        ["assignments", f"model={weights}", f"data={place.data}", "count=1", *place.arguments("assignments")],
        ["split", f"data={place.data}", "percent=50", "folds=1", f"output={place.folder / 'splits'}"],
        ["compare", f"model={place.model}", f"data={place.data}", *compared],
        # A model file that is asked for by name is looked for.
        ["val", "model=yolo11n.pt", f"data={place.data}", *place.arguments("val")],
    )
    statuses = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("STATUS")]
    modes = ["train", "val", "predict", "export", "export", "assignments", "split", "compare"]
    assert statuses == [*([mode, "0", "False"] for mode in modes), ["val", "2", "True"]], result.stderr[-3000:]
    assert "Download failure" in result.stderr
    assert {address for _, address in place.reached()} == {"github.com"}
    assert (place.folder / "runs" / "train" / "labels.jpg").is_file()  # with plots, for which Arial would be fetched
    assert "broken.jpg: ignoring corrupt image" in result.stdout + result.stderr


@pytest.mark.parametrize(("given", "kept"), [({}, ["true", "false"]), ({"YOLO_OFFLINE": "0"}, ["0", "false"])])
def test_what_the_user_has_set_is_left_alone(place: Place, given: dict[str, str], kept: list[str]) -> None:
    code = "import os, mlc_yolo; print(os.environ['YOLO_OFFLINE'], os.environ['YOLO_AUTOINSTALL'])"
    assert place.python(code, **given).stdout.split() == kept
