"""The processes that train one network together: each has a share of every batch.

The loss of a batch is the mean over its samples, so with equal shares the mean of the processes'
gradients is that of one process with the whole batch, but for rounding. Every process then makes
the same step, and holds the same weights. Rank 0 alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as torch_distributed

from pipeline.errors import InputError
from pipeline.learning.settings import Device, TrainSettings

# Others wait while rank 0 validates. A process that dies is noticed by torchrun, not by this.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, settings: TrainSettings) -> Group:
        """The group that this process was started in.

        Raises:
            InputError: it has another size than the settings say.
        """
        found = cls()
        if torch_distributed.is_initialized():
            found = cls(torch_distributed.get_rank(), torch_distributed.get_world_size())
        if found.size != settings.processes:
            raise InputError(
                f"train.processes is {settings.processes}, but {found.size} were started: start as "
                f"many (torchrun), or set train.processes to {found.size}"
            )
        return found

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def mean(self, gradients: Sequence[Tensor], figures: Sequence[float]) -> list[float]:
        """Average gradients (in place) and figures over the processes, in one exchange."""
        if self.size == 1 or not gradients:
            return list(figures)
        told = torch.tensor(figures, dtype=torch.float32, device=gradients[0].device)
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), told])
        torch_distributed.all_reduce(flat)
        flat /= self.size
        parts = flat.split([*(gradient.numel() for gradient in gradients), len(told)])
        for gradient, part in zip(gradients, parts, strict=False):
            gradient.copy_(part.view_as(gradient))
        return [float(value) for value in parts[-1].cpu()]

    def share(self, value: Any) -> Any:
        """The value of rank 0, in every process."""
        if self.size == 1:
            return value
        held = [value]
        torch_distributed.broadcast_object_list(held, src=0)
        return held[0]

    def require_same(self, what: str, value: Any) -> None:
        """Refuse to go on where a process sees something else than rank 0.

        Raises:
            InputError: names both.
        """
        first = self.share(value)
        if value != first:
            raise InputError(
                f"process {self.rank} finds {what} {value!r}, process 0 finds {first!r}: all must "
                f"see the same files, on a file system that they share"
            )


@contextmanager
def joined(device: Device) -> Iterator[None]:
    """Join the group that torchrun made, for as long as the body runs.

    After an error it is not left: the others are no longer there to take leave of.

    Raises:
        InputError: there are more processes on this machine than GPUs.
    """
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        number, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= found:
            raise InputError(
                f"process {number} of this machine needs a GPU of its own, there are {found}: "
                f"lower train.processes, or set train.device to cpu"
            )
        torch.cuda.set_device(number)
    torch_distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    yield
    torch_distributed.destroy_process_group()
