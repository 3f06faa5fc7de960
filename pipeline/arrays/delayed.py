"""Agglomeration over a tree of block groups: what a group cannot know yet moves up, exactly.

A group sees some rows of the region graph. Regions that may have further rows outside it are
frozen. The best edge is taken first; one with a frozen end is not merged but freezes both its ends.
The rows between frozen regions are the residual: the parent adds those of its children, and goes
on with what is still frozen there. At the root nothing is. The union of all histories is, row for
row, the history that `agglomerate` gives for the whole table:

1. Edges have a strict order, score then key, and an edge that absorbs a parallel one never comes
   before the better of the two (its mean is between theirs, its key is the better one's where they
   tie). So if an edge is the first of both its regions, nothing that happens elsewhere can put
   another before it, or change it: it is merged sooner or later with just this sum, count and key.
2. An edge that is merged here is such a one. All rows of its two regions are known, as neither is
   frozen; and an edge before it would have merged, or frozen one of them.
3. A region that is not frozen in the end has no passing edge, and all its rows are known. Whatever
   its neighbours become, means of rows that do not pass do not pass: it is final, and no row of
   it will ever add to another that passes.
4. A region that has rows outside a group was never merged below it, so it is still a fragment, and
   both sides know it by the same id.

The score is compared with the threshold in float64: sums must stay below 2^53 for 3 to hold to the
last bit.

Source: delayed agglomeration over chunks, abiss, Lu et al. 2021, arXiv:2106.10795.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.agglomerate import MergeHistory, history_of
from pipeline.arrays.components import Merged, check_rows, merge_rows
from pipeline.arrays.edges import EdgeTable, sum_edges
from pipeline.arrays.labels import SparseMap
from pipeline.arrays.relabel import apply_lookup, check_lookup
from pipeline.errors import DtypeError, InputError, ShapeError

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@dataclass(frozen=True, eq=False)
class RegionGraph:
    """One row per pair of touching regions, u < v; sorted by (u, v), each pair once.

    Attributes:
        u, v: (n,) uint64, ids of the regions: their smallest fragments.
        affinity_sum: (n,) uint64, sum of the integer affinities over the contact.
        face_count: (n,) uint64, number of voxel pairs in the contact, at least 1.
        key_u, key_v: (n,) uint64, the smallest original fragment pair of the contact.
    """

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    face_count: NDArray[np.uint64]
    key_u: NDArray[np.uint64]
    key_v: NDArray[np.uint64]

    def __post_init__(self) -> None:
        for field in fields(self):
            column = np.ascontiguousarray(getattr(self, field.name), np.uint64)
            object.__setattr__(self, field.name, column)
            if column.shape != (self.u.size,):
                raise ShapeError(f"region graph: {column.shape} {field.name} for {self.u.size} u")
        if not _is_canonical(self.u, self.v):
            raise InputError(
                "a region graph has rows 0 < u < v, sorted by (u, v), each pair once; "
                "`RegionGraph.from_edges` sorts and adds"
            )

    def __len__(self) -> int:
        return int(self.u.size)

    @classmethod
    def empty(cls) -> RegionGraph:
        """A graph without rows."""
        return cls(*(np.zeros(0, np.uint64) for _ in range(6)))

    @classmethod
    def from_edges(cls, table: EdgeTable) -> RegionGraph:
        """The graph of a table of fragments, in which each row is its own key.

        Columns are shared with the table where its rows are sorted.
        """
        table = sum_edges([table])
        return cls(table.u, table.v, table.affinity_sum, table.face_count, table.u, table.v)


@dataclass(frozen=True, eq=False)
class GroupResult:
    """What one group leaves.

    Attributes:
        history: the merges that are certain, in canonical order.
        residual: the rows between frozen regions, for the parent.
    """

    history: MergeHistory
    residual: RegionGraph


class _Rows(NamedTuple):
    """The columns of a region graph, for kernels."""

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    sums: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    key_u: NDArray[np.uint64]
    key_v: NDArray[np.uint64]


def add_graphs(graphs: Iterable[RegionGraph]) -> RegionGraph:
    """The graph of all rows: equal pairs are added, and keep the smallest key.

    Any order and grouping gives the same. A generator lets each graph go as soon as it is added;
    then about 96 bytes per row are held at the end, half of them the result.
    """
    # Graphs of like size are added first, so a row is copied log2(number of graphs) times.
    waiting: list[RegionGraph] = []
    for graph in graphs:
        waiting.append(graph)
        del graph
        while len(waiting) > 1 and 2 * len(waiting[-2]) <= 3 * len(waiting[-1]):
            waiting.append(_add_two(waiting.pop(), waiting.pop()))
    while len(waiting) > 1:
        waiting.append(_add_two(waiting.pop(), waiting.pop()))
    return waiting[0] if waiting else RegionGraph.empty()


def agglomerate_group(
    graph: RegionGraph, frozen: NDArray[np.uint64], threshold: float, scale: int = 255
) -> GroupResult:
    """Merge what is certain from the rows of one group; the rest is its residual.

    A row whose two ends are frozen, then or in the end, moves up, whatever its score: regions that
    passing edges outside the group unite need it. Its ends become the ids of their regions.

    Args:
        graph: the rows of the group: its blocks' rows, or the sum of its children's residuals.
        frozen: (f,) uint64, strictly increasing, the regions that may have further rows outside the
            group. Ids without a row may be among them. None at the root.
        threshold: lowest mean affinity that merges, in [0, 1].
        scale: 255 for sums of uint8, 65535 for sums of uint16.

    Raises:
        InputError: as `agglomerate`; frozen ids do not increase strictly.
        DtypeError: frozen ids are not uint64.

    Source: Lu et al. 2021, arXiv:2106.10795.
    """
    check_rows(graph.affinity_sum, graph.face_count, threshold, scale)
    if frozen.dtype != np.uint64:
        raise DtypeError(f"frozen ids are uint64, got {frozen.dtype}")
    if not (frozen[1:] > frozen[:-1]).all():
        raise InputError("frozen ids must increase strictly; sort them, without repeats")
    keys = None if _keyed_by_itself(graph) else (graph.key_u, graph.key_v)
    merged = merge_rows(
        (graph.u, graph.v), graph.affinity_sum, graph.face_count, threshold, scale, keys, frozen
    )
    return GroupResult(history_of(merged, threshold, scale), _residual(graph, merged))


def compose_lookup(first: SparseMap, then: SparseMap) -> SparseMap:
    """The map id -> then(first(id)).

    Args:
        first: (ids, targets) uint64, such as the lookup of a group.
        then: the same, such as the lookup of its parent; rows whose id `first` does not list hold
            in the result too.

    Returns:
        (ids, targets) uint64, ids strictly increasing, without rows that keep their id.

    Raises:
        DtypeError, ShapeError, InputError: as `check_lookup`.
    """
    check_lookup(*first)
    targets = apply_lookup(first[1], *then)
    new = ~_listed(then[0], first[0])
    ids = np.concatenate([first[0], then[0][new]])
    targets = np.concatenate([targets, then[1][new]])
    order = np.argsort(ids, kind="stable")  # two runs: a linear merge
    order = order[ids[order] != targets[order]]
    return ids[order], targets[order]


def _listed(ids: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each id is one of the increasing `among`."""
    if not among.size:
        return np.zeros(ids.size, np.bool_)
    at = np.minimum(np.searchsorted(among, ids), among.size - 1)
    return np.asarray(among[at] == ids)


