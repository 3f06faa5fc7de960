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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.components import (
    Merged,
    check_rows,
    merge_rows,
    pack_keys,
    scores,
    unpack_keys,
)
from pipeline.arrays.edges import EdgeTable, sum_edges
from pipeline.arrays.labels import SparseMap
from pipeline.arrays.merge_order import history_order
from pipeline.errors import InputError


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
    check_rows(table.affinity_sum, table.face_count, threshold, scale)
    table = sum_edges([table])
    columns = (table.u, table.v), table.affinity_sum, table.face_count
    return history_of(merge_rows(*columns, threshold, scale), threshold, scale)


def history_of(merged: Merged, threshold: float, scale: int) -> MergeHistory:
    """The merges in their order, under their ids."""
    order = history_order(merged.affinity_sum, merged.face_count, merged.key)
    return MergeHistory(
        merged.affinity_sum[order],
        merged.face_count[order],
        *unpack_keys(merged.key_ids, merged.key[order]),
        merged.nodes[merged.kept[order]],
        merged.nodes[merged.absorbed[order]],
        float(threshold),
        scale,
    )


def merge_histories(histories: Sequence[MergeHistory]) -> MergeHistory:
    """One history of groups that share no merge, such as those of `agglomerate_group`.

    Raises:
        InputError: no history, different thresholds or scales, or a merge comes twice.
    """
    settings = {(history.threshold, history.scale) for history in histories}
    if len(settings) != 1:
        raise InputError(
            "histories to be united need one (threshold, scale), got "
            f"{sorted(settings) or 'no history'}"
        )
    total, count, key_u, key_v, kept, absorbed = (
        np.concatenate([getattr(history, name) for history in histories])
        for name in ("affinity_sum", "face_count", "key_u", "key_v", "kept", "absorbed")
    )
    key = pack_keys(key_u, key_v)[1]
    order = history_order(total, count, key)
    if (key[order[1:]] == key[order[:-1]]).any():
        raise InputError("a merge comes twice: give each group's history once")
    threshold, scale = settings.pop()
    return MergeHistory(
        total[order],
        count[order],
        key_u[order],
        key_v[order],
        kept[order],
        absorbed[order],
        threshold,
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
    below = scores(history.affinity_sum, history.face_count, history.scale) < threshold
    merges = int(below.argmax()) if below.any() else len(history)
    order = np.argsort(history.absorbed[:merges])
    ids, kept = history.absorbed[:merges][order], history.kept[:merges][order]
    if merges == 0:
        return ids, kept
    at = np.minimum(np.searchsorted(ids, kept), merges - 1)
    at[ids[at] != kept] = -1
    return ids, _follow(kept, at)


@njit(cache=True, nogil=True)
def _follow(kept: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The end of each chain of merges; `at` is the row in which `kept` is absorbed itself, or -1.

    Rows are sorted by the absorbed id and what keeps it is smaller, so its row is finished before.
    """
    segments = np.empty(kept.size, np.uint64)
    for k in range(kept.size):
        segments[k] = kept[k] if at[k] < 0 else segments[at[k]]
    return segments
