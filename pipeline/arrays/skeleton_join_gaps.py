"""Edges over small gaps between the components of a segment.

A gap is measured in voxels, each axis in its own: what is missing at a gap is voxels, not
nanometres. So with voxels three times as deep as wide, a gap may be three times as deep as wide.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_join_graph import Indices, first_row, number_groups, unite
from pipeline.arrays.skeleton_join_weld import Welded


def gap_edges(welded: Welded, radius_vox: float) -> NDArray[np.int32]:
    """(G, 2) edges between components of one segment, none longer than `radius_vox` voxels.

    The nearest pair first, ties by the nodes; no edge closes a ring.
    """
    none = np.zeros((0, 2), np.int32)
    if radius_vox <= 0 or not len(welded.segment):
        return none
    part = np.arange(len(welded.segment), dtype=np.int32)
    unite(part, welded.edges)
    count = number_groups(part)
    if count == len(welded.ids):
        return none
    offsets = _offsets(radius_vox)
    pairs = _close_pairs(welded.segment, welded.voxels, part, _broken(welded, part), offsets)
    steps = (welded.voxels[pairs[:, 0]] - welded.voxels[pairs[:, 1]]).astype(np.float64)
    squares = (steps**2).sum(axis=1)
    pairs, squares = pairs[squares <= radius_vox**2], squares[squares <= radius_vox**2]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0], squares))]
    return pairs[unite(np.arange(count, dtype=np.int32), part[pairs])]


def _broken(welded: Welded, part: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(S,) the segments of more than one component."""
    low = np.full(len(welded.ids), len(part), np.int32)
    high = np.zeros(len(welded.ids), np.int32)
    np.minimum.at(low, welded.segment, part)
    np.maximum.at(high, welded.segment, part)
    return low != high


def _offsets(radius_vox: float) -> NDArray[np.int32]:
    """(K, 3) rows of voxels ahead of a voxel in C order: dz, dy, and the half width along x."""
    reach = int(radius_vox)
    rows = [
        (dz, dy, int(np.sqrt(radius_vox**2 - dz * dz - dy * dy)))
        for dz in range(reach + 1)
        for dy in range(-reach if dz else 0, reach + 1)
        if dz * dz + dy * dy <= radius_vox**2
    ]
    return np.array(rows, np.int32)


@njit(cache=True, nogil=True)
def _close_pairs(
    segment: Indices,
    voxels: Indices,
    part: Indices,
    broken: NDArray[np.bool_],
    offsets: Indices,
) -> Indices:
    """(P, 2) pairs of nodes of one segment, but of two components, at the offsets."""
    found = np.empty((64, 2), np.int32)
    count = 0
    low = 0
    for node in range(len(segment)):
        name = segment[node]
        if node == 0 or segment[node - 1] != name:
            low = node
            high = len(segment)
            if broken[name]:
                high = node
                while high < len(segment) and segment[high] == name:
                    high += 1
        if not broken[name]:
            continue
        for row in range(len(offsets)):
            z, y = voxels[node, 0] + offsets[row, 0], voxels[node, 1] + offsets[row, 1]
            x, width = voxels[node, 2], offsets[row, 2]
            at = first_row(segment, voxels, low, high, (name, z, y, x - width))
            at = max(at, node + 1)
            while at < high and voxels[at, 0] == z and voxels[at, 1] == y:
                if voxels[at, 2] > x + width:
                    break
                if part[at] != part[node]:
                    if count == len(found):
                        more = np.empty((2 * count, 2), np.int32)
                        more[:count] = found
                        found = more
                    found[count, 0], found[count, 1] = node, at
                    count += 1
                at += 1
    return found[:count].copy()
