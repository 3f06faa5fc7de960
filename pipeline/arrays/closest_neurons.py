"""The closest nodes that join neurons which share a label: exact minimum spanning trees in space.

Boruvka's algorithm on the neurons of a label: every team of joined neurons seeks its closest node
of another, in rounds, in a tree of boxes over the nodes. Boxes of one team are passed over whole,
and so are those farther than what the team has found: a few microseconds a node where one label
runs on every neuron of a data set, where trees pair by pair would grow with the square of their
number.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_forest import Floats, Integers

_LEAF_POINTS = 8
_MIXED, _NONE = -1, -2


@njit(cache=True, nogil=True)
def along_curve(points: Floats) -> NDArray[np.uint64]:
    """(N,) place of each point on a curve that fills space (Morton order of a 2^21 cube grid)."""
    code = np.zeros(len(points), np.uint64)
    if len(points) == 0:
        return code
    low = np.empty(3)
    size = 0.0
    for axis in range(3):
        low[axis] = points[:, axis].min()
        size = max(size, points[:, axis].max() - low[axis])
    scale = (2**21 - 1) / size if size > 0 else 0.0
    for i in range(len(points)):
        for axis in range(3):
            cell = np.uint64((points[i, axis] - low[axis]) * scale)
            # Two empty bits after each of the 21.
            cell = (cell | (cell << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
            cell = (cell | (cell << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
            cell = (cell | (cell << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
            cell = (cell | (cell << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
            cell = (cell | (cell << np.uint64(2))) & np.uint64(0x1249249249249249)
            code[i] |= cell << np.uint64(2 - axis)
    return code


@njit(cache=True, nogil=True)
def spanning_pairs(
    points: Floats, neuron: Integers, priority: Integers, starts: Integers, count: int
) -> tuple[Integers, Integers]:
    """For each label, the closest nodes that join its neurons: minimum spanning trees.

    Pairs of nodes are ordered by distance, then by the neurons' priorities and the coordinates:
    a strict order, hence one tree, however the points are listed.

    Args:
        points: (N, 3) nodes in nanometres, grouped by label; fast if close ones follow each other.
        neuron: (N,) the neuron of each.
        priority: per neuron, its place among them.
        starts: points starts[l]:starts[l + 1] carry label l, on two or more neurons.
        count: how many pairs there are: over all labels, neurons - 1.

    Returns:
        The two points of each pair, as indices.
    """
    first = np.empty(count, np.int64)
    second = np.empty(count, np.int64)
    filled = 0
    # By neuron; only those of the label at hand are looked at.
    team = np.empty(len(priority), np.int64)
    best = np.empty(len(priority))
    near = np.empty(len(priority), np.int64)
    far = np.empty(len(priority), np.int64)
    for label in range(len(starts) - 1):
        begin, end = starts[label], starts[label + 1]
        leaves = 1
        while leaves * _LEAF_POINTS < end - begin:
            leaves *= 2
        low, high = _boxes(points, begin, end, leaves)
        for i in range(begin, end):
            team[neuron[i]] = neuron[i]
        joined = True
        while joined:
            joined = False
            for i in range(begin, end):
                team[neuron[i]] = _root(team, neuron[i])
                best[neuron[i]] = np.inf
                near[neuron[i]] = -1
            teams = _teams(neuron, team, begin, end, leaves)
            if teams[1] != _MIXED:
                break
            for i in range(begin, end - 1):
                _offer(points, neuron, priority, team, best, near, far, i, i + 1)
                _offer(points, neuron, priority, team, best, near, far, i + 1, i)
            for leaf in range(leaves, 2 * leaves):
                if teams[leaf] != _NONE:
                    _search(
                        points, neuron, priority, team, best, near, far,
                        leaf, leaves, begin, end, low, high, teams,
                    )  # fmt: skip
            for i in range(begin, end):
                group = neuron[i]
                if near[group] < 0:
                    continue
                a, b = _root(team, group), _root(team, neuron[far[group]])
                if a != b:
                    team[a] = b
                    first[filled], second[filled] = near[group], far[group]
                    filled += 1
                    joined = True
                near[group] = -1
    return first[:filled], second[:filled]


@njit(cache=True, nogil=True)
def _root(team: Integers, member: int) -> int:
    while team[member] != member:
        team[member] = team[team[member]]
        member = team[member]
    return member


@njit(cache=True, nogil=True)
def _boxes(points: Floats, begin: int, end: int, leaves: int) -> tuple[Floats, Floats]:
    """Bounding boxes of a complete binary tree: node 1 is all, 2n and 2n + 1 are halves of n."""
    low = np.full((2 * leaves, 3), np.inf)
    high = np.full((2 * leaves, 3), -np.inf)
    for i in range(begin, end):
        leaf = leaves + (i - begin) // _LEAF_POINTS
        for axis in range(3):
            low[leaf, axis] = min(low[leaf, axis], points[i, axis])
            high[leaf, axis] = max(high[leaf, axis], points[i, axis])
    for node in range(leaves - 1, 0, -1):
        for axis in range(3):
            low[node, axis] = min(low[2 * node, axis], low[2 * node + 1, axis])
            high[node, axis] = max(high[2 * node, axis], high[2 * node + 1, axis])
    return low, high


@njit(cache=True, nogil=True)
def _teams(neuron: Integers, team: Integers, begin: int, end: int, leaves: int) -> Integers:
    """The team of all points of each box, or that there are several, or no point."""
    teams = np.full(2 * leaves, _NONE, np.int64)
    for i in range(begin, end):
        leaf = leaves + (i - begin) // _LEAF_POINTS
        own = team[neuron[i]]
        teams[leaf] = own if teams[leaf] == _NONE or teams[leaf] == own else _MIXED
    for node in range(leaves - 1, 0, -1):
        a, b = teams[2 * node], teams[2 * node + 1]
        teams[node] = a if b == _NONE or a == b else _MIXED
    return teams


@njit(cache=True, nogil=True)
def _box_gap(low: Floats, high: Floats, a: int, b: int) -> float:
    """Squared distance of two boxes: never more than that of two points in them, rounded too."""
    total = 0.0
    for axis in range(3):
        apart = max(low[a, axis] - high[b, axis], low[b, axis] - high[a, axis], 0.0)
        total += apart * apart
    return total


@njit(cache=True, nogil=True)
def _point_gap(points: Floats, i: int, low: Floats, high: Floats, box: int) -> float:
    """Squared distance of a point and a box, as `_box_gap`."""
    total = 0.0
    for axis in range(3):
        value = points[i, axis]
        apart = max(low[box, axis] - value, value - high[box, axis], 0.0)
        total += apart * apart
    return total


@njit(cache=True, nogil=True)
def _offer(
    points: Floats,
    neuron: Integers,
    priority: Integers,
    team: Integers,
    best: Floats,
    near: Integers,
    far: Integers,
    i: int,
    j: int,
) -> None:
    """Enter the pair as the best of the team of i, if it is and j is of another."""
    own = team[neuron[i]]
    if own == team[neuron[j]]:
        return
    total = 0.0
    for axis in range(3):
        apart = points[i, axis] - points[j, axis]
        total += apart * apart
    if total > best[own]:
        return
    if total < best[own] or _pair_before(points, neuron, priority, i, j, near[own], far[own]):
        best[own] = total
        near[own], far[own] = i, j


@njit(cache=True, nogil=True)
def _pair_before(
    points: Floats, neuron: Integers, priority: Integers, i: int, j: int, k: int, m: int
) -> bool:
    """Order of pairs (i, j) and (k, m) at equal distance."""
    if k < 0:
        return True
    if priority[neuron[i]] > priority[neuron[j]]:
        i, j = j, i
    if priority[neuron[k]] > priority[neuron[m]]:
        k, m = m, k
    for a, b in ((i, k), (j, m)):
        if neuron[a] != neuron[b]:
            return priority[neuron[a]] < priority[neuron[b]]
    for a, b in ((i, k), (j, m)):
        for axis in range(3):
            if points[a, axis] != points[b, axis]:
                return points[a, axis] < points[b, axis]
    return i < k or (i == k and j < m)


@njit(cache=True, nogil=True)
def _search(
    points: Floats,
    neuron: Integers,
    priority: Integers,
    team: Integers,
    best: Floats,
    near: Integers,
    far: Integers,
    leaf: int,
    leaves: int,
    begin: int,
    end: int,
    low: Floats,
    high: Floats,
    teams: Integers,
) -> None:
    """Offer to the points of a leaf all that may be closer than what their teams have."""
    start = begin + (leaf - leaves) * _LEAF_POINTS
    stop = min(start + _LEAF_POINTS, end)
    stack = np.empty(128, np.int64)
    stack[0] = 1
    top = 1
    bound = _worst(neuron, team, best, start, stop)
    while top > 0:
        top -= 1
        node = stack[top]
        if teams[node] == _NONE or (teams[node] != _MIXED and teams[node] == teams[leaf]):
            continue
        if _box_gap(low, high, leaf, node) > bound:
            continue
        if node < leaves:
            left, right = 2 * node, 2 * node + 1
            if _box_gap(low, high, leaf, left) < _box_gap(low, high, leaf, right):
                left, right = right, left
            stack[top], stack[top + 1] = left, right
            top += 2
            continue
        other = begin + (node - leaves) * _LEAF_POINTS
        last = min(other + _LEAF_POINTS, end)
        for i in range(start, stop):
            own = team[neuron[i]]
            if _point_gap(points, i, low, high, node) > best[own]:
                continue
            for j in range(other, last):
                z = points[i, 0] - points[j, 0]
                y = points[i, 1] - points[j, 1]
                x = points[i, 2] - points[j, 2]
                if z * z + y * y + x * x <= best[own]:
                    _offer(points, neuron, priority, team, best, near, far, i, j)
        bound = _worst(neuron, team, best, start, stop)


@njit(cache=True, nogil=True)
def _worst(neuron: Integers, team: Integers, best: Floats, start: int, stop: int) -> float:
    worst = 0.0
    for i in range(start, stop):
        worst = max(worst, best[team[neuron[i]]])
    return worst
