"""What a run has found that its user should know at once, though nothing failed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from rich.console import Console
from rich.markup import escape

from flows.runs import Observer
from pipeline.stages import plan
from pipeline.stages.base import Stage
from pipeline.stages.label_placement import LABEL_PLACEMENT, label_placement_warning
from pipeline.stages.placement import PLACEMENT, placement_warning
from pipeline.stages.run import Run
from workers.runner import StageReport

_WARNINGS: dict[str, Callable[[Run], str | None]] = {
    PLACEMENT.name: placement_warning,
    LABEL_PLACEMENT.name: label_placement_warning,
}


def notices(run: Run) -> list[str]:
    """The warnings of a run, as sentences; of its present configuration alone."""
    found = []
    for stage, warning in _WARNINGS.items():
        if stage in {s.name for s in plan(run.config)}:
            with closing(run.ledger(stage)) as ledger:
                found.append(warning(run) if ledger.complete else None)
    return [sentence(text) for text in found if text is not None]


def telling(run: Run, console: Console, observe: Observer) -> Observer:
    """As `observe`, and prints each warning as soon as it is known: before anything is learned."""
    told: set[str] = set()

    def observed(stage: Stage, report: StageReport) -> None:
        observe(stage, report)
        if stage.name not in _WARNINGS or report.complete < report.blocks or stage.name in told:
            return
        told.add(stage.name)
        warning = _WARNINGS[stage.name](run)
        if warning is not None:
            console.print(
                f"[yellow]warning[/yellow] {escape(sentence(warning))}",
                highlight=False,
                soft_wrap=True,
            )

    return observed


def sentence(text: str) -> str:
    """A finding, as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."
