"""Mean affinity agglomeration: one merge history that serves every threshold.

The best edge is merged first. Score = affinity_sum / face_count; scores are compared exactly, as
s1 * c2 against s2 * c1 in 128 bits. Ties go to the smallest original fragment pair (key) of the
edge; when two edges to the same region fall together their sums and counts add and the smaller key
stays. The id of a region is its smallest fragment. Nothing depends on the order of the rows.

Why it can be done in pieces: an edge that absorbs a parallel one never scores above the better of
the two. Hence

1. an edge between two components of the graph of passing edges never passes: components are
   solved one by one, in small arrays that stay in the cache, and other rows are left out;
2. an edge below the threshold needs no place in the heap, only in the adjacency;
3. when edges fall together the better one survives. Its place in the heap is never too low, so
   a heap entry is put right when it comes up: one entry an edge, no more;
4. popped scores never rise, and of equal scores the keys grow: the order of the history is that
   of the merges, and its beginning down to a threshold is the history of that threshold.

Source: mean affinity agglomeration, Lee et al. 2017, arXiv:1706.00120; keys that do not depend on
run-time ids, for chunked agglomeration as in Lu et al. 2021, arXiv:2106.10795.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable, sum_edges
from pipeline.arrays.labels import SparseMap
from pipeline.arrays.merge_order import history_order
from pipeline.arrays.merging import solve_components
from pipeline.errors import InputError

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@dataclass(frozen=True, eq=False)
class MergeHistory:
    """The merges down to `threshold`, by score descending, then key (key_u, key_v) ascending.

    Attributes:
        affinity_sum, face_count: (n,) uint64 of the merged edge; score = sum / count / scale.
        key_u, key_v: (n,) uint64, the smallest original fragment pair of the edge.
        kept, absorbed: (n,) uint64, ids of the two regions, kept < absorbed; the new region is
            `kept`, and `absorbed` never comes again.
        threshold: lowest score that was merged, in [0, 1].
        scale: the integer affinity that stands for 1: 255 or 65535.
    """

    affinity_sum: NDArray[np.uint64]
    face_count: NDArray[np.uint64]
    key_u: NDArray[np.uint64]
    key_v: NDArray[np.uint64]
    kept: NDArray[np.uint64]
    absorbed: NDArray[np.uint64]
    threshold: float
    scale: int

    def __len__(self) -> int:
        return int(self.kept.size)


def agglomerate(table: EdgeTable, threshold: float, scale: int = 255) -> MergeHistory:
    """Merge the best edge first while affinity_sum / face_count / scale >= threshold (float64).

    Args:
        table: the region graph. Rows in any order; equal pairs are added first.
        threshold: lowest mean affinity that merges, in [0, 1].
        scale: 255 for sums of uint8, 65535 for sums of uint16.

    Raises:
        InputError: threshold outside [0, 1], another scale, a row without faces or with a mean
            above `scale` (sums of another data type), more than 2^31 fragments.
    """
    _check(table, threshold, scale)
    table = sum_edges([table])
    passing = _scores(table.affinity_sum, table.face_count, scale) >= threshold
    ids = np.union1d(table.u[passing], table.v[passing])
    if len(ids) >= 2**31:
        raise InputError(f"{len(ids)} fragments in one table; agglomerate groups of blocks instead")
    # Fragments without a passing edge never merge, and an edge to one never passes.
    u, v = _positions(ids, table.u), _positions(ids, table.v)
    component = _components(u, v, passing, len(ids))
    rows = _group_rows(u, v, component)
    merges = solve_components(
        u, v, table.affinity_sum, table.face_count, component, *rows, float(threshold), float(scale)
    )
    total, count, key, kept, absorbed = merges
    order = history_order(total, count, key)
    key = key[order]
    return MergeHistory(
        total[order],
        count[order],
        ids[(key >> _HALF).astype(np.int64)],
        ids[(key & _LOW).astype(np.int64)],
        ids[kept[order]],
        ids[absorbed[order]],
        float(threshold),
        scale,
    )


def fragment_to_segment(history: MergeHistory, threshold: float) -> SparseMap:
    """The segment of every fragment that is not its own segment, at one threshold.

    Returns:
        (ids, segments) uint64, ids strictly increasing; a segment is its smallest fragment.

    Raises:
        InputError: threshold is above 1, or below that of the history: what merges there was not
            recorded.
    """
    if not history.threshold <= threshold <= 1.0:
        raise InputError(
            f"this history was recorded down to {history.threshold} and holds thresholds from "
            f"there to 1, got {threshold}; agglomerate again with a lower threshold"
        )
    below = _scores(history.affinity_sum, history.face_count, history.scale) < threshold
    merges = int(below.argmax()) if below.any() else len(history)
    order = np.argsort(history.absorbed[:merges])
    ids, kept = history.absorbed[:merges][order], history.kept[:merges][order]
    if merges == 0:
        return ids, kept
    at = np.minimum(np.searchsorted(ids, kept), merges - 1)
    at[ids[at] != kept] = -1
    return ids, _follow(kept, at)


def _scores(
    affinity_sum: NDArray[np.uint64], face_count: NDArray[np.uint64], scale: int
) -> NDArray[np.float64]:
    """The float64 scores that thresholds are compared with: sum / count / scale, in this order."""
    scores: NDArray[np.float64] = affinity_sum / face_count / scale
    return scores


def _check(table: EdgeTable, threshold: float, scale: int) -> None:
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"a threshold lies in [0, 1], got {threshold}")
    if scale not in (255, 65535):
        raise InputError(f"scale is 255 (uint8) or 65535 (uint16), got {scale}")
    if not table.face_count.all():
        raise InputError("an edge without faces: each row of an edge table counts at least one")
    means = table.affinity_sum / table.face_count
    if len(table) and means.max() > scale:
        raise InputError(
            f"a mean affinity of {means.max():.6g} with scale {scale}: the sums are of another "
            "data type; use scale 65535 for uint16"
        )
    if table.affinity_sum.sum(dtype=np.float64) >= 2.0**64 * (1 - 1e-12):
        raise InputError("the affinity sums of the table do not fit 64 bits together")


@njit(cache=True, nogil=True)
def _positions(ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Position of each end in `ids`, -1 where it is not there."""
    # Neighbouring rows walk nearly the same way down, so the steps stay in the cache.
    at = np.empty(ends.size, np.int32)
    for k in range(ends.size):
        begin, end = 0, ids.size
        while begin < end:
            middle = (begin + end) >> 1
            if ids[middle] < ends[k]:
                begin = middle + 1
            else:
                end = middle
        at[k] = begin if begin < ids.size and ids[begin] == ends[k] else -1
    return at


