"""Rings of an object closed in its skeleton, which a tracer of paths leaves open.

1. Each voxel of the object belongs to its nearest node of the skeleton, along ways inside the
   object. So the object is covered by connected cells.
2. Cells that touch are edges, three that touch in one place are triangles (`find_contacts`). Every
   loop of this complex is one of the object: cells are connected, so a way from cell to cell is a
   way in the object, and where three meet in one place, the way around them can be drawn together.
   Paths side by side in a thick object, however many, make no loop.
3. The edges beyond a spanning tree are reduced by the triangles, longest first: what is left is the
   shortest contact of each loop (the essential classes of persistent homology).
4. A cycle shorter than 2 pi * (scale * radius + const), the mean along it, is filled: a hole within
   the reach of the paths around it is a pinhole, or noise. Lengths run through the nodes of cells.
5. For each loop that is left, the way through its contact joins the skeleton.

Source: persistent homology by reduction of the boundary matrix, Edelsbrunner et al. 2002,
doi:10.1007/s00454-002-2885-2; the nerve of a cover by connected sets, Bjorner 1995.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_block_body import Body
from pipeline.arrays.skeleton_block_kernels import spread
from pipeline.arrays.skeleton_block_trace import Trace
from pipeline.arrays.skeleton_join_graph import unite
from pipeline.arrays.skeleton_loop_kernels import (
    enter,
    enter_short_cycles,
    find_contacts,
    name_chords,
    reduce_sums,
)
from pipeline.arrays.skeleton_settings import SkeletonSettings, VoxelSize, const_nm

MOST_LOOPS = 1024
"""An object of more loops in one block is a sponge: none is closed."""


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells around the nodes of a skeleton and where they touch.

    Attributes:
        onward: (V,) the next voxel from each towards its node.
        pairs: (P, 4) int64, nodes u < v and the voxels of their nearest contact, ascending.
        ways_nm: (P,) the way from u to v through it.
        triangles: (T, 3) int64, rows of `pairs`.
    """

    onward: NDArray[np.int64]
    pairs: NDArray[np.int64]
    ways_nm: NDArray[np.float64]
    triangles: NDArray[np.int64]


def close_loops(
    body: Body,
    trace: Trace,
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
) -> tuple[Trace, int]:
    """The skeleton of a component with a path added for each ring that the component has.

    Args:
        body: of a component with at least one tunnel.
        trace: its skeleton, a tree.
        voxel_size_nm: z, y, x.
        settings: of the method.

    Returns:
        The skeleton, its old nodes and edges first, and how many rings were closed.
    """
    rows = body.rows(trace.nodes)
    cells = _find_cells(body, rows, voxel_size_nm)
    chords, sums = _chords_and_sums(len(rows), trace.edges, cells)
    start, end, pool = reduce_sums(sums, len(chords))
    found = int((end == 0).sum())
    if not 0 < found <= MOST_LOOPS:
        return trace, 0
    names, loops = name_chords(start, end, pool)
    basis, held = np.zeros((found, names.shape[1]), np.uint64), np.zeros(found, np.bool_)
    reach = settings.scale * trace.radii_nm + const_nm(settings, voxel_size_nm)
    _fill_short(cells, chords, names, reach, basis, held)
    kept = [int(chords[loop]) for loop in loops if enter(names[loop], basis, held)]
    return _with_paths(body, trace, rows, cells, kept), len(kept)


