"""Adjacency, components and sorted rows: what the steps of tracing and joining share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Indices = NDArray[np.int32]
Whole = NDArray[np.signedinteger[Any]]


@njit(cache=True, nogil=True)
def adjacency(count: int, edges: Indices) -> tuple[Indices, Indices]:
    """The neighbours of node n: `neighbours[starts[n]:starts[n + 1]]`.

    They ascend if `edges` is sorted with the smaller end first.
    """
    starts = np.zeros(count + 1, np.int32)
    for row in range(len(edges)):
        starts[edges[row, 0] + 1] += 1
        starts[edges[row, 1] + 1] += 1
    for node in range(count):
        starts[node + 1] += starts[node]
    fill = starts[:-1].copy()
    neighbours = np.empty(2 * len(edges), np.int32)
    for row in range(len(edges)):
        first, second = edges[row, 0], edges[row, 1]
        neighbours[fill[first]] = second
        neighbours[fill[second]] = first
        fill[first] += 1
        fill[second] += 1
    return starts, neighbours


@njit(cache=True, nogil=True)
def find(group: Whole, node: int) -> int:
    """The group of a node: the root of its tree, which is halved on the way."""
    while group[node] != node:
        group[node] = group[group[node]]
        node = group[node]
    return node


@njit(cache=True, nogil=True)
def unite(group: Whole, edges: Whole) -> NDArray[np.bool_]:
    """(E,) which edges, taken in their order, join two groups that were apart (Kruskal).

    The root of a group is its smallest node. `group` (N,) is changed.
    """
    joins = np.zeros(len(edges), np.bool_)
    for row in range(len(edges)):
        first, second = find(group, edges[row, 0]), find(group, edges[row, 1])
        if first != second:
            group[max(first, second)] = min(first, second)
            joins[row] = True
    return joins


@njit(cache=True, nogil=True)
def number_groups(group: Indices) -> int:
    """Replace the roots of `unite` by 0, 1, ... in the order of the smallest members; how many."""
    count = 0
    for node in range(len(group)):
        if group[node] == node:
            group[node] = count
            count += 1
        else:
            # The node above is smaller, so it holds its number already.
            group[node] = group[group[node]]
    return count


@njit(cache=True, nogil=True)
def first_row(
    segment: Indices, places: Indices, low: int, high: int, key: tuple[int, int, int, int]
) -> int:
    """The first of the sorted rows low:high (segment, then place) that is not below `key`."""
    name, z, y, x = key
    while low < high:
        middle = (low + high) // 2
        a, b, c = segment[middle], places[middle, 0], places[middle, 1]
        below = a < name or (
            a == name and (b < z or (b == z and (c < y or (c == y and places[middle, 2] < x))))
        )
        if below:
            low = middle + 1
        else:
            high = middle
    return low
