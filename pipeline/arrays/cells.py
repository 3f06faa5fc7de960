"""Voxels in the order of the cells of a grid that hold them.

Cells are few and voxels many, so they are counted and laid out, not compared with each other. Two
passes: how many voxels each cell has, then each voxel into the next free place of its cell. Within
a cell voxels keep their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import node_voxels
from pipeline.errors import ShapeError
from pipeline.geometry import BlockGrid

# A grid with more cells than this has most of them empty: those with voxels are numbered first.
_MANY_CELLS = 1 << 22

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells that hold something.

    Attributes:
        index: (K,) int64, increasing, the cells in the grid.
        ends: (K + 1,) int64: what cell index[k] holds are items ends[k] to ends[k + 1].
    """

    index: Rows
    ends: Rows

    def ranges(self) -> dict[int, slice]:
        """Where the items of each cell are."""
        bounds = zip(self.ends[:-1].tolist(), self.ends[1:].tolist(), strict=True)
        spans = (slice(begin, end) for begin, end in bounds)
        return dict(zip(self.index.tolist(), spans, strict=True))


def order_by_cell(voxels: Rows, grid: BlockGrid) -> tuple[Rows, Cells]:
    """The rows of the voxels (N, 3; z, y, x) in the order of the cells that hold them.

    Raises:
        ShapeError: a voxel lies outside the grid.
    """
    voxels = np.ascontiguousarray(voxels, np.int64)
    keys = np.empty(len(voxels), np.int64)
    if _cells_of_voxels(voxels, *_geometry(grid), keys):
        raise ShapeError(f"a voxel lies outside the grid over {grid.volume}")
    cells, keys = _counted(keys, len(grid))
    order = np.empty(len(keys), np.int64)
    _lay_out(keys, cells.ends[:-1].copy(), order)
    return order, cells


def nodes_by_cell(skeletons: Sequence[Skeleton], grid: BlockGrid) -> tuple[Rows, Rows, Cells]:
    """The nodes of skeletons, laid end to end and numbered, in the order of the cells.

    Returns:
        (N,) int64 the numbers of the nodes in the grid's volume; (N, 3) int64 their voxels; where
        those of each cell are. Nodes outside are left out.

    Raises:
        InputError: a coordinate is not finite, or beyond what an integer holds.
    """
    begins = np.cumsum([0, *(len(skeleton.nodes) for skeleton in skeletons)]).tolist()
    parts = [slice(*pair) for pair in pairwise(begins)]
    keys, outside = np.empty(begins[-1], np.int64), 0
    for skeleton, part in zip(skeletons, parts, strict=True):
        # Voxels are made twice: kept, they would take as much memory as the nodes.
        outside += _cells_of_voxels(node_voxels(skeleton), *_geometry(grid), keys[part])
    cells, keys = _counted(keys, len(grid))
    number = np.empty(len(keys) - outside, np.int64)
    voxels = np.empty((len(number), 3), np.int64)
    free = cells.ends[:-1].copy()
    for skeleton, part in zip(skeletons, parts, strict=True):
        _lay_out_voxels(node_voxels(skeleton), keys[part], part.start, free, number, voxels)
    return number, voxels, cells


def _geometry(grid: BlockGrid) -> tuple[Rows, Rows, Rows, Rows]:
    volume = grid.volume
    parts = (volume.offset, volume.end, grid.block_shape, grid.cells)
    begin, end, block, cells = (np.array(part, np.int64) for part in parts)
    return begin, end, block, cells


def _counted(keys: Rows, cells: int) -> tuple[Cells, Rows]:
    """The cells that hold something, and which of these each key names; -1 stays -1."""
    if cells > _MANY_CELLS:
        present = np.unique(keys)
        present = present[present >= 0]
        ranks = np.where(keys < 0, -1, np.searchsorted(present, keys))
        counts = np.zeros(len(present), np.int64)
        _count(ranks, counts)
        return Cells(present, _ends(counts)), ranks
    counts = np.zeros(cells, np.int64)
    _count(keys, counts)
    present = np.flatnonzero(counts)
    rank = np.zeros(cells, np.int64)
    rank[present] = np.arange(len(present))
    _rename(keys, rank)
    return Cells(present, _ends(counts[present])), keys


def _ends(counts: Rows) -> Rows:
    ends = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends


@njit(cache=True, nogil=True)
def _cells_of_voxels(
    voxels: Rows, begin: Rows, end: Rows, block: Rows, cells: Rows, keys: Rows
) -> int:
    """The cell of each voxel, -1 outside; how many are outside."""
    outside = 0
    for i in range(len(voxels)):
        keys[i] = 0
        for axis in range(3):
            voxel = voxels[i, axis]
            if not begin[axis] <= voxel < end[axis]:
                keys[i] = -1
                outside += 1
                break
            keys[i] = keys[i] * cells[axis] + (voxel - begin[axis]) // block[axis]
    return outside


@njit(cache=True, nogil=True)
def _count(keys: Rows, counts: Rows) -> None:
    for key in keys:
        if key >= 0:
            counts[key] += 1


@njit(cache=True, nogil=True)
def _rename(keys: Rows, rank: Rows) -> None:
    for i in range(len(keys)):
        if keys[i] >= 0:
            keys[i] = rank[keys[i]]


@njit(cache=True, nogil=True)
def _lay_out(keys: Rows, free: Rows, order: Rows) -> None:
    """The rows by key; `free` is the next free place of each, and is used up."""
    for i in range(len(keys)):
        order[free[keys[i]]] = i
        free[keys[i]] += 1


@njit(cache=True, nogil=True)
def _lay_out_voxels(
    found: Rows, keys: Rows, first: int, free: Rows, number: Rows, voxels: Rows
) -> None:
    """As `_lay_out`, with the voxels themselves; `first` is the number of the first one."""
    for i in range(len(found)):
        if keys[i] < 0:
            continue
        place = free[keys[i]]
        free[keys[i]] += 1
        number[place] = first + i
        for axis in range(3):
            voxels[place, axis] = found[i, axis]
