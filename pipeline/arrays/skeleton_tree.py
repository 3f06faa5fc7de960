"""A tree out of skeletons that the faces of blocks have doubled.

Where an object runs along a face, the block on each side traces its own half; a block that an
object merely touches draws a spur to the touching patch. Halves that meet at two places make rings.
The union of such traces is thinned by the rule of TEASAR, applied to the graph instead of voxels:

1. Every component is rooted at its thickest node, and each node gets its cheapest way to the root;
   thick ways are cheap, so of two halves the one with the centre line is taken.
2. A node further from any face of its block than its radius is no artefact: it stays, with its way
   to the root.
3. Where that leaves an end, the way goes on to the furthest node ahead (an end of a neurite may lie
   just behind a face). A thick node counts as further by half its radius.
4. The rest lies along faces. Furthest first, for a node that is out of reach (scale * radius +
   const) of all that stays, the thickest such node that reaches it is added with its way to the
   root; what is within reach goes. Ends are carried on again, and now roots that are ends too:
   before, their way on could be an outer part's.

Nothing but ways to the root stays, so every ring is open, those of the object included;
`pipeline.arrays.skeleton_rings` closes the latter again, after step 2 and at the end: what closes a
ring is no end to go on from.

Source: the rule of reach from TEASAR, Sato et al. 2000, doi:10.1109/PCCGA.2000.883951.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_join_graph import Indices, adjacency, number_groups, unite
from pipeline.arrays.skeleton_join_reach import covered_by, reached_by_others

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# How many radii further a node reaches for being central: of the parts into which faces have cut a
# wide neurite lengthwise, an outer one may reach further than the one with the centre line.
_CENTRAL = 0.5


@dataclass(frozen=True, eq=False)
class Ways:
    """The cheapest way of every node to the root of its component.

    Attributes:
        parent: (N,) int32, the next node of the way; -1 at a root.
        outward: (N,) int32, all nodes, each after its parent.
        length_nm: (N,) float64, length of the way.
        root: (N,) int32, where the way ends.
    """

    parent: Indices
    outward: Indices
    length_nm: Floats
    root: Indices


def keep_certain(
    positions_nm: Floats, edges: Indices, radius_nm: Floats, face_nm: Floats
) -> tuple[Flags, Ways]:
    """Steps 1 and 2: the nodes that faces have not made, with their ways; and all ways.

    Args:
        positions_nm: (N, 3).
        edges: (E, 2) int32, rings allowed; sorted, smaller end first.
        radius_nm: (N,), positive.
        face_nm: (N,) distance to the nearest face of a block.

    Returns:
        (N,) bool, and the ways. The way of a node that stays stays.
    """
    ways = find_ways(positions_nm, edges, radius_nm)
    kept = (face_nm > radius_nm) | (ways.parent < 0)
    _keep_ways(kept, ways.parent, ways.outward)
    return kept, ways


def keep_rest(
    kept: Flags,
    ways: Ways,
    positions_nm: Floats,
    radius_nm: Floats,
    reach_nm: Floats,
    rings: Indices,
) -> None:
    """Steps 3 and 4: add to `kept`, in place, what it takes to stand for all nodes.

    Args:
        kept: (N,) of `keep_certain`, and the nodes of rings closed since.
        ways: to the roots.
        positions_nm: (N, 3).
        radius_nm: (N,).
        reach_nm: (N,) the distance within which a node stands for others.
        rings: (K, 2) edges that close rings: their nodes are no ends.
    """
    _extend_ends(kept, ways, positions_nm, radius_nm, reach_nm, rings, roots_only=False)
    _add_uncovered(kept, ways, positions_nm, radius_nm, reach_nm)
    for roots_only in (False, True):  # a root in the middle of a path has two ends to go to
        _extend_ends(kept, ways, positions_nm, radius_nm, reach_nm, rings, roots_only)


def find_ways(positions_nm: Floats, edges: Indices, radius_nm: Floats) -> Ways:
    """The cheapest ways to the thickest node of each component; ties go to the smaller node."""
    count = len(radius_nm)
    group = np.arange(count, dtype=np.int32)
    unite(group, edges)
    roots = _thickest(group, number_groups(group), radius_nm)
    starts, neighbours = adjacency(count, edges)
    return Ways(*_search(starts, neighbours, positions_nm, radius_nm, roots))


@njit(cache=True, nogil=True)
def _thickest(part: Indices, parts: int, radius: Floats) -> Indices:
    best = np.full(parts, -1, np.int32)
    for node in range(len(part)):
        if best[part[node]] < 0 or radius[node] > radius[best[part[node]]]:
            best[part[node]] = node
    return best


@njit(cache=True, nogil=True)
def step_length(positions: Floats, first: int, second: int) -> float:
    """Distance between two nodes."""
    square = 0.0
    for axis in range(3):
        square += (positions[first, axis] - positions[second, axis]) ** 2
    return np.sqrt(square)


@njit(cache=True, nogil=True)
def _before(cost: Floats, first: int, second: int) -> bool:
    return cost[first] < cost[second] or (cost[first] == cost[second] and first < second)


@njit(cache=True, nogil=True)
def _rise(heap: Indices, slot: Indices, cost: Floats, node: int) -> None:
    """Move a node of the heap up to where it belongs."""
    at = slot[node]
    while at > 0:
        above = (at - 1) // 2
        if not _before(cost, node, heap[above]):
            break
        heap[at] = heap[above]
        slot[heap[at]] = at
        at = above
    heap[at] = node
    slot[node] = at


@njit(cache=True, nogil=True)
def _take_first(heap: Indices, slot: Indices, cost: Floats, size: int) -> int:
    """Take the first of `size` nodes off the heap."""
    top, node = heap[0], heap[size - 1]
    at = 0
    while 2 * at + 1 < size - 1:
        below = 2 * at + 1
        if below + 1 < size - 1 and _before(cost, heap[below + 1], heap[below]):
            below += 1
        if not _before(cost, heap[below], node):
            break
        heap[at] = heap[below]
        slot[heap[at]] = at
        at = below
    heap[at] = node
    slot[node] = at
    slot[top] = -2
    return top


@njit(cache=True, nogil=True)
def _search(
    starts: Indices, neighbours: Indices, positions: Floats, radius: Floats, roots: Indices
) -> tuple[Indices, Indices, Floats, Indices]:
    """Dijkstra from all roots at once; the columns of `Ways`.

    An edge costs its length over the square of the smaller radius: a detour of a few radii to the
    centre line pays off.
    """
    count = len(radius)
    parent = np.full(count, -1, np.int32)
    root = np.full(count, -1, np.int32)
    outward = np.empty(count, np.int32)
    length = np.zeros(count)
    cost = np.full(count, np.inf)
    heap = np.empty(count, np.int32)
    slot = np.full(count, -1, np.int32)  # -1 not seen yet, -2 done
    size = done = 0
    for node in roots:
        cost[node] = 0.0
        root[node] = node
        heap[size] = node
        slot[node] = size
        size += 1
        _rise(heap, slot, cost, node)
    while size > 0:
        node = _take_first(heap, slot, cost, size)
        size -= 1
        outward[done] = node
        done += 1
        if parent[node] >= 0:
            root[node] = root[parent[node]]
            length[node] = length[parent[node]] + step_length(positions, node, parent[node])
        for at in range(starts[node], starts[node + 1]):
            other = neighbours[at]
            if slot[other] == -2:
                continue
            thin = min(radius[node], radius[other])
            price = cost[node] + step_length(positions, node, other) / thin**2
            if price < cost[other]:
                cost[other] = price
                parent[other] = node
                if slot[other] < 0:
                    slot[other] = size
                    size += 1
                _rise(heap, slot, cost, other)
    return parent, outward, length, root


@njit(cache=True, nogil=True)
def _keep_ways(kept: Flags, parent: Indices, outward: Indices) -> None:
    for i in range(len(outward) - 1, -1, -1):
        node = outward[i]
        if kept[node] and parent[node] >= 0:
            kept[parent[node]] = True


@njit(cache=True, nogil=True)
def _keep_way(kept: Flags, parent: Indices, node: int) -> None:
    while not kept[node]:
        kept[node] = True
        node = parent[node]


@njit(cache=True, nogil=True)
def anchors(kept: Flags, parent: Indices, outward: Indices) -> Indices:
    """(N,) the first kept node on each node's way, itself if it is kept."""
    anchor = np.empty(len(kept), np.int32)
    for node in outward:
        anchor[node] = node if kept[node] else anchor[parent[node]]
    return anchor


