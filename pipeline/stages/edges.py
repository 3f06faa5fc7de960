"""Edges: the region graph, block by block, in terms of the fragments of the volume.

A block also notes which fragments touch others across its lower faces: what lies open towards the
blocks before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable, cross_face_edges, map_edges, sum_edges
from pipeline.arrays.fragments import LOWER, UPPER
from pipeline.arrays.labels import SparseMap
from pipeline.arrays.relabel import apply_lookup, sum_counts, unite_maps
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.block_tables import (
    BlockGraph,
    Faces,
    holding_blocks,
    predecessor,
    present,
    read_counts,
    read_edges,
    read_faces,
    read_map,
    write_graph,
)
from pipeline.stages.id_slabs import slab_of
from pipeline.stages.run import Run
from pipeline.stages.segmentation import segment_grid


def _edges(block: Block, run: Run) -> BlockResult:
    if block.index not in holding_blocks(run, "fragments"):
        return BlockResult("empty")
    stitched = read_map(run.block_file("stitch", block.index))
    record = run.block_file("block_records", block.index)
    tables, borders = [map_edges(read_edges(record), *stitched)], []
    own = read_faces(record, LOWER)
    for axis in range(3):
        crossing, border = _across(run, block, axis, own, stitched)
        tables.append(crossing)
        borders.append(border)
    labels, voxels = read_counts(record)
    counts = sum_counts(apply_lookup(labels, *stitched), voxels)
    edges = sum_edges(tables)
    slabs = np.unique(slab_of(run, np.concatenate([counts[0], edges.u])))
    graph = BlockGraph(edges, counts, (borders[0], borders[1], borders[2]), slabs)
    write_graph(run.block_file("block_graphs", block.index), graph)
    return BlockResult(stats={"edges": len(edges)})


def _across(
    run: Run, block: Block, axis: int, own: Faces, stitched: SparseMap
) -> tuple[EdgeTable, NDArray[np.uint64]]:
    """The edges across a lower face, and the fragments on both of its sides that touch."""
    before = predecessor(segment_grid(run), block, axis)
    if before is None or before.index not in holding_blocks(run, "fragments"):
        return EdgeTable.empty(), np.zeros(0, np.uint64)
    lower = own[axis, LOWER]
    upper = read_faces(run.block_file("block_records", before.index), UPPER, axis)[axis, UPPER]
    touching = (lower.labels != 0) & (upper.labels != 0)
    labels = present(lower.labels[touching], upper.labels[touching])
    if not len(labels):
        return EdgeTable.empty(), labels
    names = unite_maps([stitched, read_map(run.block_file("stitch", before.index))])
    return map_edges(cross_face_edges(lower, upper), *names), present(apply_lookup(labels, *names))


def _create(run: Run) -> None:
    run.path("block_graphs").mkdir(parents=True)


EDGES = Stage(
    name="edges",
    version=2,
    reads=("block_records", "stitch"),
    writes=("block_graphs",),
    parameters=lambda _run: {},
    grid=segment_grid,
    create=_create,
    process=_edges,
)
