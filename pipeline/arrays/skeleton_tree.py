"""A tree out of skeletons that the faces of blocks have doubled.

Where an object runs along a face, the block on each side traces its own half; a block that an
object merely touches draws a spur to the touching patch. Halves that meet at two places make rings.
The union of such traces is thinned by the rule of TEASAR, applied to the graph instead of voxels:

1. Every component is rooted at its thickest node, and each node gets its cheapest way to the root;
   thick ways are cheap, so of two halves the one with the centre line is taken.
2. A node further from any face of its block than its radius is no artefact: it stays, with its way
   to the root.
3. Where that leaves an end, the way goes on to the furthest tip beyond (an end of a neurite may lie
   just behind a face).
4. The rest lies along faces. Furthest first, a node that is out of reach (scale * radius + const)
   of all that stays is added with its way to the root; what is within reach goes.

Rings that are left, those of the object included, are open: nothing but ways to the root stays.

Source: the rule of reach from TEASAR, Sato et al. 2000, doi:10.1109/PCCGA.2000.883951.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from pipeline.arrays.skeleton_prune import components, edge_lengths


@dataclass(frozen=True, eq=False)
class Ways:
    """The cheapest way of every node to the root of its component.

    Attributes:
        parent: (N,) int64, the next node of the way; -1 at a root.
        length_nm: (N,) float64, length of the way.
        part: (N,) int64, the component.
    """

    parent: NDArray[np.int64]
    length_nm: NDArray[np.float64]
    part: NDArray[np.int64]


def thin_out(
    positions_nm: NDArray[np.float64],
    edges: NDArray[np.int64],
    radius_nm: NDArray[np.float64],
    face_nm: NDArray[np.float64],
    reach_nm: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which nodes stay, and the next node of each on the way to its root.

    Args:
        positions_nm: (N, 3).
        edges: (E, 2), rings allowed.
        radius_nm: (N,), positive.
        face_nm: (N,) distance to the nearest face of a block.
        reach_nm: (N,) the distance within which a node stands for others.

    Returns:
        (N,) bool and (N,) int64, -1 at a root. The way of a node that stays stays.
    """
    ways = _ways_to_roots(positions_nm, edges, radius_nm)
    outward = np.lexsort((np.arange(len(radius_nm)), ways.length_nm))
    kept = (face_nm > radius_nm) | (ways.parent < 0)
    _keep_ways(kept, ways.parent, outward)
    for roots_only in (False, True):  # a root in the middle of a path has two ends to go to
        _extend_ends(kept, ways, positions_nm, reach_nm, outward, roots_only)
    _add_uncovered(kept, ways, positions_nm, reach_nm, outward)
    return kept, ways.parent


def _ways_to_roots(
    positions_nm: NDArray[np.float64], edges: NDArray[np.int64], radius_nm: NDArray[np.float64]
) -> Ways:
    """One search from an added node that is joined to every root."""
    count = len(radius_nm)
    part = components(count, edges)
    order = np.lexsort((np.arange(count), -radius_nm, part))
    roots = order[np.append(True, np.diff(part[order]) != 0)[:count]]
    lengths = edge_lengths(positions_nm, edges)
    # Thickness counts squared: a detour of a few radii to the centre line pays off.
    cost = lengths / radius_nm[edges].min(axis=1) ** 2
    rows = np.concatenate([edges[:, 0], np.full(len(roots), count)])
    columns = np.concatenate([edges[:, 1], roots])
    values = np.concatenate([cost, np.full(len(roots), cost.min(initial=1.0))])
    graph = coo_array((values, (rows, columns)), (count + 1, count + 1)).tocsr()
    parent = dijkstra(graph, directed=False, indices=count, return_predecessors=True)[1]
    parent = parent[:count].astype(np.int64)
    parent[parent == count] = -1
    return Ways(parent, _way_lengths(positions_nm, parent), part)


@njit(cache=True, nogil=True)
def _way_lengths(positions: NDArray[np.float64], parent: NDArray[np.int64]) -> NDArray[np.float64]:
    lengths = np.full(len(parent), -1.0)
    stack = np.empty(len(parent), np.int64)
    for start in range(len(parent)):
        depth = 0
        node = start
        while lengths[node] < 0 and parent[node] >= 0:
            stack[depth] = node
            depth += 1
            node = parent[node]
        if parent[node] < 0:
            lengths[node] = 0.0
        while depth > 0:
            depth -= 1
            child = stack[depth]
            step = np.sqrt(np.sum((positions[child] - positions[node]) ** 2))
            lengths[child] = lengths[node] + step
            node = child
    return lengths


