"""The three definitions of a critical component, on voxels that are already put into parts.

All take the same arguments: `parts`, the flat root of each voxel's part (a mistake component, or a
component of what remains of an object); `labels` (Z, Y, X) with 0 outside objects; `mistakes`
(Z, Y, X) bool; `offsets` (n, 3), the steps to the neighbours before a voxel in C order. All give a
flat bool array that is True at the roots of critical mistake components.

    linear  C does not touch exactly one remaining component.                  Corollaries 1 to 3
    local   the voxels of its object around C do not form exactly one
            component among themselves.                                        Definitions 2 and 3
    global  the number of objects changes when C is removed: in the graph
            whose nodes are mistake components and remaining components, and
            whose edges tell which touch, C is alone or an articulation point.

Global implies linear, linear implies local. All are linear in the number of voxels and of voxels
around mistakes (global: but for one sort of the touching pairs).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.learning.disjoint import union

_NONE = -1  # no remaining component touched so far
_SEVERAL = -2


@njit(cache=True, nogil=True)
def touch(touched: NDArray[np.int32], component: int, part: int) -> None:
    """Note that a mistake component touches a part: `touched` holds one part, or a negative."""
    if touched[component] == _NONE:
        touched[component] = part
    elif touched[component] != part:
        touched[component] = _SEVERAL


@njit(cache=True, nogil=True)
def untouched(size: int) -> NDArray[np.int32]:
    """The array that `touch` fills; negative entries are critical in the end."""
    return np.full(size, _NONE, dtype=np.int32)


@njit(cache=True, nogil=True)
def linear_critical(
    parts: NDArray[np.int32],
    labels: NDArray[np.uint64],
    mistakes: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Mistake components that touch no remaining component, or several."""
    touched = untouched(labels.size)
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                i = (z * ny + y) * nx + x
                if not mistakes[z, y, x] or touched[parts[i]] == _SEVERAL:
                    continue
                for k in range(2 * len(offsets)):
                    j = _remaining_neighbour(z, y, x, k, labels, mistakes, offsets)
                    if j >= 0:
                        touch(touched, parts[i], parts[j])
    return touched < 0


