"""Skeletons of segments put together from those of their fragments, for any lookup.

Fragments are traced once; a changed threshold or a proofreader's merge changes the lookup alone.

1. Fragments of a segment are tied wherever they touch (`pipeline.arrays.skeleton_contacts`): from
   the nearest node of one over the two voxels of the joint to the nearest node of the other.
2. A fragment is thin where it was cut, the neurite is not: near a joint, radii are raised to what
   the size of the contact patch tells.
3. What the cuts have added goes, by the rule of TEASAR applied to the graph instead of voxels:
   every component is rooted at its thickest node; furthest first, a node that is out of reach
   (scale * radius + const) of all that stays is added with its cheapest way to the root. Ends that
   stick out beside joints and strands that run side by side lie within reach, and go.
4. A ring of the object is closed again: an edge stays as well if its ends are otherwise further
   apart than the circumference of a hole as wide as the reach.
5. Ticks, then dust are removed (`pipeline.arrays.skeleton_prune`).

A tree of contacts, the largest first, would do with less, but keeps every strand of fragments that
lie side by side. A segment's skeleton depends on its own fragments and contacts alone: a caller may
go through groups of segments. A segment of one fragment keeps the skeleton of the fragment.

Source: the rule of reach from TEASAR, Sato et al. 2000, doi:10.1109/PCCGA.2000.883951.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from pipeline.arrays.labels import SparseMap, among
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_contacts import Contacts
from pipeline.arrays.skeleton_prune import components, drop_dust, edge_lengths, prune_ticks
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeletons import VoxelSize, const_nm
from pipeline.errors import InputError

_TICK_VOX = 5.0
_MANY = 256  # nodes of a fragment from which on a tree finds the nearest sooner than looking at all

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class FuseReport:
    """What fusing did, as counts and lengths.

    Attributes:
        segments: with a skeleton.
        fragments: that were fused, or stand alone.
        dropped: fragments that the lookup sends to 0.
        joints: contacts inside segments along which fragments were tied.
        without_skeleton: contacts inside segments of a fragment that was not given; not tied.
        rings: independent rings of the result.
        ticks_removed: side branches.
        dust_removed: components with less cable than the limit.
        longest_joint_nm: the longest tie, from node to node.
        cable_in_nm, cable_out_nm: summed edge lengths of the fragments and of the result.
    """

    segments: int
    fragments: int
    dropped: int
    joints: int
    without_skeleton: int
    rings: int
    ticks_removed: int
    dust_removed: int
    longest_joint_nm: float
    cable_in_nm: float
    cable_out_nm: float


@dataclass(frozen=True)
class _Rules:
    size: Floats
    scale: float
    const_nm: float
    tick_nm: float
    dust_nm: float
    smoothing: float


@dataclass(frozen=True, eq=False)
class _Graph:
    """One segment: nodes in voxels, their places in nm."""

    nodes: Floats
    place: Floats
    edges: Integers
    radius_nm: Floats


@dataclass(frozen=True)
class _Done:
    skeleton: Skeleton
    joints: int
    longest_joint_nm: float
    ticks: int
    dust: int


def fuse_skeletons(
    fragments: Mapping[int, Skeleton],
    contacts: Contacts,
    lookup: SparseMap,
    *,
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
    smoothing: float = 0.0,
) -> tuple[dict[int, Skeleton], FuseReport]:
    """One skeleton per segment of a lookup, from the skeletons of the fragments.

    Args:
        fragments: by id, in any order; traced with `min_voxels` and joined with `dust_nm` 0, or
            small fragments are missing where they tie others.
        contacts: of the same fragments; rows inside other segments are passed over.
        lookup: fragment to segment; fragments that are not listed keep their id, 0 drops.
        voxel_size_nm: z, y, x.
        settings: reach, tick and dust of the result.
        smoothing: every node becomes the mean of its branch over this many reaches to either side
            (less near the ends, which stay). 0 leaves nodes at voxel centres; 0.25 takes away what
            fragments smaller than the neurite is wide add in zigzags.

    Returns:
        Skeletons by segment, ascending, and the report. In fused segments, nodes are sorted by
        place and edges are (child, parent); edges that close a ring come last.

    Raises:
        DtypeError, ShapeError, InputError: the lookup is no sparse map; smoothing is negative.
    """
    if not smoothing >= 0:
        raise InputError(f"smoothing is a number of reaches, 0 or more, got {smoothing}")
    rules = _rules(voxel_size_nm, settings, smoothing)
    ids = np.array(sorted(i for i, s in fragments.items() if len(s.nodes)), np.uint64)
    segments = apply_lookup(ids, *lookup)
    rows, absent = _inside(contacts, lookup, ids)
    order = np.lexsort((ids, segments))
    row_order = rows[np.argsort(apply_lookup(contacts.a[rows], *lookup), kind="stable")]
    row_segments = apply_lookup(contacts.a[row_order], *lookup)
    names, counts = np.unique(segments, return_counts=True)
    begins = np.searchsorted(row_segments, names)
    ends = np.searchsorted(row_segments, names, side="right")
    found: dict[int, Skeleton] = {}
    done: list[_Done] = []
    groups = np.split(ids[order], np.cumsum(counts)[:-1]) if len(ids) else []
    for name, members, begin, end in zip(names.tolist(), groups, begins, ends, strict=True):
        if name == 0:
            continue
        parts = [fragments[int(i)] for i in members]
        done.append(_fuse(str(name), parts, members, contacts, row_order[begin:end], rules))
        if len(done[-1].skeleton.nodes):
            found[name] = done[-1].skeleton
    dropped = int((segments == 0).sum())
    return found, _report(fragments, found, done, (len(ids), dropped, absent), rules)


def _rules(voxel_size_nm: VoxelSize, settings: SkeletonSettings, smoothing: float) -> _Rules:
    tick = _TICK_VOX * max(voxel_size_nm) if settings.tick_nm is None else settings.tick_nm
    return _Rules(
        np.asarray(voxel_size_nm, np.float64),
        settings.scale,
        const_nm(settings, voxel_size_nm),
        tick,
        settings.dust_nm,
        smoothing,
    )


def _inside(contacts: Contacts, lookup: SparseMap, ids: NDArray[np.uint64]) -> tuple[Integers, int]:
    """Rows inside segments, and how many more there are of which one fragment was not given."""
    one, other = apply_lookup(contacts.a, *lookup), apply_lookup(contacts.b, *lookup)
    inside = (one == other) & (one != 0)
    given = among(contacts.a, ids), among(contacts.b, ids)
    half = inside & (given[0] != given[1])
    return np.flatnonzero(inside & given[0] & given[1]), int(half.sum())


def _fuse(
    name: str,
    parts: Sequence[Skeleton],
    ids: NDArray[np.uint64],
    contacts: Contacts,
    rows: Integers,
    rules: _Rules,
) -> _Done:
    """One segment; `rows` are its contacts."""
    graph, longest = _tied(parts, ids, contacts, rows, rules)
    place, edges, radius = graph.place, graph.edges, graph.radius_nm
    alive = np.ones(len(place), bool)
    ticks = 0
    if len(rows):
        alive, edges = _thin_out(graph, rules.scale * radius + rules.const_nm)
        unticked, ticks = prune_ticks(place, edges, rules.tick_nm)
        alive &= unticked
        edges = edges[alive[edges].all(axis=1)]
    dust = drop_dust(place, edges, alive, rules.dust_nm)
    edges = (np.cumsum(alive) - 1)[edges[alive[edges].all(axis=1)]]
    nodes, place, radius = graph.nodes[alive], place[alive], radius[alive]
    if rules.smoothing > 0:
        reach = rules.scale * radius + rules.const_nm
        nodes = smooth_branches(place, edges, rules.smoothing * reach) / rules.size
    skeleton = Skeleton(name, nodes, edges, radius)
    return _Done(skeleton, len(rows), longest, ticks, dust)


def _tied(
    parts: Sequence[Skeleton],
    ids: NDArray[np.uint64],
    contacts: Contacts,
    rows: Integers,
    rules: _Rules,
) -> tuple[_Graph, float]:
    """The fragments of one segment tied at all contacts, and the longest tie."""
    starts = np.cumsum([0, *(len(p.nodes) for p in parts)])
    nodes = np.concatenate([p.nodes for p in parts])
    place = nodes * rules.size
    radius = np.concatenate([p.radii_nm for p in parts])
    radius = np.where(radius > 0, radius, rules.size.min())  # 0 and NaN where unknown
    edges = np.concatenate([p.edges + s for p, s in zip(parts, starts, strict=False)])
    if not len(rows):
        return _Graph(nodes, place, edges, radius), 0.0
    owners = [np.searchsorted(ids, side[rows]) for side in (contacts.a, contacts.b)]
    voxels = [side[rows] + 0.5 for side in (contacts.place_a, contacts.place_b)]
    at = [voxel * rules.size for voxel in voxels]
    nearest = [nearest_nodes(place, starts, o, p) for o, p in zip(owners, at, strict=True)]
    # Two fragments side by side touch along their length: no neurite is as wide as that.
    thickest = np.maximum.reduceat(radius, starts[:-1])
    widest = 2 * np.maximum(thickest[owners[0]], thickest[owners[1]])
    patch = np.minimum(_patch_radii(contacts, rows, rules.size), widest)
    mine, yours = (len(place) + k * len(rows) + np.arange(len(rows)) for k in range(2))
    ties = [(nearest[0], mine), (mine, yours), (yours, nearest[1])]
    edges = np.concatenate([edges, *(np.stack(tie, axis=1) for tie in ties)])
    places = np.concatenate([place, *at])
    longest = sum(edge_lengths(places, np.stack(tie, axis=1)) for tie in ties)
    least = [
        np.maximum(radius[n] - _distances(place[n], p), rules.size.min())
        for n, p in zip(nearest, at, strict=True)
    ]
    radius = np.concatenate([radius, *least])
    graph = _weld(_Graph(np.concatenate([nodes, *voxels]), places, edges, radius))
    _raise_radii(graph, (at[0] + at[1]) / 2, patch)
    return graph, float(np.max(longest))


def _distances(first: Floats, second: Floats) -> Floats:
    return np.sqrt(((first - second) ** 2).sum(axis=1))


def nearest_nodes(place: Floats, starts: Integers, owner: Integers, points: Floats) -> Integers:
    """(n,) for each point, the nearest node of the fragment that owns it.

    Args:
        place: (N, 3); fragment f has the nodes starts[f] to starts[f + 1], at least one.
        starts: (F + 1,).
        owner: (n,) the fragment of each point.
        points: (n, 3).
    """
    out = np.empty(len(owner), np.int64)
    large = np.diff(starts)[owner] > _MANY
    _look_at_all(place, starts, owner, points, large, out)
    for fragment in np.unique(owner[large]).tolist():
        begin, end = starts[fragment], starts[fragment + 1]
        asked = np.flatnonzero(owner == fragment)
        out[asked] = begin + cKDTree(place[begin:end]).query(points[asked])[1]
    return out


@njit(cache=True, nogil=True)
def _look_at_all(
    place: np.ndarray,
    starts: np.ndarray,
    owner: np.ndarray,
    points: np.ndarray,
    skipped: np.ndarray,
    out: np.ndarray,
) -> None:
    for k in range(owner.size):
        least = np.inf
        if skipped[k]:
            continue
        for node in range(starts[owner[k]], starts[owner[k] + 1]):
            square = 0.0
            for axis in range(3):
                square += (place[node, axis] - points[k, axis]) ** 2
            if square < least:
                least = square
                out[k] = node


def _patch_radii(contacts: Contacts, rows: Integers, size: Floats) -> Floats:
    """(n,) the radius of a disc as large as each contact patch, at least half a voxel edge.

    Faces across the three axes are the projections of the patch: of a flat patch, the area is the
    length of the vector of their areas, however it is turned.
    """
    areas = contacts.faces[rows] * (size.prod() / size)
    return np.maximum(np.sqrt(np.sqrt((areas**2).sum(axis=1)) / np.pi), size.min() / 2)


def _weld(graph: _Graph) -> _Graph:
    """Sort by place and make equal places one node; the radius is the largest that was seen."""
    nodes = graph.nodes
    z, y, x = nodes.T
    order = np.lexsort((x, y, z))
    fresh = np.append(True, (np.diff(nodes[order], axis=0) != 0).any(axis=1))
    at = np.empty(len(order), np.int64)
    at[order] = np.cumsum(fresh) - 1
    edges = np.sort(at[graph.edges], axis=1)
    edges = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)
    first = np.flatnonzero(fresh)
    radius = np.maximum.reduceat(graph.radius_nm[order], first)
    return _Graph(nodes[order][first], graph.place[order][first], edges, radius)


def _raise_radii(graph: _Graph, joints: Floats, radii: Floats) -> None:
    """A node near a joint is at least as thick as the joint, less the distance between them."""
    near = cKDTree(graph.place).query_ball_point(joints, radii)
    sizes = np.array([len(nodes) for nodes in near])
    nodes = np.concatenate([np.zeros(0, np.int64), *(n for n in near if n)]).astype(np.int64)
    which = np.repeat(np.arange(len(radii)), sizes)
    lower = radii[which] - _distances(graph.place[nodes], joints[which])
    np.maximum.at(graph.radius_nm, nodes, lower)


def _thin_out(graph: _Graph, reach: Floats) -> tuple[NDArray[np.bool_], Integers]:
    """Which nodes stay, and their edges: (child, parent), then those that close rings."""
    parent, part = _ways_to_roots(graph)
    length = _way_lengths(graph.place, parent)
    outward = np.lexsort((np.arange(len(length)), length))
    kept = _keep_uncovered(graph.place, parent, part, outward[::-1], reach)
    child = np.flatnonzero(kept & (parent >= 0))
    tree = np.stack([child, parent[child]], axis=1)
    rings = _closing(graph, kept, tree, _Ways(parent, length), reach)
    kept[rings] = True
    return kept, np.concatenate([tree, rings])


@dataclass(frozen=True, eq=False)
class _Ways:
    parent: Integers
    length_nm: Floats


def _ways_to_roots(graph: _Graph) -> tuple[Integers, Integers]:
    """The next node on each node's cheapest way to the thickest of its component, and that."""
    radius, edges, count = graph.radius_nm, graph.edges, len(graph.radius_nm)
    part = components(count, edges)
    order = np.lexsort((np.arange(count), -radius, part))
    roots = order[np.append(True, np.diff(part[order]) != 0)[:count]]
    # Thickness counts squared: a detour of a few radii to the centre line pays off.
    cost = edge_lengths(graph.place, edges) / radius[edges].min(axis=1) ** 2
    rows = np.concatenate([edges[:, 0], np.full(len(roots), count)])
    columns = np.concatenate([edges[:, 1], roots])
    values = np.concatenate([cost, np.full(len(roots), cost.min(initial=1.0))])
    matrix = coo_array((values, (rows, columns)), (count + 1, count + 1)).tocsr()
    parent = dijkstra(matrix, directed=False, indices=count, return_predecessors=True)[1]
    parent = parent[:count].astype(np.int64)
    parent[parent == count] = -1
    return parent, part


