"""`axonloom sweep`: many thresholds of one finished segmentation, scored from tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.launch import run_with_progress
from flows.notices import sentence
from flows.own_inputs import require_whole
from flows.runs import begin
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError, InputError
from pipeline.stages import STAGES
from pipeline.stages.base import Stage
from pipeline.stages.sweep import sweep_stages
from pipeline.storage.ledger import Ledger

# A list longer than this is a slip of the pen.
MOST_THRESHOLDS = 1000
_FRAGMENTS = "fragments.zarr"
_HISTORY = Path("history", "history.arrow")
# A segmentation agrees with itself whatever has become of what it was made from.
_ORIGINS = ("affinities", "tuning")


def run_sweep(config: RunConfig, *, replace_output: bool) -> Path:
    """Score the thresholds of a segmentation; gives the folder of the results.

    Args:
        config: `input.fragments` and `input.history` from `segmentation_inputs`.
        replace_output: whether a sweep of other parameters may be replaced.

    Raises:
        InputError: before anything is written or computed.
        StageError: blocks failed.
    """
    stages = sweep_stages(config)
    run = begin(config, stages, replace_output=replace_output)
    run_with_progress(run, stages)
    return run.directory


def segmentation_inputs(segmentation: Path, out: Path) -> dict[str, Path]:
    """The fragments and the merge history of a segmentation, after a look at its ledgers.

    Raises:
        InputError: no output folder of `axonloom segment` or `axonloom run`, one without merge
            history, an unfinished one, one that has lost chunks, or `out` is this very folder.
    """
    folder = segmentation.resolve()
    fragments, history = folder / _FRAGMENTS, folder / _HISTORY
    if not fragments.is_dir():
        raise InputError(
            f"{segmentation}: no {_FRAGMENTS} in it; expected the output folder of axonloom "
            "segment, or the run directory of an axonloom run that segmented"
        )
    if not history.is_file():
        raise InputError(
            f"{segmentation}: no merge history ({_HISTORY}). Only agglomeration by mean affinity "
            "records one; segment with --engine exact, the default, to sweep over thresholds"
        )
    if out.resolve() == folder:
        raise InputError(f"--out {out} is the segmentation itself; choose another folder")
    _require_finished(folder)
    return {"fragments": fragments, "history": history}


def _require_finished(folder: Path) -> None:
    """Fragments and history must be whole, and of one and the same segmentation."""
    writers = {artifact: stage for stage in STAGES for artifact in stage.writes}

    @lru_cache
    def ledger_of(stage: str) -> Ledger:
        return Ledger(folder / "ledger" / f"{stage}.jsonl")

    def require_settled(artifact: str, key: str) -> None:
        if artifact in _ORIGINS or artifact not in writers:
            return
        header = ledger_of(writers[artifact].name).header
        if header is None or header.key != key:
            raise _unfinished(folder, writers[artifact])
        for name, inner in header.description["inputs"].items():
            require_settled(name, inner)

    for artifact in ("history", "fragments"):
        ledger = ledger_of(writers[artifact].name)
        if ledger.header is None or not ledger.complete:
            raise _unfinished(folder, writers[artifact])
        require_settled(artifact, ledger.header.key)
    require_whole(folder / _FRAGMENTS)


def _unfinished(folder: Path, stage: Stage) -> InputError:
    return InputError(
        f"{folder}: stage {stage.name} is not finished, or was run again since with other "
        f"parameters (axonloom status {folder}); run the segmentation to its end first"
    )


def parse_thresholds(
    span: str | None, single: Sequence[float] | None = None
) -> tuple[float, ...] | None:
    """The thresholds of FROM:TO:STEP, both ends included, and single ones; None for none.

    Numbers are rounded to ten digits, so that 0.2:0.4:0.1 means 0.3 and not its neighbour.

    Raises:
        InputError: not of this form, or too many.
    """
    found = list(single or ())
    if span is not None:
        found += _span(span)
    return tuple(sorted(set(found))) or None


def _span(text: str) -> list[float]:
    try:
        begin, end, step = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise InputError(f"--thresholds: expected FROM:TO:STEP, got {text!r}") from error
    if not (0 <= begin <= end <= 1 and 0 < step < math.inf):
        raise InputError(f"--thresholds {text}: expected 0 <= FROM <= TO <= 1 and a positive STEP")
    count = math.floor((end - begin) / step + 1e-9) + 1
    if count > MOST_THRESHOLDS:
        raise InputError(
            f"--thresholds {text}: {count} thresholds, at most {MOST_THRESHOLDS} are taken"
        )
    return [round(begin + step * i, 10) for i in range(count)]


# Heading, part of a row, key, decimals.
_COLUMNS = (
    ("nERL", "overall", "nerl", 3),
    ("edge\nacc. %", "overall", "edge_accuracy", 2),
    ("splits", "overall", "splits", 0),
    ("merges", "overall", "merges_total", 0),
    ("VOI\nsplit", "voxels", "voi_split", 3),
    ("VOI\nmerge", "voxels", "voi_merge", 3),
    ("adapted\nRand err.", "voxels", "adapted_rand_error", 3),
)


def tell_sweep(directory: Path, segmentation: Path) -> None:
    """Print the table of a finished sweep, the best thresholds marked, and where the files are."""
    sweep = json.loads((directory / "sweep.json").read_text())
    console = Console(soft_wrap=True)
    for warning in sweep.get("warnings", ()):
        # Nodes outside the volume, as an evaluation tells them.
        console.print(
            f"[yellow]warning[/yellow] {escape(sentence(warning))}", highlight=False, emoji=False
        )
    console.print(_table(sweep))
    dropped = _min_voxels(segmentation)
    if dropped:
        console.print(
            f"segments below {dropped} voxels are dropped in {segmentation / 'segments.zarr'}; "
            "these scores are from before that"
        )
    console.print(f"sweep    {directory / 'sweep.json'}, sweep.csv", highlight=False)
    console.print(f"picture  {directory / 'sweep.png'}, sweep.svg", highlight=False)


def _table(sweep: Mapping[str, Any]) -> Table:
    rows, best = sweep["rows"], sweep["best"]
    columns = [column for column in _COLUMNS if column[1] in rows[0]]
    table = Table(title="agglomeration thresholds", box=None, padding=(0, 1, 0, 0))
    table.add_column("threshold", justify="right", no_wrap=True)
    for heading, *_ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best", no_wrap=True)
    names = {"nerl": "nERL", "voi": "VOI"}
    for row in rows:
        figures = [f"{row[part][key]:.{digits}f}" for _, part, key, digits in columns]
        marks = [names[n] for n, found in best.items() if found["threshold"] == row["threshold"]]
        style = "bold" if marks else None
        table.add_row(f"{row['threshold']:.6g}", *figures, ", ".join(marks), style=style)
    return table


def _min_voxels(segmentation: Path) -> int:
    try:
        return load_config(segmentation / "config.yaml").segment.min_voxels
    except ConfigError:  # of another version, or gone: the size filter is not known
        return 0
