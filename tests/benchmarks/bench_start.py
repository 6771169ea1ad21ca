"""How long `import mlc_yolo` and `mlc-yolo --help` take in a process of their own. `make bench`.

The time is of user and system together, the interpreter's own start included: that is shown beside it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

ROUNDS = 7
COMMANDS = {
    "python alone": ["-c", "pass"],
    "import mlc_yolo": ["-c", "import mlc_yolo"],
    "mlc-yolo --help": ["-m", "mlc_yolo.cli", "--help"],
}
AIM = 0.3


def _seconds(arguments: list[str]) -> float:
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_and_import_are_instant(capsys: pytest.CaptureFixture[str]) -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            times[name].append(_seconds(arguments))
    with capsys.disabled():
        print("\nstart in a fresh process, user + system time")
        for name, spent in times.items():
            print(f"  {name:<26}{statistics.median(spent):8.3f} s   aim {AIM}")
    assert statistics.median(times["mlc-yolo --help"]) < AIM
