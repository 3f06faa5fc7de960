"""Kernels of agglomeration: adjacency, and the merging of one component after the other.

Nodes are positions in the sorted list of fragments, so that comparing positions compares ids; a key
is a pair of positions u << 32 | v, in the same list or in one of its own. See `agglomerate.py` for
the algorithm, `delayed.py` for what is frozen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.merge_order import before, sift_down

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


class _Graph(NamedTuple):
    """Scratch for one component; sized for the largest, used from the start.

    Edge e has the half-edges 2e and 2e + 1. A dead edge has ends -1 and stays in the lists until
    a list is walked.
    """

    sums: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    keys: NDArray[np.uint64]
    ends: NDArray[np.int32]  # node at each half-edge
    following: NDArray[np.int32]  # next half-edge at the same node, -1 at the end
    head: NDArray[np.int32]  # first half-edge of each node
    length: NDArray[np.int32]  # half-edges in its list, the dead ones too
    smallest: NDArray[np.int32]  # smallest member of the region that the node stands for
    pairs: NDArray[np.uint64]  # hash map: pair of nodes ...
    edge_of: NDArray[np.int32]  # ... to edge
    heap: NDArray[np.uint64]  # (sum, count, key) as pushed
    heap_edge: NDArray[np.int32]


class _Merges(NamedTuple):
    totals: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    key: NDArray[np.uint64]
    kept: NDArray[np.int32]
    absorbed: NDArray[np.int32]


# --- Hash map from a pair of regions to their edge; linear probing, true deletion


@njit(cache=True, nogil=True)
def _pair(a: int, b: int) -> np.uint64:
    """Key of an unordered pair of different nodes, never 0."""
    return np.uint64(min(a, b)) << _HALF | np.uint64(max(a, b))


@njit(cache=True, nogil=True)
def _home(pair: np.uint64, mask: int) -> int:
    return int(np.int64((pair * _SPREAD) >> np.uint64(24)) & mask)


@njit(cache=True, nogil=True)
def _slot(pairs: np.ndarray, mask: int, pair: np.uint64) -> int:
    slot = _home(pair, mask)
    while pairs[slot] != 0 and pairs[slot] != pair:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)
def _delete(pairs: np.ndarray, edges: np.ndarray, mask: int, pair: np.uint64) -> None:
    hole = _slot(pairs, mask, pair)
    slot = (hole + 1) & mask
    while pairs[slot] != 0:
        # An entry may fill the hole if its home is not between the hole and where it stands.
        if (slot - _home(pairs[slot], mask)) & mask >= (slot - hole) & mask:
            pairs[hole] = pairs[slot]
            edges[hole] = edges[slot]
            hole = slot
        slot = (slot + 1) & mask
    pairs[hole] = 0


# --- One component after the other


@njit(cache=True, nogil=True)
def _passes(total: np.uint64, count: np.uint64, threshold: float, scale: float) -> bool:
    return bool(np.float64(total) / np.float64(count) / scale >= threshold)


@njit(cache=True, nogil=True)
def _hash_size(n_edges: int) -> int:
    size = 4
    while size < 2 * n_edges:
        size *= 2
    return size


@njit(cache=True, nogil=True)
def _hang(graph: _Graph, half: int, node: int) -> None:
    """Put a half-edge into the list of a node."""
    graph.ends[half] = node
    graph.following[half] = graph.head[node]
    graph.head[node] = half
    graph.length[node] += 1


@njit(cache=True, nogil=True)
def _load(
    graph: _Graph,
    u: np.ndarray,
    v: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
    keys: np.ndarray,
    rows: np.ndarray,
    local: np.ndarray,
    n_nodes: int,
) -> None:
    """Fill the scratch with the edges of one component; `keys` of each, or none: its own pair."""
    mask = _hash_size(rows.size) - 1
    graph.pairs[: mask + 1] = 0
    for node in range(n_nodes):
        graph.head[node] = -1
        graph.length[node] = 0
        graph.smallest[node] = node
    for e in range(rows.size):
        row = rows[e]
        a, b = local[u[row]], local[v[row]]
        graph.sums[e] = sums[row]
        graph.counts[e] = counts[row]
        graph.keys[e] = keys[e] if keys.size else _pair(u[row], v[row])
        _hang(graph, 2 * e, a)
        _hang(graph, 2 * e + 1, b)
        slot = _slot(graph.pairs, mask, _pair(a, b))
        graph.pairs[slot] = _pair(a, b)
        graph.edge_of[slot] = e


@njit(cache=True, nogil=True)
def _fill_heap(graph: _Graph, n_edges: int, threshold: float, scale: float) -> int:
    size = 0
    for e in range(n_edges):
        if _passes(graph.sums[e], graph.counts[e], threshold, scale):
            graph.heap[size, 0] = graph.sums[e]
            graph.heap[size, 1] = graph.counts[e]
            graph.heap[size, 2] = graph.keys[e]
            graph.heap_edge[size] = e
            size += 1
    for hole in range(size // 2 - 1, -1, -1):
        sift_down(graph.heap, graph.heap_edge, size, hole)
    return size


@njit(cache=True, nogil=True)
def _add_parallel(graph: _Graph, best: int, other: int) -> None:
    """Edge `other` falls together with the better `best`, which is in the heap if either is."""
    graph.sums[best] += graph.sums[other]
    graph.counts[best] += graph.counts[other]
    graph.keys[best] = min(graph.keys[best], graph.keys[other])
    graph.ends[2 * other] = graph.ends[2 * other + 1] = -1


@njit(cache=True, nogil=True)
def _absorb(graph: _Graph, a: int, b: int, mask: int) -> None:
    """Move the edges of node b to node a, the one with the longer list."""
    half = graph.head[b]
    while half >= 0:
        after = graph.following[half]
        x = graph.ends[half ^ 1]
        if x >= 0:
            e = half >> 1
            _delete(graph.pairs, graph.edge_of, mask, _pair(b, x))
            slot = _slot(graph.pairs, mask, _pair(a, x))
            if graph.pairs[slot] == 0:
                graph.pairs[slot] = _pair(a, x)
                graph.edge_of[slot] = e
                _hang(graph, half, a)
            else:
                f = graph.edge_of[slot]
                if before(
                    graph.sums[f], graph.counts[f], graph.keys[f],
                    graph.sums[e], graph.counts[e], graph.keys[e],
                ):  # fmt: skip
                    _add_parallel(graph, f, e)
                else:
                    _add_parallel(graph, e, f)
                    graph.edge_of[slot] = e
                    _hang(graph, half, a)
        half = after
    graph.head[b] = -1


@njit(cache=True, nogil=True)
def _merge_component(
    graph: _Graph,
    n_edges: int,
    nodes: np.ndarray,
    frozen: np.ndarray,
    threshold: float,
    scale: float,
    merges: _Merges,
    done: int,
) -> int:
    """Merge the loaded component; returns the number of merges so far.

    `frozen` is marked at the smallest member of a region.
    """
    mask = _hash_size(n_edges) - 1
    heap, heap_edge = graph.heap, graph.heap_edge
    size = _fill_heap(graph, n_edges, threshold, scale)
    while size > 0:
        e = heap_edge[0]
        alive = graph.ends[2 * e] >= 0
        total, count, key = graph.sums[e], graph.counts[e], graph.keys[e]
        # Counts only grow: another count means that the edge absorbed others since.
        if alive and count != heap[0, 1] and _passes(total, count, threshold, scale):
            heap[0, 0], heap[0, 1], heap[0, 2] = total, count, key
            sift_down(heap, heap_edge, size, 0)
            continue
        current = alive and count == heap[0, 1]
        size -= 1
        if size > 0:
            heap[0, 0], heap[0, 1], heap[0, 2] = heap[size, 0], heap[size, 1], heap[size, 2]
            heap_edge[0] = heap_edge[size]
            sift_down(heap, heap_edge, size, 0)
        if not current:
            continue
        a, b = graph.ends[2 * e], graph.ends[2 * e + 1]
        first, second = nodes[graph.smallest[a]], nodes[graph.smallest[b]]
        if frozen[first] or frozen[second]:
            # The edge stays as it is, out of the heap: between frozen ends nothing falls together.
            frozen[first] = frozen[second] = True
            continue
        if graph.length[a] < graph.length[b]:
            a, b = b, a
        merges.totals[done], merges.counts[done], merges.key[done] = total, count, key
        merges.kept[done] = min(first, second)
        merges.absorbed[done] = max(first, second)
        done += 1
        graph.smallest[a] = min(graph.smallest[a], graph.smallest[b])
        graph.ends[2 * e] = graph.ends[2 * e + 1] = -1
        _delete(graph.pairs, graph.edge_of, mask, _pair(a, b))
        _absorb(graph, a, b, mask)
    return done


@njit(cache=True, nogil=True)
def _scratch(n_edges: int, n_nodes: int) -> _Graph:
    slots = _hash_size(n_edges)
    return _Graph(
        np.empty(n_edges, np.uint64),
        np.empty(n_edges, np.uint64),
        np.empty(n_edges, np.uint64),
        np.empty(2 * n_edges, np.int32),
        np.empty(2 * n_edges, np.int32),
        np.empty(n_nodes, np.int32),
        np.empty(n_nodes, np.int32),
        np.empty(n_nodes, np.int32),
        np.empty(slots, np.uint64),
        np.empty(slots, np.int32),
        np.empty((n_edges, 3), np.uint64),
        np.empty(n_edges, np.int32),
    )


@njit(cache=True, nogil=True)
def merge_components(
    u: np.ndarray,
    v: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
    keys: np.ndarray,
    frozen: np.ndarray,
    component: np.ndarray,
    rows: np.ndarray,
    first_row: np.ndarray,
    first_node: np.ndarray,
    threshold: float,
    scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All merges, component after component: (sum, count, key, kept, absorbed) over nodes.

    Args:
        u, v: (e,) int32 nodes of each row, u < v; -1 outside.
        sums, counts: (e,) uint64.
        keys: (r,) uint64, one for each of `rows`; empty: the pair of the row's nodes.
        frozen: (n,) bool, the nodes that do not merge; on return at the smallest member of every
            region that has one of them in reach.
        component: (n,) int32 of each node.
        rows: (r,) int64, rows inside components, grouped; group g is
            rows[first_row[g]:first_row[g + 1]].
        first_node: the same starts of the nodes, when they are grouped.
        threshold, scale: merge while sum / count / scale >= threshold.
    """
    groups = first_node.size - 1
    nodes = np.empty(component.size, np.int32)  # grouped by component, increasing in each
    local = np.empty(component.size, np.int32)
    at = first_node[:groups].copy()
    for i in range(component.size):
        g = component[i]
        nodes[at[g]] = i
        local[i] = at[g] - first_node[g]
        at[g] += 1
    n_rows, n_nodes = 0, 0
    for g in range(groups):
        n_rows = max(n_rows, first_row[g + 1] - first_row[g])
        n_nodes = max(n_nodes, first_node[g + 1] - first_node[g])
    graph = _scratch(n_rows, n_nodes)
    most = component.size - groups
    merges = _Merges(
        np.empty(most, np.uint64),
        np.empty(most, np.uint64),
        np.empty(most, np.uint64),
        np.empty(most, np.int32),
        np.empty(most, np.int32),
    )
    done = 0
    for g in range(groups):
        inside = nodes[first_node[g] : first_node[g + 1]]
        own = rows[first_row[g] : first_row[g + 1]]
        own_keys = keys[first_row[g] : first_row[g + 1]] if keys.size else keys
        _load(graph, u, v, sums, counts, own_keys, own, local, inside.size)
        done = _merge_component(graph, own.size, inside, frozen, threshold, scale, merges, done)
    return (
        merges.totals[:done],
        merges.counts[:done],
        merges.key[:done],
        merges.kept[:done],
        merges.absorbed[:done],
    )
