"""The state that last.pt adds to Ultralytics', so that a resumed run ends with the uninterrupted run's weights.

Ultralytics keeps the averaged weights and the optimizer's state in half precision. On resuming it copies the student
from the average. It restarts the random numbers, the order of images and the mosaic's store of images, and drops
gradients that no optimizer step has used. While a run lasts, our last.pt holds instead, or in addition:

1. `ema` and `optimizer` in single precision;
2. `student`: the weights being trained;
3. `resume`: the states of the random generators and loaders, and gradients gathered since the last optimizer step.

The file is larger: with SGD 12 bytes a weight instead of 4, with AdamW 16 instead of 10, and 4 more while gradients are
pending. best.pt is as Ultralytics writes it. The end of the run strips both.

The result is exact on a CPU with images loaded in the training process. With loader processes (`workers`) or several
devices, weights, optimizer, average and schedule are restored, but images come in another order with other
augmentation. On a GPU, arithmetic may differ too. Albumentations' transforms keep random states of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import is_qat, unwrap_model

__all__ = [
    *("RESUME", "STUDENT", "RecordedLoader", "draws", "gradients", "redraw", "restore_gradients", "student"),
    *("with_state", "without_weights"),
]

#: Under which names last.pt holds the student's weights, and the rest.
STUDENT, RESUME = "student", "resume"


def student(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights being trained, on the CPU; of a model that upstream distils, without its teacher's."""
    state = unwrap_model(model).state_dict()
    return {name: value.cpu() for name, value in state.items() if not name.startswith("teacher_model.")}


def without_weights(ema: Any) -> tuple[Any, Any]:
    """Return an average and an optimizer without tensors, for upstream to save all but them.

    Args:
        ema: upstream's `ModelEMA`, whose count of updates is kept.
    """
    empty: dict[str, Any] = {"state": {}, "param_groups": []}
    return SimpleNamespace(ema=nn.Module(), updates=ema.updates), SimpleNamespace(state_dict=lambda: empty)


def with_state(checkpoint: dict[str, Any], trainer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return upstream's checkpoint with the state for an exact resume.

    Args:
        checkpoint: as upstream saved it, with weights or without; the average is put in, as float32.
        trainer: the trainer that saved it.
        state: what is kept as `resume`.
    """
    if is_qat(trainer.ema.ema):
        average = checkpoint["ema"].float()  # upstream has taken the quantizers out
    else:
        average = deepcopy(trainer.ema.ema).to(memory_format=torch.contiguous_format)
        average.criterion = None
        for value in average.state_dict().values():
            if value.is_floating_point():
                torch.nan_to_num_(value)  # as upstream: a usable checkpoint in any case
    return {
        **checkpoint,
        "ema": average,
        "optimizer": trainer.optimizer.state_dict(),
        STUDENT: student(trainer.model),
        RESUME: state,
    }


class RecordedLoader(InfiniteDataLoader):
    """Upstream's loader, which knows how to come to where another one was.

    Its samplers draw from a generator when they need to, which need not be where an epoch ends. So the order goes on
    from where the iterator began, passing over the batches since, not from the generator's state alone.
    """

    begun: torch.Tensor  # state of the generator once the iterator was made
    drawn: int  # batches since

    @classmethod
    def of(cls, loader: Any) -> Any:
        """Let a loader of upstream's that has not been used yet be one of these.

        Its class is assigned: upstream's `build_dataloader` makes it, of a class that it takes by a global name, with
        samplers and workers' seeds that a second construction would draw anew.
        """
        loader.__class__ = cls
        return loader

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()  # takes a draw, the seed of its workers
        self.begun, self.drawn = self.generator.get_state(), 0
        return iterator

    def __iter__(self) -> Iterator[Any]:
        """Yield an epoch's batches as upstream does, and count."""
        for batch in super().__iter__():
            self.drawn += 1
            yield batch

    def place(self) -> dict[str, Any]:
        """Return where the loader is."""
        begun = {} if self.iterator is None else {"begun": self.begun, "drawn": self.drawn}
        return {**begun, "generator": self.generator.get_state()}

    def go_to(self, place: dict[str, Any]) -> None:
        """Go to where `place` was called. No image is loaded.

        With workers, which have loaded ahead and have random states of their own, the next images are merely others
        than the first ones were.
        """
        if self.num_workers or "begun" not in place:
            self.generator.set_state(place["generator"])
            return
        self.iterator = self._get_iterator()
        self.generator.set_state(place["begun"])
        for _ in range(place["drawn"]):
            self.iterator._next_index()
        self.begun, self.drawn = place["begun"], place["drawn"]


def draws(loader: Any) -> dict[str, Any]:
    """Return the states of a training's random generators, in types that restricted loading accepts.

    Args:
        loader: `RecordedLoader` of training images, between two epochs.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "loader": loader.place(),
        "images": len(loader.dataset),
        "mosaic": [int(index) for index in getattr(loader.dataset, "buffer", ())],
    }


def redraw(state: dict[str, Any], loader: Any) -> None:
    """Put the states back that `draws` returned, before the first batch is drawn.

    Where images have come or gone since, they stand for other ones: the run goes on with other draws, and says so.
    """
    if (images := state.get("images", len(loader.dataset))) != len(loader.dataset):
        LOGGER.warning(
            f"The run started with {images} images and now has {len(loader.dataset)}: the order of images will differ"
        )
        return
    if state["mosaic"]:  # images that mosaics choose from, in the order in which they came
        loader.dataset.buffer.clear()
        for index in state["mosaic"]:
            loader.dataset.load_image(index)
    loader.go_to(state["loader"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients gathered so far, on the CPU, by parameter."""
    named = unwrap_model(model).named_parameters()
    return {name: parameter.grad.cpu() for name, parameter in named if parameter.grad is not None}


def restore_gradients(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Put gradients back that `gradients` returned."""
    for name, parameter in unwrap_model(model).named_parameters():
        if name in saved:
            parameter.grad = saved[name].to(parameter.device)
