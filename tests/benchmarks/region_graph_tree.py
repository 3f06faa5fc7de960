"""The same region graph through the distributed path: a tree of block groups on worker processes.

Each block of a lattice writes its rows as a block of a volume would; the stage `agglomerate` then
runs on a local cluster. Told are what moved up at each level, the peak memory of each worker, and
whether the lookups are those of one call of `agglomerate` on the whole table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import machine
import numpy as np
from chain import scratch
from measuring import run_measured
from numpy.typing import NDArray
from printing import print_table, save
from region_graph import PITCH, Lattice

from flows.status import agglomeration_levels
from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.relabel import restrict_lookup
from pipeline.config import parse_config, save_config
from pipeline.geometry import Block, BlockGrid, Roi, triple
from pipeline.stages.agglomerate import AGGLOMERATE, read_lookup
from pipeline.stages.block_tables import BlockGraph, present, read_counts, write_graph
from pipeline.stages.keys import StageKey
from pipeline.stages.run import Run
from pipeline.storage.ledger import Header, Mark
from pipeline.storage.tables import read_table, write_table
from pipeline.storage.volume import Volume
from workers.executors import make_executor
from workers.runner import run_stage

TARGET_BYTES = 2e9


def make_run(directory: Path, graph: Lattice, side: int, group: int, given: Any) -> Run:
    """A run whose blocks have left their graphs; blocks of `side`^3 fragments."""
    directory.mkdir(parents=True)
    affinities = directory / "affinities.zarr"
    # Of the volume only the metadata exist: agglomeration reads no voxel.
    Volume.create(
        affinities, graph.volume_shape, np.uint8,
        chunks=(64, 64, 64), voxel_size_nm=None, channels=3,
    )  # fmt: skip
    extent = [side * PITCH] * 3
    segment = {
        "block": extent, "group": [group * n for n in extent],
        "thresholds": [given.threshold], "low": given.threshold,
    }  # fmt: skip
    config = parse_config(
        {
            "run_dir": directory,
            "input": {"affinities": affinities},
            "segment": segment,
            "execution": {"kind": "local", "workers": given.workers},
        }
    )
    save_config(config, directory / "config.yaml")
    run = Run(directory.resolve())
    grid = BlockGrid.over(graph.shape, (side, side, side))
    run.path("block_graphs").mkdir(parents=True)
    for block in grid:
        write_graph(run.block_file("block_graphs", block.index), block_graph(graph, block))
    ledger = run.ledger("fragments")
    ledger.begin(Header("fragments", "lattice", len(grid), {}))
    ledger.set_ready()
    for block in grid:
        ledger.mark(Mark(block.index, "done"))
    ledger.set_finished()
    ledger.close()
    return run


def block_graph(graph: Lattice, block: Block) -> BlockGraph:
    """What one block of fragments contributes."""
    ids = graph.ids(block.write)
    borders = [border(graph, block.write, axis) for axis in range(3)]
    counts = ids, np.ones(len(ids), np.uint64)
    slabs = np.zeros(0, np.int64)  # for tables that are not made here
    edges = graph.rows(block.write)
    return BlockGraph(edges, counts, (borders[0], borders[1], borders[2]), slabs)


def border(graph: Lattice, box: Roi, axis: int) -> NDArray[np.uint64]:
    """The fragments on both sides of the lower face of a box."""
    if box.offset[axis] == 0:
        return np.zeros(0, np.uint64)
    offset, shape = list(box.offset), list(box.shape)
    offset[axis], shape[axis] = offset[axis] - 1, 2
    return present(graph.ids(Roi(triple(offset), triple(shape))))


def measure_tree(directory: Path) -> None:
    """Run the stage, in a process whose children are watched."""
    run = Run(directory.resolve())
    executor = make_executor(run.config.execution)
    try:
        report = run_stage(AGGLOMERATE, run, StageKey("lattice", {}), executor)
    finally:
        executor.close()
    (directory / "seconds.json").write_text(json.dumps(report.seconds))


def whole_lookup(graph: Lattice, threshold: float, path: Path) -> None:
    """The lookup of the whole table, made in one call."""
    history = agglomerate(graph.rows(graph.roi), threshold)
    ids, segments = fragment_to_segment(history, threshold)
    write_table(path, {"id": ids, "target": segments})


def equal_lookups(run: Run, grid: BlockGrid, path: Path) -> bool:
    """Whether every block's lookup is its part of the whole one."""
    whole = read_table(path)
    for block in grid:
        fragments, _ = read_counts(run.block_file("block_graphs", block.index))
        expected = restrict_lookup(fragments, whole["id"], whole["target"])
        found = read_lookup(run.block_file("block_lookups", block.index), 0)
        if not all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)):
            return False
    return True


def print_figures(found: dict[str, Any]) -> None:
    """The tables of one run."""
    rows = [
        [level["level"], level["groups"], level["rows"], level["rows_up"], level["share_up"],
         level["merges"], level["largest"]]
        for level in found["levels"]
    ]  # fmt: skip
    header = ["level", "groups", "rows", "moved up", "share", "merges", "largest group"]
    print_table("Agglomeration as a tree", header, rows)
    peaks = [[f"worker {n}, GB", p / 1e9, p / TARGET_BYTES] for n, p in enumerate(found["peaks"])]
    times: list[list[object]] = [
        ["wall of the stage, s", found["wall"], None],
        ["CPU of all processes, s", found["cpu"], None],
    ]
    print_table("Cost", ["", "", "of 2 GB"], [*times, *peaks])
    print(f"lookups equal to those of the whole table: {found['equal']}\n")


def main() -> None:
    """Make, run, compare, print; each step that is measured in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--shape", type=int, nargs=3, default=(272, 272, 272), help="fragments")
    parser.add_argument("--block", type=int, default=34, help="fragments along a block's edge")
    parser.add_argument("--group", type=int, default=2, help="blocks along a group's edge")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--giant", action="store_true", help="one giant component")
    parser.add_argument("--child", choices=("tree", "whole"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    graph = Lattice(tuple(given.shape), given.seed, given.giant)
    if given.child == "tree":
        measure_tree(given.directory)
        return
    if given.child == "whole":
        whole_lookup(graph, given.threshold, given.directory / "whole.arrow")
        return
    machine.print_facts()
    with scratch(given.folder, "graph_tree") as directory:
        run = make_run(directory, graph, given.block, given.group, given)
        again = [sys.executable, *sys.argv, "--directory", directory, "--child"]
        usage = run_measured([*again, "tree"])
        run_measured([*again, "whole"])
        grid = BlockGrid.over(graph.shape, (given.block,) * 3)
        levels = [{**vars(f), "share_up": f.share_up} for f in agglomeration_levels(directory)]
        found = {
            "fragments": graph.roi.size,
            "levels": levels,
            "wall": json.loads((directory / "seconds.json").read_text()),
            "cpu": usage.cpu,
            "peaks": usage.worker_peaks,
            "equal": equal_lookups(run, grid, directory / "whole.arrow"),
        }
    print_figures(found)
    save(given.folder / "figures", f"region_graph_tree_{'x'.join(map(str, given.shape))}", found)
    if not found["equal"]:
        sys.exit("the lookups differ")


if __name__ == "__main__":
    main()
