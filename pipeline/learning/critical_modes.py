"""The three definitions of a critical component, on runs that are already put into parts.

    linear  C does not touch exactly one remaining component.                  Corollaries 1 to 3
    local   the voxels of its object around C do not form exactly one
            component among themselves.                                        Definitions 2 and 3
    global  the number of objects changes when C is removed: in the graph
            whose nodes are mistake components and remaining components, and
            whose edges tell which touch, C is alone or an articulation point.

Each gives a bool array of the runs that is True at the first runs of critical mistake components.
Global implies linear, linear implies local. All are linear in the number of voxels.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.learning.critical_runs import Labels3, Parts, Runs
from pipeline.learning.disjoint import find, union

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
def linear_critical(runs: Runs, parts: Parts) -> NDArray[np.bool_]:
    """Mistake components that touch no remaining component, or several."""
    touched = untouched(runs.begin.size)
    for k in range(parts.mistake.size):
        touch(touched, parts.of_run[parts.mistake[k]], parts.of_run[parts.right[k]])
    critical = np.zeros(touched.size, np.bool_)
    for i in range(touched.size):
        critical[i] = runs.mistaken[i] and touched[i] < 0 and parts.of_run[i] == i
    return critical


@njit(cache=True, nogil=True)
def local_critical(
    runs: Runs, parts: Parts, objects: Labels3, other: Labels3, rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Mistake components whose surroundings, within their object, fall apart without them.

    Args:
        objects, other: what the runs were cut from.
        rows: as `critical_runs.join_runs` takes them.
    """
    critical = linear_critical(runs, parts)
    order, starts = _by_part(parts.of_run)
    row_of = np.empty(critical.size, np.int32)
    for r in range(runs.row_start.size - 1):
        row_of[runs.row_start[r] : runs.row_start[r + 1]] = r
    around = np.full(objects.size, -1, np.int32)  # last component a voxel was found around
    parent = np.empty(objects.size, np.int32)
    found = np.empty(objects.size, np.int32)
    for c in range(critical.size):
        # Linear implies local: only the others need the look around.
        if parts.of_run[c] != c or not runs.mistaken[c] or critical[c]:
            continue
        count = 0
        for i in order[starts[c] : starts[c + 1]]:
            here = (row_of[i], runs.begin[i], runs.end[i])
            count = _surround(here, c, objects, other, rows, around, found, count)
        for j in found[:count]:
            parent[j] = j
        critical[c] = _count_sets(found[:count], c, objects.shape, rows, around, parent) != 1
    return critical


@njit(cache=True, nogil=True)
def _by_part(of_run: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Runs part by part: those of part p are order[starts[p] : starts[p + 1]]."""
    starts = np.zeros(of_run.size + 2, np.int32)
    for part in of_run:
        starts[part + 2] += 1
    for part in range(2, starts.size):
        starts[part] += starts[part - 1]
    order = np.empty(of_run.size, np.int32)
    for i, part in enumerate(of_run):
        order[starts[part + 1]] = i
        starts[part + 1] += 1
    return order, starts[:-1]


@njit(cache=True, nogil=True)
def _surround(
    run: tuple[int, int, int],
    component: int,
    objects: Labels3,
    other: Labels3,
    rows: NDArray[np.int64],
    around: NDArray[np.int32],
    found: NDArray[np.int32],
    count: int,
) -> int:
    """Add the right voxels around a run (row, begin, end) to `found`; gives the new count."""
    nz, ny, nx = objects.shape
    r, begin, end = run
    z, y = r // ny, r % ny
    label = objects[z, y, begin]
    for k in range(2 * len(rows) + 1):
        w, v, reach = z, y, 1
        if k < 2 * len(rows):
            side = 1 if k < len(rows) else -1
            step = rows[k % len(rows)]
            w, v, reach = z + side * step[0], y + side * step[1], step[2]
        if w < 0 or w >= nz or v < 0 or v >= ny:
            continue
        for u in range(max(begin - reach, 0), min(end + reach, nx)):
            j = (w * ny + v) * nx + u
            if objects[w, v, u] == label and other[w, v, u] != 0 and around[j] != component:
                around[j], found[count] = component, j
                count += 1
    return count


@njit(cache=True, nogil=True)
def _count_sets(
    voxels: NDArray[np.int32],
    component: int,
    shape: tuple[int, int, int],
    rows: NDArray[np.int64],
    around: NDArray[np.int32],
    parent: NDArray[np.int32],
) -> int:
    """Into how many sets of neighbours the voxels found around a component fall."""
    _, ny, nx = shape
    sets = voxels.size
    for i in voxels:
        z, y, x = i // (ny * nx), i // nx % ny, i % nx
        if x > 0 and around[i - 1] == component:
            sets -= _joined(parent, i, i - 1)
        for k in range(len(rows)):
            w, v = z + rows[k, 0], y + rows[k, 1]
            if w < 0 or v < 0 or v >= ny:
                continue
            for u in range(max(x - rows[k, 2], 0), min(x + rows[k, 2] + 1, nx)):
                j = (w * ny + v) * nx + u
                if around[j] == component:
                    sets -= _joined(parent, i, j)
    return sets


@njit(cache=True, nogil=True)
def _joined(parent: NDArray[np.int32], i: int, j: int) -> int:
    """Join two sets; 1 if they were two, else 0."""
    if find(parent, i) == find(parent, j):
        return 0
    union(parent, i, j)
    return 1


@njit(cache=True, nogil=True)
def global_critical(runs: Runs, parts: Parts) -> NDArray[np.bool_]:
    """Mistake components whose removal changes the number of objects."""
    node_of, nodes = _node_numbers(parts.of_run)
    starts, neighbours = _graph(parts, node_of, nodes)
    points = _articulation_points(starts, neighbours)
    critical = np.zeros(runs.begin.size, np.bool_)
    for i in range(critical.size):
        if runs.mistaken[i] and parts.of_run[i] == i:
            node = node_of[i]
            critical[i] = points[node] or starts[node] == starts[node + 1]
    return critical


@njit(cache=True, nogil=True)
def _node_numbers(of_run: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """For each run the number of its part, from 0, and the number of parts."""
    node_of = np.empty(of_run.size, np.int32)
    nodes = 0
    for i, first in enumerate(of_run):
        if first == i:
            node_of[i] = nodes
            nodes += 1
        else:
            node_of[i] = node_of[first]
    return node_of, nodes


@njit(cache=True, nogil=True)
def _graph(
    parts: Parts, node_of: NDArray[np.int32], nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Which parts touch: part n has neighbours[starts[n] : starts[n + 1]], some of them often."""
    starts = np.zeros(nodes + 2, np.int64)
    for ends in (parts.mistake, parts.right):
        for i in ends:
            starts[node_of[i] + 2] += 1
    for node in range(2, starts.size):
        starts[node] += starts[node - 1]
    neighbours = np.empty(starts[-1], np.int32)
    for k in range(parts.mistake.size):
        a, b = node_of[parts.mistake[k]], node_of[parts.right[k]]
        neighbours[starts[a + 1]], neighbours[starts[b + 1]] = b, a
        starts[a + 1] += 1
        starts[b + 1] += 1
    return starts[:-1], neighbours


@njit(cache=True, nogil=True)
def _articulation_points(
    starts: NDArray[np.int64], neighbours: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Nodes whose removal disconnects their component (Hopcroft and Tarjan, with a stack).

    Node n has the neighbours `neighbours[starts[n]:starts[n + 1]]`; no loops. An edge may occur
    more than once, which changes no articulation point.
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
