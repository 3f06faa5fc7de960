"""Pieces of skeletons from all blocks put together into one skeleton per segment.

1. Weld: nodes of one segment on the same voxel are one node (blocks share seams of voxels,
   `pipeline.arrays.skeleton_join_weld`).
2. Join: components whose nearest nodes lie within the join radius, nearest pair first
   (`pipeline.arrays.skeleton_join_gaps`), and nodes that touch across a face
   (`pipeline.arrays.skeleton_join_touch`).
3. Thin out: what the faces of blocks have doubled goes (`pipeline.arrays.skeleton_tree`).
4. Rings: those of the object are closed again, the rest stays open
   (`pipeline.arrays.skeleton_rings`). Side branches that leave a node near a face and end within
   its reach go: in one piece, none would have been drawn. Corners at faces are cut off
   (`pipeline.arrays.skeleton_join_corners`).
5. Somata: each becomes one node (`pipeline.arrays.skeleton_somata`).
6. Prune: ticks, then dust (`pipeline.arrays.skeleton_prune`).

All steps work on canonically sorted nodes: the order of the pieces does not matter. Segments do not
influence one another, so a caller may split the pieces by segment and join each share by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import fsum

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_join_corners import cut_corners
from pipeline.arrays.skeleton_join_gaps import gap_edges
from pipeline.arrays.skeleton_join_graph import Indices
from pipeline.arrays.skeleton_join_touch import touching_edges
from pipeline.arrays.skeleton_join_weld import Welded, weld
from pipeline.arrays.skeleton_prune import (
    components,
    drop_dust,
    edge_lengths,
    prune_branches,
)
from pipeline.arrays.skeleton_rings import close_rings
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeleton_somata import Somata, merge_somata
from pipeline.arrays.skeleton_tree import Flags, Floats, keep_certain, keep_rest
from pipeline.arrays.skeletons import SkeletonPieces, VoxelSize, const_nm

_TICK_VOX = 5.0


@dataclass(frozen=True)
class JoinReport:
    """What joining did, as counts and lengths; the sum of two is that of both together.

    Attributes:
        welded: nodes that two or more blocks share.
        gaps_joined: edges added between components within the join radius.
        loops_kept: independent rings of the result.
        loops_opened: independent rings of the welded graph that the result has not.
        doubled_nm: cable that went because the faces of blocks had doubled or bent it.
        ticks_removed, ticks_nm: short side branches, and their cable.
        dust_removed, dust_nm: components with less cable than the limit, and their cable.
        somata: nodes that stand for a soma.
        cable_in_nm, cable_out_nm: summed edge lengths of the pieces and of the result.
    """

    welded: int = 0
    gaps_joined: int = 0
    loops_kept: int = 0
    loops_opened: int = 0
    doubled_nm: float = 0.0
    ticks_removed: int = 0
    ticks_nm: float = 0.0
    dust_removed: int = 0
    dust_nm: float = 0.0
    somata: int = 0
    cable_in_nm: float = 0.0
    cable_out_nm: float = 0.0

    def __add__(self, other: JoinReport) -> JoinReport:
        names = [item.name for item in fields(self)]
        return JoinReport(**{name: getattr(self, name) + getattr(other, name) for name in names})


def join_pieces(
    pieces: Sequence[SkeletonPieces], *, voxel_size_nm: VoxelSize, settings: SkeletonSettings
) -> tuple[dict[int, Skeleton], JoinReport]:
    """One skeleton per segment from the pieces of all blocks, whatever their order.

    Args:
        pieces: of `skeletonize_block`, one table a block, all with context or all without.
        voxel_size_nm: z, y, x.
        settings: those of the blocks.

    Returns:
        Skeletons by segment, ascending, each with one part per connected component of the segment
        (fewer where gaps were joined or dust removed). Edges are (child, parent), the root of a
        part is its thickest node or one beside it that stands for a soma; each ring has one edge
        more, (larger, smaller). And the counts.

    Raises:
        InputError: a node does not lie at the centre of a voxel.
    """
    size = np.asarray(voxel_size_nm, np.float64)
    welded = weld(pieces)
    place = (welded.voxels + 0.5) * size
    gaps = gap_edges(welded, settings.join_radius_vox)
    edges = _with_more(welded.edges, np.sort(gaps, axis=1))
    loops, cable = _rings_of(len(place), edges), _cable(place, edges)
    edges = _with_more(edges, touching_edges(welded, voxel_size_nm))
    reach = settings.scale * welded.radius_nm + const_nm(settings, voxel_size_nm)
    alive, ways = keep_certain(place, edges, welded.radius_nm, welded.face_nm)
    rings = np.zeros((0, 2), np.int32)
    if settings.keep_loops:
        rings = close_rings(alive, ways, place, edges, reach, rings)
    keep_rest(alive, ways, place, welded.radius_nm, reach, rings)
    if settings.keep_loops:
        rings = close_rings(alive, ways, place, edges, reach, rings)
    tree = _tree_edges(alive, ways.parent)
    # Of an end that faces have cut lengthwise, each part reaches for a corner of its own.
    at_face = np.where(welded.face_nm > welded.radius_nm, 0.0, reach)
    alive &= prune_branches(place, np.concatenate([tree, rings]), at_face)[0]
    cut_corners(alive, ways.parent, welded.voxels, welded.face_nm, rings)
    tree = _tree_edges(alive, ways.parent)
    del ways, at_face
    doubled = cable - _cable(place, tree) - _cable(place, rings)
    body = merge_somata(alive, tree, rings, edges, welded.soma, place, welded.radius_nm)
    del alive, tree, edges
    ticks = _tick_limits(reach, welded.soma, voxel_size_nm, settings)
    kept, pruned = _prune(body, place, ticks, settings.dust_nm)
    loops_left = _rings_of(len(body.alive), kept)
    report = JoinReport(
        welded=welded.shared,
        gaps_joined=len(gaps),
        loops_kept=loops_left,
        loops_opened=max(0, loops - loops_left),
        doubled_nm=max(0.0, doubled),
        somata=body.count,
        cable_in_nm=fsum(_cable(p.nodes * size, p.edges) for p in pieces),
        cable_out_nm=_cable(place, kept),
    )
    return _split(welded, body, kept), report + pruned


def _with_more(edges: Indices, more: Indices) -> Indices:
    """Both, sorted, each once."""
    if not len(more):
        return edges
    both = np.concatenate([edges, more])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    return both[np.append(True, (np.diff(both, axis=0) != 0).any(axis=1))]


def _cable(positions_nm: Floats, edges: NDArray[np.integer]) -> float:
    return float(edge_lengths(positions_nm, edges).sum())


def _rings_of(count: int, edges: Indices) -> int:
    """The number of independent rings."""
    return int(len(edges) - count + components(count, edges).max(initial=-1) + 1)


def _tree_edges(alive: Flags, parent: Indices) -> Indices:
    """(child, parent) of all living nodes with a living parent, children ascending."""
    child = np.flatnonzero(alive & (parent >= 0)).astype(np.int32)
    child = child[alive[parent[child]]]
    return np.stack([child, parent[child]], axis=1)


def _tick_limits(
    reach_nm: Floats, soma: Flags, voxel_size_nm: VoxelSize, settings: SkeletonSettings
) -> Floats:
    """(N,) the length below which a side branch that leaves a node goes.

    Paths are drawn one by one, and what is out of reach of those before may be within reach of
    those that follow: around a wide ring, each path would leave a spoke.
    """
    if settings.tick_nm is not None:
        return np.full(len(reach_nm), settings.tick_nm)
    least = _TICK_VOX * max(voxel_size_nm)
    return np.where(soma, least, np.maximum(reach_nm, least))


def _prune(
    body: Somata, place: Floats, tick_nm: Floats, dust_nm: float
) -> tuple[Indices, JoinReport]:
    """Ticks, then dust: the edges that are left, and what went. Clears `body.alive`."""
    edges = np.concatenate([body.tree, body.rings[:, ::-1]])
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    before = _cable(place, edges)
    unticked, ticks = prune_branches(place, edges, tick_nm)
    body.alive[...] &= unticked
    edges = edges[body.alive[edges].all(axis=1)]
    between = _cable(place, edges)
    dust = drop_dust(place, edges, body.alive, dust_nm)
    edges = edges[body.alive[edges].all(axis=1)]
    report = JoinReport(
        ticks_removed=ticks,
        ticks_nm=before - between,
        dust_removed=dust,
        dust_nm=between - _cable(place, edges),
    )
    return edges, report


def _split(welded: Welded, body: Somata, edges: Indices) -> dict[int, Skeleton]:
    """One skeleton per segment that has a node left; `edges` ascend by their first node."""
    place = np.cumsum(body.alive, dtype=np.int32) - 1
    segment, nodes = welded.segment[body.alive], welded.voxels[body.alive]
    radius, edges = body.radius_nm[body.alive], place[edges]
    index, starts = np.unique(segment, return_index=True)
    ends = np.append(starts, len(segment))[1:]
    cuts = np.searchsorted(edges[:, 0], np.append(starts, len(segment))).tolist()
    names = welded.ids[index].tolist()
    spans = zip(names, starts.tolist(), ends.tolist(), cuts[:-1], cuts[1:], strict=True)
    return {
        name: Skeleton(
            str(name),
            np.add(nodes[start:end], 0.5, dtype=np.float64),
            edges[first:last].astype(np.int64) - start,
            radius[start:end],
        )
        for name, start, end, first, last in spans
    }
