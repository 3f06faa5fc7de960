"""Running a configuration from the command line, with progress, and telling what came out."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.notices import telling
from flows.progress import QuietProgress, TerminalProgress
from flows.runs import prepare, run_stages
from pipeline.config import RunConfig
from pipeline.errors import InputError
from pipeline.geometry import BlockGrid
from pipeline.report.facts import SiteFacts, SkeletonFacts
from pipeline.report.quantities import length
from pipeline.stages import plan
from pipeline.stages.base import Stage
from pipeline.stages.evaluate import EVALUATE, NODE_LABELS
from pipeline.stages.label_scores import LABEL_SCORES
from pipeline.stages.run import Run
from pipeline.storage.chunks import chunk_shape
from workers.runner import Order

# Of the sites of errors so many are named on the terminal.
_NAMED_SITES = 8


def launch(
    config: RunConfig,
    only: Sequence[str] | None = None,
    *,
    replace_output: bool = True,
    order: Order | None = None,
) -> Path:
    """Run stages with progress on the terminal; gives the run directory.

    Raises:
        InputError: before anything is written or computed.
        StageError: blocks failed.
    """
    run, stages = prepare(config, only=only, replace_output=replace_output)
    run_with_progress(run, stages, order=order)
    return run.directory


def run_with_progress(run: Run, stages: Sequence[Stage], *, order: Order | None = None) -> None:
    """Run stages, with bars where a person watches and a line a stage where none does."""
    console = Console(stderr=True)
    if console.is_terminal:
        with TerminalProgress(run, console) as progress:
            observe = telling(run, console, progress.observe)
            run_stages(run, stages, order=order, observe=observe)
    else:
        observe = telling(run, console, QuietProgress(console).observe)
        run_stages(run, stages, order=order, observe=observe)


def report_and_tell(directory: Path) -> None:
    """Write the report of a finished run and say what came out."""
    from flows.report import write_report  # matplotlib: a second that other commands do not need

    write_report(Run(directory))
    tell(directory)


def tell(directory: Path) -> None:
    """Say what came out of a run that has its report, and where it is."""
    console = Console(soft_wrap=True)
    # Scores of an earlier configuration may lie there; they are not of this one.
    planned = plan(Run(directory).config)
    if EVALUATE in planned:
        print_scores(directory)
    if LABEL_SCORES in planned:
        print_label_scores(directory)
    console.print(f"report  {directory / 'report.html'}", highlight=False)
    console.print(f"viewer  axonloom view {directory}", highlight=False)


_ROWS = {
    "nerl": "normalized ERL",
    "erl_nm": "ERL (nm)",
    "edge_accuracy": "edge accuracy (%)",
    "pct_omit": "omitted edges (%)",
    "pct_split": "split edges (%)",
    "pct_merged": "merged edges (%)",
    "splits": "splits",
    "merges_total": "merges",
}


def print_scores(directory: Path) -> None:
    """The main scores of a run, beside those of the plain baseline and of a perfect run."""
    metrics = json.loads((directory / "metrics.json").read_text())
    count = len(metrics["per_skeleton"])
    table = Table("score", "this run", title=f"{count} tracing{'s' if count != 1 else ''}")
    columns = [metrics["overall"]]
    if "baseline" in metrics:
        table.add_column("threshold + components")
        columns.append(metrics["baseline"]["overall"])
    if "ceiling" in metrics:
        table.add_column("without errors")
        columns.append(metrics["ceiling"]["overall"])
    for key, name in _ROWS.items():
        table.add_row(name, *(_figure(column[key]) for column in columns))
    Console().print(table)


def tell_evaluation(directory: Path) -> None:
    """Write the report of an evaluation and say what came out of it."""
    from flows.report import renamings, write_report
    from flows.site_rows import site_facts

    run, console = Run(directory.resolve()), Console(soft_wrap=True)
    write_report(run, scope="evaluation")
    print_scores(directory)
    if run.config.input.labels is not None:
        print_label_scores(directory)
    sites = site_facts(run, _NAMED_SITES)
    counts = sites.counts.items()
    found = ", ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in counts)
    console.print(_site_table(sites, found) if sites.rows else found, highlight=False)
    for line in renamings(json.loads((directory / "metrics.json").read_text())):
        console.print(f"labels  {line.removeprefix('labels ')}", highlight=False)
    console.print(_chunks_read(run), highlight=False)
    console.print(f"report  {directory / 'report.html'}", highlight=False)


def _site_table(sites: SiteFacts, title: str) -> Table:
    table = Table("site", "kind", "tracing", "cable lost (um)", "z, y, x (voxels)", title=title)
    for row in sites.rows:
        place = ", ".join(f"{v:,.1f}" for v in row.position_vox)
        table.add_row(str(row.number), row.kind, row.tracings, f"{row.cable_nm / 1000:,.2f}", place)
    return table


def tell_skeletons(directory: Path) -> None:
    """Write the report of skeletons that were made of a segmentation, and say what came out."""
    from flows.report import write_report
    from flows.skeleton_facts import skeleton_facts

    run, console = Run(directory.resolve()), Console(soft_wrap=True)
    write_report(run, scope="skeletons")
    facts = skeleton_facts(run)
    console.print(_skeleton_table(facts), highlight=False)
    for text in facts.warnings:
        console.print(f"[yellow]warning[/yellow] {escape(text)}", highlight=False)
    for text in facts.notes:
        console.print(f"note    {escape(text)}", highlight=False)
    console.print(f"report  {directory / 'report.html'}", highlight=False)
    console.print(f"viewer  axonloom view {directory}", highlight=False)


def _skeleton_table(facts: SkeletonFacts) -> Table:
    made = {
        "segments": len(facts.cable_nm),
        "branch points": facts.branch_points,
        "tips": facts.tips,
        "components": facts.components,
        "loops": facts.loops,
    }
    joined, last = facts.joined, facts.joined if facts.fused is None else facts.fused
    steps = [joined] if facts.fused is None else [joined, facts.fused]
    did = {
        "seams joined": joined.get("welded", 0),
        "gaps joined": joined.get("gaps_joined", 0),
        **({} if facts.fused is None else {"contacts tied": facts.fused.get("joints", 0)}),
        "ticks removed": sum(step.get("ticks_removed", 0) for step in steps),
        "dust removed": sum(step.get("dust_removed", 0) for step in steps),
    }
    table = Table("skeletons", "")
    table.columns[1].justify = "right"
    table.add_row("cable", length(float(np.sum(facts.cable_nm))))
    for name, count in (made | did).items():
        table.add_row(name, f"{int(count):,}")
    table.add_row("cable of the pieces", length(joined.get("cable_in_nm", 0.0)))
    table.add_row("cable joined", length(last.get("cable_out_nm", 0.0)))
    return table


def _chunks_read(run: Run) -> str:
    with closing(run.ledger(NODE_LABELS.name)) as ledger:
        read = sum(int(mark.stats.get("chunks", 0)) for mark in ledger.marks.values())
    every = len(BlockGrid.over(run.shape, chunk_shape(run.path("segments"))))
    return f"read    {read:,} of {every:,} chunks of the segmentation: those that hold nodes"


_LABEL_ROWS = {
    "voi": "VOI (bits)",
    "voi_split": "VOI split (bits)",
    "voi_merge": "VOI merge (bits)",
    "ari": "ARI",
    "adapted_rand_error": "adapted Rand error",
    "accuracy": "accuracy of foreground",
    "dice": "Dice of foreground",
}


def print_label_scores(directory: Path) -> None:
    """The scores of a run against dense labels, beside those of the reference."""
    found = json.loads((directory / "label_scores.json").read_text())
    console = Console()
    if found["segments"] is None:
        console.print(f"no labelled voxel in {found['region']}: nothing scored", highlight=False)
        return
    table = Table("score", "this run", title=f"labels in {found['region']}")
    columns = [found["segments"]]
    if "reference" in found:
        table.add_column("reference")
        columns.append(found["reference"])
    for key, name in _LABEL_ROWS.items():
        table.add_row(name, *(_figure(column[key]) for column in columns))
    console.print(table)


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value}" if isinstance(value, int) else f"{value:,.4g}"


def view_run(directory: Path, host: str, port: int) -> None:
    """Serve the viewer of a run until interrupted."""
    from pipeline.report.viewer import serve

    state = directory / "neuroglancer.json"
    if not state.exists() or not state.stat().st_size:
        raise InputError(
            f"{state}: no viewer state; run `axonloom run`, `skeletonize` or `proofread`"
        )
    console = Console(soft_wrap=True)
    with serve(directory, json.loads(state.read_text()), port=port, host=host) as server:
        console.print(f"viewer  {server.url}\nCtrl+C ends it", highlight=False)
        threading.Event().wait()
