"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("axonloom", "numpy", "numba", "tensorstore", "zarr", "distributed", "pyarrow")


def facts() -> dict[str, str]:
    """Processor, cores, memory, what else runs, and versions."""
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{psutil.virtual_memory().available / 2**30:.0f} available",
        "load": f"{load} (1, 5, 15 min): other work slows wall times, and CPU times a little",
        "versions": ", ".join([f"Python {sys.version.split()[0]}", *map(_version, PACKAGES)]),
    }


def print_facts() -> None:
    """The facts, one a line."""
    for name, value in facts().items():
        print(f"{name:10} {value}")
    print(flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} absent"
