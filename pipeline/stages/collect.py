"""Collect: edges, history, lookups and sizes of the whole volume, in tables without blocks.

1. Which blocks have rows of which slab of ids.
2. For each slab, the sizes of its segments.
3. For each slab, its edges and the segments of its fragments.
4. The parts one after the other, as one file a table.

The files are the same for every blocking. A step holds a slab and the index (a row for each block
in each slab that it reaches), or the merges of one sixteenth of the range of scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable, sum_edges
from pipeline.arrays.labels import SparseMap, distinct
from pipeline.arrays.relabel import add_counts, apply_lookup, drop_small, unite_maps
from pipeline.geometry import Block, BlockGrid
from pipeline.stages.agglomerate import (
    merge_runs,
    read_lookup,
    read_lookups,
    size_files,
    write_lookups,
)
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.block_tables import EDGE_COLUMNS, read_counts, read_edges
from pipeline.stages.block_tree import Rounds
from pipeline.stages.id_slabs import blocks_of, id_slabs, inside, slab_of, write_index
from pipeline.stages.merge_runs import write_whole_history
from pipeline.stages.run import Run
from pipeline.stages.segmentation import segmentation_choice, untuned
from pipeline.storage.tables import changed_at, read_arrays, write_arrays, write_long_table


def _rounds(run: Run) -> Rounds:
    slabs = id_slabs(run)
    return Rounds((one_block(run), slabs, slabs, one_block(run)))


def _collect(block: Block, run: Run) -> BlockResult:
    step, cell = _rounds(run).place(block.index)
    if step == 0:
        write_index(run)
        return BlockResult()
    if step == 1:
        return _sum_sizes(cell, run)
    if step == 2:
        return _gather(cell, run)
    return _write_tables(run)


# --- One slab


def _sum_sizes(slab: Block, run: Run) -> BlockResult:
    parts = [read_lookups(path) for path in size_files(run, slab)]
    count = len(segmentation_choice(run).thresholds)
    sums = [add_counts(part[number] for part in parts) for number in range(count)]
    write_lookups(run.block_file("slab_sizes", slab.index), sums)
    return BlockResult()


def _gather(slab: Block, run: Run) -> BlockResult:
    blocks = blocks_of(run, slab)
    edges = sum_edges([_own_edges(run, slab, index) for index in blocks])
    arrays = {name: getattr(edges, name) for name in EDGE_COLUMNS}
    fragments = _own_fragments(run, slab, blocks)
    for number in range(len(segmentation_choice(run).thresholds)):
        files = (run.block_file("block_lookups", index) for index in blocks)
        lookup = unite_maps(read_lookup(file, number) for file in files)
        segments = apply_lookup(fragments, *lookup)
        segments = without_small(run, number, segments)
        changed = segments != fragments
        arrays[f"ids_{number}"] = fragments[changed]
        arrays[f"targets_{number}"] = segments[changed]
    write_arrays(run.block_file("slab_tables", slab.index), arrays)
    return BlockResult(stats={"fragments": len(fragments), "edges": len(edges)})


def _own_edges(run: Run, slab: Block, index: int) -> EdgeTable:
    table = read_edges(run.block_file("block_graphs", index))
    own = inside(run, slab, table.u)
    return EdgeTable(*(getattr(table, name)[own] for name in EDGE_COLUMNS))


def _own_fragments(run: Run, slab: Block, blocks: Iterable[int]) -> NDArray[np.uint64]:
    found = [np.zeros(0, np.uint64)]
    for index in blocks:
        ids, _ = read_counts(run.block_file("block_graphs", index))
        found.append(ids[inside(run, slab, ids)])
    return distinct(*found)


def without_small(run: Run, number: int, segments: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The segments (any shape of one axis), those below `min_voxels` in the volume turned to 0."""
    least = run.config.segment.min_voxels
    if least < 2 or not len(segments):
        return segments
    for slab in np.unique(slab_of(run, segments[segments != 0])).tolist():
        path = run.block_file("slab_sizes", slab)
        segments = apply_lookup(segments, *_small(path, number, least, changed_at(path)))
    return segments


@lru_cache(maxsize=512)
def _small(path: Path, number: int, least: int, _mtime_ns: int) -> SparseMap:
    return drop_small(*read_lookup(path, number), least)


# --- The whole volume


def _write_tables(run: Run) -> BlockResult:
    slabs, choice = id_slabs(run), segmentation_choice(run)
    edges = write_long_table(
        run.path("edges") / "edges.arrow",
        (read_arrays(run.block_file("slab_tables", s.index), EDGE_COLUMNS) for s in slabs),
        dict.fromkeys(EDGE_COLUMNS, np.uint64),
    )
    for number, threshold in enumerate(choice.thresholds):
        _write_map(lookup_file(run, threshold), _lookup_parts(run, slabs, number), "target")
    path = run.path("lookup") / "segments.arrow"
    segments = _write_map(path, _size_parts(run, slabs), "voxels")
    stats = {"edges": edges, "segments": segments}
    runs = merge_runs(run)
    if runs:  # the engine waterz keeps none
        stats["merges"] = write_whole_history(run.path("history") / "history.arrow", runs)
    return BlockResult(stats=stats)


def _lookup_parts(run: Run, slabs: BlockGrid, number: int) -> Iterator[SparseMap]:
    return (read_lookup(run.block_file("slab_tables", slab.index), number) for slab in slabs)


def _size_parts(run: Run, slabs: BlockGrid) -> Iterator[SparseMap]:
    """The segments of the first threshold that are large enough, and their voxels."""
    for slab in slabs:
        ids, voxels = read_lookup(run.block_file("slab_sizes", slab.index), 0)
        large = voxels >= run.config.segment.min_voxels
        yield ids[large], voxels[large]


def _write_map(path: Path, parts: Iterable[SparseMap], second: str) -> int:
    columns = ({"id": ids, second: values} for ids, values in parts)
    return write_long_table(path, columns, {"id": np.uint64, second: np.uint64})


def _files(run: Run) -> Iterator[Path]:
    yield run.path("edges") / "edges.arrow"
    yield run.path("lookup") / "segments.arrow"
    for threshold in segmentation_choice(run).thresholds:
        yield lookup_file(run, threshold)
    if run.config.segment.engine == "exact":
        yield run.path("history") / "history.arrow"


def lookup_file(run: Run, threshold: float) -> Path:
    """Where the lookup of a threshold lies."""
    return run.path("lookup") / f"threshold_{threshold!r}.arrow"


def _create(run: Run) -> None:
    for name in COLLECT.writes:
        run.path(name).mkdir(parents=True)


COLLECT = Stage(
    name="collect",
    version=1,
    reads=(
        "block_graphs",
        "merge_runs",
        "block_lookups",
        "segment_sizes",
    ),
    optional=("tuning",),
    writes=("slab_index", "slab_sizes", "slab_tables", "edges", "history", "lookup"),
    parameters=lambda run: {
        **untuned(run, "thresholds"),
        "min_voxels": run.config.segment.min_voxels,
    },
    grid=_rounds,
    create=_create,
    process=_collect,
    files=_files,
)
