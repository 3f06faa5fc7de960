"""A skeleton as a rooted forest, and the two walks that every score needs.

`build_forest` numbers the nodes breadth first, so that a parent always comes before its children;
after that each walk is one loop over positions:

1. `label_pieces`: pieces of equal label along the skeleton;
2. `bridge_gaps`: background nodes between two nodes of equal label.

Which node becomes the root does not matter to either.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError

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
        tree: (N,) number of its tree.
        length_nm: (N,) length of the edge to the parent; 0 at a root.
    """

    name: str
    order: Integers
    up: Integers
    edge: Integers
    tree: Integers
    length_nm: Floats

    @property
    def edge_count(self) -> int:
        """Number of edges."""
        return int(np.count_nonzero(self.edge >= 0))

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
    order, up, edge, tree, trees = _breadth_first(count, skeleton.edges)
    if len(skeleton.edges) != count - trees:
        raise InputError(
            f"skeleton {skeleton.name}: {len(skeleton.edges)} edges close a cycle, {count} nodes "
            f"in {trees} pieces have {count - trees} edges without one. Scores are defined on "
            f"trees: remove the edges that close cycles."
        )
    length_nm = np.zeros(count)
    below = edge >= 0
    length_nm[below] = skeleton.edge_lengths_nm(voxel_size_nm)[edge[below]]
    return Forest(skeleton.name, order, up, edge, tree, length_nm)


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
def label_pieces(labels: Labels, up: Integers) -> tuple[Integers, int]:
    """Number the connected pieces of equal non-zero label.

    Args:
        labels: (N,) uint64 by position; 0 is background.
        up: (N,) position of the parent, -1 at a root.

    Returns:
        (N,) int64 piece of each position, -1 on background; the number of pieces.
    """
    piece = np.full(len(up), -1, np.int64)
    count = 0
    for p in range(len(up)):
        if labels[p] == 0:
            continue
        if up[p] >= 0 and labels[up[p]] == labels[p]:
            piece[p] = piece[up[p]]
        else:
            piece[p] = count
            count += 1
    return piece, count


def bridge_gaps(
    labels: Labels, forest: Forest, max_gap_nm: float | None = None
) -> tuple[Labels, int, int]:
    """Give a label to background nodes that lie between two nodes which carry it.

    A background node is claimed by a label if it lies on a path between two nodes of that label
    whose inner nodes are all background. One claim: it takes the label. Two or more labels claim
    it: it stays background and is ambiguous. All claims refer to the labels as given.

    Args:
        labels: (N,) uint64 by position of `forest`; 0 is background. Not changed.
        max_gap_nm: the longest path, between the two labelled nodes, that makes a claim; None: any.

    Returns:
        The labels after repair, the number of nodes repaired, the number of ambiguous nodes.

    Source: the preprocessing step of the skeleton metrics in the appendix of the supervoxel loss
    paper; that a contested node stays background, and the limit, are ours.
    """
    length = np.rint(forest.length_nm / LENGTH_QUANTUM_NM) * LENGTH_QUANTUM_NM
    region, label, attach, distance, above = _gap_borders(labels, forest.up, length)
    rank = np.lexsort((label, region))
    region, label = region[rank], label[rank]
    fresh = (region[1:] != region[:-1]) | (label[1:] != label[:-1])
    starts = np.concatenate([[0], np.flatnonzero(fresh) + 1, [len(rank)]]).astype(np.int64)
    limit = np.inf if max_gap_nm is None else max_gap_nm + LENGTH_SLACK_NM
    claims, claimant = _claim(
        forest.up, length, label, attach[rank], distance[rank], above[rank], starts, limit
    )
    repaired = np.where(claims == 1, claimant, labels)
    return repaired, int(np.count_nonzero(claims == 1)), int(np.count_nonzero(claims > 1))


