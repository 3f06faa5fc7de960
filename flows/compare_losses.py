"""`axonloom compare-losses`: which loss pays, on the user's own data."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from flows.comparison_table import table_blocks
from flows.demo import run_phantom
from flows.launch import run_with_progress
from flows.phantom import needs_phantom, on_phantom, phantom_config
from flows.runs import begin
from pipeline.config import RunConfig
from pipeline.report.comparison_words import SIGNIFICANT, how_tested, outcome, sentences
from pipeline.stages.comparison import comparison_stages
from pipeline.stages.run import Run


def run_comparison(config: RunConfig) -> Path:
    """Train and score every loss for every seed, and write the tables; gives the run directory.

    What an interrupted comparison has finished is kept, as is what another choice of losses or
    seeds has in common with an earlier one.

    Raises:
        InputError: before anything is computed.
        StageError: trainings failed.
    """
    if needs_phantom(config):
        run_phantom(phantom_config(config), replace_output=True)
        config = on_phantom(config)
    stages = comparison_stages(config)
    run = begin(config, stages)
    run_with_progress(run, stages)
    return run.directory


def report_and_tell_comparison(directory: Path) -> None:
    """Write the report of a finished comparison, print its table, and where the files are."""
    from flows.comparison_report import write_comparison_report  # matplotlib costs a second

    write_comparison_report(Run(directory))
    tell_comparison(directory)


def tell_comparison(directory: Path) -> None:
    """Print the table, what differs from the baseline, and where the files are."""
    run = Run(directory)
    table = json.loads(run.path("comparison").read_text())
    console = Console(soft_wrap=True, highlight=False)
    baseline = table["baseline"]
    bold = list(table["rows"]).index(baseline) + 1
    for block in table_blocks(table, console.width):
        for number, line in enumerate(block):
            console.print(line, style="bold" if number == bold else None, markup=False)
        console.print()
    seeds = ", ".join(map(str, table["seeds"]))
    console.print(
        f"Mean ± standard deviation over seeds {seeds}; + better, - worse than {baseline} "
        f"(p < {SIGNIFICANT}). step: time over that of {baseline}; MiB: memory above it."
    )
    for line in (*how_tested(table), "", *outcome(table), ""):
        console.print(line, markup=False)
    for name, sentence in sentences(table):
        console.print(f"{name}: {sentence}", markup=False)
    console.print()
    files = [run.path("comparison"), run.path("comparison_table")]
    for path in (*files, files[0].with_name("report.html")):
        if path.exists():
            console.print(f"{path}", markup=False)
