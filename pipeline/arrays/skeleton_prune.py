"""Short side branches and crumbs of a forest taken away.

A side branch runs from a tip to the first node where three or more edges meet. Taking one away can
turn that node into an ordinary one, so that two branches become one longer branch: each is looked
at again with its new length before it is judged.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def edge_lengths(positions: NDArray[np.float64], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """(E,) distance between the ends of each edge."""
    ends = positions[edges]
    return np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).sum(axis=1))


def components(count: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the connected component of each of `count` nodes."""
    ones = np.ones(len(edges), np.int8)
    graph = coo_array((ones, (edges[:, 0], edges[:, 1])), (count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def prune_ticks(
    positions_nm: NDArray[np.float64], edges: NDArray[np.int64], tick_nm: float
) -> tuple[NDArray[np.bool_], int]:
    """Which nodes stay when side branches shorter than `tick_nm` go, shortest first.

    A tree without a branching is never touched, however short.

    Args:
        positions_nm: (N, 3).
        edges: (E, 2) of a forest.
        tick_nm: the limit, nanometres.

    Returns:
        (N,) bool, and the number of branches removed.
    """
    count = len(positions_nm)
    starts, neighbours = _adjacency(count, edges)
    degree = np.diff(starts)
    alive = np.ones(count, bool)
    buffer = np.empty(count + 1, np.int64)

    def branch(tip: int) -> tuple[float, NDArray[np.int64]]:
        path = buffer[: _walk(tip, starts, neighbours, degree, alive, buffer)].copy()
        steps = np.diff(positions_nm[path], axis=0)
        return float(np.sqrt((steps**2).sum(axis=1)).sum()), path

    tips: list[int] = np.flatnonzero(degree == 1).tolist()
    heap = [(branch(tip)[0], tip) for tip in tips]
    heapq.heapify(heap)
    removed = 0
    while heap and heap[0][0] < tick_nm:
        rank, tip = heapq.heappop(heap)
        length, path = branch(tip)
        if degree[path[-1]] < 3:
            continue  # all that is left of its tree
        if length != rank:
            heapq.heappush(heap, (length, tip))
            continue
        alive[path[:-1]] = False
        degree[path[-1]] -= 1
        removed += 1
    return alive, removed


def _adjacency(count: int, edges: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The neighbours of node n, ascending: `neighbours[starts[n]:starts[n + 1]]`."""
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    starts = np.searchsorted(both[:, 0], np.arange(count + 1))
    return starts.astype(np.int64), np.ascontiguousarray(both[:, 1])


@njit(cache=True, nogil=True)
def _walk(
    tip: int,
    starts: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    degree: NDArray[np.int64],
    alive: NDArray[np.bool_],
    path: NDArray[np.int64],
) -> int:
    """Fill `path` from a tip to the first node that is no ordinary one; returns its length."""
    path[0] = tip
    count = 1
    previous, node = -1, tip
    while True:
        onward = -1
        for slot in range(starts[node], starts[node + 1]):
            candidate = neighbours[slot]
            if alive[candidate] and candidate != previous:
                onward = candidate
                break
        if onward < 0:
            return count
        path[count] = onward
        count += 1
        previous, node = node, onward
        if degree[node] != 2:
            return count


def drop_dust(
    positions_nm: NDArray[np.float64],
    edges: NDArray[np.int64],
    alive: NDArray[np.bool_],
    dust_nm: float,
) -> int:
    """Clear `alive` on components with less cable than `dust_nm`; returns how many.

    `edges` join living nodes only.
    """
    part = components(len(alive), edges)
    cable = np.bincount(
        part[edges[:, 0]], edge_lengths(positions_nm, edges), minlength=part.max(initial=-1) + 1
    )
    dust = (cable < dust_nm)[part] & alive
    alive[dust] = False
    return len(np.unique(part[dust]))
