"""Labels at the nodes of the tracings: which block reads which chunk, and the tables they leave.

The nodes of all tracings are laid end to end, in the order of the tracings' names, and numbered. A
block reads those chunks of the labels that hold a node, each once; chunks without nodes are never
read. Tables of blocks hold disjoint nodes, so together they are the same for every blocking.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_nodes import inside_roi, node_voxels
from pipeline.geometry import Block, BlockGrid, Triple, triple
from pipeline.stages.base import BlockResult
from pipeline.stages.block_tables import holding_blocks
from pipeline.stages.run import Run
from pipeline.stages.truth import scored_truth
from pipeline.storage.chunks import chunk_shape
from pipeline.storage.source import open_source, read_labels
from pipeline.storage.tables import read_table, write_table

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Nodes:
    """Every node of the tracings that lies inside the volume.

    Attributes:
        number: (N,) int64, the node's number.
        voxels: (N, 3) int64, z, y, x.
        by_block: rows of the nodes in each block of a grid that holds any.
    """

    number: Rows
    voxels: Rows
    by_block: dict[int, Rows]


def rows_by_block(voxels: Rows, grid: BlockGrid) -> dict[int, Rows]:
    """The rows of the voxels (N, 3) in each block; blocks without any are not there."""
    position = (voxels - grid.volume.offset) // grid.block_shape
    index = np.ravel_multi_index(tuple(position.T), grid.cells)
    order = np.argsort(index, kind="stable")
    first = np.flatnonzero(np.diff(index[order], prepend=-1))
    return dict(zip(index[order][first].tolist(), np.split(order, first[1:]), strict=False))


def nodes_by_block(run: Run, grid: BlockGrid) -> Nodes:
    """The nodes to score, by the blocks of a grid; kept in memory."""
    return _nodes_by_block(run, run.truth_stamp, run.token, grid)


@lru_cache(maxsize=2)
def _nodes_by_block(run: Run, _stamp: str, _token: str, grid: BlockGrid) -> Nodes:
    voxels = np.concatenate([node_voxels(skeleton) for skeleton in scored_truth(run)])
    number = np.flatnonzero(inside_roi(voxels, run.roi))
    return Nodes(number, voxels[number], rows_by_block(voxels[number], grid))


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
    chunks = BlockGrid.over(open_source(source).shape, chunk_shape(source))
    labels = np.zeros(len(rows), np.uint64)
    by_chunk = rows_by_block(voxels, chunks)
    for index, here in by_chunk.items():
        box = chunks[index].write
        z, y, x = (voxels[here] - box.offset).T
        labels[here] = read_labels(source, box)[z, y, x]
    _write(artifact, block, nodes.number[rows], labels, run)
    return BlockResult(stats={"nodes": len(rows), "chunks": len(by_chunk)})


def keep_node_labels(
    artifact: str, labels: NDArray[np.uint64], grid: BlockGrid, block: Block, run: Run
) -> None:
    """Keep labels (block.write.shape) that are in memory at the nodes of a block."""
    nodes = nodes_by_block(run, grid)
    rows = nodes.by_block.get(block.index, np.zeros(0, np.int64))
    z, y, x = (nodes.voxels[rows] - block.write.offset).T
    _write(artifact, block, nodes.number[rows], labels[z, y, x], run)


def _write(artifact: str, block: Block, number: Rows, labels: NDArray[np.uint64], run: Run) -> None:
    write_table(run.block_file(artifact, block.index), {"node": number, "label": labels})


def gather_node_labels(artifact: str, run: Run) -> NDArray[np.uint64]:
    """The label of every node, by its number; nodes outside the volume have 0.

    Raises:
        StageError: the stage of the artifact's name is not complete.
    """
    labels = np.zeros(sum(len(s.nodes) for s in scored_truth(run)), np.uint64)
    for index in sorted(holding_blocks(run, artifact)):
        rows = read_table(run.block_file(artifact, index))
        labels[rows["node"]] = rows["label"]
    return labels


def by_tracing(labels: NDArray[np.uint64], run: Run) -> list[NDArray[np.uint64]]:
    """Labels by number as those of each tracing."""
    ends = np.cumsum([len(s.nodes) for s in scored_truth(run)])
    return np.split(labels, ends[:-1])
