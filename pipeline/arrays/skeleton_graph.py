"""The neighbours of every node of a skeleton, which may hold cycles."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@njit(cache=True, nogil=True)
def neighbours_of(count: int, edges: Integers) -> tuple[Integers, Integers]:
    """The neighbours of node n, ascending: `neighbours[starts[n]:starts[n + 1]]`.

    An edge given twice, in either direction, counts once; one from a node to itself not at all.

    Args:
        count: number of nodes.
        edges: (E, 2), indices below `count`.

    Returns:
        `starts` (N + 1,) and `neighbours`.
    """
    fill = np.zeros(count + 1, np.int64)
    for e in range(len(edges)):
        if edges[e, 0] != edges[e, 1]:
            fill[edges[e, 0] + 1] += 1
            fill[edges[e, 1] + 1] += 1
    first = np.cumsum(fill)
    fill = first[:-1].copy()
    found = np.empty(first[-1], np.int64)
    for e in range(len(edges)):
        for side in range(2):
            node, other = edges[e, side], edges[e, 1 - side]
            if node != other:
                found[fill[node]] = other
                fill[node] += 1
    starts = np.zeros(count + 1, np.int64)
    kept = 0
    for node in range(count):
        found[first[node] : first[node + 1]].sort()
        begin = kept
        for slot in range(first[node], first[node + 1]):
            if kept == begin or found[slot] != found[kept - 1]:
                found[kept] = found[slot]
                kept += 1
        starts[node + 1] = kept
    return starts, found[:kept].copy()
