"""The Prefect flow: one task per stage, blocks run inside by the stage's own executor.

Prefect runs deployments, schedules and parameters, and shows progress; the ledger, not Prefect's
cache, knows what is done. So a flow run that is started again continues.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from uuid import UUID

# Quiet and offline unless the environment says otherwise; read when prefect is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

from prefect import flow, task  # noqa: E402
from prefect.artifacts import (  # noqa: E402
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.report import write_report  # noqa: E402
from flows.runs import prepare, run_stages  # noqa: E402
from pipeline.config import RunConfig  # noqa: E402
from pipeline.stages import plan  # noqa: E402
from pipeline.stages.base import Stage  # noqa: E402
from pipeline.stages.run import Run  # noqa: E402
from workers.runner import StageReport  # noqa: E402

PUBLISH_SECONDS = 5.0


@flow(name="reconstruct", validate_parameters=True)
def reconstruct(config: RunConfig) -> str:
    """Run every stage that the inputs allow; gives the path of the report.

    Args:
        config: of the run. Paths are those of the machine that runs the flow.
    """
    run, stages = prepare(config)
    rows = [
        stage_task.with_options(name=stage.name)(stage.name, str(run.directory))
        for stage in stages
    ]
    create_table_artifact(rows, key="stages", description=f"stages of {run.directory}")
    return report_task(str(run.directory))


@task(persist_result=False)
def stage_task(name: str, directory: str) -> dict[str, int | float | str]:
    """One stage of a run; its blocks are not Prefect's business."""
    run = Run(Path(directory))
    published = _Published(name)
    [report] = run_stages(run, plan(run.config), only=(name,), observe=published.observe)
    published.finish(report)
    return _row(report)


@task(persist_result=False)
def report_task(directory: str) -> str:
    """The report of a run, linked and with its scores as artifacts."""
    report = write_report(Run(Path(directory)))
    create_link_artifact(link=report.as_uri(), link_text="report.html", key="report")
    metrics = report.parent / "metrics.json"
    if metrics.exists():
        scores = json.loads(metrics.read_text())
        rows = [{"segmentation": "this run", **scores["overall"]}]
        if "baseline" in scores:
            rows.append({"segmentation": "plain baseline", **scores["baseline"]["overall"]})
        create_table_artifact(rows, key="scores", description="scores against the tracings")
    return str(report)


class _Published:
    """A stage's progress as a Prefect artifact, renewed every few seconds."""

    def __init__(self, name: str) -> None:
        self._last = time.monotonic()
        created = create_progress_artifact(progress=0.0, key=f"progress-{name.replace('_', '-')}")
        self._artifact = UUID(str(created))

    def observe(self, _stage: Stage, report: StageReport) -> None:
        """Publish, unless that was done a moment ago."""
        if time.monotonic() - self._last >= PUBLISH_SECONDS:
            self._publish(report)

    def finish(self, report: StageReport) -> None:
        """Publish the last state."""
        self._publish(report)

    def _publish(self, report: StageReport) -> None:
        self._last = time.monotonic()
        share = 100.0 * (report.complete + report.failed) / report.blocks
        update_progress_artifact(
            self._artifact,
            progress=share,
            description=f"{report.complete} of {report.blocks} blocks, {report.failed} failed",
        )


def _row(report: StageReport) -> dict[str, int | float | str]:
    return {
        "stage": report.stage,
        "blocks": report.blocks,
        "done": report.done,
        "empty": report.empty,
        "masked": report.masked,
        "failed": report.failed,
        "computed now": report.computed,
        "seconds": round(report.seconds, 1),
    }
