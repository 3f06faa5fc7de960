"""A skeleton as a rooted forest, on which each walk that scores need is one loop.

`build_forest` numbers the nodes breadth first, tree after tree, so that a parent always comes
before its children. Which node becomes the root does not matter to any score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.exact_sums import exact_sum
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError
from pipeline.threads import map_threads

Labels = NDArray[np.uint64]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Path lengths are sums of multiples of this, hence exact in float64 up to 137 m: whether a path is
# within a limit must not depend on the node from which it was added up.
LENGTH_QUANTUM_NM = 2.0**-16
# Lengths that are equal but for rounding pass a limit.
LENGTH_SLACK_NM = 1e-3


@dataclass(frozen=True, eq=False)
class Forest:
    """A skeleton whose nodes are numbered breadth first; a position is an index of that order.

    Attributes:
        name: of the skeleton.
        order: (N,) the node at each position.
        up: (N,) the position of its parent, smaller than its own; -1 at a root.
        edge: (N,) index of the edge to the parent; -1 at a root.
        tree: (N,) number of its tree; never falls.
        length_nm: (N,) length of the edge to the parent; 0 at a root.
    """

    name: str
    order: Integers
    up: Integers
    edge: Integers
    tree: Integers
    length_nm: Floats

    @cached_property
    def edge_count(self) -> int:
        """Number of edges."""
        return int(np.count_nonzero(self.edge >= 0))

    @cached_property
    def cable_nm(self) -> float:
        """Length of all edges, rounded once."""
        return exact_sum(self.length_nm)

    def by_node(self, values: NDArray) -> NDArray:
        """Values given per position, in the order of the skeleton's nodes."""
        result = np.empty_like(values)
        result[self.order] = values
        return result


def build_forest(skeleton: Skeleton, voxel_size_nm: tuple[float, float, float]) -> Forest:
    """Root every tree of a skeleton and measure its edges.

    Raises:
        InputError: the edges close a cycle (an edge given twice or from a node to itself is one),
            or a node has no finite coordinates.
    """
    if not np.isfinite(skeleton.nodes).all():
        raise InputError(f"skeleton {skeleton.name}: a node has coordinates that are not finite")
    count = len(skeleton.nodes)
    order, up, edge, tree, trees = _breadth_first(count, np.ascontiguousarray(skeleton.edges))
    if len(skeleton.edges) != count - trees:
        raise InputError(
            f"skeleton {skeleton.name}: {len(skeleton.edges)} edges close a cycle, {count} nodes "
            f"in {trees} pieces have {count - trees} edges without one. Scores are defined on "
            f"trees: remove the edges that close cycles (SWC files of `skeletonize` have none)."
        )
    length_nm = _lengths_up(
        np.ascontiguousarray(skeleton.nodes), order, up, np.array(voxel_size_nm, np.float64)
    )
    return Forest(skeleton.name, order, up, edge, tree, length_nm)


def build_forests(
    skeletons: Sequence[Skeleton], voxel_size_nm: tuple[float, float, float]
) -> list[Forest]:
    """`build_forest` of each skeleton, on the threads of this process."""
    return map_threads(partial(build_forest, voxel_size_nm=voxel_size_nm), skeletons)


@njit(cache=True, nogil=True)
def _incident_edges(count: int, edges: Integers) -> tuple[Integers, Integers]:
    """The edges at node n are incident[first[n]:first[n + 1]]."""
    first = np.zeros(count + 1, np.int64)
    for e in range(len(edges)):
        first[edges[e, 0] + 1] += 1
        first[edges[e, 1] + 1] += 1
    for node in range(count):
        first[node + 1] += first[node]
    fill = first[:-1].copy()
    incident = np.empty(2 * len(edges), np.int64)
    for e in range(len(edges)):
        for end in range(2):
            incident[fill[edges[e, end]]] = e
            fill[edges[e, end]] += 1
    return first, incident


@njit(cache=True, nogil=True)
def _breadth_first(
    count: int, edges: Integers
) -> tuple[Integers, Integers, Integers, Integers, int]:
    """Order, parent position, edge to the parent, tree of each position; number of trees."""
    first, incident = _incident_edges(count, edges)
    order = np.empty(count, np.int64)
    up = np.full(count, -1, np.int64)
    edge = np.full(count, -1, np.int64)
    tree = np.empty(count, np.int64)
    seen = np.zeros(count, np.bool_)
    trees = 0
    filled = 0
    head = 0
    for root in range(count):
        if seen[root]:
            continue
        seen[root] = True
        order[filled] = root
        tree[filled] = trees
        filled += 1
        while head < filled:
            node = order[head]
            for i in range(first[node], first[node + 1]):
                e = incident[i]
                other = edges[e, 0] + edges[e, 1] - node
                if not seen[other]:
                    seen[other] = True
                    order[filled] = other
                    up[filled] = head
                    edge[filled] = e
                    tree[filled] = trees
                    filled += 1
            head += 1
        trees += 1
    return order, up, edge, tree, trees


@njit(cache=True, nogil=True)
def _lengths_up(nodes: Floats, order: Integers, up: Integers, size_nm: Floats) -> Floats:
    """Per position the length of the edge to its parent, rounded as `edge_lengths_nm` rounds."""
    length_nm = np.zeros(len(up), np.float64)
    for p in range(len(up)):
        if up[p] < 0:
            continue
        node, parent = order[p], order[up[p]]
        square = 0.0
        for axis in range(3):
            step = nodes[node, axis] * size_nm[axis] - nodes[parent, axis] * size_nm[axis]
            square += step * step
        length_nm[p] = np.sqrt(square)
    return length_nm
