"""What the ledgers of a run say: stages, blocks and speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.errors import InputError
from pipeline.report.facts import LevelFacts
from pipeline.storage.ledger import Ledger


@dataclass(frozen=True)
class StageStatus:
    """Counts of one stage, from its ledger.

    Attributes:
        block_seconds: time of each block computed, in the order of the ledger.
        voxels: of the whole stage.
    """

    stage: str
    blocks: int
    done: int
    empty: int
    masked: int
    failed: int
    block_seconds: tuple[float, ...]
    voxels: int
    errors: tuple[tuple[int, str], ...]

    @property
    def state(self) -> str:
        """In a word."""
        if self.done + self.empty + self.masked == self.blocks:
            return "complete"
        return "failed" if self.failed else "partial"

    @property
    def voxels_per_second(self) -> float | None:
        """Voxels of the computed blocks over the time of their workers."""
        seconds = sum(self.block_seconds)
        if not seconds:
            return None
        return self.voxels * (self.done + self.empty) / self.blocks / seconds


def stage_status(path: Path) -> StageStatus | None:
    """The status of one ledger; None before its stage began."""
    ledger = Ledger(path)
    if ledger.header is None:
        return None
    marks = ledger.marks.values()
    _, shape, _ = ledger.header.description["grid"]
    return StageStatus(
        stage=ledger.header.stage,
        blocks=ledger.header.blocks,
        done=ledger.count("done"),
        empty=ledger.count("empty"),
        masked=ledger.count("masked"),
        failed=ledger.count("failed"),
        block_seconds=tuple(m.seconds for m in marks if m.state in ("done", "empty")),
        voxels=shape[0] * shape[1] * shape[2],
        errors=tuple((m.block, m.error or "") for m in marks if m.state == "failed"),
    )


def agglomeration_levels(directory: Path) -> list[LevelFacts]:
    """What each level of the agglomeration decided and left to the next, finest first.

    Empty where one step held everything, or none has run.
    """
    stats: dict[int, list[dict[str, float]]] = {}
    for mark in Ledger(directory / "ledger" / "agglomerate.jsonl").marks.values():
        if "level" in mark.stats:
            stats.setdefault(int(mark.stats["level"]), []).append(mark.stats)
    if len(stats) < 2:
        return []
    return [_level(level, groups) for level, groups in sorted(stats.items())]


def _level(level: int, groups: list[dict[str, float]]) -> LevelFacts:
    rows, rows_up, merges = (
        int(sum(group[name] for group in groups)) for name in ("rows", "rows_up", "merges")
    )
    largest = int(max(group["rows"] for group in groups))
    return LevelFacts(level, len(groups), rows, rows_up, merges, largest)


def run_status(directory: Path, names: list[str]) -> list[StageStatus]:
    """The status of each stage that has begun, in the order of `names`.

    Raises:
        InputError: no run directory.
    """
    folder = directory / "ledger"
    if not folder.is_dir():
        raise InputError(f"{directory}: not a run directory, it has no ledger")
    found = {path.stem: path for path in folder.glob("*.jsonl")}
    known = [name for name in names if name in found]
    others = sorted(set(found) - set(known))
    return [s for name in (*known, *others) if (s := stage_status(found[name])) is not None]


def print_status(directory: Path, console: Console) -> None:
    """A table of the stages and the causes of failures."""
    from pipeline.stages import STAGES

    stages = run_status(directory, [stage.name for stage in STAGES])
    table = Table(title=f"{directory} (seconds of all workers)", box=None, padding=(0, 2, 0, 0))
    for name in ("stage", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("blocks", "done", "empty", "masked", "failed", "seconds", "Mvoxel/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in stages:
        rate = s.voxels_per_second
        counts = (s.blocks, s.done, s.empty, s.masked, s.failed)
        table.add_row(
            s.stage,
            s.state,
            *(str(count) for count in counts),
            f"{sum(s.block_seconds):.1f}",
            "-" if rate is None else f"{rate / 1e6:.2f}",
        )
    console.print(table)
    _print_levels(agglomeration_levels(directory), console)
    for s in stages:
        for block, error in s.errors[:5]:
            console.print(f"{s.stage} block {block}: {error}", highlight=False, markup=False)


def _print_levels(levels: list[LevelFacts], console: Console) -> None:
    if not levels:
        return
    table = Table(title="agglomeration, level by level", box=None, padding=(0, 2, 0, 0))
    for name in ("level", "groups", "rows", "moved up", "", "merges", "largest group"):
        table.add_column(name, justify="right", no_wrap=True)
    for f in levels:
        counts = (f.level, f.groups, f.rows, f.rows_up, f.share_up, f.merges, f.largest)
        table.add_row(*(f"{n:.1%}" if isinstance(n, float) else f"{n:,}" for n in counts))
    console.print(table)