def _extend_ends(
    kept: Flags,
    ways: Ways,
    positions_nm: Floats,
    radius_nm: Floats,
    reach_nm: Floats,
    rings: Indices,
    roots_only: bool,
) -> None:
    """Carry every end on to the node beyond that lies furthest ahead.

    Ahead means away from the stretch that leads to the end: the longest way may go round the tip of
    a neurite and back on the other side of a face. What lies behind such a turn is out of question,
    however far back it leads.
    """
    if kept.all():
        return
    is_end, onward = _ends(kept, ways.parent, roots_only)
    is_end[rings.ravel()] = False
    anchor = anchors(kept, ways.parent, ways.outward)
    behind, owner = _stretches(is_end, onward, kept, ways.parent, positions_nm, reach_nm)
    near = np.flatnonzero(~kept & is_end[anchor])
    doubled = reached_by_others(kept, ways.root, positions_nm, reach_nm, near, owner, anchor)
    away = _ahead(
        kept, doubled, is_end, anchor, behind, ways.parent, ways.outward, positions_nm, reach_nm
    )
    beyond = np.flatnonzero(away > 0)
    end, away = anchor[beyond], away[beyond] + _CENTRAL * radius_nm[beyond]
    order = np.lexsort((beyond, -away, end))
    first = np.append(True, np.diff(end[order]) != 0)[: len(order)]
    for node in beyond[order[first]]:
        _keep_way(kept, ways.parent, node)


