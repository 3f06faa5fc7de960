"""Short side branches and crumbs of skeletons taken away.

A side branch runs from a tip to the first node where three or more edges meet. Taking one away can
turn that node into an ordinary one, so that two branches become one longer branch: each is looked
at again with its new length before it is judged. Rings have no tip and stay; one that a branch
leads to is a branching like any other.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_join_graph import adjacency, number_groups, unite


def edge_lengths(positions: NDArray[np.float64], edges: NDArray[np.integer]) -> NDArray[np.float64]:
    """(E,) distance between the ends of each edge."""
    ends = positions[edges]
    return np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).sum(axis=1))


def components(count: int, edges: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N,) the connected component of each of `count` nodes, numbered by their smallest nodes."""
    group = np.arange(count, dtype=np.int32)
    unite(group, edges.astype(np.int32, copy=False))
    number_groups(group)
    return group.astype(np.int64)


def prune_ticks(
    positions_nm: NDArray[np.float64], edges: NDArray[np.integer], tick_nm: float
) -> tuple[NDArray[np.bool_], int]:
    """Which nodes stay when side branches shorter than `tick_nm` go, shortest first.

    A component without a branching is never touched, however short.

    Args:
        positions_nm: (N, 3).
        edges: (E, 2), each once; cycles allowed.
        tick_nm: the limit, nanometres.

    Returns:
        (N,) bool, and the number of branches removed.
    """
    return prune_branches(positions_nm, edges, np.full(len(positions_nm), float(tick_nm)))


def prune_branches(
    positions_nm: NDArray[np.float64], edges: NDArray[np.integer], limit_nm: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], int]:
    """As `prune_ticks`, with a limit for the branches that leave each node.

    Args:
        positions_nm: (N, 3).
        edges: (E, 2), each once; cycles allowed.
        limit_nm: (N,) a side branch goes if it is shorter than this at the node that it leaves.

    Returns:
        (N,) bool, and the number of branches removed.
    """
    # Neighbours are walked in the order of the edges; a branch has one way on, so it is no matter.
    starts, neighbours = adjacency(len(positions_nm), edges.astype(np.int32, copy=False))
    return _prune(np.asarray(positions_nm, np.float64), starts, neighbours, limit_nm)


@njit(cache=True, nogil=True)
def _prune(
    positions: NDArray[np.float64],
    starts: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    limit: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], int]:
    count = len(positions)
    alive = np.ones(count, np.bool_)
    degree = np.empty(count, np.int32)
    heap = [(0.0, 0) for _ in range(0)]
    longest = 0.0
    for node in range(count):
        longest = max(longest, limit[node])
        degree[node] = starts[node + 1] - starts[node]
    for tip in range(count):
        if degree[tip] == 1:
            length, _ = _branch(tip, starts, neighbours, degree, alive, positions, longest)
            if length < longest:
                heap.append((length, tip))
    heapify(heap)
    removed = 0
    while len(heap) > 0:
        rank, tip = heappop(heap)
        length, end = _branch(tip, starts, neighbours, degree, alive, positions, longest)
        if degree[end] < 3:
            continue  # all that is left of its component
        if length != rank:
            if length < longest:
                heappush(heap, (length, tip))
            continue
        if length >= limit[end]:
            continue
        _clear(tip, end, starts, neighbours, alive)
        degree[end] -= 1
        removed += 1
    return alive, removed


@njit(cache=True, nogil=True)
def _onward(
    node: int,
    previous: int,
    starts: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    alive: NDArray[np.bool_],
) -> int:
    """The living neighbour that is not `previous`; -1 without one."""
    for slot in range(starts[node], starts[node + 1]):
        if alive[neighbours[slot]] and neighbours[slot] != previous:
            return neighbours[slot]
    return -1


@njit(cache=True, nogil=True)
def _branch(
    tip: int,
    starts: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    degree: NDArray[np.int32],
    alive: NDArray[np.bool_],
    positions: NDArray[np.float64],
    longest: float,
) -> tuple[float, int]:
    """Length from a tip to the first node that is no ordinary one, and that node.

    A branch is walked no further than `longest`: a neurite may be long, and it stays.
    """
    previous, node = -1, tip
    length = 0.0
    while length < longest:
        onward = _onward(node, previous, starts, neighbours, alive)
        if onward < 0:
            break
        square = 0.0
        for axis in range(3):
            square += (positions[node, axis] - positions[onward, axis]) ** 2
        length += np.sqrt(square)
        previous, node = node, onward
        if degree[node] != 2:
            break
    return length, node


@njit(cache=True, nogil=True)
def _clear(
    tip: int,
    end: int,
    starts: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    alive: NDArray[np.bool_],
) -> None:
    """Clear `alive` from a tip up to, but not at, the end of its branch."""
    node = tip
    while node != end:
        alive[node] = False
        node = _onward(node, -1, starts, neighbours, alive)


def drop_dust(
    positions_nm: NDArray[np.float64],
    edges: NDArray[np.integer],
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
