"""Pieces of skeletons from all blocks put together into one forest per segment.

1. Weld: nodes of one segment on the same voxel are one node (blocks share a plane of voxels).
2. Join: components whose nearest nodes lie within the join radius, nearest pair first.
3. Thin out: what the faces of blocks have doubled goes, rings are opened
   (`pipeline.arrays.skeleton_tree`).
4. Prune: ticks, then dust (`pipeline.arrays.skeleton_prune`).

All steps work on canonically sorted nodes: the order of the pieces does not matter. Segments do not
influence one another, so a caller may split the pieces by segment and join each share by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_prune import components, drop_dust, edge_lengths, prune_ticks
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeleton_tree import thin_out
from pipeline.arrays.skeletons import SkeletonPieces, VoxelSize, const_nm

_TICK_VOX = 5.0


@dataclass(frozen=True)
class JoinReport:
    """What joining did, as counts and lengths.

    Attributes:
        welded: nodes that two or more blocks share.
        gaps_joined: edges added between components within the join radius.
        loops_opened: independent rings of the welded graph.
        doubled_nm: cable that went because the faces of blocks had doubled it.
        ticks_removed: short side branches.
        dust_removed: components with less cable than the limit.
        cable_in_nm, cable_out_nm: summed edge lengths of the pieces and of the result.
    """

    welded: int
    gaps_joined: int
    loops_opened: int
    doubled_nm: float
    ticks_removed: int
    dust_removed: int
    cable_in_nm: float
    cable_out_nm: float


def join_pieces(
    pieces: Sequence[SkeletonPieces], *, voxel_size_nm: VoxelSize, settings: SkeletonSettings
) -> tuple[dict[int, Skeleton], JoinReport]:
    """One skeleton per segment from the pieces of all blocks, whatever their order.

    Args:
        pieces: of `skeletonize_block`, one table a block; blocks overlap by one plane.
        voxel_size_nm: z, y, x.
        settings: those of the blocks.

    Returns:
        Skeletons by segment, ascending, each a forest with one tree per connected component of the
        segment (fewer where gaps were joined or dust removed); edges are (child, parent), the root
        of a tree is its thickest node. And the counts.
    """
    size = np.asarray(voxel_size_nm, np.float64)
    table, welded = _weld(SkeletonPieces.concatenate(pieces))
    place = table.nodes * size
    gaps = _gap_edges(table, settings.join_radius_vox)
    edges = np.concatenate([table.edges, gaps])
    reach = settings.scale * table.radius_nm + const_nm(settings, voxel_size_nm)
    alive, parent = thin_out(place, edges, table.radius_nm, table.face_nm, reach)
    tree = _tree_edges(alive, parent)
    tick = _TICK_VOX * max(voxel_size_nm) if settings.tick_nm is None else settings.tick_nm
    unticked, ticks = prune_ticks(place, tree, tick)
    alive &= unticked
    dust = drop_dust(place, _tree_edges(alive, parent), alive, settings.dust_nm)
    kept = _tree_edges(alive, parent)
    parts = components(len(alive), edges).max(initial=-1) + 1
    report = JoinReport(
        welded=welded,
        gaps_joined=len(gaps),
        loops_opened=int(len(edges) - len(alive) + parts),
        doubled_nm=max(0.0, _cable(place, edges) - _cable(place, tree)),
        ticks_removed=ticks,
        dust_removed=dust,
        cable_in_nm=fsum(_cable(p.nodes * size, p.edges) for p in pieces),
        cable_out_nm=_cable(place, kept),
    )
    return _split(table, alive, kept), report


def _cable(positions_nm: NDArray[np.float64], edges: NDArray[np.int64]) -> float:
    return fsum(edge_lengths(positions_nm, edges).tolist())


def _tree_edges(alive: NDArray[np.bool_], parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """(child, parent) of all living nodes with a living parent, children ascending."""
    child = np.flatnonzero(alive & (parent >= 0))
    child = child[alive[parent[child]]]
    return np.stack([child, parent[child]], axis=1)


def _weld(table: SkeletonPieces) -> tuple[SkeletonPieces, int]:
    """Sort by segment and place, make equal nodes one; the radius is the smallest that was seen."""
    z, y, x = table.nodes.T
    order = np.lexsort((x, y, z, table.segment))
    segment, nodes = table.segment[order], table.nodes[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (segment[1:] != segment[:-1]) | (nodes[1:] != nodes[:-1]).any(axis=1)
    first = np.flatnonzero(fresh)
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(fresh) - 1
    edges = np.sort(place[table.edges], axis=1)
    edges = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)
    smallest = [
        np.minimum.reduceat(values[order], first) if len(first) else values
        for values in (table.radius_nm, table.face_nm)
    ]
    sizes = np.diff(np.append(first, len(order)))
    joined = SkeletonPieces(segment[first], nodes[first], edges, *smallest)
    return joined, int((sizes > 1).sum())


def _gap_edges(table: SkeletonPieces, radius_vox: float) -> NDArray[np.int64]:
    """Edges that join components of one segment within `radius_vox`, nearest pair first."""
    part = components(len(table.segment), table.edges)
    pairs = [np.zeros((0, 2), np.int64)]
    everything = np.arange(len(part))
    for members in np.split(everything, np.flatnonzero(np.diff(table.segment)) + 1):
        if radius_vox > 0 and (part[members] != part[members[:1]]).any():
            near = cKDTree(table.nodes[members]).query_pairs(radius_vox, output_type="ndarray")
            pairs.append(members[np.sort(near, axis=1)])
    close = np.concatenate(pairs)
    close = close[part[close[:, 0]] != part[close[:, 1]]]
    order = np.lexsort((close[:, 1], close[:, 0], edge_lengths(table.nodes, close)))
    return close[order[_joining(len(part), part[close[order]])]]


@njit(cache=True, nogil=True)
def _joining(count: int, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(E,) which pairs, taken in their order, join two groups that were apart (Kruskal)."""
    group = np.arange(count)
    joins = np.zeros(len(pairs), np.bool_)
    for row in range(len(pairs)):
        first, second = pairs[row, 0], pairs[row, 1]
        while group[first] != first:
            group[first] = group[group[first]]
            first = group[first]
        while group[second] != second:
            group[second] = group[group[second]]
            second = group[second]
        if first != second:
            group[max(first, second)] = min(first, second)
            joins[row] = True
    return joins


def _split(
    table: SkeletonPieces, alive: NDArray[np.bool_], edges: NDArray[np.int64]
) -> dict[int, Skeleton]:
    place = np.cumsum(alive) - 1
    edges = place[edges]
    segment, nodes, radius = table.segment[alive], table.nodes[alive], table.radius_nm[alive]
    ids, starts = np.unique(segment, return_index=True)
    ends = np.append(starts, len(segment))[1:]
    # Children ascend with the nodes, so the edges of a segment are one run.
    cuts = np.searchsorted(edges[:, 0], np.append(starts, len(segment)))
    skeletons = {}
    for i, name in enumerate(ids.tolist()):
        start, end = starts[i], ends[i]
        local = edges[cuts[i] : cuts[i + 1]] - start
        skeletons[name] = Skeleton(str(name), nodes[start:end], local, radius[start:end])
    return skeletons
