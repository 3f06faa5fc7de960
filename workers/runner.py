"""Running the blocks of one stage: what is done is skipped, what fails is counted and named.

The order for a block: skip if the ledger has it; mask if it can hold nothing; read, compute, write
whole chunks; then mark. A crash between any two steps leaves a run that `run_stage` continues.
"""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.errors import OutputExistsError, StageError
from pipeline.geometry import BlockGrid, Roi, Triple, triple
from pipeline.stages import STAGES
from pipeline.stages.base import Stage
from pipeline.stages.keys import StageKey
from pipeline.stages.run import Run
from pipeline.storage.atomic import remove_temporaries, remove_tree
from pipeline.storage.ledger import COMPLETE, Header, Ledger, Mark
from pipeline.storage.volume import Volume
from workers.executors import Executor
from workers.retry import delay_seconds, may_pass

# A stage whose blocks fail one after the other has a cause that the next block has too.
CIRCUIT = 10


@dataclass(frozen=True)
class Order:
    """In which order blocks are run; the result does not depend on it."""

    kind: Literal["grid", "shuffled"] = "grid"
    seed: int = 0

    def arrange(self, indices: list[int]) -> list[int]:
        """The indices in this order."""
        if self.kind == "shuffled":
            random.Random(self.seed).shuffle(indices)
        return indices


@dataclass
class StageReport:
    """Counts of one stage; never a bool.

    Attributes:
        computed: blocks that ran in this call.
        reused: blocks that an earlier call had completed.
        failures: one mark for each block that failed in this call.
    """

    stage: str
    blocks: int
    voxels: int = 0
    done: int = 0
    empty: int = 0
    masked: int = 0
    failed: int = 0
    computed: int = 0
    reused: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    failures: list[Mark] = field(default_factory=list)

    @property
    def complete(self) -> int:
        """Blocks done, empty or masked."""
        return self.done + self.empty + self.masked

    def add(self, mark: Mark) -> None:
        """Count one outcome."""
        setattr(self, mark.state, getattr(self, mark.state) + 1)
        if mark.state == "failed":
            self.failures.append(mark)


Progress = Callable[[StageReport], None]


def run_stage(
    stage: Stage,
    run: Run,
    key: StageKey,
    executor: Executor,
    *,
    order: Order = Order(),
    replace: bool = True,
    progress: Progress = lambda _report: None,
) -> StageReport:
    """Run what is missing of a stage.

    Args:
        stage: what to run.
        run: where.
        key: the stage's key; blocks of another key are never reused.
        executor: serial or Dask, the same code path.
        order: of the blocks.
        replace: whether output of another key may be removed.
        progress: called after every block and every half second.

    Raises:
        OutputExistsError: output of other parameters lies there and `replace` is false, or output
            that no run has made.
        StageError: blocks failed, after the others finished or ten failed in a row.
    """
    ledger = run.ledger(stage.name)
    grid = stage.grid(run)
    began = time.monotonic()
    try:
        prepare_outputs(stage, run, key, ledger, replace=replace)
        report = _report_so_far(stage, ledger, len(grid), run.roi.size)
        task = partial(run_block, stage, run, tries=run.config.execution.tries)
        for blocks in grid.rounds:
            todo = [i for i in blocks if not _complete(ledger, i)]
            wanted = order.arrange(list(_mask(stage, run, ledger, todo, report)))
            progress(report)
            # Nothing to do starts no cluster. Closed in any case: what waits is cancelled.
            if wanted:
                outcomes = executor.map(
                    task, wanted, name=stage.name, resources=stage.resources(run)
                )
                with closing(outcomes):
                    _collect(outcomes, ledger, report, progress, began)
            if report.failed:
                break  # the next round reads what this one did not write
        if report.complete == report.blocks:
            ledger.set_finished()
    finally:
        ledger.close()
    report.seconds = time.monotonic() - began
    progress(report)
    if report.failed:
        raise StageError(explain_failure(stage, run, report))
    return report


def prepare_outputs(
    stage: Stage, run: Run, key: StageKey, ledger: Ledger, *, replace: bool
) -> None:
    """Make sure that the outputs on disk belong to `key`: keep them, or begin anew."""
    if ledger.holds(key.key):
        _require_outputs(stage, run)
        if not ledger.complete:
            _clean(stage, run)
        return
    refuse_foreign_output(stage, run, key, ledger, replace=replace)
    ledger.begin(Header(stage.name, key.key, len(stage.grid(run)), key.description))
    _outdate_additions(stage, run)
    for artifact in stage.writes:
        remove_tree(run.path(artifact))
    stage.create(run)
    ledger.set_ready()


