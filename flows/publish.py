"""A stage's progress as a Prefect artifact, renewed every few seconds."""

from __future__ import annotations

import contextvars
import logging
import threading
from types import TracebackType
from typing import Self
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipeline.stages.base import Stage
from pipeline.stages.run import Run
from workers.runner import StageReport

PUBLISH_SECONDS = 3.0
_log = logging.getLogger(__name__)


class StagePublisher:
    """Publishes the counts of a stage while it runs; give `observe` to the runner.

    A thread does it: a stage of one long block tells its steps through files, which somebody has
    to look at, and a slow server must not hold up the blocks.

    Attributes:
        report: the last counts, None before the stage began.
    """

    def __init__(self, stage: Stage, run: Run) -> None:
        self.report: StageReport | None = None
        self._stage = stage
        self._run = run
        self._stop = threading.Event()
        # The thread needs Prefect's settings and client, which are context variables.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._repeat,), daemon=True)

    def __enter__(self) -> Self:
        key = f"progress-{self._stage.name.replace('_', '-')}"
        created = create_progress_artifact(0.0, key=key, description=f"{self._stage.name}: begun")
        self._artifact = UUID(str(created))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._publish()

    def observe(self, _stage: Stage, report: StageReport) -> None:
        """Take in the counts of the stage."""
        self.report = report

    def _repeat(self) -> None:
        while not self._stop.wait(PUBLISH_SECONDS):
            self._publish()

    def _publish(self) -> None:
        if self.report is None:
            return
        share, text = self._state(self.report)
        try:
            update_progress_artifact(self._artifact, progress=share, description=text)
        except Exception as error:
            # Whatever ails the server, hours of computing are worth more than a progress bar.
            _log.warning("progress of stage %s was not published: %s", self._stage.name, error)

    def _state(self, report: StageReport) -> tuple[float, str]:
        ended = report.complete + report.failed
        steps = self._stage.progress(self._run) if report.blocks == 1 and not ended else None
        if steps is not None and steps[1]:
            return 100.0 * steps[0] / steps[1], f"{report.stage}: {steps[0]} of {steps[1]} steps"
        text = (
            f"{report.stage}: {report.complete} of {report.blocks} blocks, {report.failed} failed"
        )
        return 100.0 * ended / report.blocks, text
