"""Which device computes, and in which arithmetic.

The choice is a function of the machine's capability flags alone, never of a timing, so the same
processor always gives the same bytes. On CPUs bf16 pays wherever there are instructions for it:
measured with channels_last_3d against fp32, 5 to 10 times faster with AVX512-BF16 alone (AMX is
faster still); without such instructions oneDNN emulates it, slowly.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.learning.settings import Device, Precision

Network = TypeVar("Network", bound=nn.Module)

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is Arm's name


@cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The capability flags of the first processor; empty where the system does not tell."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def choose_device(requested: Device) -> torch.device:
    """The device to compute on.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device 'cuda' was asked for, but this torch ({torch.__version__}) finds no GPU on "
            f"{platform.node() or 'this machine'}: use 'cpu' or 'auto', or install a CUDA build"
        )
    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(requested)


def choose_bf16(requested: Precision, device: torch.device) -> bool:
    """Whether convolutions run in bf16; "auto" means: where the device has instructions for it."""
    if requested != "auto":
        return requested == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not _BF16_FLAGS.isdisjoint(cpu_flags())


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """The context in which the network is called."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


@contextmanager
def deterministic(threads: int, device: torch.device) -> Iterator[None]:
    """Deterministic algorithms and `threads` CPU threads inside; the former state afterwards.

    Filling of fresh memory is switched off: every kernel used here writes its whole output, and
    the filling costs time.
    """
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
    )
    if device.type == "cuda":  # cuBLAS reads it when it starts; without it torch refuses to run
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = before[3]


def place(model: Network, device: torch.device) -> Network:
    """The model on `device`, in the memory layout that 3-D convolutions are fastest in."""
    return model.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
