"""Runs Ultralytics' own tests of everything with boxes, `MLCYOLO` in the place of `YOLO`: `make upstream-tests`.

Those are detection, segmentation, pose and oriented boxes.

1. The tests are taken from the source distribution of the installed version, below `build/`; none is copied into the
   project.
2. Settings, weights and data sets live below `build/` too. Nothing is fetched: stand-ins, untrained, bear the names of
   the weights that the tests open, and small sets of the pictures that come with Ultralytics those of its data sets.
3. `plugin` swaps the class and the command, and names what needs a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Weights that the tests open: name -> the model YAML, image channels.
WEIGHTS = {
    "yolo26n.pt": ("yolo26n.yaml", 3),
    "yolo26s.pt": ("yolo26s.yaml", 3),
    "yolo11n.pt": ("yolo11n.yaml", 3),
    "yolov8n.pt": ("yolov8n.yaml", 3),
    "yolo11n-grayscale.pt": ("yolo11n.yaml", 1),
    "path with spaces/yolo26n.pt": ("yolo26n.yaml", 3),
    **{f"yolo26{size}-{task}.pt": (f"yolo26{size}-{task}.yaml", 3) for size in "ns" for task in ("seg", "pose", "obb")},
}
#: Data sets that the tests open, and the task whose labels each has.
DATA_SETS = {
    **dict.fromkeys(("coco8", "coco8-grayscale", "coco8-multispectral"), "detect"),
    **{"coco8-seg": "segment", "coco8-pose": "pose", "dota8": "obb"},
}
#: Ending of a model's name -> its task, and the set whose classes it knows.
TASKS = {"-seg": ("segment", "coco8-seg"), "-pose": ("pose", "coco8-pose"), "-obb": ("obb", "dota8")}
#: Boxes of the two pictures that come with Ultralytics: class, then xywh in parts of the picture.
LABELS = {
    "bus": "0 0.18 0.60 0.24 0.47\n0 0.34 0.58 0.15 0.42\n0 0.91 0.59 0.18 0.45\n5 0.50 0.46 0.98 0.47\n",
    "zidane": "0 0.73 0.53 0.33 0.93\n0 0.35 0.64 0.59 0.71\n27 0.37 0.80 0.07 0.39\n",
}


def unpack_tests(folder: Path, release: str) -> None:
    """Put the tests of a release below `folder`."""
    if (folder / "tests").exists():
        return
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    archive = folder / f"ultralytics-{release}.tar.gz"
    if not archive.exists():
        fetch += ["--no-binary", "ultralytics", "--dest", str(folder), f"ultralytics=={release}"]
        subprocess.run(fetch, check=True)
    with tarfile.open(archive) as source:
        members = [m for m in source.getmembers() if m.isfile() and "/tests/" in m.name and ".." not in m.name]
        for member in members:
            content = source.extractfile(member)
            path = folder / "tests" / member.name.split("/tests/", 1)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read() if content else b"")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: as upstream marks them\n")


def label_of(row: str, task: str) -> str | None:
    """Return a box of `LABELS` as a row of a task's labels; None where the task's set has no such object."""
    label, *numbers = row.split()
    x, y, w, h = map(float, numbers)
    corners = [x - w / 2, y - h / 2, x + w / 2, y - h / 2, x + w / 2, y + h / 2, x - w / 2, y + h / 2]
    if task == "pose":
        if label != "0":
            return None
        inside = [(x + w * (k % 3 - 1) / 4, y + h * (k // 3 - 3) / 8, 2) for k in range(17)]
        return " ".join([row, *(f"{value:.4f}" for point in inside for value in point)])
    values = [min(max(corner, 0.0), 1.0) for corner in corners]
    number = str(int(label) % 15) if task == "obb" else label
    return row if task == "detect" else " ".join([number, *(f"{value:.4f}" for value in values)])


def make_stand_ins(folder: Path) -> None:
    """Make settings, weights and data sets below `folder`; the environment is set already."""
    import cv2
    import matplotlib
    import numpy as np
    import torch
    from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel
    from ultralytics.utils import ASSETS, DEFAULT_CFG_DICT, SETTINGS, YAML
    from ultralytics.utils import ROOT as PACKAGE

    fonts = folder / "config" / "Ultralytics" / "Arial.ttf"
    fonts.write_bytes((Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf").read_bytes())
    SETTINGS.update({f"{name}_dir": str(folder / name) for name in ("weights", "datasets", "runs")})
    kinds = {"detect": DetectionModel, "segment": SegmentationModel, "pose": PoseModel, "obb": OBBModel}
    for file, (config, channels) in WEIGHTS.items():
        path = folder / "weights" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        task, known = next((TASKS[end] for end in TASKS if f"{end}." in config), ("detect", "coco8"))
        names = YAML.load(PACKAGE / "cfg" / "datasets" / f"{known}.yaml")["names"]
        model = kinds[task](config, ch=channels, nc=len(names), verbose=False)
        model.names, model.task = dict(names), task
        model.args = {**DEFAULT_CFG_DICT, "model": file, "task": task}
        head = model.model[-1]
        for branch in (head.cv3, getattr(head, "one2one_cv3", None) or []):
            for layers in branch:  # as built, no score reaches the threshold
                torch.nn.init.normal_(layers[-1].weight, std=0.5)
                torch.nn.init.constant_(layers[-1].bias, -1.0)
                layers[-1].bias.data[0] = 1.0  # people, of whom the tests expect some
        release = version("ultralytics")
        torch.save({"model": model.half(), "train_args": model.args, "version": release, "epoch": -1}, path)
    for name, task in DATA_SETS.items():
        for split in ("train", "val"):
            images, labels = (folder / "datasets" / name / kind / split for kind in ("images", "labels"))
            images.mkdir(parents=True, exist_ok=True)
            labels.mkdir(parents=True, exist_ok=True)
            for number in range(4):
                stem = sorted(LABELS)[number % 2]
                picture = cv2.imread(str(ASSETS / f"{stem}.jpg"))
                target = images / f"{number}.{'tiff' if 'multi' in name else 'jpg'}"
                if "multi" in name:
                    cv2.imwritemulti(str(target), [np.ascontiguousarray(picture[..., i % 3]) for i in range(10)])
                else:
                    cv2.imwrite(str(target), picture)
                rows = [label_of(row, task) for row in LABELS[stem].splitlines()]
                (labels / f"{number}.txt").write_text("".join(f"{row}\n" for row in rows if row))


def main(arguments: list[str]) -> int:
    """Run the tests; pytest's exit status comes back."""
    release = version("ultralytics")
    folder = ROOT / "build" / f"upstream-tests-{release}"
    (folder / "config" / "Ultralytics").mkdir(parents=True, exist_ok=True)
    environment = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(folder / "config")}
    environment |= {"MPLBACKEND": "Agg", "MLC_YOLO_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    os.environ.update(environment)
    paths = [str(folder), str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    unpack_tests(folder, release)
    if not (folder / "settings.json").exists():
        make_stand_ins(folder)
        (folder / "settings.json").write_text(json.dumps({"release": release}))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "upstream_suite.plugin",
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb=short",
    ]
    return subprocess.run([*command, *(arguments or ["tests"])], cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