@njit(cache=True, nogil=True)
def _way_lengths(place: np.ndarray, parent: np.ndarray) -> np.ndarray:
    lengths = np.full(parent.size, -1.0)
    stack = np.empty(parent.size, np.int64)
    for start in range(parent.size):
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
            step = np.sqrt(np.sum((place[child] - place[node]) ** 2))
            lengths[child] = lengths[node] + step
            node = child
    return lengths


def _keep_uncovered(
    place: Floats, parent: Integers, part: Integers, inward: Integers, reach: Floats
) -> NDArray[np.bool_]:
    """Roots and the furthest node of each component, then what is out of reach, with its way."""
    index = cKDTree(place)
    kept = parent < 0
    covered = kept.copy()
    entered = np.zeros(part.max(initial=-1) + 1, bool)
    for node in inward.tolist():
        if kept[node] or (covered[node] and entered[part[node]]):
            continue
        entered[part[node]] = True
        way = [node]
        while not kept[parent[way[-1]]]:
            way.append(int(parent[way[-1]]))
        kept[way] = True
        ahead = np.array(way, np.int64)
        near = index.query_ball_point(place[ahead], reach[ahead])
        hits = np.concatenate([np.asarray(n, np.int64) for n in near])
        covered[hits[part[hits] == part[node]]] = True
    return kept


