"""Keeps every test offline, private and repeatable. The environment is set before anything imports ultralytics."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
import torch

#: torch's threads in every process of the tests: a number, or "default" for as many as torch takes by itself. The nets
#: here are tiny: more than one cost more than they bring, and parallel test processes would fight over cores.
THREADS = os.environ.get("MLC_TEST_THREADS", "1")

_PRIVATE = Path(tempfile.mkdtemp(prefix="mlc-yolo-tests-"))
os.environ.update(
    YOLO_OFFLINE="1",
    YOLO_AUTOINSTALL="false",
    YOLO_CONFIG_DIR=str(_PRIVATE / "config"),
    MLC_YOLO_CACHE=str(_PRIVATE / "cache"),
    MPLBACKEND="Agg",
)
# Ultralytics fetches Arial.ttf for its plots unless a font of that name lies here; matplotlib's own serves as well.
_FONTS = _PRIVATE / "config" / "Ultralytics"
_FONTS.mkdir(parents=True)
shutil.copy(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONTS / "Arial.ttf")

if THREADS == "default":
    os.environ.pop("OMP_NUM_THREADS", None)
else:
    os.environ["OMP_NUM_THREADS"] = THREADS  # for the processes that tests start
    torch.set_num_threads(int(THREADS))

TRIED = "hostile inputs tried"
CLASSES = ("square", "disc", "cross")


def pytest_collection_finish() -> None:
    """Spare each short training what takes a fifth of its time: imported objects collected, and Ray imported."""
    if "ultralytics" in sys.modules:
        sys.modules["ultralytics"].settings.update(raytune=False)  # kept in a file, for processes that tests start
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Remove what the session wrote outside pytest's own temporary folders."""
    shutil.rmtree(_PRIVATE, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many hostile inputs were tried, over all tests."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    counted = [report for report in reports if report.when == "teardown"]
    total: Counter[str] = Counter()
    for report in counted:
        total += sum((Counter(counts) for name, counts in report.user_properties if name == TRIED), Counter())
    if total:
        kinds = ", ".join(f"{count} {kind}" for kind, count in total.most_common())
        hostile = {report.nodeid for report in counted if any(name == TRIED for name, _ in report.user_properties)}
        failed = sum(report.failed and report.nodeid in hostile for report in reports if report.when == "call")
        terminalreporter.section("hostile inputs")
        terminalreporter.line(f"{total.total()} tried ({kinds}) in {len(hostile)} tests, {failed} of which failed")


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """How many inputs a test has tried, by what became of them; reported as the test is torn down."""
    counts: Counter[str] = Counter()
    yield counts
    request.node.user_properties.append((TRIED, dict(counts)))  # processes exchange plain types only


@pytest.fixture
def iou_aware() -> Callable[..., Any]:
    """A function (name, image, num_classes=3) -> untrained IoU-aware model, the same every time; its scores differ.

    It has the head of the model named, on a small net.
    """
    from nets import SMALL_NETS, enliven
    from ultralytics.nn.tasks import DetectionModel

    from mlc_yolo.checkpoints.marker import write_marker
    from mlc_yolo.heads.iou_aware import add_iou_channel

    def make(name: str, image: torch.Tensor, num_classes: int = 3) -> DetectionModel:
        torch.manual_seed(0)
        model = DetectionModel(SMALL_NETS.get(name, f"{name}.yaml"), nc=num_classes, verbose=False).eval()
        add_iou_channel(model.model[-1])
        enliven(model, image)
        write_marker(model, iou_head=True)
        return model

    return make


@pytest.fixture(scope="module")
def narrow_backbones() -> Iterator[None]:
    """Ported detectors that this module builds have backbones of few channels."""
    import nets

    with nets.narrow_backbones():
        yield


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An absolute folder for `project=`: Ultralytics moves relative ones elsewhere when it runs under pytest."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A path that exists once a payload has run."""
    return tmp_path / "ran"


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """The data.yaml of a copy of the tiny data set, for what changes it."""
    root = tmp_path / "own"
    shutil.copytree(tiny_data.parent, root, ignore=shutil.ignore_patterns("*.cache"))
    data = root / "data.yaml"
    data.write_text(data.read_text().replace(tiny_data.parent.as_posix(), root.as_posix()))
    return data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of 8 training and 4 validation images: 96-128 px, 0 to 5 objects of 3 classes, always the same."""
    root = tmp_path_factory.mktemp("tiny_data")
    rng = np.random.default_rng(0)
    for split, counts in (("train", (3, 0, 5, 1, 2, 4, 1, 3)), ("val", (2, 0, 5, 3))):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i, count in enumerate(counts):
            image, rows = _scene(rng, count)
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), image)
            (root / "labels" / split / f"{i}.txt").write_text("".join(f"{row}\n" for row in rows))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    data = root / "data.yaml"
    data.write_text(f"path: {root.as_posix()}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return data


def _scene(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
    """Draw `count` objects on noise; return the BGR image and its rows `class cx cy w h`, in fractions of the image."""
    height, width = (int(v) for v in rng.choice((96, 112, 128), size=2))
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (5, 5), 0)
    rows = []
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        side = int(rng.integers(16, 40))
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        half, colour = side // 2, tuple(int(v) for v in rng.integers(0, 256, 3))
        if label == 0:
            cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), colour, -1)
        elif label == 1:
            cv2.circle(image, (x + half, y + half), half, colour, -1)
        else:
            cv2.line(image, (x, y), (x + side - 1, y + side - 1), colour, 3)
            cv2.line(image, (x + side - 1, y), (x, y + side - 1), colour, 3)
        box = (x + side / 2) / width, (y + side / 2) / height, side / width, side / height
        rows.append(" ".join([str(label), *(f"{v:.6f}" for v in box)]))
    return image, rows