def _find_cells(body: Body, rows: NDArray[np.int64], voxel_size_nm: VoxelSize) -> _Cells:
    # A node in a filled hole of a soma has no voxel.
    node = np.flatnonzero(rows >= 0)
    distance, onward, source = spread(
        rows[node], body.places, body.voxel_at, body.offsets, body.lengths_nm
    )
    corners = np.array(list(product((0, 1), repeat=3)), np.int64)
    octants = (corners[None] - 1 + corners[:, None]) @ body.strides
    apart = ((corners[None] - corners[:, None]) * np.asarray(voxel_size_nm)) ** 2
    contacts, ways, triples = find_contacts(
        body.places,
        body.voxel_at,
        octants,
        np.sqrt(apart.sum(axis=2)),
        node[source],
        distance,
    )
    order = np.lexsort((contacts[:, 3], contacts[:, 2], ways, contacts[:, 1], contacts[:, 0]))
    contacts, ways = contacts[order], ways[order]
    fresh = np.append(True, (np.diff(contacts[:, :2], axis=0) != 0).any(axis=1))[: len(order)]
    pairs, ways = contacts[fresh], ways[fresh]
    triples = np.unique(triples, axis=0)
    keys = pairs[:, 0] * len(rows) + pairs[:, 1]
    sides = [triples[:, i] * len(rows) + triples[:, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    triangles = np.stack([np.searchsorted(keys, side) for side in sides], axis=1)
    return _Cells(onward, pairs, ways, triangles)


def _chords_and_sums(
    count: int, edges: NDArray[np.int64], cells: _Cells
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contacts beyond a spanning tree, shortest first, and the triangles in them.

    Returns:
        (K,) rows of `cells.pairs`; (T, 3) for each triangle its chords, descending, -1 for none,
        triangles without a chord left out.
    """
    ends = np.sort(edges, axis=1)
    keys = cells.pairs[:, 0] * count + cells.pairs[:, 1]
    drawn = np.isin(keys, ends[:, 0] * count + ends[:, 1])
    order = np.lexsort((np.arange(len(keys)), cells.ways_nm, ~drawn))
    chords = order[~unite(np.arange(count), cells.pairs[order, :2])]
    rank = np.full(len(keys), -1, np.int64)
    rank[chords] = np.arange(len(chords))
    sums = -np.sort(-rank[cells.triangles], axis=1)
    sums = np.unique(sums[sums[:, 0] >= 0], axis=0)
    return chords, sums


def _fill_short(
    cells: _Cells,
    chords: NDArray[np.int64],
    chord_names: NDArray[np.uint64],
    reach_nm: NDArray[np.float64],
    basis: NDArray[np.uint64],
    held: NDArray[np.bool_],
) -> None:
    """Enter the short cycles of the graph of contacts into the basis."""
    names = np.zeros((len(cells.pairs), chord_names.shape[1]), np.uint64)
    names[chords] = chord_names
    # A cycle that closes a loop passes one of these.
    starts = np.unique(cells.pairs[names.any(axis=1), :2])
    tail, head = np.concatenate([cells.pairs[:, :2], cells.pairs[:, 1::-1]]).T
    edge = np.tile(np.arange(len(cells.pairs)), 2)
    order = np.lexsort((head, tail))
    first = np.searchsorted(tail[order], np.arange(len(reach_nm) + 1))
    enter_short_cycles(
        first,
        head[order],
        edge[order],
        cells.ways_nm,
        names,
        starts,
        reach_nm,
        basis,
        held,
    )


def _with_paths(
    body: Body, trace: Trace, rows: NDArray[np.int64], cells: _Cells, kept: list[int]
) -> Trace:
    """The ways through contacts added; ways that meet on a voxel share its node."""
    node_at = {int(row): node for node, row in enumerate(rows.tolist()) if row >= 0}
    new: list[int] = []
    steps: dict[tuple[int, int], None] = {}
    for contact in kept:
        way = _way_to_node(cells, int(cells.pairs[contact, 2]))[::-1]
        way += _way_to_node(cells, int(cells.pairs[contact, 3]))
        for voxel in way:
            if voxel not in node_at:
                node_at[voxel] = len(rows) + len(new)
                new.append(voxel)
        for one, two in pairwise(way):
            a, b = node_at[one], node_at[two]
            steps[min(a, b), max(a, b)] = None
    edges = np.array(list(steps), np.int64).reshape(-1, 2)
    return Trace(
        np.concatenate([trace.nodes, body.voxels[new].reshape(-1, 3)]),
        np.concatenate([trace.edges, edges]),
        np.concatenate([trace.radii_nm, body.radius_nm[new]]),
    )


def _way_to_node(cells: _Cells, voxel: int) -> list[int]:
    """Voxels from one to the node of its cell, both included."""
    way = [voxel]
    while cells.onward[way[-1]] >= 0:
        way.append(int(cells.onward[way[-1]]))
    return way
