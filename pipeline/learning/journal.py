"""The files that tell how a training went; none of them is read by it.

`log.jsonl` has a line for each step, `validation.jsonl` one for each validation. They are flushed
to disk before a state is saved, and the state knows their lengths: a resumed training cuts them
back to it, so the finished files do not tell whether it was interrupted. The curves for TensorBoard
hide what a killed process wrote after its last state. Times are in `timing.json`, alone.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.learning.settings import TrainSettings
from pipeline.storage.atomic import write_json

LOG, VALIDATION, BOARD, TIMING = "log.jsonl", "validation.jsonl", "tensorboard", "timing.json"


class Journal:
    """Open logs, and curves if they are wanted."""

    def __init__(self, log: IO[bytes], validation: IO[bytes] | None, board: Any | None) -> None:
        self._log, self._validation, self._board = log, validation, board

    def step(self, record: dict[str, Any], seconds: float) -> None:
        """Note one step; at once in the file, for those who follow it."""
        _append(self._log, record)
        if self._board is not None:
            at = record["step"]
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"train/{name}", value, at)
            self._board.add_scalar("time/seconds_per_step", seconds, at)

    def validation(self, record: dict[str, Any], panel: NDArray[np.float32]) -> None:
        """Note one validation; `panel` (Y, X) in [0, 1] is a picture of it."""
        assert self._validation is not None
        _append(self._validation, record)
        if self._board is not None:
            at = record["step"]
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"validation/{name}", value, at)
            self._board.add_image("validation/image_target_prediction", panel[None], at)

    def sync(self) -> dict[str, int]:
        """Flush everything to disk; the lengths of the logs, for the state that is saved next."""
        if self._board is not None:
            self._board.flush()
        lengths = {"log_bytes": _flush(self._log)}
        if self._validation is not None:
            lengths["validation_bytes"] = _flush(self._validation)
        return lengths


@contextmanager
def open_journal(
    directory: Path, settings: TrainSettings, first: int, lengths: dict[str, Any], validates: bool
) -> Iterator[Journal]:
    """The journal of a training that goes on with step `first`.

    Args:
        directory: of the training; made if absent.
        settings: of the training.
        first: the next step; later points of TensorBoard are hidden.
        lengths: what `sync` gave when the state was saved; empty at the beginning.
        validates: whether there will be validations.

    Raises:
        InputError: a log is shorter than the state says.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context(_open(directory / LOG, int(lengths.get("log_bytes", 0))))
        validation = None
        if validates:
            length = int(lengths.get("validation_bytes", 0))
            validation = stack.enter_context(_open(directory / VALIDATION, length))
        board = None
        if settings.tensorboard:
            # A second to import, only where it is used.
            from torch.utils.tensorboard import SummaryWriter

            _wait_for_a_later_name(directory / BOARD)
            board = SummaryWriter(str(directory / BOARD), purge_step=first)
            stack.callback(board.close)
        yield Journal(log, validation, board)


def _wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads files by name, which begins with the second that they were made in.

    One made in the same second as an earlier one could come before it, and purge its points.
    """
    seconds = {int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.[0-9]*")}
    while int(time.time()) in seconds:
        time.sleep(0.05)


def last_loss(directory: Path) -> float:
    """The loss of the last step in the log."""
    *_, last = (directory / LOG).read_text().splitlines()
    return float(json.loads(last)["loss"])


class Timing:
    """Times of the steps that this process made; no part of the result."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._waits: dict[str, list[float]] = {}

    def add(self, phase: str, seconds: float, waited: float) -> None:
        """Note a step: its time without the wait for its batch, and that wait."""
        self._seconds.setdefault(phase, []).append(seconds)
        self._waits.setdefault(phase, []).append(waited)

    def write(self, directory: Path, settings: TrainSettings, device: torch.device) -> None:
        """Replace `timing.json`; nothing where this process made no step."""
        if not self._seconds:
            return
        facts: dict[str, Any] = {
            "device": _name_of(device),
            "threads": settings.threads,
            "processes": settings.processes,
            "phases": {phase: self._summary(phase) for phase in self._seconds},
        }
        if device.type == "cuda":
            facts["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        write_json(directory / TIMING, facts)

    def _summary(self, phase: str) -> dict[str, float]:
        seconds, waits = self._seconds[phase], self._waits[phase]
        return {
            "steps": len(seconds),
            "mean_seconds_per_step": statistics.fmean(seconds),
            "median_seconds_per_step": statistics.median(seconds),
            "data_wait_seconds": sum(waits),
        }


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _open(path: Path, length: int) -> Iterator[IO[bytes]]:
    """A log, cut back to `length` bytes, open at its end."""
    found = path.stat().st_size if path.exists() else 0
    if found < length:
        raise InputError(
            f"{path} has {found} bytes, the saved state knows {length}: the log was changed. "
            f"Restore it, or delete state.safetensors to train from the start"
        )
    with path.open("r+b" if path.exists() else "w+b") as log:
        log.truncate(length)
        log.seek(length)
        yield log


def _append(log: IO[bytes], record: dict[str, Any]) -> None:
    log.write((json.dumps(record, allow_nan=False) + "\n").encode())
    log.flush()


def _flush(log: IO[bytes]) -> int:
    log.flush()
    os.fsync(log.fileno())
    return log.tell()