@njit(cache=True, nogil=True)
def _components(u: np.ndarray, v: np.ndarray, passing: np.ndarray, n: int) -> np.ndarray:
    """(n,) int32: number of the component of each node, by its smallest member."""
    parent = np.arange(n).astype(np.int32)
    for k in range(u.size):
        if not passing[k]:
            continue
        a, b = u[k], v[k]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        else:
            parent[a] = b
    found = 0
    for i in range(n):  # parents are smaller and numbered before
        if parent[i] == i:
            parent[i] = found
            found += 1
        else:
            parent[i] = parent[parent[i]]
    return parent


@njit(cache=True, nogil=True)
def _group_rows(
    u: np.ndarray, v: np.ndarray, component: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with both ends in one component, grouped by it; where each group starts; the same
    starts of its nodes.
    """
    groups = 0
    for i in range(component.size):
        groups = max(groups, component[i] + 1)
    first_node = np.zeros(groups + 1, np.int64)
    first_row = np.zeros(groups + 1, np.int64)
    for i in range(component.size):
        first_node[component[i] + 1] += 1
    for k in range(u.size):
        if u[k] >= 0 and v[k] >= 0 and component[u[k]] == component[v[k]]:
            first_row[component[u[k]] + 1] += 1
    for g in range(groups):
        first_node[g + 1] += first_node[g]
        first_row[g + 1] += first_row[g]
    rows = np.empty(first_row[groups], np.int64)
    at = first_row[:groups].copy()
    for k in range(u.size):
        if u[k] >= 0 and v[k] >= 0 and component[u[k]] == component[v[k]]:
            g = component[u[k]]
            rows[at[g]] = k
            at[g] += 1
    return rows, first_row, first_node


@njit(cache=True, nogil=True)
def _follow(kept: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The end of each chain of merges; `at` is the row in which `kept` is absorbed itself, or -1.

    Rows are sorted by the absorbed id and what keeps it is smaller, so its row is finished before.
    """
    segments = np.empty(kept.size, np.uint64)
    for k in range(kept.size):
        segments[k] = kept[k] if at[k] < 0 else segments[at[k]]
    return segments
