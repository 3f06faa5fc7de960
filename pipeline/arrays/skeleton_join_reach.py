"""Which nodes lie within reach of others, by cells of space.

The nodes in doubt lie in cells, sorted by tree and cell, so that a node looks only at the few cells
that its reach touches.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_join_graph import Indices, first_row

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# How far a thicker node is looked for, in edges of cells, each of two median reaches.
_FAR = 2.0


def covered_by(
    kept: Flags,
    parent: Indices,
    root: Indices,
    positions_nm: Floats,
    radius_nm: Floats,
    reach_nm: Floats,
    doubtful: NDArray[np.int64],
) -> None:
    """For each node in doubt that no kept node of its tree reaches, keep one that does.

    It is the thickest of those in doubt that reach it and are out of reach themselves; of equally
    thick ones the node itself, then the first in the given order.

    Args:
        kept: (N,), changed: a node that is added comes with its way to the root.
        parent, root: (N,) the tree of each node.
        positions_nm: (N, 3).
        radius_nm: (N,).
        reach_nm: (N,) how far a kept node reaches.
        doubtful: (D,) nodes that are not kept.
    """
    order, edge, trees, cells = _sorted_cells(root, positions_nm, reach_nm, doubtful)
    nobody = np.full((len(kept), 2), -1, np.int32)
    covered = np.zeros(len(kept), np.bool_)
    nodes, runs = doubtful[order], _runs(trees, len(kept))
    _cover_all(
        covered, kept, root, positions_nm, reach_nm, edge, nodes, trees, cells, runs, nobody, root
    )  # fmt: skip
    _thin(
        covered, kept, parent, root, positions_nm, radius_nm, reach_nm, doubtful, edge,
        nodes, order, trees, cells, runs, nobody,
    )  # fmt: skip


def reached_by_others(
    kept: Flags,
    root: Indices,
    positions_nm: Floats,
    reach_nm: Floats,
    doubtful: NDArray[np.int64],
    owner: Indices,
    anchor: Indices,
) -> Flags:
    """(N,) the nodes in doubt that a kept node of their tree reaches that is not of their own.

    A kept node k is a doubtful node n's own if anchor[n] is one of owner[k], (N, 2).
    """
    covered = np.zeros(len(kept), np.bool_)
    if len(doubtful):
        order, edge, trees, cells = _sorted_cells(root, positions_nm, reach_nm, doubtful)
        _cover_all(
            covered, kept, root, positions_nm, reach_nm, edge,
            doubtful[order], trees, cells, _runs(trees, len(kept)), owner, anchor,
        )  # fmt: skip
    return covered


def _sorted_cells(
    root: Indices, positions_nm: Floats, reach_nm: Floats, doubtful: NDArray[np.int64]
) -> tuple[NDArray[np.int64], float, Indices, Indices]:
    """The order of the nodes by tree and cell, the edge of a cell, and the sorted rows."""
    edge = 2.0 * float(np.median(reach_nm[doubtful])) or 1.0
    cells = np.floor(positions_nm[doubtful] / edge).astype(np.int32)
    trees = root[doubtful]
    order = np.lexsort((cells[:, 2], cells[:, 1], cells[:, 0], trees))
    return order, edge, trees[order], cells[order]


@njit(cache=True, nogil=True)
def _runs(trees: Indices, count: int) -> Indices:
    """(N, 2) the rows of each tree, by its root; -1 without any."""
    runs = np.full((count, 2), -1, np.int32)
    for at in range(len(trees)):
        if runs[trees[at], 0] < 0:
            runs[trees[at], 0] = at
        runs[trees[at], 1] = at + 1
    return runs


@njit(cache=True, nogil=True)
def _cover_all(
    covered: Flags,
    kept: Flags,
    root: Indices,
    positions: Floats,
    reach: Floats,
    edge: float,
    nodes: NDArray[np.int64],
    trees: Indices,
    cells: Indices,
    runs: Indices,
    owner: Indices,
    anchor: Indices,
) -> None:
    for node in range(len(kept)):
        if kept[node] and runs[root[node], 0] >= 0:
            _cover(
                covered, node, runs[root[node]], positions, reach, edge, nodes, trees, cells,
                owner[node], anchor,
            )  # fmt: skip


@njit(cache=True, nogil=True)
def _thin(
    covered: Flags,
    kept: Flags,
    parent: Indices,
    root: Indices,
    positions: Floats,
    radius: Floats,
    reach: Floats,
    doubtful: NDArray[np.int64],
    edge: float,
    nodes: NDArray[np.int64],
    order: NDArray[np.int64],
    trees: Indices,
    cells: Indices,
    runs: Indices,
    nobody: Indices,
) -> None:
    for first in doubtful:
        if covered[first]:
            continue
        node = _thickest_near(
            covered, kept, first, runs[root[first]], positions, radius, reach, edge, nodes, order,
            trees, cells,
        )  # fmt: skip
        while not kept[node]:
            kept[node] = True
            _cover(
                covered, node, runs[root[node]], positions, reach, edge, nodes, trees, cells,
                nobody[node], root,
            )  # fmt: skip
            node = parent[node]


@njit(cache=True, nogil=True)
def _thickest_near(
    covered: Flags,
    kept: Flags,
    node: int,
    run: Indices,
    positions: Floats,
    radius: Floats,
    reach: Floats,
    edge: float,
    nodes: NDArray[np.int64],
    order: NDArray[np.int64],
    trees: Indices,
    cells: Indices,
) -> int:
    """The thickest node in doubt that reaches one and that nothing covers; at least itself.

    Of equal ones that of the smallest `order`, the place in the order of the nodes in doubt.
    """
    best, place = node, np.int64(-1)
    low, high = _cells_around(node, positions, _FAR * edge, edge)
    for z in range(low[0], high[0] + 1):
        for y in range(low[1], high[1] + 1):
            begin = first_row(trees, cells, run[0], run[1], (trees[run[0]], z, y, low[2]))
            end = first_row(trees, cells, begin, run[1], (trees[run[0]], z, y, high[2] + 1))
            for at in range(begin, end):
                other = nodes[at]
                if covered[other] or kept[other] or radius[other] < radius[best]:
                    continue
                if radius[other] == radius[best] and order[at] >= place:
                    continue
                square = 0.0
                for axis in range(3):
                    square += (positions[node, axis] - positions[other, axis]) ** 2
                if square <= reach[other] ** 2:
                    best, place = other, order[at]
    return best


@njit(cache=True, nogil=True)
def _cells_around(
    node: int, positions: Floats, reach: float, edge: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first and the last cell, along each axis, within a distance of a node."""
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for axis in range(3):
        low[axis] = np.floor((positions[node, axis] - reach) / edge)
        high[axis] = np.floor((positions[node, axis] + reach) / edge)
    return low, high


