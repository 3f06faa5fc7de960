"""Edges between nodes that touch across a face, though no block has drawn them.

Blocks share the central voxel of each patch in which they meet. Where a neurite crosses a face at a
flat angle, the patch is long, and its central voxel may lie far from where the centre line crosses:
the line of one block ends beside that of the other. Two voxels of an object that touch are one
piece of it, so such nodes are tied; of the ways there are then, the thickest is taken.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_join_graph import Indices, adjacency, first_row
from pipeline.arrays.skeleton_join_weld import Welded


def touching_edges(welded: Welded, voxel_size_nm: tuple[float, float, float]) -> Indices:
    """(T, 2) edges to add, smaller end first, sorted.

    They join nodes of a segment on voxels that touch (26 neighbours), of which one lies on a face
    and the other beside it, unless an edge or a third node joins the two.
    """
    beside_nm = float(np.linalg.norm(voxel_size_nm)) * (1 + 1e-9)
    starts, neighbours = adjacency(len(welded.segment), welded.edges)
    return _touching(
        welded.segment, welded.voxels, welded.face_nm, beside_nm, starts, neighbours
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _touching(
    segment: Indices,
    voxels: Indices,
    face: NDArray[np.float64],
    beside_nm: float,
    starts: Indices,
    neighbours: Indices,
) -> Indices:
    found = np.empty((64, 2), np.int32)
    count = 0
    for node in range(len(segment)):
        if face[node] > beside_nm:
            continue
        z, y, x = voxels[node]
        for dz, dy in ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1)):
            at = first_row(
                segment, voxels, node + 1, len(segment), (segment[node], z + dz, y + dy, x - 1)
            )
            while at < len(segment) and segment[at] == segment[node]:
                if voxels[at, 0] != z + dz or voxels[at, 1] != y + dy or voxels[at, 2] > x + 1:
                    break
                on_face = min(face[node], face[at]) == 0 and face[at] <= beside_nm
                if on_face and not _are_joined(node, at, starts, neighbours):
                    if count == len(found):
                        found = np.concatenate((found, np.empty_like(found)))
                    found[count, 0], found[count, 1] = node, at
                    count += 1
                at += 1
    return found[:count].copy()


@njit(cache=True, nogil=True)
def _are_joined(node: int, other: int, starts: Indices, neighbours: Indices) -> bool:
    """Whether two nodes are neighbours, or have one in common."""
    for slot in range(starts[node], starts[node + 1]):
        between = neighbours[slot]
        if between == other:
            return True
        for further in range(starts[between], starts[between + 1]):
            if neighbours[further] == other:
                return True
    return False
