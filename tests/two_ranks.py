"""The same work in two processes that reduce over gloo, as two ranks of a training do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


def on_two_ranks(work: Callable[[int], Tensor], folder: Path) -> list[Tensor]:
    """Return what `work` gives on rank 0 and on rank 1.

    Args:
        work: takes its rank; runs in a process forked from this one.
        folder: of this call alone.
    """
    context = mp.get_context("fork")
    # A daemon: a rank that waits for ever ends with the tests.
    ranks = [context.Process(target=_rank, args=(rank, work, folder), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=240)
        assert process.exitcode == 0
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def _rank(rank: int, work: Callable[[int], Tensor], folder: Path) -> None:
    # A fork has none of its parent's threads, and OpenMP would wait for them.
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