@njit(cache=True, nogil=True)
def _remaining_neighbour(
    z: int,
    y: int,
    x: int,
    k: int,
    labels: NDArray[np.uint64],
    mistakes: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> int:
    """Flat index of neighbour `k` if it is of the voxel's object and no mistake, else -1."""
    nz, ny, nx = labels.shape
    side = 1 if k < len(offsets) else -1
    step = k % len(offsets)
    w = z + side * offsets[step, 0]
    v = y + side * offsets[step, 1]
    u = x + side * offsets[step, 2]
    if w < 0 or w >= nz or v < 0 or v >= ny or u < 0 or u >= nx:
        return -1
    if labels[w, v, u] != labels[z, y, x] or mistakes[w, v, u]:
        return -1
    return (w * ny + v) * nx + u


def local_critical(
    parts: NDArray[np.int32],
    labels: NDArray[np.uint64],
    mistakes: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Mistake components whose surroundings, within their object, fall apart without them."""
    voxels = np.flatnonzero(mistakes)
    voxels = voxels[np.argsort(parts[voxels], kind="stable")]
    return _local_critical(voxels, parts, labels, mistakes, offsets)


@njit(cache=True, nogil=True)
def _local_critical(
    voxels: NDArray[np.int64],
    parts: NDArray[np.int32],
    labels: NDArray[np.uint64],
    mistakes: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """`voxels` are the mistakes, component by component."""
    _, ny, nx = labels.shape
    critical = np.zeros(labels.size, dtype=np.bool_)
    around = np.full(labels.size, -1, dtype=np.int32)  # last component a voxel was found around
    parent = np.zeros(labels.size, dtype=np.int32)
    found = np.empty(labels.size, dtype=np.int32)
    begin = 0
    while begin < voxels.size:
        component, count, end = parts[voxels[begin]], 0, begin
        while end < voxels.size and parts[voxels[end]] == component:
            i = voxels[end]
            for k in range(2 * len(offsets)):
                z, y, x = i // (ny * nx), i // nx % ny, i % nx
                j = _remaining_neighbour(z, y, x, k, labels, mistakes, offsets)
                if j >= 0 and around[j] != component:
                    around[j], parent[j], found[count] = component, j, j
                    count += 1
            end += 1
        for i in found[:count]:
            z, y, x = i // (ny * nx), i // nx % ny, i % nx
            for k in range(len(offsets)):
                j = _remaining_neighbour(z, y, x, k, labels, mistakes, offsets)
                if j >= 0 and around[j] == component:
                    union(parent, i, j)
        roots = 0
        for i in found[:count]:
            roots += parent[i] == i
        critical[component] = roots != 1
        begin = end
    return critical


def global_critical(
    parts: NDArray[np.int32],
    labels: NDArray[np.uint64],
    mistakes: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Mistake components whose removal changes the number of objects."""
    pairs = np.unique(_touching_pairs(parts, labels, mistakes, offsets))
    ends = np.stack([pairs // labels.size, pairs % labels.size])
    nodes, index = np.unique(ends, return_inverse=True)
    index = index.reshape(ends.shape)
    sources, targets = np.concatenate([index, index[::-1]], axis=1)
    order = np.argsort(sources, kind="stable")
    starts = np.searchsorted(sources[order], np.arange(nodes.size + 1))
    critical = mistakes.reshape(-1) & (parts == np.arange(parts.size))
    critical[nodes] &= _articulation_points(starts, targets[order])
    return critical


@njit(cache=True, nogil=True)
def _touching_pairs(
    parts: NDArray[np.int32],
    labels: NDArray[np.uint64],
    mistakes: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Pairs (mistake component, remaining component) as numbers c * size + r; some repeat."""
    _, ny, nx = labels.shape
    capacity, count = 1024, 0
    pairs = np.empty(capacity, dtype=np.int64)
    for i in np.flatnonzero(mistakes):
        z, y, x = i // (ny * nx), i // nx % ny, i % nx
        for k in range(2 * len(offsets)):
            j = _remaining_neighbour(z, y, x, k, labels, mistakes, offsets)
            if j < 0:
                continue
            pair = np.int64(parts[i]) * labels.size + parts[j]
            if count and pairs[count - 1] == pair:
                continue
            if count == capacity:
                capacity *= 2
                larger = np.empty(capacity, dtype=np.int64)
                larger[:count] = pairs[:count]
                pairs = larger
            pairs[count] = pair
            count += 1
    return pairs[:count]


@njit(cache=True, nogil=True)
def _articulation_points(
    starts: NDArray[np.int64], neighbours: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Nodes whose removal disconnects their component (Hopcroft and Tarjan, with a stack).

    Node n has the neighbours `neighbours[starts[n]:starts[n + 1]]`; no loops, no double edges.
    """
    size = starts.size - 1
    points = np.zeros(size, dtype=np.bool_)
    time = np.zeros(size, dtype=np.int64)  # of discovery, from 1
    low = np.zeros(size, dtype=np.int64)  # earliest node reached from below by one other edge
    parent = np.full(size, -1, dtype=np.int64)
    following = starts[:-1].copy()
    now = 0
    for root in range(size):
        if time[root]:
            continue
        now += 1
        time[root] = low[root] = now
        node, children = root, 0
        while node >= 0:
            if following[node] < starts[node + 1]:
                other = neighbours[following[node]]
                following[node] += 1
                if not time[other]:
                    parent[other] = node
                    now += 1
                    time[other] = low[other] = now
                    node = other
                elif other != parent[node]:
                    low[node] = min(low[node], time[other])
                continue
            above = parent[node]
            if above == root:
                children += 1
            elif above >= 0:
                points[above] |= low[node] >= time[above]
            if above >= 0:
                low[above] = min(low[above], low[node])
            node = above
        points[root] = children > 1
    return points
