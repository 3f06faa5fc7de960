"""Labels at the nodes of the tracings: which block reads which chunk, and the tables they leave.

The nodes of all tracings in the region to score are laid end to end, in the order of the tracings'
names, and numbered; what becomes of those outside the volume is decided when labels are gathered. A
block reads those chunks of the labels that hold a node, each once, several at a time; chunks
without nodes are never read. Tables of blocks hold disjoint nodes, so together they are the same
for every blocking.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.cells import nodes_by_cell, order_by_cell
from pipeline.arrays.skeleton_nodes import take_labels
from pipeline.geometry import Block, BlockGrid, Roi, Triple, triple
from pipeline.stages.base import BlockResult
from pipeline.stages.block_tables import holding_blocks
from pipeline.stages.run import Run
from pipeline.stages.truth import located_truth, scored_nodes, scored_truth
from pipeline.storage.chunks import chunk_shape
from pipeline.storage.source import open_source, read_labels, reading_threads
from pipeline.storage.tables import read_table, write_table
from pipeline.threads import map_threads

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Nodes:
    """Every node of the tracings that lies inside the volume, in the order of the blocks.

    Attributes:
        number: (N,) int64, the node's number; rising in a block.
        voxels: (N, 3) int64, z, y, x.
        by_block: where the nodes of each block of a grid are that holds any.
    """

    number: Rows
    voxels: Rows
    by_block: dict[int, slice]


def rows_by_block(voxels: Rows, grid: BlockGrid) -> dict[int, Rows]:
    """The rows of the voxels (N, 3) in each block; blocks without any are not there."""
    order, cells = order_by_cell(voxels, grid)
    return {index: order[rows] for index, rows in cells.ranges().items()}


def nodes_by_block(run: Run, grid: BlockGrid) -> Nodes:
    """The nodes to label, by the blocks of a grid; kept in memory."""
    return _nodes_by_block(run, run.truth_stamp, run.token, grid)


@lru_cache(maxsize=2)
def _nodes_by_block(run: Run, _stamp: str, _token: str, grid: BlockGrid) -> Nodes:
    number, voxels, cells = nodes_by_cell(located_truth(run), grid)
    return Nodes(number, voxels, cells.ranges())


def chunk_grid(path: Path, shape: Triple, extent: Triple) -> BlockGrid:
    """Blocks of whole chunks of the labels at a path: `extent`, rounded up."""
    chunk = chunk_shape(path)
    block = tuple(c * -(-e // c) for c, e in zip(chunk, extent, strict=True))
    return BlockGrid.over(shape, triple(block))


def holds_nodes(run: Run, grid: BlockGrid, block: Block) -> bool:
    """Whether a node lies in a block."""
    return block.index in nodes_by_block(run, grid).by_block


def read_node_labels(
    artifact: str, source: Path, grid: BlockGrid, block: Block, run: Run
) -> BlockResult:
    """Keep the labels of the volume at `source` at the nodes of a block."""
    nodes = nodes_by_block(run, grid)
    rows = nodes.by_block[block.index]
    voxels = nodes.voxels[rows]
    chunks = _chunks_of(source, block)
    labels = np.zeros(len(voxels), np.uint64)
    by_chunk = rows_by_block(voxels, chunks)

    def read(index: int) -> None:
        box = chunks[index].write
        take_labels(read_labels(source, box), box.offset, voxels, by_chunk[index], labels)

    # A thread holds one chunk at a time, and writes no label that another writes.
    map_threads(read, list(by_chunk), reading_threads(source))
    _write(artifact, block, nodes.number[rows], labels, run)
    return BlockResult(stats={"nodes": len(labels), "chunks": len(by_chunk)})


def _chunks_of(source: Path, block: Block) -> BlockGrid:
    """The chunks of the volume at a path that a block touches."""
    shape, chunk = open_source(source).shape, chunk_shape(source)
    begin = tuple(b // c * c for b, c in zip(block.write.offset, chunk, strict=True))
    ends = zip(block.write.end, chunk, shape, strict=True)
    end = tuple(min(-(-e // c) * c, n) for e, c, n in ends)
    return BlockGrid(Roi.between(triple(begin), triple(end)), chunk)


def keep_node_labels(
    artifact: str, labels: NDArray[np.uint64], grid: BlockGrid, block: Block, run: Run
) -> None:
    """Keep labels (block.write.shape) that are in memory at the nodes of a block."""
    nodes = nodes_by_block(run, grid)
    rows = nodes.by_block.get(block.index, slice(0))
    z, y, x = (nodes.voxels[rows] - block.write.offset).T
    _write(artifact, block, nodes.number[rows], labels[z, y, x], run)


def _write(artifact: str, block: Block, number: Rows, labels: NDArray[np.uint64], run: Run) -> None:
    write_table(run.block_file(artifact, block.index), {"node": number, "label": labels})


def gather_node_labels(artifact: str, run: Run) -> NDArray[np.uint64]:
    """The label of every node that is scored, in their order; those outside the volume have 0.

    Raises:
        StageError: the stage of the artifact's name is not complete.
    """
    scored = scored_nodes(run)
    labels = np.zeros(sum(len(s.nodes) for s in located_truth(run)), np.uint64)
    for index in sorted(holding_blocks(run, artifact)):
        rows = read_table(run.block_file(artifact, index))
        labels[rows["node"]] = rows["label"]
    return labels if scored is None else labels[scored]


def by_tracing(labels: NDArray[np.uint64], run: Run) -> list[NDArray[np.uint64]]:
    """Labels of the scored nodes as those of each tracing that is scored."""
    ends = np.cumsum([len(s.nodes) for s in scored_truth(run)])
    return np.split(labels, ends[:-1])
