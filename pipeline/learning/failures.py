"""What a training that fails says: what to lower, which batch to look at."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import InputError
from pipeline.learning.settings import NetworkSettings, TrainSettings

# What torch's allocators say; on the CPU they raise a plain RuntimeError.
_SAYINGS = ("not enough memory", "defaultcpuallocator", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was not enough, on the CPU or on a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):  # the system's word for it, where threads or files are made
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SAYINGS)


@contextmanager
def memory_explained(settings: TrainSettings, network: NetworkSettings) -> Iterator[None]:
    """Say what to lower where memory is not enough.

    Raises:
        InputError: in place of the error of torch or numpy.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        share = settings.batch // settings.processes
        raise InputError(
            f"training ran out of memory: lower train.patch (now {settings.patch}), train.batch "
            f"(now {settings.batch}, {share} a process) or network.width (now {network.width}). "
            f"What was saved before stays, but belongs to these settings ({error})"
        ) from error
