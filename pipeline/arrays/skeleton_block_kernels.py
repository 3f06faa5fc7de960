"""Paths through the voxels of one object, in time and memory of its voxels.

The rule of TEASAR as kimimaro has it, but no step looks at the box around the object: kimimaro
clears an array of the box for every path, which takes longer than the path.

Voxels are numbered 0 .. N - 1. Their places in a box with a rim of background (flat indices), and
the voxel at each place of the box (-1: none), tell the neighbours.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def spread(
    sources: NDArray[np.int64],
    places: NDArray[np.int64],
    voxel_at: NDArray[np.int32],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The shortest way inside the object from every voxel to the nearest source.

    Args:
        sources: (S,) voxels.
        places: (N,) of each voxel, in the box.
        voxel_at: of each place of the box, -1 for none.
        offsets: (26,) from a place to those of its neighbours.
        lengths: (26,) of these steps.

    Returns:
        (N,) length of the way (infinite where there is none); the next voxel on it (-1 at a
        source); the row of the source in `sources`. Ties fall the same way every time.
    """
    count = len(places)
    distance = np.full(count, np.inf)
    onward = np.full(count, -1, np.int64)
    source = np.full(count, -1, np.int64)
    heap = [(0.0, np.int64(0)) for _ in range(0)]
    for row in range(len(sources)):
        voxel = sources[row]
        if distance[voxel] > 0:
            distance[voxel] = 0.0
            source[voxel] = row
            heapq.heappush(heap, (0.0, voxel))
    while len(heap):
        reached, voxel = heapq.heappop(heap)
        if reached > distance[voxel]:
            continue
        for k in range(len(offsets)):
            other = np.int64(voxel_at[places[voxel] + offsets[k]])
            if other >= 0 and reached + lengths[k] < distance[other]:
                distance[other] = reached + lengths[k]
                onward[other] = voxel
                source[other] = source[voxel]
                heapq.heappush(heap, (distance[other], other))
    return distance, onward, source


