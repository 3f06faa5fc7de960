"""Agglomerate: merge fragments, up and down a tree of block groups.

Up: a group merges what it can decide alone and hands the rest up. Down: each threshold's lookup of
a group is what it merged itself, then what became of that above; the last step writes the lookup of
each block. What a step holds is bounded by its group; how much moved up is in the ledger. The
groups do not show: what comes out is what one step over everything would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.agglomerate import fragment_to_segment
from pipeline.arrays.delayed import RegionGraph, add_graphs, agglomerate_group, compose_lookup
from pipeline.arrays.edges import sum_edges
from pipeline.arrays.labels import SparseMap
from pipeline.arrays.relabel import (
    add_counts,
    apply_lookup,
    name_positions,
    restrict_lookup,
    sum_counts,
)
from pipeline.arrays.waterz_engine import agglomerate_with_waterz
from pipeline.errors import InputError
from pipeline.geometry import Block, Roi, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.block_tables import (
    holding_blocks,
    present,
    read_border,
    read_counts,
    read_edges,
)
from pipeline.stages.block_tree import BlockTree, Grid
from pipeline.stages.fragments import fragment_names, held_blocks, read_affinities, read_positions
from pipeline.stages.id_slabs import slab_of
from pipeline.stages.merge_runs import read_run, write_run
from pipeline.stages.run import Run
from pipeline.stages.segmentation import (
    segment_grid,
    segmentation_choice,
    stored_scale,
    untuned,
)
from pipeline.storage.tables import read_arrays, write_arrays

_FAN = 2
# The engine waterz takes about 20 bytes per voxel beside the arrays that it is given.
_WATERZ_VOXELS = 2**30
_NOTHING = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))
_GRAPH_COLUMNS = ("u", "v", "affinity_sum", "face_count", "key_u", "key_v")


def _tree(run: Run) -> BlockTree:
    return BlockTree.over(segment_grid(run), run.config.segment.group, _FAN)


def _grid(run: Run) -> Grid:
    return one_block(run) if _by_waterz(run) else _tree(run).rounds


def _by_waterz(run: Run) -> bool:
    return run.config.segment.engine == "waterz"


def _agglomerate(block: Block, run: Run) -> BlockResult:
    if _by_waterz(run):
        return _agglomerate_at_once(block, run)
    tree = _tree(run)
    level, cell, down = tree.step(block.index)
    if down:
        _tell(run, tree, level, cell, read_lookups(_told_file(run, tree, level, cell)))
        return BlockResult()
    stats = _merge(run, tree, level, cell)
    if level == tree.top:
        thresholds = segmentation_choice(run).thresholds
        _tell(run, tree, level, cell, [_NOTHING] * len(thresholds))
    return BlockResult(stats=stats)


# --- The other engine


def _agglomerate_at_once(whole: Block, run: Run) -> BlockResult:
    affinities = read_affinities(run.volume("affinities"), whole.write)
    fragments = np.zeros(whole.write.shape, np.uint64)
    for source in held_blocks(run, whole.write):
        names = fragment_names(run, source)
        positions = read_positions(run, source, source.write)
        name_positions(positions, names, fragments[source.write.slices])
    config, thresholds = run.config.segment, segmentation_choice(run).thresholds
    lookups = agglomerate_with_waterz(affinities, fragments, thresholds, scoring=config.scoring)
    _write_block_lookups(run, whole, [lookups[threshold] for threshold in thresholds])
    return BlockResult()


def _check(run: Run) -> None:
    """Refuse what the engine waterz cannot do."""
    if not _by_waterz(run):
        return
    if run.tuned:
        raise InputError(
            "segment.tune chooses thresholds for the exact engine's mean; for engine: waterz set "
            "segment.tune: false and give low, high and thresholds"
        )
    voxels = run.roi.size
    if voxels > _WATERZ_VOXELS:
        raise InputError(
            f"engine waterz holds the whole volume: {run.shape} are {voxels:,} voxels, and "
            f"{_WATERZ_VOXELS:,} (about 40 GB) are the most it is given; use engine: exact"
        )


# --- Up


def _merge(run: Run, tree: BlockTree, level: int, cell: Block) -> dict[str, float]:
    graph = _graph(run, tree, level, cell)
    frozen = _open_fragments(run, tree, level, cell.write)
    lowest = min(segmentation_choice(run).thresholds)
    result = agglomerate_group(graph, frozen, lowest, stored_scale(run))
    number = tree.number(level, cell)
    write_run(run.block_file("merge_runs", number), result.history)
    rest = {name: getattr(result.residual, name) for name in _GRAPH_COLUMNS}
    for axis in range(3):
        plane = cell.write.offset[axis]
        found = _borders(run, tree, level, axis, plane, cell.write) if plane > 0 else ()
        rest[f"border_{axis}"] = present(_NOTHING[0], *found)
    write_arrays(run.block_file("merge_tree", number), rest)
    return {
        "level": level,
        "rows": len(graph),
        "rows_up": len(result.residual),
        "merges": len(result.history),
        "open_fragments": len(frozen),
    }


def _graph(run: Run, tree: BlockTree, level: int, cell: Block) -> RegionGraph:
    """All rows that a group has to decide on."""
    if level > 0:
        numbers = [tree.number(level - 1, child) for child in tree.inside(level, cell.write)]
        return add_graphs(_read_graph(run.block_file("merge_tree", n)) for n in numbers)
    blocks = held_blocks(run, cell.write)
    tables = [read_edges(run.block_file("block_graphs", block.index)) for block in blocks]
    return RegionGraph.from_edges(sum_edges(tables))


def _read_graph(path: Path) -> RegionGraph:
    return RegionGraph(**read_arrays(path, _GRAPH_COLUMNS))


def _open_fragments(run: Run, tree: BlockTree, level: int, roi: Roi) -> NDArray[np.uint64]:
    """The fragments at the faces of a group, on both sides: they may have rows elsewhere."""
    parts = [_NOTHING[0]]
    for axis in range(3):
        for plane in (roi.offset[axis], roi.end[axis]):
            if 0 < plane < run.shape[axis]:
                parts.extend(_borders(run, tree, level, axis, plane, roi))
    return present(*parts)


def _borders(
    run: Run, tree: BlockTree, level: int, axis: int, plane: int, roi: Roi
) -> Iterator[NDArray[np.uint64]]:
    """The borders along a plane across `axis`, inside the cross-section of a group."""
    offset, shape = list(roi.offset), list(roi.shape)
    offset[axis], shape[axis] = plane, 1
    holding = holding_blocks(run, "fragments")
    for child in tree.inside(level, Roi(triple(offset), triple(shape))):
        if level > 0:
            yield read_border(run.block_file("merge_tree", tree.number(level - 1, child)), axis)
        elif child.index in holding:
            yield read_border(run.block_file("block_graphs", child.index), axis)


# --- Down


def _tell(run: Run, tree: BlockTree, level: int, cell: Block, above: list[SparseMap]) -> None:
    """Hand the lookups of a group, one a threshold, down to what it is made of."""
    history = read_run(run.block_file("merge_runs", tree.number(level, cell)))
    thresholds = segmentation_choice(run).thresholds
    lookups = [
        compose_lookup(fragment_to_segment(history, threshold), told)
        for threshold, told in zip(thresholds, above, strict=True)
    ]
    if level == 0:
        _write_block_lookups(run, cell, lookups)
        return
    for child in tree.inside(level, cell.write):
        rest = _read_graph(run.block_file("merge_tree", tree.number(level - 1, child)))
        open_here = _open_fragments(run, tree, level - 1, child.write)
        wanted = present(rest.u, rest.v, open_here)
        parts = [restrict_lookup(wanted, *lookup) for lookup in lookups]
        write_lookups(_told_file(run, tree, level - 1, child), parts)


def _told_file(run: Run, tree: BlockTree, level: int, cell: Block) -> Path:
    return run.block_file("merge_told", tree.number(level, cell))


def _write_block_lookups(run: Run, group: Block, lookups: list[SparseMap]) -> None:
    """Write the lookups of each block in a group, and how large the group's segments are in it.

    Args:
        run: where.
        group: the cell.
        lookups: from the fragments in it to segments, one a threshold.
    """
    parts: list[list[SparseMap]] = [[] for _ in lookups]
    for block in held_blocks(run, group.write):
        fragments, voxels = read_counts(run.block_file("block_graphs", block.index))
        rows = [restrict_lookup(fragments, *lookup) for lookup in lookups]
        write_lookups(run.block_file("block_lookups", block.index), rows)
        for part, row in zip(parts, rows, strict=True):
            part.append(sum_counts(apply_lookup(fragments, *row), voxels))
    _write_sizes(run, group, [add_counts(part) for part in parts])


def _write_sizes(run: Run, group: Block, sizes: list[SparseMap]) -> None:
    """Keep the sizes, one file for each slab of segment ids."""
    slabs = [slab_of(run, ids) for ids, _ in sizes]
    present_in = np.unique(np.concatenate(slabs))
    for slab in present_in.tolist():
        rows = [
            (ids[own == slab], voxels[own == slab])
            for own, (ids, voxels) in zip(slabs, sizes, strict=True)
        ]
        write_lookups(_size_file(run, slab, group), rows)
    # Which files there are is written down: one that is lost must not pass for one never made.
    write_arrays(run.block_file("segment_sizes", group.index), {"slabs": present_in})


def _size_file(run: Run, slab: int, group: Block) -> Path:
    return run.path("segment_sizes") / f"slab_{slab:06d}" / f"{group.index:09d}.arrow"


def size_files(run: Run, slab: Block) -> Iterator[Path]:
    """The sizes of segments with ids in a slab: a file for each group that holds any."""
    for group in _tree(run).levels[0] if not _by_waterz(run) else one_block(run):
        made = read_arrays(run.block_file("segment_sizes", group.index))["slabs"]
        if slab.index in made:
            yield _size_file(run, slab.index, group)


def merge_runs(run: Run) -> list[Path]:
    """The histories of all groups of the tree; none if another engine merged."""
    if _by_waterz(run):
        return []
    tree = _tree(run)
    cells = [(level, cell) for level, grid in enumerate(tree.levels) for cell in grid]
    return [run.block_file("merge_runs", tree.number(level, cell)) for level, cell in cells]


def write_lookups(path: Path, lookups: list[SparseMap]) -> None:
    """Keep one sparse map, or table of sizes, for each threshold."""
    arrays = {}
    for number, (ids, targets) in enumerate(lookups):
        arrays[f"ids_{number}"], arrays[f"targets_{number}"] = ids, targets
    write_arrays(path, arrays)


def read_lookups(path: Path) -> list[SparseMap]:
    """What `write_lookups` wrote."""
    arrays = read_arrays(path)
    return [(arrays[f"ids_{i}"], arrays[f"targets_{i}"]) for i in range(len(arrays) // 2)]


def read_lookup(path: Path, number: int) -> SparseMap:
    """The map of one threshold alone."""
    names = f"ids_{number}", f"targets_{number}"
    arrays = read_arrays(path, names)
    return arrays[names[0]], arrays[names[1]]


def _create(run: Run) -> None:
    for name in AGGLOMERATE.writes:
        run.path(name).mkdir(parents=True)


AGGLOMERATE = Stage(
    name="agglomerate",
    version=2,
    reads=("affinities", "local_fragments", "block_records", "stitch", "block_graphs"),
    optional=("tuning",),
    writes=("merge_tree", "merge_runs", "merge_told", "block_lookups", "segment_sizes"),
    parameters=lambda run: {
        **untuned(run, "thresholds"),
        "engine": run.config.segment.engine,
        "scoring": run.config.segment.scoring,
    },
    grid=_grid,
    create=_create,
    check=_check,
    process=_agglomerate,
)
