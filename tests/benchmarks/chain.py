"""`axonloom segment` in a process of its own, and what its ledgers say of each stage."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measuring import Usage, run_measured
from volumes import kept_volume

from pipeline.geometry import Triple
from pipeline.storage.atomic import remove_tree

AXONLOOM = Path(sys.executable).with_name("axonloom")
# Small, yet with blocks and output boxes for two workers, so that both load what they will use.
TINY: Triple = (32, 32, 512)
TINY_BLOCK: Triple = (32, 32, 64)
TINY_VOXELS = 32 * 32 * 512
LOW, HIGH, THRESHOLD = 0.5, 0.95, 0.5  # the defaults of the command line, passed on to others


@dataclass
class ChainRun:
    """One run of the chain.

    Attributes:
        usage: of the whole command.
        stages: seconds inside blocks, added over the blocks of each stage, in order.
        blocks: number of blocks of each stage.
    """

    usage: Usage
    stages: dict[str, float]
    blocks: dict[str, int]


def run_chain(
    affinities: Path, out: Path, workers: int | None, block: Sequence[int] | None = None
) -> ChainRun:
    """Segment into `out`, which is emptied first.

    Args:
        affinities: the zarr.
        out: folder of the run.
        workers: local processes; None is `--serial`.
        block: z, y, x; None leaves it to the command.
    """
    if out.exists():
        remove_tree(out)
    command: list[object] = [AXONLOOM, "segment", "--affinities", affinities, "--out", out]
    command += ["--low", LOW, "--high", HIGH, "--threshold", THRESHOLD]
    command += ["--serial"] if workers is None else ["--workers", workers]
    command += ["--block", *block] if block else []
    usage = run_measured(command)
    stages, blocks = {}, {}
    for name, marks in _ledgers(out):
        stages[name], blocks[name] = sum(marks), len(marks)
    return ChainRun(usage, stages, blocks)


def _ledgers(out: Path) -> Iterator[tuple[str, list[float]]]:
    """Each stage and the seconds of its blocks, in the order in which the stages ended."""
    for path in sorted((out / "ledger").glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns):
        lines = map(json.loads, path.read_text().splitlines())
        seconds = {line["block"]: line.get("seconds", 0.0) for line in lines if "block" in line}
        yield path.stem, list(seconds.values())


def stage_seconds(out: Path) -> dict[str, float]:
    """Seconds inside the blocks of each stage of a run."""
    return {name: sum(marks) for name, marks in _ledgers(out)}


def stage_counts(out: Path) -> dict[str, float]:
    """Everything that the blocks of a run counted, added up: fragments, edges, segments ..."""
    counts: dict[str, float] = {}
    for path in (out / "ledger").glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            for name, value in line.get("stats", {}).items():
                key = f"{path.stem}.{name}"
                counts[key] = counts.get(key, 0) + value
    return counts


def run_start(folder: Path, out: Path, workers: int | None) -> ChainRun:
    """What a run costs before it does anything: the chain on a tiny volume kept in `folder`."""
    return run_chain(kept_volume(folder, TINY)[0], out, workers, TINY_BLOCK)


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A folder for one run, removed afterwards: benchmarks leave only volumes and figures."""
    path = folder / "scratch" / name
    try:
        yield path
    finally:
        if path.exists():
            remove_tree(path)


def common_options(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark on volumes has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/benchmarks"),
        help="where volumes and figures are kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the volumes")
    parser.add_argument(
        "--block", type=int, nargs=3, metavar=("Z", "Y", "X"), help="default: the command's own"
    )
    return parser