@njit(cache=True, nogil=True)
def _gap_borders(
    labels: Labels, up: Integers, length: Floats
) -> tuple[Integers, Labels, Integers, Floats, NDArray[np.bool_]]:
    """Every edge between a background node and a labelled one.

    A gap is a maximal connected set of background nodes, named by its first position.

    Returns:
        Per such edge: the gap, the label at its border, the gap's node there, the length of the
        edge, and whether the labelled node lies above (it is the parent of the gap's first node).
    """
    gap = np.full(len(up), -1, np.int64)
    count = 0
    for p in range(len(up)):
        if labels[p] == 0:
            gap[p] = p if up[p] < 0 or labels[up[p]] != 0 else gap[up[p]]
        if up[p] >= 0 and (labels[p] == 0) != (labels[up[p]] == 0):
            count += 1
    region = np.empty(count, np.int64)
    label = np.empty(count, np.uint64)
    attach = np.empty(count, np.int64)
    distance = np.empty(count, np.float64)
    above = np.empty(count, np.bool_)
    row = 0
    for p in range(len(up)):
        if up[p] < 0 or (labels[p] == 0) == (labels[up[p]] == 0):
            continue
        above[row] = labels[p] == 0
        attach[row] = p if above[row] else up[p]
        label[row] = labels[up[p]] if above[row] else labels[p]
        region[row] = gap[attach[row]]
        distance[row] = length[p]
        row += 1
    return region, label, attach, distance, above


@njit(cache=True, nogil=True)
def _claim(
    up: Integers,
    length: Floats,
    label: Labels,
    attach: Integers,
    distance: Floats,
    above: NDArray[np.bool_],
    starts: Integers,
    limit: float,
) -> tuple[NDArray[np.uint8], Labels]:
    """How many labels claim each position (0, 1, or 2 for more), and the last that did.

    Rows starts[g]:starts[g + 1] are the borders of one gap that carry one label. Only the subtree
    that joins them is walked: upwards from its deepest position, keeping at each node the distances
    to the nearest two borders below it (`near`, `next_near`, through different children), until one
    node joins all; then downwards, handing each node the distance to the nearest border that is
    not below it (`over`). The shortest path through a node uses the two smallest of the three.
    """
    claims = np.zeros(len(up), np.uint8)
    claimant = np.zeros(len(up), np.uint64)
    near = np.empty(len(up), np.float64)
    next_near = np.empty(len(up), np.float64)
    over = np.empty(len(up), np.float64)
    stamp = np.full(len(up), -1, np.int64)
    walked = np.empty(len(up), np.int64)
    for g in range(len(starts) - 1):
        if starts[g + 1] - starts[g] < 2:
            continue
        heap = [np.int64(0) for _ in range(0)]
        for row in range(starts[g], starts[g + 1]):
            p = attach[row]
            if stamp[p] != g:
                stamp[p] = g
                near[p] = next_near[p] = over[p] = np.inf
                heappush(heap, -p)
            if above[row]:
                over[p] = distance[row]
            else:
                _keep_two(near, next_near, p, distance[row])
        count = 0
        while len(heap) > 0:
            p = -heappop(heap)
            walked[count] = p
            count += 1
            if len(heap) == 0:
                break
            q = up[p]
            if stamp[q] != g:
                stamp[q] = g
                near[q] = next_near[q] = over[q] = np.inf
                heappush(heap, -q)
            _keep_two(near, next_near, q, near[p] + length[p])
        for i in range(count - 1, -1, -1):
            p = walked[i]
            if i < count - 1:
                q = up[p]
                through_p = near[q] == near[p] + length[p]
                beside = next_near[q] if through_p else near[q]
                over[p] = min(over[q], beside) + length[p]
            shortest = near[p] + min(next_near[p], over[p])
            if shortest <= limit and shortest < np.inf:
                claims[p] = min(claims[p] + 1, 2)
                claimant[p] = label[starts[g]]
    return claims, claimant


@njit(cache=True, nogil=True)
def _keep_two(near: Floats, next_near: Floats, p: int, value: float) -> None:
    """Enter `value` among the two smallest of position p."""
    if value < near[p]:
        next_near[p] = near[p]
        near[p] = value
    elif value < next_near[p]:
        next_near[p] = value
