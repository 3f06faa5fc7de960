"""The record of completed blocks: one append-only file a stage, written by one process.

A ledger is a file of JSON lines beside the run. Its first line names the stage, its key (a digest
of all that the output depends on) and the number of blocks; each further line is one event:

    {"event": "ready"}                                    the outputs were created and are empty
    {"block": 7, "state": "done", "seconds": 1.2, "stats": {...}}
    {"block": 8, "state": "failed", "error": "..."}
    {"event": "finished"}                                 every block is done, empty or masked
    {"event": "outdated"}                                 the outputs went away with others

The order on disk makes a crash harmless: the header is replaced (atomically) before old outputs are
removed, "ready" follows when new ones exist, a block is marked after its data are written. A torn
last line is cut off when the file is opened again. Lines reach the operating system at once, so a
killed process loses none; they are forced to disk in groups, at most `SYNC_SECONDS` apart, because
one fsync per block would cost more than many a block.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from pipeline.errors import DataError, RunLockedError
from pipeline.storage.atomic import replacing

SYNC_SECONDS = 0.05
FORMAT = 1

State = Literal["done", "empty", "failed", "masked"]
COMPLETE: frozenset[str] = frozenset({"done", "empty", "masked"})


@dataclass(frozen=True)
class Mark:
    """What the ledger knows of one block."""

    block: int
    state: State
    seconds: float = 0.0
    stats: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Header:
    """The first line of a stage's ledger."""

    stage: str
    key: str
    blocks: int
    description: dict[str, Any]


class Ledger:
    """One stage's ledger, open for reading; `begin` and `mark` make it the writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header | None = None
        self.ready = False
        self.finished = False
        self.marks: dict[int, Mark] = {}
        self._file: IO[bytes] | None = None
        self._last_sync = 0.0
        self._load()

    def _load(self) -> None:
        if not self.path.exists():
            return
        lines, _ = _whole_lines(self.path)
        if not lines:
            return
        first = lines[0]
        if first.pop("format", None) != FORMAT:
            raise DataError(f"{self.path}: no ledger of format {FORMAT}: {first}")
        try:
            self.header = Header(**first)
            for line in lines[1:]:
                self._apply(line)
        except TypeError as error:
            raise DataError(f"{self.path}: a line has other fields: {error}") from error

    def _apply(self, line: dict[str, Any]) -> None:
        event = line.get("event")
        if event == "ready":
            self.ready = True
        elif event == "finished":
            self.finished = True
        elif event == "outdated":
            self.ready, self.finished, self.marks = False, False, {}
        else:
            mark = Mark(**line)
            self.marks[mark.block] = mark

    def holds(self, key: str) -> bool:
        """Whether outputs of `key` exist, complete or not."""
        return self.header is not None and self.header.key == key and self.ready

    def count(self, state: State) -> int:
        """Number of blocks in `state`."""
        return sum(mark.state == state for mark in self.marks.values())

    @property
    def complete(self) -> bool:
        """Whether every block is done, empty or masked."""
        if self.header is None or not self.ready:
            return False
        complete = sum(mark.state in COMPLETE for mark in self.marks.values())
        return complete == self.header.blocks

    def begin(self, header: Header) -> None:
        """Start anew under another key: all that the file said is forgotten."""
        self.close()
        first = {"format": FORMAT, **vars(header)}
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(first) + "\n")
        self.header, self.ready, self.finished, self.marks = header, False, False, {}

    def set_ready(self) -> None:
        """Note that the outputs were created."""
        self._append({"event": "ready"})
        self.sync()

    def set_finished(self) -> None:
        """Note that the stage is complete."""
        if not self.finished:
            self._append({"event": "finished"})
        self.sync()

    def outdate(self) -> None:
        """Note that the outputs are going away, if there are any: all blocks count as not done."""
        if self.ready:
            self._append({"event": "outdated"})
            self.sync()

    def mark(self, mark: Mark) -> None:
        """Record one block. Call it after the block's data are written."""
        line = {name: value for name, value in vars(mark).items() if value not in (None, {})}
        self._append(line)
        if time.monotonic() - self._last_sync >= SYNC_SECONDS:
            self.sync()

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            _, end = _whole_lines(self.path)
            self._file = self.path.open("rb+", buffering=0)
            self._file.truncate(end)
            self._file.seek(end)
        self._file.write((json.dumps(line) + "\n").encode())
        self._apply(line)

    def sync(self) -> None:
        """Force what was written to disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        self._last_sync = time.monotonic()

    def close(self) -> None:
        """Sync and let go of the file."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The parsed lines and the byte at which the last whole one ends."""
    content = path.read_bytes()
    lines, end = [], 0
    for raw in content.splitlines(keepends=True):
        if not raw.endswith(b"\n"):
            break
        try:
            lines.append(_object(raw))
        except ValueError as error:
            if end + len(raw) == len(content):
                break
            raise DataError(f"{path}: line {len(lines) + 1} is damaged: {error}") from error
        end += len(raw)
    return lines, end


def _object(raw: bytes) -> dict[str, Any]:
    value = json.loads(raw)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {value!r}")
    return value


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep a second writer out of a run directory.

    The lock goes with the process that holds it, however that ends.

    Raises:
        RunLockedError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RunLockedError(
                f"{folder.parent}: process {holder} is writing to this run; wait for it or end it"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
