"""Walks behind the sites of errors: background between labelled nodes.

1. `nearest_labelled` and `path_middles`: which labelled nodes face each other across background;
2. `background_stretches`: connected background, and the middle of each stretch;
3. `find_ascending` and `take_found`: the nodes that carry a label which others carry too;
4. `trace_members`: the positions that each site shows.

Every choice among equals is made by coordinates, never by the numbers of nodes. Path lengths are
sums of multiples of `LENGTH_QUANTUM_NM`: exact, so that equals are equal from wherever they were
added up.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_forest import Floats, Integers, Labels

SPLIT_SITE, MERGE_SITE, OMISSION_SITE = range(3)


@njit(cache=True, nogil=True)
def _before(nodes: Floats, labels: Labels, a: int, b: int) -> bool:
    """Whether a comes first: by z, y, x, then label; nodes equal in all of these by index."""
    for axis in range(3):
        if nodes[a, axis] != nodes[b, axis]:
            return nodes[a, axis] < nodes[b, axis]
    if labels[a] != labels[b]:
        return labels[a] < labels[b]
    return a < b


@njit(cache=True, nogil=True)
def nearest_labelled(
    labels: Labels, nodes: Floats, up: Integers, length: Floats
) -> tuple[Integers, Floats, Integers, Integers]:
    """The labelled position next to each along the skeleton, across background only.

    Positions with one nearest labelled position are connected, so an edge between two of these
    cells joins two labelled positions by the shortest path over it: over all such edges, the
    labelled positions around a background stretch are joined by a minimum spanning tree.

    Args:
        labels: (N,) uint64 by position; 0 is background.
        nodes: (N, 3) coordinates by position, for ties.
        up: (N,) position of the parent, -1 at a root.
        length: (N,) of the edge to the parent, multiples of the quantum.

    Returns:
        By position: the labelled position (itself if labelled, -1 if there is none), the distance
        to it, the next position on the way (-1 at its end), the background positions on the way.
    """
    count = len(up)
    source = np.full(count, -1, np.int64)
    distance = np.full(count, np.inf)
    toward = np.full(count, -1, np.int64)
    between = np.zeros(count, np.int64)
    for p in range(count):
        if labels[p] != 0:
            source[p] = p
            distance[p] = 0.0
    for step in range(2 * count):
        p = count - 1 - step if step < count else step - count
        if up[p] < 0:
            continue
        # From the leaves upwards first, then down again.
        near, far = (p, up[p]) if step < count else (up[p], p)
        if labels[far] != 0 or source[near] < 0:
            continue
        way = distance[near] + length[p]
        if way < distance[far] or (
            way == distance[far]
            and source[near] != source[far]
            and _before(nodes, labels, source[near], source[far])
        ):
            source[far] = source[near]
            distance[far] = way
            toward[far] = near
            between[far] = between[near] + 1
    return source, distance, toward, between


@njit(cache=True, nogil=True)
def path_middles(
    first: Integers, second: Integers, gap: Floats, distance: Floats, toward: Integers
) -> tuple[Integers, Integers, Floats]:
    """The middle of each path that leads from first[i] and from second[i] to their nearest label.

    Args:
        first: (R,) positions on the side of the path's beginning.
        second: (R,) their neighbours on the other side.
        gap: (R,) length of the whole path.
        distance: of `nearest_labelled`.
        toward: of `nearest_labelled`.

    Returns:
        Per path two adjacent positions, the one nearer to the beginning first, and the share of
        the way from it to the other at which the middle lies.
    """
    before = np.empty(len(gap), np.int64)
    after = np.empty(len(gap), np.int64)
    share = np.zeros(len(gap))
    for row in range(len(gap)):
        half = gap[row] / 2
        a, b = first[row], second[row]
        if distance[a] >= half:
            while toward[a] >= 0 and distance[toward[a]] >= half:
                a = toward[a]
            b, a = a, (toward[a] if toward[a] >= 0 else a)
            if a != b:
                share[row] = (half - distance[a]) / (distance[b] - distance[a])
        elif distance[b] > half:
            while distance[toward[b]] > half:
                b = toward[b]
            a, b = b, toward[b]
            share[row] = (distance[a] - half) / (distance[a] - distance[b])
        else:
            share[row] = (half - distance[a]) / (gap[row] - distance[a] - distance[b])
        before[row], after[row] = a, b
    return before, after, share


@njit(cache=True, nogil=True)
def background_stretches(
    labels: Labels, nodes: Floats, up: Integers, length: Floats
) -> tuple[Integers, Integers]:
    """Number the maximal connected stretches of background and find the middle node of each.

    Arguments are those of `nearest_labelled`.

    Returns:
        (N,) the stretch of each position, -1 where labelled; per stretch, the position in it whose
        greatest distance to a node of the stretch or to a labelled node beside it is least: the
        one nearest to the middle of the longest path.
    """
    count = len(up)
    stretch = np.full(count, -1, np.int64)
    found = 0
    for p in range(count):
        if labels[p] == 0:
            if up[p] >= 0 and labels[up[p]] == 0:
                stretch[p] = stretch[up[p]]
            else:
                stretch[p] = found
                found += 1
    below, next_below, over = np.zeros(count), np.zeros(count), np.zeros(count)
    for p in range(count - 1, -1, -1):
        q = up[p]
        if q >= 0 and labels[q] == 0:
            way = length[p] + (below[p] if labels[p] == 0 else 0.0)
            if way > below[q]:
                next_below[q] = below[q]
                below[q] = way
            elif way > next_below[q]:
                next_below[q] = way
    middle = np.full(found, -1, np.int64)
    for p in range(count):
        if labels[p] != 0:
            continue
        q = up[p]
        if q >= 0:
            over[p] = length[p]
            if labels[q] == 0:
                beside = next_below[q] if below[q] == below[p] + length[p] else below[q]
                over[p] += max(over[q], beside)
        best = middle[stretch[p]]
        reach = max(below[p], over[p])
        if best < 0:
            middle[stretch[p]] = p
            continue
        known = max(below[best], over[best])
        if reach < known or (reach == known and _before(nodes, labels, p, best)):
            middle[stretch[p]] = p
    return stretch, middle


@njit(cache=True, nogil=True)
def find_ascending(values: Labels, ascending: Labels) -> tuple[Integers, int]:
    """Where each value stands in `ascending`, -1 where it does not; how many do."""
    at = np.full(len(values), -1, np.int64)
    count = 0
    if len(ascending) == 0:
        return at, count
    found = 0
    for i in range(len(values)):
        # Neighbours often have one label.
        if ascending[found] != values[i]:
            found = min(np.searchsorted(ascending, values[i]), len(ascending) - 1)
        if ascending[found] == values[i]:
            at[i] = found
            count += 1
    return at, count


@njit(cache=True, nogil=True)
def take_found(
    at: Integers,
    rows: Integers,
    nodes: Floats,
    voxel_size_nm: Floats,
    row: NDArray[np.int32],
    node: NDArray[np.int32],
    points_nm: Floats,
) -> None:
    """Fill in the row, index and place of each node that `find_ascending` found."""
    filled = 0
    for i in range(len(at)):
        if at[i] < 0:
            continue
        row[filled] = rows[at[i]]
        node[filled] = i
        for axis in range(3):
            points_nm[filled, axis] = nodes[i, axis] * voxel_size_nm[axis]
        filled += 1


@njit(cache=True, nogil=True)
def trace_members(
    labels: Labels, up: Integers, kind: NDArray[np.uint8], first: Integers, second: Integers
) -> tuple[Integers, Integers, Integers]:
    """What each site of a skeleton shows: positions, ascending, and the edges among them.

    A split shows the path between two positions of a tree, an omission its stretch of background
    and the labelled positions beside it, a merge two places that are no positions.

    Args:
        labels: (N,) uint64 by position; 0 is background.
        up: (N,) position of the parent, -1 at a root.
        kind: (S,) of each site.
        first: (S,) an end of a split, or a position in an omission.
        second: (S,) the other end of a split.

    Returns:
        (S,) how many positions each site has; (M,) these, site after site, -1 at a merge; (M,)
        the parent of each in its site, an index into these, -1 without one.
    """
    stretch, begin, inside = _by_stretch(labels, up)
    sizes = np.empty(len(kind), np.int64)
    for site in range(len(kind)):
        if kind[site] == MERGE_SITE:
            sizes[site] = 2
        elif kind[site] == SPLIT_SITE:
            sizes[site] = _path_length(up, first[site], second[site])
        else:
            number = stretch[first[site]]
            sizes[site] = begin[number + 1] - begin[number]
    members = np.full(sizes.sum(), -1, np.int64)
    parent = np.full(len(members), -1, np.int64)
    index = np.full(len(up), -1, np.int64)
    start = 0
    for site in range(len(kind)):
        stop = start + sizes[site]
        if kind[site] == MERGE_SITE:
            parent[start + 1] = start
        elif kind[site] == SPLIT_SITE:
            _fill_path(up, first[site], second[site], members[start:stop])
        else:
            number = stretch[first[site]]
            members[start:stop] = inside[begin[number] : begin[number + 1]]
        for i in range(start, stop):
            if members[i] >= 0:
                index[members[i]] = i
                above = up[members[i]]
                # What other sites left behind lies before the start.
                if above >= 0 and index[above] >= start:
                    parent[i] = index[above]
        start = stop
    return sizes, members, parent


@njit(cache=True, nogil=True)
def _by_stretch(labels: Labels, up: Integers) -> tuple[Integers, Integers, Integers]:
    """The connected stretches of background, as `background_stretches` numbers them.

    Returns:
        (N,) the stretch of each position, -1 where labelled; where the positions in and beside
        each stretch begin, and the end; these positions, ascending in a stretch.
    """
    stretch = np.full(len(up), -1, np.int64)
    found = 0
    for p in range(len(up)):
        if labels[p] == 0:
            if up[p] >= 0 and labels[up[p]] == 0:
                stretch[p] = stretch[up[p]]
            else:
                stretch[p] = found
                found += 1
    begin = np.zeros(found + 1, np.int64)
    for p in range(len(up)):
        above = stretch[up[p]] if up[p] >= 0 else -1
        if stretch[p] >= 0:
            begin[stretch[p] + 1] += 1 if above >= 0 or up[p] < 0 else 2
        elif above >= 0:
            begin[above + 1] += 1
    for number in range(found):
        begin[number + 1] += begin[number]
    fill = begin[:-1].copy()
    inside = np.empty(begin[-1], np.int64)
    for p in range(len(up)):
        above = stretch[up[p]] if up[p] >= 0 else -1
        own = max(stretch[p], above)
        if own < 0:
            continue
        if stretch[p] >= 0 and up[p] >= 0 and above < 0:
            # The labelled parent of a stretch comes before all of it.
            own = stretch[p]
            inside[fill[own]] = up[p]
            fill[own] += 1
        inside[fill[own]] = p
        fill[own] += 1
    return stretch, begin, inside


@njit(cache=True, nogil=True)
def _path_length(up: Integers, a: int, b: int) -> int:
    """How many positions lead from a to b, both included; they must be of one tree."""
    count = 1
    while a != b:
        # Parents have smaller positions.
        if a > b:
            a = up[a]
        else:
            b = up[b]
        count += 1
    return count


@njit(cache=True, nogil=True)
def _fill_path(up: Integers, a: int, b: int, path: Integers) -> None:
    """The positions that lead from a to b, ascending: the larger of two is left first."""
    at = len(path) - 1
    while a != b:
        if a > b:
            path[at] = a
            a = up[a]
        else:
            path[at] = b
            b = up[b]
        at -= 1
    path[at] = a
