"""What a run has found that its user should know at once, though nothing failed."""

from __future__ import annotations

from contextlib import closing

from rich.console import Console
from rich.markup import escape

from flows.runs import Observer
from pipeline.stages import plan
from pipeline.stages.base import Stage
from pipeline.stages.placement import PLACEMENT, placement_warning
from pipeline.stages.run import Run
from workers.runner import StageReport


def notices(run: Run) -> list[str]:
    """The warnings of a run, as sentences; of its present configuration alone."""
    if PLACEMENT not in plan(run.config):
        return []
    with closing(run.ledger(PLACEMENT.name)) as ledger:
        found = placement_warning(run) if ledger.complete else None
    return [] if found is None else [_sentence(found)]


def telling(run: Run, console: Console, observe: Observer) -> Observer:
    """As `observe`, and prints each warning as soon as it is known: before anything is learned."""
    told: set[str] = set()

    def observed(stage: Stage, report: StageReport) -> None:
        observe(stage, report)
        if stage is not PLACEMENT or report.complete < report.blocks or told:
            return
        told.add(stage.name)
        warning = placement_warning(run)
        if warning is not None:
            console.print(
                f"[yellow]warning[/yellow] {escape(_sentence(warning))}",
                highlight=False,
                soft_wrap=True,
            )

    return observed


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