def _keyed_by_itself(graph: RegionGraph) -> bool:
    return np.array_equal(graph.key_u, graph.u) and np.array_equal(graph.key_v, graph.v)


def _add_two(a: RegionGraph, b: RegionGraph) -> RegionGraph:
    out = _new_rows(len(a) + len(b))
    n = _add_sorted(_rows(a), _rows(b), out)
    return RegionGraph(*(column[:n] for column in out))


def _new_rows(most: int) -> _Rows:
    # Pages that are not written cost no memory, so this may be too long.
    return _Rows(*(np.empty(most, np.uint64) for _ in range(6)))


def _rows(graph: RegionGraph) -> _Rows:
    return _Rows(*(getattr(graph, field.name) for field in fields(graph)))


def _residual(graph: RegionGraph, merged: Merged) -> RegionGraph:
    """The rows between different frozen regions, under the ids of the regions."""
    root = _roots(merged.kept, merged.absorbed, merged.nodes.size)
    rows, pairs = _open_rows(merged.u, merged.v, root, merged.frozen)
    order = np.argsort(pairs)
    out = _new_rows(rows.size)
    n = _add_equal(order, rows, pairs, merged.nodes, _rows(graph), out)
    return RegionGraph(*(column[:n] for column in out))


@njit(cache=True, nogil=True)
def _is_canonical(u: np.ndarray, v: np.ndarray) -> bool:
    for k in range(u.size):
        if u[k] == 0 or u[k] >= v[k]:
            return False
        if k > 0 and (u[k] < u[k - 1] or (u[k] == u[k - 1] and v[k] <= v[k - 1])):
            return False
    return True


