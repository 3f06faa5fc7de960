"""Components of the graph of passing edges, and their merges: what all agglomeration shares.

Rows are renamed to positions in a sorted list of nodes, grouped by component, and merged component
after component. See `agglomerate.py` for the reason why this is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import distinct
from pipeline.arrays.merging import merge_components
from pipeline.errors import InputError

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_NOTHING = np.zeros(0, np.uint64)

Pairs = tuple[NDArray[np.uint64], NDArray[np.uint64]]


class Merged(NamedTuple):
    """The merges of a table of rows, in no order of interest, and what it takes to go on.

    Attributes:
        nodes: (n,) uint64, increasing: ends of passing rows and frozen ids.
        u, v: (e,) int32, position of each row's ends in `nodes`, -1 where they are not there.
        affinity_sum, face_count: (m,) uint64 of each merge.
        key: (m,) uint64, see `pack_keys`.
        key_ids: (k,) uint64, what the halves of `key` stand for.
        kept, absorbed: (m,) int32, positions in `nodes`.
        frozen: (n,) bool, at the smallest member of each region that may not be final.
    """

    nodes: NDArray[np.uint64]
    u: NDArray[np.int32]
    v: NDArray[np.int32]
    affinity_sum: NDArray[np.uint64]
    face_count: NDArray[np.uint64]
    key: NDArray[np.uint64]
    key_ids: NDArray[np.uint64]
    kept: NDArray[np.int32]
    absorbed: NDArray[np.int32]
    frozen: NDArray[np.bool_]


def scores(
    affinity_sum: NDArray[np.uint64], face_count: NDArray[np.uint64], scale: int
) -> NDArray[np.float64]:
    """The float64 scores that thresholds are compared with: sum / count / scale, in this order."""
    quotients: NDArray[np.float64] = affinity_sum / face_count / scale
    return quotients


def check_rows(
    affinity_sum: NDArray[np.uint64], face_count: NDArray[np.uint64], threshold: float, scale: int
) -> None:
    """Refuse what cannot be agglomerated.

    Raises:
        InputError: threshold outside [0, 1], another scale than 255 or 65535, a row without faces
            or with a mean above `scale`, sums that do not fit 64 bits together.
    """
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"a threshold lies in [0, 1], got {threshold}")
    if scale not in (255, 65535):
        raise InputError(f"scale is 255 (uint8) or 65535 (uint16), got {scale}")
    if not face_count.all():
        raise InputError("an edge without faces: each row of an edge table counts at least one")
    means = affinity_sum / face_count
    if means.size and means.max() > scale:
        raise InputError(
            f"a mean affinity of {means.max():.6g} with scale {scale}: the sums are of another "
            "data type; use scale 65535 for uint16"
        )
    if affinity_sum.sum(dtype=np.float64) >= 2.0**64 * (1 - 1e-12):
        raise InputError("the affinity sums of the table do not fit 64 bits together")


def merge_rows(
    ends: Pairs,
    sums: NDArray[np.uint64],
    counts: NDArray[np.uint64],
    threshold: float,
    scale: int,
    keys: Pairs | None = None,
    frozen: NDArray[np.uint64] = _NOTHING,
) -> Merged:
    """Merge the best row first, down to `threshold`; a row with a frozen end freezes both.

    Args:
        ends: (e,) uint64 u < v of each row; each pair once.
        sums, counts: (e,) uint64.
        threshold, scale: merge while sum / count / scale >= threshold.
        keys: (e,) uint64 key_u and key_v of each row, each pair once; by default the ends. Give
            them only where they differ: they cost memory.
        frozen: (f,) uint64, increasing, the ids that do not merge.

    Raises:
        InputError: 2^31 fragments or more.
    """
    passing = scores(sums, counts, scale) >= threshold
    nodes = distinct(ends[0][passing], ends[1][passing])
    if frozen.size:
        nodes = distinct(nodes, frozen)
    if len(nodes) >= 2**31:
        raise InputError(
            f"{len(nodes)} fragments in one table; agglomerate groups of blocks instead"
        )
    # Other fragments never merge, and an edge to one never passes.
    u, v = positions(nodes, ends[0]), positions(nodes, ends[1])
    component = _components(u, v, passing, len(nodes))
    rows, first_row, first_node = _group_rows(u, v, component)
    key_ids, packed = nodes, _NOTHING
    if keys is not None:
        key_ids, packed = pack_keys(keys[0][rows], keys[1][rows])
    stopped = _marked(len(nodes), positions(nodes, frozen))
    merges = merge_components(
        u, v, sums, counts, packed, stopped, component,
        rows, first_row, first_node, float(threshold), float(scale),
    )  # fmt: skip
    total, count, key, kept, absorbed = merges
    return Merged(nodes, u, v, total, count, key, key_ids, kept, absorbed, stopped)


def pack_keys(
    key_u: NDArray[np.uint64], key_v: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(ids, packed): the ids that occur, increasing, and each pair of them in 64 bits.

    Packed pairs, position of key_u << 32 | position of key_v, compare as the pairs do.

    Raises:
        InputError: 2^31 different ids or more.
    """
    ids = distinct(key_u, key_v)
    if len(ids) >= 2**31:
        raise InputError(f"{len(ids)} fragments in the keys of one table; use smaller groups")
    packed = positions(ids, key_u).astype(np.uint64)
    packed <<= _HALF
    packed |= positions(ids, key_v).astype(np.uint64)
    return ids, packed


def unpack_keys(ids: NDArray[np.uint64], packed: NDArray[np.uint64]) -> Pairs:
    """The pairs of ids that were packed."""
    return ids[(packed >> _HALF).astype(np.int64)], ids[(packed & _LOW).astype(np.int64)]


def _marked(n: int, at: NDArray[np.int32]) -> NDArray[np.bool_]:
    marks = np.zeros(n, np.bool_)
    marks[at] = True
    return marks


@njit(cache=True, nogil=True)
def positions(ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Position of each end in the increasing `ids`, -1 where it is not there; int32."""
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