def _clean(stage: Stage, run: Run) -> None:
    """Remove the halves of files that a killed run left; volumes have none."""
    for path in (run.path(artifact) for artifact in stage.writes):
        if path.suffix != ".zarr":
            remove_temporaries(path)


def _outdate_additions(stage: Stage, run: Run) -> None:
    """Forget what other stages added to the outputs that are about to be removed, or made of them.

    Segments and fragments end in the same skeletons, by another stage each.
    """
    for other in STAGES:
        touched = set(other.within) | (set(other.writes) if other.name != stage.name else set())
        if touched & set(stage.writes):
            with closing(run.ledger(other.name)) as ledger:
                ledger.outdate()


def refuse_foreign_output(
    stage: Stage, run: Run, key: StageKey, ledger: Ledger, *, replace: bool
) -> None:
    """Refuse to overwrite what this run has not made, or, unless `replace`, other parameters."""
    present = [run.path(name) for name in stage.writes if run.path(name).exists()]
    others = [other.name for other in STAGES if set(other.writes) & set(stage.writes)]
    unknown = ledger.header is None and all(run.ledger(n).header is None for n in others)
    if unknown and present:
        raise OutputExistsError(
            f"{present[0]} exists and no run of axonloom has made it; "
            "move it away or choose another folder"
        )
    other = ledger.header is not None and ledger.header.key != key.key
    if other and not replace:
        raise OutputExistsError(
            f"{run.directory} holds the output of stage {stage.name} for other parameters "
            f"({_difference(ledger, key)}); give --overwrite to replace it, "
            "or choose another --out"
        )


def _difference(ledger: Ledger, key: StageKey) -> str:
    old = ledger.header.description if ledger.header else {}
    new = key.description
    changed = []
    for part in ("parameters", "inputs"):
        before, after = old.get(part, {}), new.get(part, {})
        for name in sorted({*before, *after}):
            if _plain(before.get(name)) != _plain(after.get(name)):
                changed.append(name)
    if _plain(old.get("grid")) != _plain(new.get("grid")):
        changed.append("block")
    return "changed: " + ", ".join(changed) if changed else "an earlier version of axonloom"


def _plain(value: object) -> object:
    """What JSON leaves of a value: the ledger's side of the comparison went through it."""
    return json.loads(json.dumps(value, default=str))


def _require_outputs(stage: Stage, run: Run) -> None:
    for artifact in stage.writes:
        if not run.path(artifact).exists():
            raise StageError(
                f"stage {stage.name}: the ledger says that {run.path(artifact)} was made, "
                f"but it is gone. {how_to_remake(stage, run)}"
            )


def how_to_remake(stage: Stage, run: Run) -> str:
    """What to remove so that a stage is computed again."""
    left = [path for name in stage.writes if (path := run.path(name)).exists()]
    remove = ", ".join(map(str, [run.ledger(stage.name).path, *left]))
    return f"To compute stage {stage.name} again remove {remove}"


def require_stored(stage: Stage, run: Run) -> None:
    """Refuse to go on from output of a finished stage that has lost files.

    A chunk that is gone would read as zeros. A block that is done has stored every chunk, so one
    that is absent was lost.

    Raises:
        StageError: names the file, and what to remove to compute the stage again.
    """
    for path in stage.files(run):
        if not path.exists():
            raise StageError(
                f"{path} is gone, but stage {stage.name} is finished. {how_to_remake(stage, run)}"
            )
    ledger = run.ledger(stage.name)
    for artifact in stage.writes:
        path = run.path(artifact)
        # The scratch labels have a layout of their own; the stage that reads them looks itself.
        if path.suffix != ".zarr" or path.parent != run.directory:
            continue
        lost = lost_chunk(run.volume(artifact), ledger)
        if lost:
            raise StageError(
                f"{path}: chunk {lost[0]} is gone, but block {lost[1]} of stage {stage.name} "
                f"was computed. {how_to_remake(stage, run)}"
            )


def lost_chunk(volume: Volume, ledger: Ledger) -> tuple[Triple, int] | None:
    """A chunk that is gone although the ledger of its stage knows its block as done; the block."""
    assert ledger.header is not None
    offset, shape, extent = (triple(values) for values in ledger.header.description["grid"])
    grid = BlockGrid(Roi(offset, shape), extent)
    for mark in ledger.marks.values():
        if mark.state == "done":
            part = grid[mark.block].write if volume.shape == shape else volume.roi
            missing = volume.missing_chunks(part)
            if missing:
                return missing[0], mark.block
    return None