@njit(cache=True, nogil=True)
def _put(out: _Rows, n: int, rows: _Rows, k: int) -> None:
    out.u[n], out.v[n] = rows.u[k], rows.v[k]
    out.sums[n], out.counts[n] = rows.sums[k], rows.counts[k]
    out.key_u[n], out.key_v[n] = rows.key_u[k], rows.key_v[k]


@njit(cache=True, nogil=True)
def _add(out: _Rows, n: int, rows: _Rows, k: int) -> None:
    """Add row k of `rows` to row n of `out`, of the same pair."""
    out.sums[n] += rows.sums[k]
    out.counts[n] += rows.counts[k]
    key_u, key_v = rows.key_u[k], rows.key_v[k]
    if key_u < out.key_u[n] or (key_u == out.key_u[n] and key_v < out.key_v[n]):
        out.key_u[n], out.key_v[n] = key_u, key_v


@njit(cache=True, nogil=True)
def _add_sorted(a: _Rows, b: _Rows, out: _Rows) -> int:
    """Merge two sorted graphs into `out`; returns the number of rows."""
    i, j, n = 0, 0, 0
    while i < a.u.size and j < b.u.size:
        if a.u[i] == b.u[j] and a.v[i] == b.v[j]:
            _put(out, n, a, i)
            _add(out, n, b, j)
            i += 1
            j += 1
        elif a.u[i] < b.u[j] or (a.u[i] == b.u[j] and a.v[i] < b.v[j]):
            _put(out, n, a, i)
            i += 1
        else:
            _put(out, n, b, j)
            j += 1
        n += 1
    for k in range(i, a.u.size):
        _put(out, n + k - i, a, k)
    for k in range(j, b.u.size):
        _put(out, n + k - j, b, k)
    return n + a.u.size - i + b.u.size - j


@njit(cache=True, nogil=True)
def _roots(kept: np.ndarray, absorbed: np.ndarray, n: int) -> np.ndarray:
    """(n,) int32: the region of each node, as the position of its smallest member."""
    root = np.arange(n).astype(np.int32)
    for k in range(kept.size):
        root[absorbed[k]] = kept[k]
    for i in range(n):  # what keeps a node is smaller and finished before
        root[i] = root[root[i]]
    return root


@njit(cache=True, nogil=True)
def _open_rows(
    u: np.ndarray, v: np.ndarray, root: np.ndarray, frozen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that move up, and the pair of regions of each, smaller << 32 | larger."""
    n = 0
    for k in range(u.size):
        n += _is_open(u[k], v[k], root, frozen)
    rows = np.empty(n, np.int64)
    pairs = np.empty(n, np.uint64)
    n = 0
    for k in range(u.size):
        if _is_open(u[k], v[k], root, frozen):
            a, b = root[u[k]], root[v[k]]
            rows[n] = k
            pairs[n] = np.uint64(min(a, b)) << _HALF | np.uint64(max(a, b))
            n += 1
    return rows, pairs


@njit(cache=True, nogil=True)
def _is_open(u: int, v: int, root: np.ndarray, frozen: np.ndarray) -> bool:
    if u < 0 or v < 0:
        return False
    a, b = root[u], root[v]
    return bool(a != b and frozen[a] and frozen[b])


@njit(cache=True, nogil=True)
def _add_equal(
    order: np.ndarray,
    rows: np.ndarray,
    pairs: np.ndarray,
    nodes: np.ndarray,
    graph: _Rows,
    out: _Rows,
) -> int:
    """Write the rows that move up by increasing pair, equal pairs added; returns their number."""
    n = 0
    for k in range(order.size):
        row, pair = rows[order[k]], pairs[order[k]]
        if k > 0 and pair == pairs[order[k - 1]]:
            _add(out, n - 1, graph, row)
            continue
        _put(out, n, graph, row)
        out.u[n], out.v[n] = nodes[np.int64(pair >> _HALF)], nodes[np.int64(pair & _LOW)]
        n += 1
    return n
