"""Background nodes between two nodes of equal label: the repair that comes before scoring.

A background node is claimed by a label if it lies on a path between two nodes of that label whose
inner nodes are all background. One claim: it takes the label. Two or more labels claim it: it stays
background and is ambiguous. All claims refer to the labels as given.

1. `find_claims` gives each node's shortest such path, and the shortest of another label;
2. `close_gaps` compares both with the longest gap to close. Any number of limits is tried without
   another walk.

Source: the preprocessing step of the skeleton metrics in the appendix of the supervoxel loss paper;
that a contested node stays background, and the limit, are ours.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_forest import (
    LENGTH_QUANTUM_NM,
    LENGTH_SLACK_NM,
    Floats,
    Forest,
    Integers,
    Labels,
)


@dataclass(frozen=True, eq=False)
class GapClaims:
    """The background nodes of one skeleton that some label claims.

    Attributes:
        position: (C,) their positions in the forest, ascending.
        label: (C,) uint64, the label with the shortest path.
        path_nm: (C,) that path, from labelled node to labelled node.
        next_nm: (C,) the shortest path of any other label; infinite if no other claims the node.
    """

    position: Integers
    label: Labels
    path_nm: Floats
    next_nm: Floats

    def counts(self, max_gap_nm: float | None) -> tuple[int, int]:
        """Numbers of nodes repaired, and ambiguous, if no longer gap is closed."""
        limit = _limit(max_gap_nm)
        ambiguous = int(np.count_nonzero(self.next_nm <= limit))
        return int(np.count_nonzero(self.path_nm <= limit)) - ambiguous, ambiguous


def _limit(max_gap_nm: float | None) -> float:
    return sys.float_info.max if max_gap_nm is None else max_gap_nm + LENGTH_SLACK_NM


def find_claims(labels: Labels, forest: Forest) -> GapClaims:
    """Which labels claim the background nodes of a skeleton.

    Args:
        labels: (N,) uint64 by position of `forest`; 0 is background. Not changed.
    """
    path_nm, next_nm, label = _claims(labels, forest.up, forest.length_nm)
    position = np.flatnonzero(path_nm < np.inf)
    return GapClaims(position, label[position], path_nm[position], next_nm[position])


def close_gaps(labels: Labels, claims: GapClaims, max_gap_nm: float | None = None) -> Labels:
    """A copy of the labels, with those that exactly one label claims by a path within the limit.

    Args:
        labels: (N,) uint64 by position, as given to `find_claims`.
        max_gap_nm: the longest path, between the two labelled nodes, that makes a claim; None: any.
    """
    limit = _limit(max_gap_nm)
    taken = (claims.path_nm <= limit) & (claims.next_nm > limit)
    repaired = labels.copy()
    repaired[claims.position[taken]] = claims.label[taken]
    return repaired


@njit(cache=True, nogil=True)
def _claims(labels: Labels, up: Integers, length_nm: Floats) -> tuple[Floats, Floats, Labels]:
    """Per position the shortest path, the shortest of another label, and the label of the first."""
    length = np.rint(length_nm / LENGTH_QUANTUM_NM) * LENGTH_QUANTUM_NM
    region, label, attach, distance, above = _gap_borders(labels, up, length)
    rank = np.argsort(label, kind="mergesort")
    rank = rank[np.argsort(region[rank], kind="mergesort")]  # stable: by gap, then label
    region, label = region[rank], label[rank]
    attach, distance, above = attach[rank], distance[rank], above[rank]
    starts = np.empty(len(rank) + 1, np.int64)
    groups = 0
    for row in range(len(rank)):
        if row == 0 or region[row] != region[row - 1] or label[row] != label[row - 1]:
            starts[groups] = row
            groups += 1
    starts[groups] = len(rank)
    return _walk_gaps(up, length, label, attach, distance, above, starts[: groups + 1])


@njit(cache=True, nogil=True)
def _gap_borders(
    labels: Labels, up: Integers, length: Floats
) -> tuple[Integers, Labels, Integers, Floats, NDArray[np.bool_]]:
    """Every edge between a background node and a labelled one.

    A gap is a maximal connected set of background nodes, named by its first position.

    Returns:
        Per such edge: the gap, the label at its border, the gap's node there, the length of the
        edge, and whether the labelled node lies above (it is the parent of the gap's first node).
    """
    gap = np.full(len(up), -1, np.int64)
    count = 0
    for p in range(len(up)):
        if labels[p] == 0:
            gap[p] = p if up[p] < 0 or labels[up[p]] != 0 else gap[up[p]]
        if up[p] >= 0 and (labels[p] == 0) != (labels[up[p]] == 0):
            count += 1
    region = np.empty(count, np.int64)
    label = np.empty(count, np.uint64)
    attach = np.empty(count, np.int64)
    distance = np.empty(count, np.float64)
    above = np.empty(count, np.bool_)
    row = 0
    for p in range(len(up)):
        if up[p] < 0 or (labels[p] == 0) == (labels[up[p]] == 0):
            continue
        above[row] = labels[p] == 0
        attach[row] = p if above[row] else up[p]
        label[row] = labels[up[p]] if above[row] else labels[p]
        region[row] = gap[attach[row]]
        distance[row] = length[p]
        row += 1
    return region, label, attach, distance, above


@njit(cache=True, nogil=True)
def _walk_gaps(
    up: Integers,
    length: Floats,
    label: Labels,
    attach: Integers,
    distance: Floats,
    above: NDArray[np.bool_],
    starts: Integers,
) -> tuple[Floats, Floats, Labels]:
    """Per position the shortest path, the shortest of another label, and the label of the first.

    Rows starts[g]:starts[g + 1] are the borders of one gap that carry one label. Only the subtree
    that joins them is walked: upwards from its deepest position, keeping at each node the distances
    to the nearest two borders below it (`near`, `next_near`, through different children), until one
    node joins all; then downwards, handing each node the distance to the nearest border that is
    not below it (`over`). The shortest path through a node uses the two smallest of the three.
    """
    shortest = np.full(len(up), np.inf)
    runner_up = np.full(len(up), np.inf)
    claimant = np.zeros(len(up), np.uint64)
    near = np.empty(len(up), np.float64)
    next_near = np.empty(len(up), np.float64)
    over = np.empty(len(up), np.float64)
    stamp = np.full(len(up), -1, np.int64)
    walked = np.empty(len(up), np.int64)
    for g in range(len(starts) - 1):
        if starts[g + 1] - starts[g] < 2:
            continue
        heap = [np.int64(0) for _ in range(0)]
        for row in range(starts[g], starts[g + 1]):
            p = attach[row]
            if stamp[p] != g:
                stamp[p] = g
                near[p] = next_near[p] = over[p] = np.inf
                heappush(heap, -p)
            if above[row]:
                over[p] = distance[row]
            else:
                _keep_two(near, next_near, p, distance[row])
        count = 0
        while len(heap) > 0:
            p = -heappop(heap)
            walked[count] = p
            count += 1
            if len(heap) == 0:
                break
            q = up[p]
            if stamp[q] != g:
                stamp[q] = g
                near[q] = next_near[q] = over[q] = np.inf
                heappush(heap, -q)
            _keep_two(near, next_near, q, near[p] + length[p])
        for i in range(count - 1, -1, -1):
            p = walked[i]
            if i < count - 1:
                q = up[p]
                through_p = near[q] == near[p] + length[p]
                beside = next_near[q] if through_p else near[q]
                over[p] = min(over[q], beside) + length[p]
            path = near[p] + min(next_near[p], over[p])
            if path < shortest[p]:
                claimant[p] = label[starts[g]]
            _keep_two(shortest, runner_up, p, path)
    return shortest, runner_up, claimant


@njit(cache=True, nogil=True)
def _keep_two(least: Floats, next_least: Floats, p: int, value: float) -> None:
    """Enter `value` among the two smallest of position p."""
    if value < least[p]:
        next_least[p] = least[p]
        least[p] = value
    elif value < next_least[p]:
        next_least[p] = value
