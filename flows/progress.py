"""Progress on the terminal: one bar per stage."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.stages.base import Stage
from pipeline.stages.run import Run
from workers.runner import StageReport

POLL_SECONDS = 0.5


class TerminalProgress:
    """Shows stages as they run; give `observe` to `run_stages`.

    A stage of one long block says its own progress through files, which a thread looks at.
    """

    def __init__(self, run: Run, console: Console | None = None) -> None:
        self.run = run
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}
        self._current: Stage | None = None
        self._stop = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> TerminalProgress:
        self.progress.start()
        self._poller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._poller.join()
        self.progress.stop()

    def observe(self, stage: Stage, report: StageReport) -> None:
        """Take in the counts of a stage."""
        if stage.name not in self._tasks:
            self._tasks[stage.name] = self.progress.add_task(
                stage.name, total=report.blocks, note=""
            )
        self._current = None if report.complete == report.blocks else stage
        task = self._tasks[stage.name]
        finished = report.complete + report.failed
        if report.blocks == 1 and finished == 0 and stage.progress(self.run) is not None:
            return
        self.progress.update(task, total=report.blocks, completed=finished, note=_note(report))
        if finished == report.blocks:
            self.progress.stop_task(task)

    def _poll(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            stage = self._current
            if stage is None:
                continue
            steps = stage.progress(self.run)
            if steps is not None and stage.name in self._tasks:
                done, total = steps
                task = self._tasks[stage.name]
                self.progress.update(task, completed=done, total=total, note="steps")


def _note(report: StageReport) -> str:
    parts = []
    if report.reused == report.blocks:
        parts.append("already done")
    elif report.reused:
        parts.append(f"{report.reused} from before")
    if report.masked:
        parts.append(f"{report.masked} masked")
    if report.empty:
        parts.append(f"{report.empty} empty")
    if report.failed:
        parts.append(f"[red]{report.failed} failed[/red]")
    return ", ".join(parts)


class QuietProgress:
    """A line per finished stage, for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._told: set[str] = set()

    def observe(self, stage: Stage, report: StageReport) -> None:
        """Print a stage once it is complete."""
        if report.complete == report.blocks and stage.name not in self._told:
            self._told.add(stage.name)
            seconds = time.monotonic() - self._began
            self.console.print(
                f"{stage.name:<12} {report.complete}/{report.blocks} blocks  "
                f"{_note(report)}  [{seconds:.0f} s]",
                highlight=False,
            )