def _closing(
    graph: _Graph, kept: NDArray[np.bool_], tree: Integers, ways: _Ways, reach: Floats
) -> Integers:
    """Edges, in chains between nodes that stay, that close the rings of the object.

    Each edge is carried on at both ends to the nearest node that stays. The shortest chain
    comes first, and each is measured with those added before: many side by side close one ring.
    """
    costs = edge_lengths(graph.place, graph.edges)
    count = len(kept)
    matrix = coo_array((costs, tuple(graph.edges.T)), (count, count)).tocsr()
    away, onward, foot = dijkstra(
        matrix,
        directed=False,
        indices=np.flatnonzero(kept),
        min_only=True,
        return_predecessors=True,
    )
    feet = foot[graph.edges].astype(np.int64)
    limit = 2 * np.pi * reach[feet].max(axis=1)
    one, other = graph.edges.T
    there = (ways.parent[one] == other) | (ways.parent[other] == one)
    there &= kept[one] & kept[other]  # edges of the tree
    rows = np.flatnonzero((feet[:, 0] != feet[:, 1]) & ~there)
    rows = rows[_way_between(feet[rows], ways.parent, ways.length_nm) > limit[rows]]
    chain = away[graph.edges[rows]].sum(axis=1) + costs[rows]
    added = np.zeros((0, 2), np.int64)
    for row in rows[np.lexsort((rows, chain))].tolist():
        now = np.concatenate([tree, added])
        lengths = edge_lengths(graph.place, now)
        matrix = coo_array((lengths, tuple(now.T)), (count, count)).tocsr()
        begin, end = feet[row].tolist()
        if dijkstra(matrix, directed=False, indices=begin, limit=limit[row])[end] > limit[row]:
            steps = [graph.edges[row].tolist()]
            for node in graph.edges[row].tolist():
                while not kept[node]:
                    steps.append([node, int(onward[node])])
                    node = int(onward[node])
            added = np.concatenate([added, np.array(steps, np.int64)])
    return np.unique(np.sort(added, axis=1), axis=0)


