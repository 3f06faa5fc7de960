"""The rings of an object closed again, those that the faces of blocks have made left open.

Two patches in the plane between two blocks that are joined on both sides always bound a tunnel of
the object. Most such tunnels are slits in a rough surface, or the two halves of a neurite that runs
along the face; few are a neurite that comes back on itself.

1. An edge that is on no way to a root would close a ring. From each of its ends, the way to the
   root leads over removed nodes to a node that stayed: together the detour.
2. Shortest detour first, it is set against the shortest way between the same two nodes over what
   stays, rings closed before included.
3. The ring is real if that way is several times longer than the detour, and if the whole ring is
   longer than the circle within reach (scale * radius + const) of its centre, for its largest
   reach: what is within reach of a node is no path of its own.
4. It must not be a slit: however the ring is folded in two, some of its points come to lie further
   from one another than that circle is wide.
5. A real ring is closed with its edge and its detour.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_join_graph import Indices, adjacency
from pipeline.arrays.skeleton_tree import Flags, Floats, Ways, step_length

# How many times longer than the detour the way round must be: strands doubled along a face are
# about equally long, around a hole of the object the detour is the little that thinning took.
_WAY_ROUND = 3.0
# The width of a ring, in reaches: that of the circle within reach of its centre is 2.
_WIDTH = 2.0
# Points at which a ring is measured, and the length in reaches beyond which it is no slit.
_POINTS = 32
_LONG = 400.0


def close_rings(
    kept: Flags,
    ways: Ways,
    positions_nm: Floats,
    edges: Indices,
    reach_nm: Floats,
    closed: Indices,
) -> Indices:
    """Close the rings of the object.

    Args:
        kept: (N,) the nodes that stay; those of closed rings are added in place.
        ways: to the roots.
        positions_nm: (N, 3).
        edges: (E, 2) int32, all edges, sorted, smaller end first.
        reach_nm: (N,) the distance within which a node stands for others.
        closed: (C, 2) edges that closed rings before; they stay.

    Returns:
        (K, 2) edges, `closed` included, each closes one ring. Together with the ways of
        the kept nodes they are the graph that stays.
    """
    beside = _beside_ways(edges, ways.parent)
    candidates = edges[beside]
    if not len(candidates):
        return candidates
    detour = _detours(candidates, kept, ways.parent, positions_nm)
    order = np.lexsort((candidates[:, 1], candidates[:, 0], detour))
    candidates = candidates[order]
    starts, neighbours = adjacency(len(kept), edges)
    names = candidates[:, 0].astype(np.int64) * len(kept) + candidates[:, 1]
    before = np.isin(names, closed[:, 0].astype(np.int64) * len(kept) + closed[:, 1])
    _close(
        before, candidates, kept, ways.parent, ways.length_nm, positions_nm, reach_nm,
        starts, neighbours,
    )  # fmt: skip
    return candidates[before]


@njit(cache=True, nogil=True)
def _beside_ways(edges: Indices, parent: Indices) -> Flags:
    beside = np.empty(len(edges), np.bool_)
    for row in range(len(edges)):
        first, second = edges[row, 0], edges[row, 1]
        beside[row] = parent[first] != second and parent[second] != first
    return beside


@njit(cache=True, nogil=True)
def _anchor(
    node: int, kept: Flags, parent: Indices, positions: Floats, reach: Floats
) -> tuple[int, float, float]:
    """The first kept node on the way, the length to it, and the largest reach up to it."""
    length, widest = 0.0, reach[node]
    while not kept[node]:
        length += step_length(positions, node, parent[node])
        node = parent[node]
        widest = max(widest, reach[node])
    return node, length, widest


@njit(cache=True, nogil=True)
def _detours(edges: Indices, kept: Flags, parent: Indices, positions: Floats) -> Floats:
    lengths = np.empty(len(edges))
    nothing = np.zeros(len(kept))
    for row in range(len(edges)):
        first, second = edges[row, 0], edges[row, 1]
        lengths[row] = step_length(positions, first, second)
        lengths[row] += _anchor(first, kept, parent, positions, nothing)[1]
        lengths[row] += _anchor(second, kept, parent, positions, nothing)[1]
    return lengths


@njit(cache=True, nogil=True)
def _close(
    closed: Flags,
    candidates: Indices,
    kept: Flags,
    parent: Indices,
    length: Floats,
    positions: Floats,
    reach: Floats,
    starts: Indices,
    neighbours: Indices,
) -> None:
    """Set `closed` (C,) for the candidates that close a ring; those set before stay."""
    bridge = np.zeros(len(neighbours), np.bool_)  # slots of edges that close a ring
    for row in range(len(candidates)):
        if closed[row]:
            _bridge(bridge, candidates[row, 0], candidates[row, 1], starts, neighbours)
    around = np.full(len(kept), np.inf)
    widest = np.zeros(len(kept))
    for row in range(len(candidates)):
        first, second = candidates[row, 0], candidates[row, 1]
        if closed[row]:
            continue
        one, before, wide = _anchor(first, kept, parent, positions, reach)
        two, after, wider = _anchor(second, kept, parent, positions, reach)
        detour = before + step_length(positions, first, second) + after
        if one == two or not _is_real(
            one, two, detour, max(wide, wider), kept, parent, positions, reach,
            starts, neighbours, bridge, around, widest,
        ):  # fmt: skip
            continue
        if not _is_wide(first, second, parent, length, positions, reach):
            continue
        closed[row] = True
        for node in (first, second):
            while not kept[node]:
                kept[node] = True
                node = parent[node]
        _bridge(bridge, first, second, starts, neighbours)


@njit(cache=True, nogil=True)
def _bridge(bridge: Flags, first: int, second: int, starts: Indices, neighbours: Indices) -> None:
    """Mark both slots of an edge."""
    for node, other in ((first, second), (second, first)):
        for at in range(starts[node], starts[node + 1]):
            if neighbours[at] == other:
                bridge[at] = True


@njit(cache=True, nogil=True)
def _is_real(
    one: int,
    two: int,
    detour: float,
    wide: float,
    kept: Flags,
    parent: Indices,
    positions: Floats,
    reach: Floats,
    starts: Indices,
    neighbours: Indices,
    bridge: Flags,
    around: Floats,
    widest: Floats,
) -> bool:
    """Whether no short way over what stays leads from one end of the detour to the other.

    Dijkstra from `one`, as far as a way could be too short. `around` and `widest` (N,) are scratch:
    length of the way, and the largest reach on it; left as they were found, `around` infinite.
    """
    touched = [one]
    heap = [(0.0, one)]
    around[one] = 0.0
    widest[one] = max(wide, reach[one])
    largest = widest[one]
    real = True
    while len(heap) > 0:
        length, node = heappop(heap)
        if length > around[node]:
            continue
        largest = max(largest, widest[node])
        if length > _enough(detour, largest):
            break
        if node == two:
            real = length > _enough(detour, widest[node])
            break
        for at in range(starts[node], starts[node + 1]):
            other = neighbours[at]
            on_way = parent[node] == other or parent[other] == node
            if not kept[other] or not (on_way or bridge[at]):
                continue
            onward = length + step_length(positions, node, other)
            if onward < around[other]:
                if around[other] == np.inf:
                    touched.append(other)
                around[other] = onward
                widest[other] = max(widest[node], reach[other])
                heappush(heap, (onward, other))
    for node in touched:
        around[node] = np.inf
    return real


@njit(cache=True, nogil=True)
def _enough(detour: float, reach: float) -> float:
    """A way round that is longer belongs to a ring of the object."""
    return max(_WAY_ROUND * detour + reach, 2 * np.pi * reach - detour)


@njit(cache=True, nogil=True)
def _is_wide(
    first: int, second: int, parent: Indices, length: Floats, positions: Floats, reach: Floats
) -> bool:
    """Whether the ring of an edge and the ways of its ends is more than a slit.

    A ring is as wide as the largest distance of two points that meet when it is folded in two, for
    the fold that makes this smallest.
    """
    up, down = [first], [second]
    widest = max(reach[first], reach[second])
    while up[-1] != down[-1]:
        side = up if length[up[-1]] >= length[down[-1]] else down
        if parent[side[-1]] < 0:
            side = down if side is up else up
        side.append(parent[side[-1]])
        widest = max(widest, reach[side[-1]])
        around = length[first] + length[second] - length[up[-1]] - length[down[-1]]
        if around > _LONG * widest:
            return True
    ring = np.array(up + down[-2::-1])
    points = _spaced(ring, positions)
    least = np.inf
    for fold in range(_POINTS):
        farthest = 0.0
        for i in range(_POINTS // 2):
            one, two = points[(fold + i) % _POINTS], points[(fold - i) % _POINTS]
            farthest = max(farthest, np.sum((one - two) ** 2))
        least = min(least, farthest)
    return np.sqrt(least) > _WIDTH * widest


@njit(cache=True, nogil=True)
def _spaced(ring: NDArray[np.int64], positions: Floats) -> Floats:
    """(_POINTS, 3) points at equal distances along a closed ring of nodes."""
    count = len(ring)
    ends = np.empty(count + 1)
    ends[0] = 0.0
    for i in range(count):
        ends[i + 1] = ends[i] + step_length(positions, ring[i], ring[(i + 1) % count])
    points = np.empty((_POINTS, 3))
    at = 0
    for i in range(_POINTS):
        place = ends[count] * i / _POINTS
        while ends[at + 1] < place:
            at += 1
        share = (place - ends[at]) / max(ends[at + 1] - ends[at], 1e-300)
        points[i] = positions[ring[at]]
        points[i] += share * (positions[ring[(at + 1) % count]] - positions[ring[at]])
    return points
