"""From the face records of neighbouring blocks to the fragments of the volume.

Every joined pair that crosses a face is known from the two records that meet there, so voxels are
not read again. Partial results are themselves pairs (id, root): stitching may be done in any
grouping, as a tree over the blocks, and gives the same map. On the way up a box of blocks keeps its
`OpenFaces` alone: labels inside it that reach no face of the box are settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.fragments import FaceRecord
from pipeline.arrays.labels import SparseMap, distinct
from pipeline.arrays.relabel import apply_lookup
from pipeline.errors import DataError, InputError, ShapeError
from pipeline.geometry import Triple, triple

Pairs = NDArray[np.uint64]
"""(n, 2) rows of two ids."""


@dataclass(frozen=True, eq=False)
class OpenFaces:
    """What a box of blocks does not decide alone.

    Attributes:
        pairs: per axis, (n, 2) uint64: the pairs joined across the box's lower face, as the label
            on the other side and the root on this side; rows sorted, without repeats.
        uppers: per axis, (n, 2) uint64: each label on the upper face and its root; sorted by label.

    A label is that of a block; a root is the smallest label that it is united with inside the box.
    """

    pairs: tuple[Pairs, Pairs, Pairs]
    uppers: tuple[Pairs, Pairs, Pairs]

    @property
    def roots(self) -> NDArray[np.uint64]:
        """Every root that may still be united with one outside, increasing."""
        ends = [part[:, 1] for part in (*self.pairs, *self.uppers)]
        return distinct(*ends)


def joined_pairs(lower: FaceRecord, upper: FaceRecord) -> NDArray[np.uint64]:
    """The pairs of local labels that edges across one face unite.

    Args:
        lower: the lower face of the block on the successor side.
        upper: the upper face of the block on the predecessor side: the same voxel pairs.

    Returns:
        (n, 2) uint64: the label on the predecessor side, that on the successor side; rows sorted,
        without repeats.

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
    return _unique_rows(ends)


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
    ids = distinct(pairs)
    if len(ids) and ids[0] == 0:
        raise InputError("a pair to unite holds 0: background joins nothing")
    left, right = (np.searchsorted(ids, pairs[:, side]) for side in (0, 1))
    roots = ids[_unite(left, right, len(ids))]
    moved = roots != ids
    return ids[moved], roots[moved]


def join_boxes(boxes: Mapping[Triple, OpenFaces]) -> tuple[SparseMap, OpenFaces]:
    """Unite neighbouring boxes to one.

    Args:
        boxes: by their position in a grid; boxes that hold no label may be left out.

    Returns:
        The roots that are united with a smaller one, as `resolve` gives them; and what is still
        open of the larger box.
    """
    if not boxes:
        return resolve(_no_pairs()), OpenFaces((_no_pairs(),) * 3, (_no_pairs(),) * 3)
    inner, outer = [], []
    for axis in range(3):
        inside, outside = _sort_pairs(boxes, axis)
        inner.append(inside)
        outer.append(outside)
    merged = resolve(np.concatenate(inner))
    pairs = tuple(_unique_rows(_renamed(part, merged)) for part in outer)
    uppers = tuple(_sorted_rows(_renamed(_uppers(boxes, axis), merged)) for axis in range(3))
    return merged, OpenFaces((pairs[0], pairs[1], pairs[2]), (uppers[0], uppers[1], uppers[2]))


def _sort_pairs(boxes: Mapping[Triple, OpenFaces], axis: int) -> tuple[Pairs, Pairs]:
    """The pairs of roots between two of the boxes, and the pairs across the lower face of all."""
    inside, outside = [_no_pairs()], [_no_pairs()]
    for position, box in boxes.items():
        before = boxes.get(triple(tuple(p - (d == axis) for d, p in enumerate(position))))
        pairs = box.pairs[axis]
        if before is None:
            outside.append(pairs)
        elif len(pairs):
            upper = before.uppers[axis]
            roots = apply_lookup(pairs[:, 0], upper[:, 0].copy(), upper[:, 1].copy())
            inside.append(np.stack([roots, pairs[:, 1]], axis=1))
    return np.concatenate(inside), np.concatenate(outside)


def _uppers(boxes: Mapping[Triple, OpenFaces], axis: int) -> Pairs:
    last = max(position[axis] for position in boxes)
    parts = [box.uppers[axis] for position, box in boxes.items() if position[axis] == last]
    return np.concatenate(parts)


def _renamed(rows: Pairs, merged: SparseMap) -> Pairs:
    return np.stack([rows[:, 0], apply_lookup(rows[:, 1].copy(), *merged)], axis=1)


def _no_pairs() -> Pairs:
    return np.zeros((0, 2), np.uint64)


def _sorted_rows(rows: Pairs) -> Pairs:
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


def _unique_rows(rows: Pairs) -> Pairs:
    rows = _sorted_rows(rows)
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[new]


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