@njit(cache=True, nogil=True)
def _cover(
    covered: Flags,
    node: int,
    run: Indices,
    positions: Floats,
    reach: Floats,
    edge: float,
    nodes: NDArray[np.int64],
    trees: Indices,
    cells: Indices,
    owner: Indices,
    anchor: Indices,
) -> None:
    """Mark all nodes in doubt within reach of a node, but for those anchored at its owner."""
    low, high = _cells_around(node, positions, reach[node], edge)
    # A reach of many cells may hold fewer nodes than rows of cells: then all are looked at.
    everything = (high[0] - low[0] + 1) * (high[1] - low[1] + 1) * 8 > run[1] - run[0]
    if everything:
        _cover_rows(covered, node, run[0], run[1], positions, reach, nodes, owner, anchor)
        return
    for z in range(low[0], high[0] + 1):
        for y in range(low[1], high[1] + 1):
            begin = first_row(trees, cells, run[0], run[1], (trees[run[0]], z, y, low[2]))
            end = first_row(trees, cells, begin, run[1], (trees[run[0]], z, y, high[2] + 1))
            _cover_rows(covered, node, begin, end, positions, reach, nodes, owner, anchor)


@njit(cache=True, nogil=True)
def _cover_rows(
    covered: Flags,
    node: int,
    begin: int,
    end: int,
    positions: Floats,
    reach: Floats,
    nodes: NDArray[np.int64],
    owner: Indices,
    anchor: Indices,
) -> None:
    for at in range(begin, end):
        square = 0.0
        for axis in range(3):
            square += (positions[node, axis] - positions[nodes[at], axis]) ** 2
        own = anchor[nodes[at]] == owner[0] or anchor[nodes[at]] == owner[1]
        if square <= reach[node] ** 2 and not own:
            covered[nodes[at]] = True