@njit(cache=True, nogil=True)
def _keep_ways(
    kept: NDArray[np.bool_], parent: NDArray[np.int64], outward: NDArray[np.int64]
) -> None:
    for node in outward[::-1]:
        if kept[node] and parent[node] >= 0:
            kept[parent[node]] = True


@njit(cache=True, nogil=True)
def _anchors(
    kept: NDArray[np.bool_], parent: NDArray[np.int64], outward: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) the first kept node on each node's way, itself if it is kept."""
    anchor = np.arange(len(kept))
    for node in outward:
        if not kept[node]:
            anchor[node] = anchor[parent[node]]
    return anchor


@njit(cache=True, nogil=True)
def _keep_way(kept: NDArray[np.bool_], parent: NDArray[np.int64], node: int) -> int:
    """Keep a node and its way; returns how many nodes that adds."""
    added = 0
    while not kept[node]:
        kept[node] = True
        added += 1
        node = parent[node]
    return added


def _extend_ends(
    kept: NDArray[np.bool_],
    ways: Ways,
    positions_nm: NDArray[np.float64],
    reach_nm: NDArray[np.float64],
    outward: NDArray[np.int64],
    roots_only: bool,
) -> None:
    """Carry every end on to the node beyond that lies furthest ahead.

    Ahead means away from the stretch that leads to the end: the longest way may go round the tip of
    a neurite and back on the other side of a face.
    """
    inner = np.flatnonzero(kept & (ways.parent >= 0))
    children = np.bincount(ways.parent[inner], minlength=len(kept))
    root = ways.parent < 0
    is_end = kept & ((root & (children == 1)) if roots_only else (children == 0))
    onward = ways.parent.copy()
    if roots_only:
        onward[:] = -1
        single = children[ways.parent[inner]] == 1
        onward[ways.parent[inner[single]]] = inner[single]
    behind = _behind(np.flatnonzero(is_end), onward, ways.length_nm, reach_nm)
    anchor = _anchors(kept, ways.parent, outward)
    beyond = np.flatnonzero(~kept & is_end[anchor])
    end = anchor[beyond]
    away = _distances(positions_nm, beyond, behind[end])
    ahead = away > _distances(positions_nm, end, behind[end])
    beyond, end, away = beyond[ahead], end[ahead], away[ahead]
    order = np.lexsort((beyond, -away, end))
    first = np.append(True, np.diff(end[order]) != 0)[: len(order)]
    for node in beyond[order[first]]:
        _keep_way(kept, ways.parent, node)


def _distances(
    positions: NDArray[np.float64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float64]:
    return np.sqrt(((positions[first] - positions[second]) ** 2).sum(axis=1))


@njit(cache=True, nogil=True)
def _behind(
    ends: NDArray[np.int64],
    onward: NDArray[np.int64],
    lengths: NDArray[np.float64],
    reach: NDArray[np.float64],
) -> NDArray[np.int64]:
    """(N,) for each end, the node of its stretch that lies its reach behind it."""
    behind = np.arange(len(lengths))
    for end in ends:
        node = end
        while onward[node] >= 0 and abs(lengths[end] - lengths[node]) < reach[end]:
            node = onward[node]
        behind[end] = node
    return behind


def _add_uncovered(
    kept: NDArray[np.bool_],
    ways: Ways,
    positions_nm: NDArray[np.float64],
    reach_nm: NDArray[np.float64],
    outward: NDArray[np.int64],
) -> None:
    """Add, furthest first, the nodes that nothing kept reaches, each with its way."""
    doubtful = outward[::-1][~kept[outward[::-1]]]
    if not len(doubtful):
        return
    index = cKDTree(positions_nm[doubtful])
    covered = np.zeros(len(doubtful), bool)

    def cover(nodes: NDArray[np.int64]) -> None:
        found = index.query_ball_point(positions_nm[nodes], reach_nm[nodes])
        sizes = np.array([len(f) for f in found])
        hits = np.concatenate([np.zeros(0, np.int64), *(f for f in found if f)]).astype(np.int64)
        same = ways.part[doubtful[hits]] == np.repeat(ways.part[nodes], sizes)
        covered[hits[same]] = True

    cover(np.flatnonzero(kept & np.isin(ways.part, ways.part[doubtful])))
    for i, node in enumerate(doubtful.tolist()):
        if covered[i] or kept[node]:
            continue
        way = [node]
        while not kept[ways.parent[way[-1]]]:
            way.append(int(ways.parent[way[-1]]))
        kept[way] = True
        cover(np.array(way, np.int64))