@njit(cache=True, nogil=True)
def _way_between(pairs: np.ndarray, parent: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(n,) the length of the way between two nodes of one tree."""
    out = np.empty(len(pairs))
    for k in range(len(pairs)):
        one, other = pairs[k, 0], pairs[k, 1]
        total = length[one] + length[other]
        while one != other:
            # Equal lengths of different nodes: either may go first, both end at the branching.
            if length[one] >= length[other] and parent[one] >= 0:
                one = parent[one]
            else:
                other = parent[other]
        out[k] = total - 2 * length[one]
    return out


def smooth_branches(place: Floats, edges: Integers, half_nm: Floats) -> Floats:
    """Every node within a branch at the mean of its branch over `half_nm` to either side.

    Tips, branch points and closed rings stay; towards the ends of a branch the stretch shortens.

    Args:
        place: (N, 3) nm.
        edges: (E, 2).
        half_nm: (N,).
    """
    out = place.copy()
    for path in _branches(len(place), edges):
        at = place[path]
        steps = np.sqrt((np.diff(at, axis=0) ** 2).sum(axis=1))
        along = np.concatenate([[0.0], np.cumsum(steps)])
        half = np.minimum(half_nm[path], np.minimum(along, along[-1] - along))
        inner = np.flatnonzero(half > 0)
        means = _integral(at, steps, along, along + half) - _integral(
            at, steps, along, along - half
        )
        out[path[inner]] = means[inner] / (2 * half[inner, None])
    return out


def _integral(at: Floats, steps: Floats, along: Floats, until: Floats) -> Floats:
    """(n, 3) the integral of the place along a polyline, from its begin to `until`."""
    whole = np.concatenate(
        [np.zeros((1, 3)), np.cumsum((at[1:] + at[:-1]) / 2 * steps[:, None], 0)]
    )
    piece = np.clip(np.searchsorted(along, until, side="right") - 1, 0, len(steps) - 1)
    rest = until - along[piece]
    share = (rest / steps[piece])[:, None]
    end = at[piece] + (at[piece + 1] - at[piece]) * share
    return whole[piece] + rest[:, None] * (at[piece] + end) / 2


def _branches(count: int, edges: Integers) -> list[Integers]:
    """The nodes of each way between two nodes that are no ordinary ones (of degree 2)."""
    beside: list[list[int]] = [[] for _ in range(count)]
    for one, other in edges.tolist():
        beside[one].append(other)
        beside[other].append(one)
    paths, seen = [], set()
    for start in range(count):
        for first in beside[start] if len(beside[start]) != 2 else ():
            if (start, first) in seen:
                continue
            path = [start, first]
            while len(beside[path[-1]]) == 2:
                one, other = beside[path[-1]]
                path.append(other if one == path[-2] else one)
            seen.update([(start, first), (path[-1], path[-2])])
            paths.append(np.array(path, np.int64))
    return paths


def _report(
    fragments: Mapping[int, Skeleton],
    found: Mapping[int, Skeleton],
    done: Sequence[_Done],
    counts: tuple[int, int, int],
    rules: _Rules,
) -> FuseReport:
    count, dropped, absent = counts

    def cable(skeletons: Mapping[int, Skeleton]) -> float:
        lengths = [edge_lengths(s.nodes * rules.size, s.edges) for s in skeletons.values()]
        return fsum(fsum(values.tolist()) for values in lengths)

    rings = 0
    for skeleton in found.values():
        parts = components(len(skeleton.nodes), skeleton.edges).max(initial=-1) + 1
        rings += int(len(skeleton.edges) - len(skeleton.nodes) + parts)
    return FuseReport(
        segments=len(found),
        fragments=count - dropped,
        dropped=dropped,
        joints=sum(one.joints for one in done),
        without_skeleton=absent,
        rings=rings,
        ticks_removed=sum(one.ticks for one in done),
        dust_removed=sum(one.dust for one in done),
        longest_joint_nm=max((one.longest_joint_nm for one in done), default=0.0),
        cable_in_nm=cable({i: fragments[i] for i in sorted(fragments)}),
        cable_out_nm=cable(found),
    )
