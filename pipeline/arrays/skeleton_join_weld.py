"""The pieces of all blocks as one graph: equal nodes of a segment are one node.

Nodes are sorted by segment and place, edges by their ends, so nothing that follows depends on the
order of the pieces. Indices and voxels are int32: a segment of many millions of nodes must fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeletons import SkeletonPieces
from pipeline.errors import InputError, ShapeError


@dataclass(frozen=True, eq=False)
class Welded:
    """The graph of many segments.

    Attributes:
        ids: (S,) uint64, the segments, ascending.
        segment: (N,) int32, index into `ids`, ascending.
        voxels: (N, 3) int32, z, y, x; ascending within a segment.
        edges: (E, 2) int32, smaller end first, sorted, each once.
        radius_nm, face_nm: (N,) float64, the smallest that a block saw.
        soma: (N,) bool, whether some block saw a soma there.
        shared: number of nodes that two or more blocks gave.
    """

    ids: NDArray[np.uint64]
    segment: NDArray[np.int32]
    voxels: NDArray[np.int32]
    edges: NDArray[np.int32]
    radius_nm: NDArray[np.float64]
    face_nm: NDArray[np.float64]
    soma: NDArray[np.bool_]
    shared: int


def weld(pieces: Sequence[SkeletonPieces]) -> Welded:
    """Put the tables of all blocks together.

    Raises:
        InputError: a node does not lie at the centre of a voxel.
        ShapeError: more nodes than int32 can number.
    """
    segments = np.concatenate([np.zeros(0, np.uint64), *(p.segment for p in pieces)])
    if len(segments) >= 2**31 - 1:
        raise ShapeError(
            f"skeleton pieces: {len(segments)} nodes are too many to join at once, expected fewer "
            f"than 2^31. Join fewer segments at a time."
        )
    ids, index = np.unique(segments, return_inverse=True)
    segment: NDArray[np.int32] = index.astype(np.int32)
    del index
    del segments
    voxels = np.concatenate([np.zeros((0, 3), np.int32), *(_voxels(p.nodes) for p in pieces)])
    order = np.lexsort((voxels[:, 2], voxels[:, 1], voxels[:, 0], segment))
    segment, voxels = segment[order], voxels[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (segment[1:] != segment[:-1]) | (voxels[1:] != voxels[:-1]).any(axis=1)
    first = np.flatnonzero(fresh)
    place = np.empty(len(order), np.int32)
    place[order] = np.cumsum(fresh) - 1
    shared = int((np.diff(np.append(first, len(order))) > 1).sum())
    edges = _edges(pieces, place, len(first))
    segment, voxels = segment[first], voxels[first]
    radius, face = (
        _smallest(np.concatenate([np.zeros(0), *columns]), place, len(first))
        for columns in ([p.radius_nm for p in pieces], [p.face_nm for p in pieces])
    )
    soma = np.zeros(len(first), bool)
    soma[place[np.concatenate([np.zeros(0, bool), *(_soma(p) for p in pieces)])]] = True
    return Welded(ids, segment, voxels, edges, radius, face, soma, shared)


def _voxels(nodes: NDArray[np.float64]) -> NDArray[np.int32]:
    voxels = np.floor(nodes).astype(np.int32)
    off = np.flatnonzero((voxels + 0.5 != nodes).any(axis=1))
    if len(off):
        raise InputError(
            f"skeleton pieces: a node lies at {nodes[off[0]].tolist()}, expected the centre of a "
            f"voxel (a whole number and a half). Give nodes in voxels of the volume, not nm."
        )
    return voxels


def _soma(piece: SkeletonPieces) -> NDArray[np.bool_]:
    return np.asarray(piece.soma, bool)


def _edges(
    pieces: Sequence[SkeletonPieces], place: NDArray[np.int32], count: int
) -> NDArray[np.int32]:
    """The edges of all pieces between welded nodes, sorted, each once."""
    keys = np.empty(sum(len(p.edges) for p in pieces), np.int64)
    row = node = 0
    for piece in pieces:
        ends = place[piece.edges + node].astype(np.int64)
        low, high = ends.min(axis=1, initial=count), ends.max(axis=1, initial=0)
        keys[row : row + len(ends)] = low * count + high
        row += len(ends)
        node += len(piece.segment)
    keys.sort()
    keys = keys[np.append(True, np.diff(keys) != 0)[: len(keys)]]
    edges = np.empty((len(keys), 2), np.int32)
    edges[:, 0], edges[:, 1] = np.divmod(keys, max(count, 1))
    return edges[edges[:, 0] != edges[:, 1]]


@njit(cache=True, nogil=True)
def _smallest(
    values: NDArray[np.float64], place: NDArray[np.int32], count: int
) -> NDArray[np.float64]:
    least = np.full(count, np.inf)
    for row in range(len(values)):
        least[place[row]] = min(least[place[row]], values[row])
    return least
