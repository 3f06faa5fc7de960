"""What a command costs: processor time of all its processes, wall time, peak memory of each.

Processor time comes from the kernel when the command ends, so it is exact. Peak memory is the high
water mark that the kernel keeps for each process, looked at every 50 ms while the process lives: it
misses only what a process gains in its last moments.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_LOOK_SECONDS = 0.05


@dataclass
class Usage:
    """What one command used.

    Attributes:
        wall: seconds.
        user, system: seconds of processor, of the command and every process that it started.
        driver_peak: bytes, the high water mark of the command itself.
        worker_peaks: the same of each worker process that it started.
    """

    wall: float
    user: float
    system: float
    driver_peak: int
    worker_peaks: list[int] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """Seconds of processor."""
        return self.user + self.system


def run_measured(command: Sequence[object], *, environment: Mapping[str, str] = {}) -> Usage:
    """Run a command to its end; one that fails ends the benchmark with what it said."""
    arguments = [str(part) for part in command]
    with tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        process = subprocess.Popen(
            arguments, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        peaks: dict[int, int] = {}
        workers: set[int] = set()
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            _look(process.pid, peaks, workers)
            time.sleep(_LOOK_SECONDS)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(arguments)} failed:\n{said.read()[-4000:]}")
    driver = peaks.get(process.pid, 0)
    found = sorted(peaks[pid] for pid in workers)
    return Usage(wall, used.ru_utime, used.ru_stime, driver, found)


def _look(root: int, peaks: dict[int, int], workers: set[int]) -> None:
    try:
        below = psutil.Process(root).children(recursive=True)
    except psutil.Error:
        return
    for process in below:
        # Dask starts its workers through multiprocessing; its other helpers do no work.
        if process.pid not in peaks and "spawn_main" in _command_line(process):
            workers.add(process.pid)
    for pid in (root, *(process.pid for process in below)):
        peaks[pid] = max(peaks.get(pid, 0), high_water_mark(pid))


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def high_water_mark(pid: int | str = "self") -> int:
    """Most bytes that a process has held in memory, 0 if it is gone."""
    return _status(pid, "VmHWM")


def resident(pid: int | str = "self") -> int:
    """Bytes that a process holds in memory now, 0 if it is gone."""
    return _status(pid, "VmRSS")


def reset_high_water_mark() -> None:
    """Let the high water mark of this process begin at what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(pid: int | str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith(name + ":")]
    return 1024 * int(found[0]) if found else 0
