"""Corners that faces of blocks have put into a path are cut off.

Every crossing of a face leads through the central voxel of the patch there. Where the path comes
from a voxel and goes on to one beside it, that detour tells nothing: two voxels of an object that
touch are joined directly.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.arrays.skeleton_join_graph import Indices
from pipeline.arrays.skeleton_tree import Flags, Floats


@njit(cache=True, nogil=True)
def cut_corners(
    alive: Flags, parent: Indices, voxels: Indices, face_nm: Floats, rings: Indices
) -> None:
    """Take out, in place, nodes on a face whose two neighbours on their path touch (26 neighbours).

    Args:
        alive: (N,) changed.
        parent: (N,) the next node towards the root, -1 at a root; changed.
        voxels: (N, 3).
        face_nm: (N,) distance to the nearest face of a block; only nodes at 0 are looked at.
        rings: (K, 2) further edges; their nodes stay.
    """
    children = np.zeros(len(alive), np.int32)
    child = np.full(len(alive), -1, np.int32)
    for node in range(len(alive)):
        if alive[node] and parent[node] >= 0:
            children[parent[node]] += 1
            child[parent[node]] = node
    for row in range(len(rings)):
        for side in range(2):
            children[rings[row, side]] += 2
    for node in range(len(alive)):
        above, below = parent[node], child[node]
        if not alive[node] or face_nm[node] > 0 or above < 0 or children[node] != 1:
            continue
        apart = 0
        for axis in range(3):
            apart = max(apart, abs(voxels[above, axis] - voxels[below, axis]))
        if apart <= 1:
            alive[node] = False
            parent[below] = above
            child[above] = below
