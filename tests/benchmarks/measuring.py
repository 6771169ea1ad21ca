"""How the benchmarks measure: interleaved in one process, medians, ratios last; on `MLC_BENCH_DEVICE`, default cpu.

Time on a CPU is this process's, which other processes disturb less than the wall's: with one thread the two are equal
on an idle machine. Memory on a CPU is what passes through torch's allocator, from the profiler's record of it; what
convolutions allocate inside their libraries is not seen.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device(os.environ.get("MLC_BENCH_DEVICE", "cpu"))
ON_GPU = DEVICE.type == "cuda"

Run = Callable[[], object]
aten = torch.ops.aten
MIB = 2**20


def milliseconds(run: Run) -> float:
    """Return how long one call takes."""
    clock = time.perf_counter if ON_GPU else time.process_time
    _synchronize()
    start = clock()
    run()
    _synchronize()
    return 1000 * (clock() - start)


def _synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize(DEVICE)


@dataclass(frozen=True)
class Timing:
    """Medians of what was timed, and the median of each round's ratio to the first.

    A round's runs follow one another at once, so what slows the machine down for seconds slows them alike.
    """

    milliseconds: dict[str, float]
    ratios: dict[str, float]


def timed(runs: dict[str, Run], *, rounds: int) -> Timing:
    """Time the runs in turn, `rounds` times, after one call of each that does not count."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(milliseconds(run))
    first = next(iter(times.values()))
    return Timing(
        {name: statistics.median(spent) for name, spent in times.items()},
        {name: statistics.median(a / b for a, b in zip(spent, first, strict=True)) for name, spent in times.items()},
    )


@dataclass(frozen=True)
class Memory:
    """Bytes that one call allocates beyond what was there: at most at one time, and its largest tensor (0: unknown)."""

    peak: int
    largest: int


def memory(run: Run) -> Memory:
    """Weigh a call, after one that does not count."""
    run()
    if ON_GPU:
        _synchronize()
        torch.cuda.reset_peak_memory_stats(DEVICE)
        before = torch.cuda.memory_allocated(DEVICE)
        run()
        return Memory(torch.cuda.max_memory_allocated(DEVICE) - before, 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    live = peak = largest = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak, largest = max(peak, live), max(largest, event.nbytes())
    return Memory(peak, largest)


class _Waits(TorchDispatchMode):
    """Counts the operations whose result a GPU's host must wait for: sizes and numbers that depend on values."""

    WAITING = (aten.nonzero, aten._local_scalar_dense, aten.masked_select, aten._unique2)
    BY_INDEX = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in self.WAITING:
            self.count += 1
        elif function.overloadpacket in self.BY_INDEX:  # a mask's places are looked for
            self.count += sum(index is not None and index.dtype == torch.bool for index in args[1])
        return function(*args, **(kwargs or {}))


def synchronizations(run: Run) -> int:
    """Count how often a call makes the host wait for the GPU; on a CPU, how often it would (copies not counted)."""
    run()
    if not ON_GPU:
        with _Waits() as waits:
            run()
        return waits.count
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)


def show(
    capsys: pytest.CaptureFixture[str],
    title: str,
    timing: Timing | None = None,
    memories: dict[str, Memory] | None = None,
) -> None:
    """Print a title and a line for each run, past pytest's capture; ratios are to the first run."""
    names = list(timing.milliseconds if timing else memories or {})
    with capsys.disabled():
        print(f"\n{title}; {DEVICE}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
        for name in names:
            print(f"  {name:<38}{_columns(name, names[0], timing, memories)}")


def _columns(name: str, first: str, timing: Timing | None, memories: dict[str, Memory] | None) -> str:
    values = ratios = ""
    if timing:
        values += f"{timing.milliseconds[name]:10.1f} ms"
        ratios += f"   time {timing.ratios[name]:.3f}"
    if memories:
        values += f"{memories[name].peak / MIB:10.1f} MiB, largest {memories[name].largest / MIB:8.2f} MiB"
        ratios += f"   memory {memories[name].peak / memories[first].peak:.3f}"
    return values + ratios
