"""The region graph: integer affinity sums over the contact of two fragments.

Every face-adjacent voxel pair with two different non-zero labels counts, affinity 0 included, so
sum / count is the mean affinity over the whole contact. A pair belongs to the block whose write ROI
holds the voxel that stores its affinity. Sums are integers: tables add in any order and grouping.

Source: mean affinity agglomeration, Lee et al. 2017, arXiv:1706.00120.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.relabel import apply_lookup
from pipeline.errors import InputError, ShapeError

if TYPE_CHECKING:  # fragments.py builds edge tables, so it cannot be imported here
    from pipeline.arrays.fragments import FaceRecord

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_SHORT = 24  # groups up to this length are sorted by insertion


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """One row per pair of touching fragments, u < v; sorted by (u, v), each pair once.

    Attributes:
        u, v: (n,) uint64, fragment ids.
        affinity_sum: (n,) uint64, sum of the integer affinities over the contact.
        face_count: (n,) uint64, number of voxel pairs in the contact, at least 1.
    """

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    face_count: NDArray[np.uint64]

    def __post_init__(self) -> None:
        for name in ("u", "v", "affinity_sum", "face_count"):
            column = np.ascontiguousarray(getattr(self, name), np.uint64)
            object.__setattr__(self, name, column)
            if column.shape != (self.u.size,):
                raise ShapeError(f"edge table: {column.shape} {name} for {self.u.size} u")
        if len(self) and (not (self.u < self.v).all() or not self.u.all()):
            raise InputError("an edge table row joins two different fragments, 0 < u < v")

    def __len__(self) -> int:
        return int(self.u.size)

    @classmethod
    def empty(cls) -> EdgeTable:
        """A table without rows."""
        return cls(*(np.zeros(0, np.uint64) for _ in range(4)))


def sum_edges(tables: Sequence[EdgeTable]) -> EdgeTable:
    """The canonical table of all rows of `tables`: sorted, equal pairs added, nothing dropped.

    Rows of the input may come in any order. Up to 64 bytes per input row beside the input.
    """
    if not tables:
        return EdgeTable.empty()
    if len(tables) == 1:
        only = tables[0]
        columns = (only.u, only.v, only.affinity_sum, only.face_count)
    else:
        u, v, total, count = (
            np.concatenate([getattr(table, name) for table in tables])
            for name in ("u", "v", "affinity_sum", "face_count")
        )
        columns = (u, v, total, count)
    return _canonical(*columns)


def map_edges(table: EdgeTable, ids: NDArray[np.uint64], roots: NDArray[np.uint64]) -> EdgeTable:
    """The table with both ends renamed; pairs that became equal are dropped, duplicates added.

    Args:
        table: rows over local labels.
        ids: (n,) uint64, strictly increasing; ids that are not listed keep theirs.
        roots: (n,) uint64, the new name of each.

    Raises:
        InputError: ids do not increase, or an end is renamed to 0.
    """
    a = apply_lookup(table.u, ids, roots)
    b = apply_lookup(table.v, ids, roots)
    keep = a != b
    return _canonical(
        np.minimum(a, b)[keep],
        np.maximum(a, b)[keep],
        table.affinity_sum[keep],
        table.face_count[keep],
    )


def cross_face_edges(lower: FaceRecord, upper: FaceRecord) -> EdgeTable:
    """The edges whose voxel pairs cross one face between two blocks.

    Args:
        lower: the lower face of the block on the successor side; it stores the affinities.
        upper: the upper face of the block on the predecessor side: the same voxel pairs.

    Raises:
        ShapeError: the faces differ in shape.
        InputError: `lower` carries no affinities (it is an upper face: swap the arguments).
    """
    if lower.labels.shape != upper.labels.shape:
        raise ShapeError(
            f"two records of one face, but shapes {lower.labels.shape} and {upper.labels.shape}"
        )
    if lower.affinities is None:
        raise InputError("the first record has no affinities: pass the lower face first")
    touching = (lower.labels != 0) & (upper.labels != 0) & (lower.labels != upper.labels)
    a, b = lower.labels[touching], upper.labels[touching]
    sums = lower.affinities[touching].astype(np.uint64)
    return _canonical(np.minimum(a, b), np.maximum(a, b), sums, np.ones(len(a), np.uint64))


def _canonical(
    u: NDArray[np.uint64],
    v: NDArray[np.uint64],
    affinity_sum: NDArray[np.uint64],
    face_count: NDArray[np.uint64],
) -> EdgeTable:
    if _is_canonical(u, v):
        return EdgeTable(u, v, affinity_sum, face_count)
    # One quick sort of u and many tiny ones of v: several times faster than a lexsort.
    order = np.argsort(u)
    _order_groups(order, u, v)
    return EdgeTable(*_sum_rows(order, u, v, affinity_sum, face_count))


@njit(cache=True, nogil=True)
def _is_canonical(u: np.ndarray, v: np.ndarray) -> bool:
    for k in range(1, u.size):
        if u[k] < u[k - 1] or (u[k] == u[k - 1] and v[k] <= v[k - 1]):
            return False
    return True


@njit(cache=True, nogil=True)
def _order_groups(order: np.ndarray, u: np.ndarray, v: np.ndarray) -> None:
    """Sort each stretch of rows with equal u by v; `order` already sorts u."""
    begin = 0
    while begin < order.size:
        end = begin + 1
        while end < order.size and u[order[end]] == u[order[begin]]:
            end += 1
        if end - begin > _SHORT:
            rows = order[begin:end].copy()
            order[begin:end] = rows[np.argsort(v[rows])]
        else:
            for k in range(begin + 1, end):
                row = order[k]
                j = k
                while j > begin and v[order[j - 1]] > v[row]:
                    order[j] = order[j - 1]
                    j -= 1
                order[j] = row
        begin = end


@njit(cache=True, nogil=True)
def _sum_rows(
    order: np.ndarray, u: np.ndarray, v: np.ndarray, sums: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    unique = 0
    for k in range(order.size):
        if k == 0 or u[order[k]] != u[order[k - 1]] or v[order[k]] != v[order[k - 1]]:
            unique += 1
    out_u = np.empty(unique, np.uint64)
    out_v = np.empty(unique, np.uint64)
    out_sum = np.zeros(unique, np.uint64)
    out_count = np.zeros(unique, np.uint64)
    at = -1
    for k in range(order.size):
        row = order[k]
        if at < 0 or u[row] != out_u[at] or v[row] != out_v[at]:
            at += 1
            out_u[at] = u[row]
            out_v[at] = v[row]
        out_sum[at] += sums[row]
        out_count[at] += counts[row]
    return out_u, out_v, out_sum, out_count


# --- Sums over pairs of small indices, for kernels that meet the same pair many times. A table has
# --- 2^n rows (key, affinity sum, face count) uint64, side by side for the cache. The pair
# --- a < b < 2^32 is the key a << 32 | b, which is never 0: a key of 0 is a free row.


@njit(cache=True, nogil=True)
def new_pairs(size: int) -> np.ndarray:
    """An empty pair table; `size` is a power of two."""
    return np.zeros((size, 3), np.uint64)


@njit(cache=True, nogil=True)
def find_pair(table: np.ndarray, key: np.uint64) -> int:
    """The row of `key`, or the free row where it belongs."""
    mask = table.shape[0] - 1
    slot = int(np.int64((key * _SPREAD) >> np.uint64(24)) & mask)
    while table[slot, 0] != 0 and table[slot, 0] != key:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)
def grow_pairs(table: np.ndarray) -> np.ndarray:
    """The same rows in a table of twice the size."""
    wider = new_pairs(2 * table.shape[0])
    for k in range(table.shape[0]):
        if table[k, 0] != 0:
            wider[find_pair(wider, table[k, 0])] = table[k]
    return wider


def table_of_pairs(table: NDArray[np.uint64], ids: NDArray[np.uint64]) -> EdgeTable:
    """The edge table of a pair table; `ids`, increasing, names the indices."""
    keys = table[:, 0]
    rows = np.flatnonzero(keys)
    rows = rows[np.argsort(keys[rows])]
    u = ids[(keys[rows] >> np.uint64(32)).astype(np.int64)]
    v = ids[(keys[rows] & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    return EdgeTable(u, v, table[rows, 1], table[rows, 2])
