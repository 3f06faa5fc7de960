"""The Prefect flow: one task per stage, blocks run inside by the stage's own executor.

Prefect runs deployments, schedules and parameters, and shows progress; the ledger, not Prefect's
cache, knows what is done. So a flow run that is started again continues.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Quiet and offline unless the environment says otherwise; read when prefect is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
# An embedded server takes 7-12 s to start on an idle machine, longer on a busy one.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from prefect import flow, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE

from flows.embedded_server import ends_with_this_process
from flows.phantom import needs_phantom, on_phantom, phantom_config
from flows.publish import StagePublisher
from flows.report import write_report
from flows.runs import begin, open_stages, prepare
from pipeline.config import RunConfig
from pipeline.errors import StageError
from pipeline.stages import plan
from pipeline.stages.base import Stage
from pipeline.stages.evaluate import EVALUATE
from pipeline.stages.label_scores import LABEL_SCORES
from pipeline.stages.phantom import PHANTOM
from pipeline.stages.run import Run
from workers.runner import StageReport

Row = dict[str, str | int | float]
RunOne = Callable[[Stage, Callable[[Stage, StageReport], None]], StageReport]


@flow(name="reconstruct", validate_parameters=True, persist_result=False)
def reconstruct(config: RunConfig) -> str:
    """Run every stage that the inputs allow; gives the path of the report.

    A configuration with a phantom and no volume makes the phantom first.

    Args:
        config: of the run. Paths are those of the machine that runs the flow.

    Raises:
        InputError: before anything is computed.
        StageError: blocks failed; what was done is kept, and the next flow run continues.
    """
    with ends_with_this_process():
        return _reconstruct(config)


def _reconstruct(config: RunConfig) -> str:
    rows: list[Row] = []
    try:
        if needs_phantom(config):
            _run_tasks(begin(phantom_config(config), (PHANTOM,)), (PHANTOM,), rows)
            config = on_phantom(config)
        run, stages = prepare(config)
        _run_tasks(run, stages, rows)
    finally:
        if rows:
            where = config.run_dir.resolve()
            create_table_artifact(rows, key="stages", description=f"Stages of {where}")
    return report_task(run.directory)


def _run_tasks(run: Run, stages: Sequence[Stage], rows: list[Row]) -> None:
    """One task for each stage; every stage that begins adds its row, also when it fails."""
    with open_stages(run, stages) as run_one:
        for stage in stages:
            named = stage_task.with_options(name=stage.name, task_run_name=stage.name)
            try:
                named(run_one, stage, run, rows)
            except StageError as error:
                raise StageError(f"{error}\n{_how_to_resume(run, stage)}") from error


def _how_to_resume(run: Run, stage: Stage) -> str:
    again = "To resume: run the flow again with the same parameters"
    if stage is PHANTOM:
        return again
    return f"{again}, or: axonloom run {shlex.quote(str(run.directory / 'config.yaml'))}"


@task(persist_result=False, cache_policy=NO_CACHE)
def stage_task(run_one: RunOne, stage: Stage, run: Run, rows: list[Row]) -> None:
    """One stage of a run; its blocks are not Prefect's business."""
    with StagePublisher(stage, run) as publisher:
        try:
            run_one(stage, publisher.observe)
        finally:
            if publisher.report is not None:
                rows.append(_row(publisher.report))


@task(name="report", task_run_name="report", persist_result=False, cache_policy=NO_CACHE)
def report_task(directory: Path) -> str:
    """The report of a run, linked, with its scores and the way to look at it as artifacts."""
    run = Run(directory)
    report = write_report(run)
    create_link_artifact(link=report.as_uri(), link_text="report.html", key="report")
    create_markdown_artifact(
        f"Report: `{report}`\n\nLook at the neurons:\n\n```\naxonloom view {directory}\n```\n",
        key="viewer",
    )
    planned = plan(run.config)
    if EVALUATE in planned:
        table = _scores(json.loads(run.path("metrics").read_text()))
        create_table_artifact(table, key="scores", description="Scores against the tracings")
    if LABEL_SCORES in planned:
        table = _label_scores(json.loads(run.path("label_scores").read_text()))
        create_table_artifact(table, key="label-scores", description="Scores against the labels")
    return str(report)


def _scores(metrics: dict[str, Any]) -> list[Row]:
    """A row for each score, as metrics.json names it."""
    columns = {"this run": metrics["overall"]}
    if "baseline" in metrics:
        columns["threshold + components"] = metrics["baseline"]["overall"]
    return [
        {"score": name, **{of: _cell(values.get(name)) for of, values in columns.items()}}
        for name in metrics["overall"]
    ]


def _label_scores(found: dict[str, Any]) -> list[Row]:
    """A row for each score, as label_scores.json names it; none where no voxel has a label."""
    columns = {"this run": found["segments"], "reference": found.get("reference")}
    given = {of: values for of, values in columns.items() if values is not None}
    return [
        {"score": name, **{of: values[name] for of, values in given.items()}}
        for name in found["segments"] or ()
    ]


def _cell(value: float | None) -> str | float:
    return "-" if value is None else value


def _row(report: StageReport) -> Row:
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
