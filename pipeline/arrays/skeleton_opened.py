"""Loops of a skeleton opened, for formats that hold trees only.

A skeleton keeps the loops that its object has; an SWC cannot. Each loop loses one edge:

1. Every component is rooted at its thickest node, and each node gets its shortest way to the root.
   An edge that is on no way closes a loop.
2. Such an edge lies on a stretch between two nodes at which more or fewer than two edges meet (or
   the root). Not the edge itself is taken, but the last one of its stretch, at the end further from
   the root: the stretch stays one whole branch, and a loop adds one tip instead of two that face
   each other in the middle of a neurite.

The ways of all other nodes remain the shortest. Nothing depends on the order of the edges.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_graph import neighbours_of
from pipeline.errors import InputError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def open_loops(
    skeleton: Skeleton, voxel_size_nm: tuple[float, float, float]
) -> tuple[Skeleton, int]:
    """The same nodes as a forest: one edge of every independent loop dropped.

    Args:
        skeleton: cycles, edges given twice and edges from a node to itself are allowed.
        voxel_size_nm: z, y, x.

    Returns:
        A skeleton with the same nodes in the same order. Its edges are (child, parent), children
        ascending; the root of a tree is its thickest node, the first of several. And the number of
        edges dropped, those given twice or from a node to itself among them: edges - nodes +
        components.

    Raises:
        InputError: a node has coordinates that are not finite.
    """
    if not np.isfinite(skeleton.nodes).all():
        raise InputError(f"skeleton {skeleton.name}: a node has coordinates that are not finite")
    place = skeleton.nodes * np.asarray(voxel_size_nm, np.float64)
    thickness = np.nan_to_num(skeleton.radii_nm, nan=0.0)
    thickest_first = np.lexsort((np.arange(len(thickness)), -thickness))
    starts, neighbours = neighbours_of(len(place), skeleton.edges)
    above, way_nm = _shortest_ways(place, thickest_first, starts, neighbours)
    dropped = _dropped_edges(above, way_nm, starts, neighbours)
    parent = _parents(above, dropped, starts, neighbours)
    child = np.flatnonzero(parent >= 0)
    edges = np.stack([child, parent[child]], axis=1)
    opened = Skeleton(skeleton.name, skeleton.nodes, edges, skeleton.radii_nm, skeleton.types)
    return opened, len(skeleton.edges) - len(edges)


@njit(cache=True, nogil=True)
def _shortest_ways(
    place: Floats, thickest_first: Integers, starts: Integers, neighbours: Integers
) -> tuple[Integers, Floats]:
    """The next node of each on its way to the root (-1 at a root), and the length of the way."""
    above = np.full(len(place), -1, np.int64)
    way = np.full(len(place), np.inf)
    done = np.zeros(len(place), np.bool_)
    for root in thickest_first:
        if done[root]:
            continue
        way[root] = 0.0
        heap = [(0.0, root)]
        while len(heap) > 0:
            _, node = heappop(heap)
            if done[node]:
                continue
            done[node] = True
            for slot in range(starts[node], starts[node + 1]):
                other = neighbours[slot]
                step = np.sqrt(np.sum((place[node] - place[other]) ** 2))
                length = way[node] + step
                # Nodes on one place are no step apart: one that is done must keep its way.
                if not done[other] and length < way[other]:
                    way[other] = length
                    above[other] = node
                    heappush(heap, (length, other))
    return above, way


@njit(cache=True, nogil=True)
def _dropped_edges(
    above: Integers, way: Floats, starts: Integers, neighbours: Integers
) -> NDArray[np.bool_]:
    """Per slot of `neighbours` whether its edge goes; both slots of an edge say so."""
    dropped = np.zeros(len(neighbours), np.bool_)
    for node in range(len(above)):
        for slot in range(starts[node], starts[node + 1]):
            other = neighbours[slot]
            if other < node or above[node] == other or above[other] == node:
                continue
            end, inner = _end_of_stretch(node, other, above, starts, neighbours)
            far_end, far_inner = _end_of_stretch(other, node, above, starts, neighbours)
            if (way[end], end, inner) > (way[far_end], far_end, far_inner):
                far_end, far_inner = end, inner
            dropped[_slot(far_end, far_inner, starts, neighbours)] = True
            dropped[_slot(far_inner, far_end, starts, neighbours)] = True
    return dropped


@njit(cache=True, nogil=True)
def _end_of_stretch(
    node: int, previous: int, above: Integers, starts: Integers, neighbours: Integers
) -> tuple[int, int]:
    """From `previous` over `node` and on: where the stretch ends, and the node before."""
    while starts[node + 1] - starts[node] == 2 and above[node] >= 0:
        first, second = neighbours[starts[node]], neighbours[starts[node] + 1]
        onward = second if first == previous else first
        previous, node = node, onward
    return node, previous


@njit(cache=True, nogil=True)
def _slot(node: int, other: int, starts: Integers, neighbours: Integers) -> int:
    slot = starts[node]
    while neighbours[slot] != other:
        slot += 1
    return slot


@njit(cache=True, nogil=True)
def _parents(
    above: Integers, dropped: NDArray[np.bool_], starts: Integers, neighbours: Integers
) -> Integers:
    """The next node towards the root over the edges that stay; -1 at a root."""
    parent = np.full(len(above), -1, np.int64)
    stack = np.empty(len(above), np.int64)
    for root in range(len(above)):
        if above[root] >= 0:
            continue
        stack[0] = root
        depth = 1
        while depth > 0:
            depth -= 1
            node = stack[depth]
            for slot in range(starts[node], starts[node + 1]):
                other = neighbours[slot]
                if not dropped[slot] and other != parent[node]:
                    parent[other] = node
                    stack[depth] = other
                    depth += 1
    return parent