@njit(cache=True, nogil=True)
def ways_from(
    root: int,
    price: NDArray[np.float64],
    places: NDArray[np.int64],
    voxel_at: NDArray[np.int32],
    offsets: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(N,) the next voxel on the cheapest way to the root, -1 at the root; one search for all."""
    cost = np.full(len(places), np.inf)
    onward = np.full(len(places), -1, np.int64)
    cost[root] = 0.0
    heap = [(0.0, np.int64(root))]
    while len(heap):
        reached, voxel = heapq.heappop(heap)
        if reached > cost[voxel]:
            continue
        for k in range(len(offsets)):
            other = np.int64(voxel_at[places[voxel] + offsets[k]])
            if other >= 0 and reached + price[other] < cost[other]:
                cost[other] = reached + price[other]
                onward[other] = voxel
                heapq.heappush(heap, (cost[other], other))
    return onward


@njit(cache=True, nogil=True)
def draw_paths(
    root: int,
    targets: NDArray[np.int64],
    outward: NDArray[np.int64],
    price: NDArray[np.float64],
    reach: NDArray[np.float64],
    places: NDArray[np.int64],
    voxel_at: NDArray[np.int32],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.float64],
    at_nm: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """A tree of paths, so that every voxel lies within the reach of one.

    Args:
        root: where the tree begins.
        targets: (T,) voxels that the tree must hold, drawn first.
        outward: (N,) all voxels, in the order in which they become targets.
        price: (N,) of entering a voxel, for a unit of length; a path takes the cheapest way to
            the tree.
        reach: (N,) how far, inside the object, a node of the tree stands for others.
        places, voxel_at, offsets, lengths: as in `spread`.
        at_nm: (N, 3) where the voxels lie, in the unit of `reach`.

    Returns:
        (N,) the voxels of the tree, and the next voxel of each towards the root (-1 at the root).
    """
    count = len(places)
    drawn = np.zeros(count, np.bool_)
    onward = np.full(count, -1, np.int64)
    covered = np.zeros(count, np.bool_)
    nearest = np.full(count, np.inf)
    cost = np.full(count, np.inf)
    towards = np.full(count, -1, np.int64)
    drawn[root] = True
    fresh = [np.int64(root)]
    _cover(fresh, reach, covered, nearest, places, voxel_at, offsets, at_nm)
    for row in range(len(targets) + count):
        if row < len(targets):
            target = targets[row]
        else:
            target = outward[row - len(targets)]
            if covered[target]:
                continue
        if drawn[target]:
            continue
        end = _search(target, drawn, price, cost, towards, places, voxel_at, offsets, lengths)
        fresh.clear()
        voxel = end
        while voxel != target:
            behind = towards[voxel]
            onward[behind] = voxel
            drawn[behind] = True
            fresh.append(behind)
            voxel = behind
        _forget(target, cost, towards, places, voxel_at, offsets)
        _cover(fresh, reach, covered, nearest, places, voxel_at, offsets, at_nm)
    return drawn, onward


@njit(cache=True, nogil=True)
def _search(
    target: int,
    drawn: np.ndarray,
    price: np.ndarray,
    cost: np.ndarray,
    towards: np.ndarray,
    places: np.ndarray,
    voxel_at: np.ndarray,
    offsets: np.ndarray,
    lengths: np.ndarray,
) -> int:
    """The first voxel of the tree on the cheapest way there; `towards` leads back to the target."""
    cost[target] = 0.0
    heap = [(0.0, np.int64(target))]
    while len(heap):
        reached, voxel = heapq.heappop(heap)
        if drawn[voxel]:
            return int(voxel)
        if reached > cost[voxel]:
            continue
        for k in range(len(offsets)):
            other = np.int64(voxel_at[places[voxel] + offsets[k]])
            # The voxels of the tree have their price: a path that hops onto a tip of it would bend.
            if other >= 0 and reached + price[other] * lengths[k] < cost[other]:
                cost[other] = reached + price[other] * lengths[k]
                towards[other] = voxel
                heapq.heappush(heap, (cost[other], other))
    return target


@njit(cache=True, nogil=True)
def _forget(
    target: int,
    cost: np.ndarray,
    towards: np.ndarray,
    places: np.ndarray,
    voxel_at: np.ndarray,
    offsets: np.ndarray,
) -> None:
    """Clear what a search has written: no more than it has seen."""
    stack = [np.int64(target)]
    cost[target] = np.inf
    while len(stack):
        voxel = stack.pop()
        for k in range(len(offsets)):
            other = np.int64(voxel_at[places[voxel] + offsets[k]])
            if other >= 0 and cost[other] < np.inf:
                cost[other] = np.inf
                towards[other] = -1
                stack.append(other)


@njit(cache=True, nogil=True)
def _cover(
    fresh: list[np.int64],
    reach: np.ndarray,
    covered: np.ndarray,
    nearest: np.ndarray,
    places: np.ndarray,
    voxel_at: np.ndarray,
    offsets: np.ndarray,
    at_nm: np.ndarray,
) -> None:
    """Cover what lies within the straight reach of new nodes, and is tied to them by such voxels.

    A voxel goes to the nearest of the nodes; what older nodes cover is not passed.
    """
    heap = [(0.0, np.int64(0), np.int64(0)) for _ in range(0)]
    for voxel in fresh:
        nearest[voxel] = 0.0
        heapq.heappush(heap, (0.0, voxel, voxel))
    while len(heap):
        away, voxel, node = heapq.heappop(heap)
        if away > nearest[voxel]:
            continue
        covered[voxel] = True
        for k in range(len(offsets)):
            other = np.int64(voxel_at[places[voxel] + offsets[k]])
            if other < 0 or covered[other]:
                continue
            square = 0.0
            for axis in range(3):
                square += (at_nm[other, axis] - at_nm[node, axis]) ** 2
            onto = np.sqrt(square)
            if onto <= reach[node] and onto < nearest[other]:
                nearest[other] = onto
                heapq.heappush(heap, (onto, other, node))
