"""From the face records of neighbouring blocks to the fragments of the volume.

Every joined pair that crosses a face is known from the two records that meet there, so voxels are
not read again. Partial results are themselves pairs (id, root): stitching may be done in any
grouping, as a tree over the blocks, and gives the same map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.fragments import FaceRecord
from pipeline.arrays.labels import SparseMap
from pipeline.errors import DataError, InputError, ShapeError


def joined_pairs(lower: FaceRecord, upper: FaceRecord) -> NDArray[np.uint64]:
    """The pairs of local labels that edges across one face unite.

    Args:
        lower: the lower face of the block on the successor side.
        upper: the upper face of the block on the predecessor side: the same voxel pairs.

    Returns:
        (n, 2) uint64, u < v in each row, rows sorted, without repeats.

    Raises:
        ShapeError: the faces differ in shape.
        DataError: a joined voxel is background: the records do not belong together.
    """
    if lower.labels.shape != upper.labels.shape:
        raise ShapeError(
            f"two records of one face, but shapes {lower.labels.shape} and {upper.labels.shape}"
        )
    joined = lower.joins | upper.joins
    ends = np.stack([upper.labels[joined], lower.labels[joined]], axis=1)
    if not ends.all():
        raise DataError(
            f"{int((ends == 0).any(axis=1).sum())} joined pairs of a face end in background; "
            "the two blocks were not cut from the same affinities with the same thresholds"
        )
    ends.sort(axis=1)
    ends = ends[np.lexsort((ends[:, 1], ends[:, 0]))]
    new = np.ones(len(ends), bool)
    new[1:] = (ends[1:] != ends[:-1]).any(axis=1)
    return ends[new]


def resolve(pairs: NDArray[np.uint64]) -> SparseMap:
    """The sparse map from every united id to the smallest id of its set.

    Args:
        pairs: (n, 2) uint64, ids to unite, any order, repeats allowed.

    Returns:
        (ids, roots), uint64: only ids whose root is another id, strictly increasing.

    Raises:
        ShapeError: pairs are not (n, 2).
        InputError: an id is 0, the background.
    """
    pairs = np.asarray(pairs, np.uint64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ShapeError(f"expected pairs (n, 2), got shape {pairs.shape}")
    ids = np.unique(pairs)
    if len(ids) and ids[0] == 0:
        raise InputError("a pair to unite holds 0: background joins nothing")
    left, right = (np.searchsorted(ids, pairs[:, side]) for side in (0, 1))
    roots = ids[_unite(left, right, len(ids))]
    moved = roots != ids
    return ids[moved], roots[moved]


def merge_maps(maps: Sequence[SparseMap]) -> SparseMap:
    """One map from several partial ones: what `resolve` gives for all their pairs together."""
    if not maps:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    return resolve(np.concatenate([np.stack(part, axis=1) for part in maps]))


@njit(cache=True, nogil=True)
def _unite(left: np.ndarray, right: np.ndarray, n: int) -> np.ndarray:
    """Root of each of n items, the smallest index of its set."""
    parent = np.arange(n)
    for k in range(left.size):
        a = _root(parent, left[k])
        b = _root(parent, right[k])
        if a < b:
            parent[b] = a
        else:
            parent[a] = b
    for i in range(n):
        parent[i] = parent[parent[i]]  # a parent is never larger, so it is a root already
    return parent


@njit(cache=True, nogil=True)
def _root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