@njit(cache=True, nogil=True)
def _ends(kept: Flags, parent: Indices, roots_only: bool) -> tuple[Flags, Indices]:
    """Which kept nodes are ends, and the next node of the stretch that leads to each.

    Of leaves, that is the parent; of a root with one child, the child.
    """
    children = np.zeros(len(kept), np.int32)
    for node in range(len(kept)):
        if kept[node] and parent[node] >= 0:
            children[parent[node]] += 1
    is_end = np.zeros(len(kept), np.bool_)
    onward = np.full(len(kept), -1, np.int32)
    for node in range(len(kept)):
        above = parent[node]
        if not roots_only:
            is_end[node] = kept[node] and children[node] == 0
            onward[node] = above
        else:
            is_end[node] = kept[node] and above < 0 and children[node] == 1
            if kept[node] and above >= 0 and children[above] == 1:
                onward[above] = node
    return is_end, onward


@njit(cache=True, nogil=True)
def _stretches(
    is_end: Flags,
    onward: Indices,
    kept: Flags,
    parent: Indices,
    positions: Floats,
    reach: Floats,
) -> tuple[Indices, Indices]:
    """The stretches that lead to ends, each up to twice the end's reach behind it.

    Returns:
        (N,) the node that lies an end's reach behind it, of others themselves; (N, 2) the ends of
        whose stretches a node is, -1 for none. Of more than two stretches, the first and the last.
    """
    only, beyond = _past_roots(kept, parent)
    behind = np.arange(len(parent)).astype(np.int32)
    owner = np.full((len(parent), 2), -1, np.int32)
    for end in range(len(parent)):
        node, before, walked, outward = end, -1, 0.0, False
        while is_end[end] and node >= 0 and walked <= 2 * reach[end]:
            owner[node, 0 if owner[node, 0] < 0 else 1] = end
            if before < 0 or walked - step_length(positions, before, node) < reach[end]:
                behind[end] = node
            above = only[node] if outward else onward[node]
            if above < 0 and not outward and before >= 0:
                outward, above = True, beyond[before]
            if above >= 0:
                walked += step_length(positions, node, above)
            before, node = node, above
    return behind, owner


@njit(cache=True, nogil=True)
def _past_roots(kept: Flags, parent: Indices) -> tuple[Indices, Indices]:
    """(N,) the only kept child of each node, and (N,) the one other kept child of a root; or -1."""
    children = np.zeros(len(kept), np.int32)
    only = np.full(len(kept), -1, np.int32)
    beyond = np.full(len(kept), -1, np.int32)
    for node in range(len(kept)):
        above = parent[node]
        if not kept[node] or above < 0:
            continue
        children[above] += 1
        if children[above] == 2 and parent[above] < 0:
            beyond[node], beyond[only[above]] = only[above], node
        if children[above] == 3 and parent[above] < 0:
            beyond[beyond[only[above]]] = -1
            beyond[only[above]] = -1
        if children[above] == 1:
            only[above] = node
    only[children > 1] = -1
    return only, beyond


@njit(cache=True, nogil=True)
def _ahead(
    kept: Flags,
    doubled: Flags,
    is_end: Flags,
    anchor: Indices,
    behind: Indices,
    parent: Indices,
    outward: Indices,
    positions: Floats,
    reach: Floats,
) -> Floats:
    """(N,) how far each node beyond an end lies from the node behind it; 0 if not ahead of the end.

    A way that has come back by more than the end's reach has turned, and stays out; so does one
    that runs along what stays elsewhere (`doubled`).
    """
    away = np.zeros(len(kept))
    peak = np.zeros(len(kept))  # the furthest on the way so far; infinite behind a turn
    for node in outward:
        end = anchor[node]
        if kept[node] or not is_end[end]:
            continue
        start = step_length(positions, end, behind[end])
        distance = step_length(positions, node, behind[end])
        before = start if parent[node] == end else peak[parent[node]]
        peak[node] = max(before, distance)
        if doubled[node] or before - distance > reach[end]:
            peak[node] = np.inf
        elif distance > start:
            away[node] = distance
    return away


def _add_uncovered(
    kept: Flags, ways: Ways, positions_nm: Floats, radius_nm: Floats, reach_nm: Floats
) -> None:
    """Add, furthest first, the nodes that nothing kept reaches, each with its way.

    Furthest in a straight line from where its way meets what stays: by length of the way, the node
    at the end of a turn round the tip of a neurite would come before the tip.
    """
    doubtful = np.flatnonzero(~kept)
    if not len(doubtful):
        return
    anchor = anchors(kept, ways.parent, ways.outward)[doubtful]
    away = np.sqrt(((positions_nm[doubtful] - positions_nm[anchor]) ** 2).sum(axis=1))
    away += _CENTRAL * radius_nm[doubtful]
    doubtful = doubtful[np.lexsort((doubtful, -away))]
    covered_by(kept, ways.parent, ways.root, positions_nm, radius_nm, reach_nm, doubtful)