def _complete(ledger: Ledger, index: int) -> bool:
    mark = ledger.marks.get(index)
    return mark is not None and mark.state in COMPLETE


def _report_so_far(stage: Stage, ledger: Ledger, blocks: int, voxels: int) -> StageReport:
    report = StageReport(stage.name, blocks, voxels)
    for mark in ledger.marks.values():
        if mark.state in COMPLETE:
            report.add(mark)
            report.reused += 1
    return report


def _mask(
    stage: Stage, run: Run, ledger: Ledger, todo: list[int], report: StageReport
) -> Iterator[int]:
    grid = stage.grid(run)
    for index in todo:
        if stage.wanted(grid[index], run):
            yield index
        else:
            mark = Mark(index, "masked")
            ledger.mark(mark)
            report.add(mark)


def _collect(
    outcomes: Generator[Mark | None],
    ledger: Ledger,
    report: StageReport,
    progress: Progress,
    began: float,
) -> None:
    failures_in_a_row = 0
    for mark in outcomes:
        report.seconds = time.monotonic() - began
        if mark is not None:
            ledger.mark(mark)
            report.add(mark)
            report.computed += 1
            failures_in_a_row = failures_in_a_row + 1 if mark.state == "failed" else 0
        progress(report)
        if failures_in_a_row >= CIRCUIT:
            report.stopped_early = True
            break


def run_block(stage: Stage, run: Run, index: int, *, tries: int) -> Mark:
    """Run one block, wherever it is called; an error becomes a failed mark."""
    began = time.monotonic()
    for attempt in range(tries):
        try:
            result = stage.process(stage.grid(run)[index], run)
        except Exception as error:
            if attempt + 1 < tries and may_pass(error):
                time.sleep(delay_seconds(attempt))
                continue
            return Mark(index, "failed", time.monotonic() - began, error=_cause(error))
        seconds = round(time.monotonic() - began, 4)
        return Mark(index, result.state, seconds, dict(result.stats))
    raise AssertionError("a block is tried at least once")


def _cause(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    origin = f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
    return f"{type(error).__name__}: {error} ({origin})"


def explain_failure(stage: Stage, run: Run, report: StageReport) -> str:
    """Stage, block, box and cause of each failure, and how to go on."""
    grid = stage.grid(run)
    lines = [
        f"stage {stage.name}: {report.failed} of {report.blocks} blocks failed"
        + (f"; stopped after {CIRCUIT} in a row" if report.stopped_early else "")
    ]
    lines += [f"  block {m.block} {grid[m.block].write}: {m.error}" for m in report.failures[:5]]
    if report.failed > 5:
        lines.append(f"  and {report.failed - 5} more (axonloom status {run.directory})")
    damaged = _makers_of_damage(stage, run, report)
    if damaged:
        lines += [f"{how_to_remake(maker, run)}; then start again." for maker in damaged]
        return "\n".join(lines)
    lines.append("What was done is kept; started again, the run resumes from there.")
    return "\n".join(lines)


def _makers_of_damage(stage: Stage, run: Run, report: StageReport) -> list[Stage]:
    """The stages of this run whose output a failed block could not read: resuming is no help."""
    causes = " ".join(mark.error or "" for mark in report.failures)

    def blamed(path: Path) -> bool:
        inside = path.is_relative_to(run.directory)
        return inside and any(f"{path}{mark}" in causes for mark in "/:")

    read = {*stage.reads, *stage.more(run), *stage.optional}
    makers = [other for other in STAGES if other.name != stage.name and read & set(other.writes)]
    return [m for m in makers if any(blamed(run.path(name)) for name in m.writes)]


def require_complete(stage: Stage, run: Run, key: StageKey) -> None:
    """Refuse to go on from a stage that is not complete, or whose output is of another key.

    Raises:
        StageError: expected = done + empty + masked does not hold for `key`.
    """
    ledger = run.ledger(stage.name)
    if ledger.header is not None and ledger.header.key != key.key:
        raise StageError(
            f"stage {stage.name} holds the output of other parameters "
            f"({_difference(ledger, key)}); run it before the stages that read it"
        )
    if not ledger.complete:
        expected = len(stage.grid(run))
        complete = sum(ledger.count(s) for s in ("done", "empty", "masked"))
        raise StageError(
            f"stage {stage.name} is incomplete: {complete} of {expected} blocks "
            f"(failed: {ledger.count('failed')}); run it before the stages that read it"
        )
