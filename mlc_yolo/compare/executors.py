"""Run the trainings of a comparison: as processes on this machine, or on a Ray cluster.

An executor is a function that takes tasks and yields (task, exit status) as each ends, and None about once a second
meanwhile. When its caller stops listening, what still runs is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NAMES = ("local", "ray")
_PAUSE = 0.2  # s between looks at the processes
_HEARTBEAT = 1.0  # s


@dataclass(frozen=True)
class Task:
    """A module of ours to be run as `python -m module *arguments device`.

    Attributes:
        name: for messages.
        module: dotted name.
        arguments: its first arguments; the device is its last.
        log: file that its output is appended to.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path

    def command(self, device: str) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", self.module, *self.arguments, device]


Ended = Iterator[tuple[Task, int] | None]


def parse_devices(device: Any) -> list[str]:
    """Return the devices that `device=` names, one training each.

    Args:
        device: None for every GPU, else the CPU; or a device, several with commas, or a list.

    Raises:
        ValueError: none, or one twice.
    """
    if device is None or device == "":
        return [str(i) for i in range(torch.cuda.device_count())] or ["cpu"]
    words = device if isinstance(device, list | tuple) else str(device).split(",")
    devices = [str(word).strip().removeprefix("cuda:") for word in words]
    if not all(devices) or len(set(devices)) < len(devices):
        raise ValueError(
            f"device={device} must name each device once, such as device=0,1; with jobs=2 two trainings share a device"
        )
    return devices


def run_local(tasks: Sequence[Task], *, devices: Sequence[str], jobs: int) -> Ended:
    """Run tasks as processes of this machine.

    Args:
        tasks: in the order in which they start.
        devices: used in turn.
        jobs: how many run at once.

    Yields:
        See the module.
    """
    waiting = deque(tasks)
    free = deque(devices[i % len(devices)] for i in range(jobs))
    running: dict[subprocess.Popen[bytes], tuple[Task, str]] = {}
    try:
        while waiting or running:
            while waiting and free:
                task, device = waiting.popleft(), free.popleft()
                running[start(task, device)] = task, device
            until = time.monotonic() + _HEARTBEAT
            while (
                not (ended := [process for process in running if process.poll() is not None])
                and time.monotonic() < until
            ):
                time.sleep(_PAUSE)
            for process in ended:
                task, device = running.pop(process)
                free.append(device)
                process.communicate()  # closes the pipe
                yield task, process.returncode
            yield None
    finally:
        for process in running:
            kill(process)


def start(task: Task, device: str) -> subprocess.Popen[bytes]:
    """Start a task in a session of its own, which Ctrl-C in the terminal does not reach."""
    with open(task.log, "ab") as log:
        return subprocess.Popen(
            task.command(device),
            stdin=subprocess.PIPE,  # see parent.end_with_parent
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment()},
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a running task and the processes it started, and wait until it is gone."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def environment() -> dict[str, str]:
    """Return what a new process needs: this package as it is here, nothing installed, and a log without delay."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "YOLO_AUTOINSTALL": os.environ.get("YOLO_AUTOINSTALL", "false"),
    }


def run_ray(tasks: Sequence[Task], *, jobs: int | None = None) -> Ended:
    """Run tasks on a running Ray cluster, each with one of its GPUs if it has any.

    Its machines must see the same files under the same paths, this Python with this package included. A task whose
    machine dies is given to another.

    Args:
        tasks: in the order in which they start.
        jobs: how many run at once; None leaves that to Ray.

    Yields:
        See the module.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: no cluster runs.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("executor=ray needs Ray: pip install 'ray'") from error

    ours = not ray.is_initialized()
    if ours:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level=logging.WARNING)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    device = "0" if gpus else "cpu"  # Ray shows each task its own GPU only
    folder, needed = os.getcwd(), environment()

    @ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)
    def execute(command: list[str], log: str) -> int:  # alone on another machine: imports nothing of ours
        import os
        import subprocess

        with open(log, "ab") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **needed},
                start_new_session=True,
            )
            return process.wait()

    waiting = deque(tasks)
    running: dict[Any, Task] = {}
    try:
        while waiting or running:
            while waiting and (jobs is None or len(running) < jobs):
                task = waiting.popleft()
                running[execute.remote(task.command(device), str(task.log))] = task
            for reference in ray.wait(list(running), num_returns=1, timeout=_HEARTBEAT)[0]:
                task = running.pop(reference)
                try:
                    status = ray.get(reference)
                except ray.exceptions.RayError as error:
                    with open(task.log, "a", encoding="utf-8") as log:
                        log.write(f"{error}\n")
                    status = -1
                yield task, status
            yield None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()
