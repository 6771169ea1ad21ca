"""What a bug report needs: versions, devices, folders and switches. The home folder is written as `~`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

#: Distributions whose versions matter, beside our own.
PACKAGES = (
    *("torch", "torchvision", "ultralytics", "numpy", "scipy", "opencv-python", "pycocotools", "matplotlib"),
    *("onnx", "onnxruntime", "faster-coco-eval", "ray"),
)
#: Environment variables that change what happens.
SWITCHES = (
    *("YOLO_OFFLINE", "YOLO_AUTOINSTALL", "YOLO_CONFIG_DIR", "MLC_YOLO_CACHE", "OMP_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "ULTRALYTICS_SAFE_LOAD"),
)


def report() -> str:
    """Return a text of `name  value` lines under four heads."""
    parts = {"Versions": _versions(), "Devices": _devices(), "Folders": _folders(), "Environment": _environment()}
    return "\n".join(
        f"{head}\n" + "".join(f"    {name:<23} {_short(value)}\n" for name, value in lines)
        for head, lines in parts.items()
    )


def _versions() -> Iterator[tuple[str, str]]:
    from mlc_yolo import __version__
    from mlc_yolo.upstream import LOWEST, NEWEST

    yield "mlc-yolo", __version__
    yield "Python", platform.python_version()
    yield "system", platform.platform()
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        yield name, f"{version} (tested: {LOWEST} to {NEWEST})" if name == "ultralytics" else version


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    yield "processor", f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield "CUDA", torch.version.cuda or "not in this torch"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"device={index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "device=mps", "available"


def _folders() -> Iterator[tuple[str, str]]:
    from ultralytics.utils import SETTINGS, USER_CONFIG_DIR

    from mlc_yolo.data.resolve import cache_dir
    from mlc_yolo.resources import resource_dir

    yield "package", str(Path(__file__).parent)
    yield "cfg", str(resource_dir("cfg"))
    yield "runs go to", str(SETTINGS["runs_dir"])
    yield "data sets", str(SETTINGS["datasets_dir"])
    yield "drawn data sets", str(cache_dir())
    yield "Ultralytics' settings", str(USER_CONFIG_DIR)
    yield "here", str(Path.cwd())


def _environment() -> Iterator[tuple[str, str]]:
    for name in SWITCHES:
        yield name, os.environ.get(name, "not set")


def _short(value: str) -> str:
    home = str(Path.home())
    return value.replace(home, "~") if len(home) > 1 else value
