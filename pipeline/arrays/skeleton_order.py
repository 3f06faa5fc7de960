"""The order in which formats of trees want the nodes of a skeleton: parents before children."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Integers, build_forest


def parents_first(
    skeleton: Skeleton, voxel_size_nm: tuple[float, float, float]
) -> tuple[Integers, Integers]:
    """Nodes in an order with parents first, smallest index first otherwise; parents by node.

    The root of a tree is its first node that is nobody's child in `edges`: of the trees that an
    SWC holds, their own root.

    Returns:
        (N,) int64 nodes in that order, and (N,) int64 the parent of each node, -1 at a root.

    Raises:
        InputError: a cycle, or coordinates that are not finite.
    """
    forest = build_forest(skeleton, voxel_size_nm)  # refuses cycles
    tree = forest.by_node(forest.tree)
    trees = int(forest.tree[-1]) + 1
    return _smallest_first(tree, trees, np.ascontiguousarray(skeleton.edges))


@njit(cache=True, nogil=True)
def _smallest_first(tree: Integers, trees: int, edges: Integers) -> tuple[Integers, Integers]:
    """The smallest node whose parent has been passed, again and again, from all roots on."""
    count = len(tree)
    is_child = np.zeros(count, np.bool_)
    first = np.zeros(count + 1, np.int64)
    for e in range(len(edges)):
        is_child[edges[e, 0]] = True
        first[edges[e, 0] + 1] += 1
        first[edges[e, 1] + 1] += 1
    for node in range(count):
        first[node + 1] += first[node]
    fill = first[:-1].copy()
    neighbour = np.empty(2 * len(edges), np.int64)
    for e in range(len(edges)):
        for end in range(2):
            node = edges[e, end]
            neighbour[fill[node]] = edges[e, 1 - end]
            fill[node] += 1
    heap = np.empty(count, np.int64)
    size = 0
    rooted = np.zeros(trees, np.bool_)
    for node in range(count):
        if not is_child[node] and not rooted[tree[node]]:
            rooted[tree[node]] = True
            heap[size] = node  # ascending: a heap
            size += 1
    parent = np.full(count, -1, np.int64)
    order = np.empty(count, np.int64)
    for place in range(count):
        node = heap[0]
        order[place] = node
        size -= 1
        _sink(heap, size, heap[size])
        for i in range(first[node], first[node + 1]):
            if neighbour[i] != parent[node]:
                parent[neighbour[i]] = node
                _rise(heap, size, neighbour[i])
                size += 1
    return order, parent


@njit(cache=True, nogil=True)
def _sink(heap: Integers, size: int, node: int) -> None:
    """Put a node in the place of the smallest of a heap that has `size` nodes without that."""
    at = 0
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and heap[below + 1] < heap[below]:
            below += 1
        if heap[below] >= node:
            break
        heap[at] = heap[below]
        at = below
    heap[at] = node


@njit(cache=True, nogil=True)
def _rise(heap: Integers, size: int, node: int) -> None:
    """Add a node to a heap of `size` nodes."""
    at = size
    while at > 0 and heap[(at - 1) // 2] > node:
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = node
