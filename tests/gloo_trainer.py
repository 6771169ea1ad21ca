"""A trainer for two gloo processes on the CPU, where Ultralytics launches several devices of a GPU's kind only."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import unwrap_model

from mlc_yolo.training.semi_trainer import SemiTrainer


class GlooTrainer(SemiTrainer):
    """`SemiTrainer` on two processes of the CPU. Each rank leaves its student and what it saw in the run's folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if RANK == -1:  # the process that launches the others
            self.world_size, self.ddp = 2, True

    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo", rank=RANK, world_size=self.world_size)
        wrap = nn.parallel.DistributedDataParallel
        # Upstream names a device, which the CPU has none of. This process trains and ends.
        nn.parallel.DistributedDataParallel = lambda model, device_ids, **kwargs: partial(wrap, **kwargs)(model)

    def final_eval(self) -> None:
        """Note what this rank has; upstream's last validation would ask a GPU for its number."""
        model: Any = unwrap_model(self.model)
        seen = {
            "weights": model.state_dict(),
            "criterion": type(model.criterion).__name__,
            "assigner": type(model.criterion.schedule.main).__name__,
            "batch": self.train_loader.batch_size,
        }
        torch.save(seen, self.save_dir / f"rank{RANK}.seen")


if __name__ == "__main__":  # as torchrun starts it
    GlooTrainer(overrides=json.loads(sys.argv[1])).train()
