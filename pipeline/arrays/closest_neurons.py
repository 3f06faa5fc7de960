"""The closest nodes that join neurons which share a label: exact minimum spanning trees in space.

Boruvka's algorithm on the neurons of a label: every team of joined neurons but one seeks its
closest node of another, in rounds, in a tree of boxes over the nodes. Three things keep this at
a fraction of a microsecond a node, even where one label runs on every neuron of a data set:

1. boxes of one team are passed over whole, and so are those farther than what the team has found;
2. the search begins beside the box at hand and goes outwards;
3. what is near a box only becomes less as teams join: a box remembers how near anything was, and
   is searched again only when its team has found nothing nearer.

Labels are shared out among threads; one with very many nodes is searched by all of them.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_forest import Floats, Integers
from pipeline.threads import map_threads, usable_threads

Numbers = NDArray[np.int32]

_LEAF_POINTS = 8
_MIXED, _NONE = -1, -2
_CURVE_BITS = 10
_UNSORTED = 64  # so few points lie together anyhow
_MANY_POINTS = 1 << 19  # of a label that is searched by several threads
_SHARE_POINTS = 1 << 16  # of labels that one thread takes at a time, or more


def spanning_pairs(
    points: Floats, neuron: Numbers, label: Numbers, priority: Integers, labels: int
) -> tuple[Integers, Integers]:
    """For each label, the closest nodes that join its neurons: minimum spanning trees.

    Pairs of nodes are ordered by distance, then by the neurons' priorities and the coordinates:
    a strict order, hence one tree, however the points are listed.

    Args:
        points: (N, 3) nodes in nanometres.
        neuron: (N,) int32, the neuron of each.
        label: (N,) int32, the label of each, below `labels`.
        priority: per neuron, its place among them.
        labels: how many there are.

    Returns:
        The two points of each pair, as indices; label after label.
    """
    order, starts = _by_label(label, labels)
    sizes = np.diff(starts)
    ends = np.flatnonzero(sizes >= _MANY_POINTS).tolist()
    found: dict[int, tuple[Integers, Integers]] = {}
    shares: list[tuple[int, int]] = []
    begin = 0
    for large in [*ends, labels]:
        shares += _shares(starts, begin, large)
        if large < labels:
            chosen = order[starts[large] : starts[large + 1]]
            found[large] = _join_many(points, neuron, priority, chosen)
        begin = large + 1
    joined = map_threads(
        lambda share: _join_labels(points, neuron, priority, order, starts, *share), shares
    )
    found |= {share[0]: pairs for share, pairs in zip(shares, joined, strict=True)}
    none = np.zeros(0, np.int64)
    pairs = [found[first] for first in sorted(found)]
    return (
        np.concatenate([none, *(first for first, _ in pairs)]),
        np.concatenate([none, *(second for _, second in pairs)]),
    )


def _shares(starts: Integers, begin: int, end: int) -> list[tuple[int, int]]:
    """Ranges of the labels begin:end with about as many points each."""
    shares = []
    while begin < end:
        stop = int(np.searchsorted(starts, starts[begin] + _SHARE_POINTS))
        shares.append((begin, min(stop, end)))
        begin = shares[-1][1]
    return shares


@njit(cache=True, nogil=True)
def _by_label(label: Numbers, labels: int) -> tuple[Integers, Integers]:
    """The points by label, else in their order; where each label begins, and the end."""
    starts = np.zeros(labels + 1, np.int64)
    for i in range(len(label)):
        starts[label[i] + 1] += 1
    for number in range(labels):
        starts[number + 1] += starts[number]
    fill = starts[:-1].copy()
    order = np.empty(len(label), np.int64)
    for i in range(len(label)):
        order[fill[label[i]]] = i
        fill[label[i]] += 1
    return order, starts


@njit(cache=True, nogil=True)
def _join_labels(
    points: Floats,
    neuron: Numbers,
    priority: Integers,
    order: Integers,
    starts: Integers,
    first_label: int,
    end_label: int,
) -> tuple[Integers, Integers]:
    """The pairs of a range of labels."""
    first = np.empty(starts[end_label] - starts[first_label], np.int64)
    second = np.empty(len(first), np.int64)
    slot = np.full(len(priority), -1, np.int64)
    filled = 0
    for label in range(first_label, end_label):
        chosen = order[starts[label] : starts[label + 1]]
        near_by = _along_curve(points, chosen)
        places, member, rank = _gather(points, neuron, priority, near_by, slot)
        boxes = _boxes(places)
        teams, floor = _no_teams(len(boxes))
        team, best, near, far = _alone(len(rank))
        home = int(np.argmax(np.bincount(member)))
        count = 0
        while count < len(rank) - 1:
            waiting = _begin_round(places, member, rank, team, best, near, far, teams, home)
            _search(
                places, member, rank, team, best, near, far,
                boxes, teams, floor, waiting, 0, len(boxes) // 2,
            )  # fmt: skip
            for group in range(len(rank)):
                if group != waiting and _joins(team, member, near, far, group):
                    first[filled] = near_by[near[group]]
                    second[filled] = near_by[far[group]]
                    filled += 1
                    count += 1
    return first[:filled].copy(), second[:filled].copy()


def _join_many(
    points: Floats, neuron: Numbers, priority: Integers, chosen: Integers
) -> tuple[Integers, Integers]:
    """The pairs of one label; its boxes are shared out among threads."""
    near_by = _along_curve(points, chosen)
    slot = np.full(len(priority), -1, np.int64)
    places, member, rank = _gather(points, neuron, priority, near_by, slot)
    boxes = _boxes(places)
    teams, floor = _no_teams(len(boxes))
    team, best, near, far = _alone(len(rank))
    home, leaves = int(np.argmax(np.bincount(member))), len(boxes) // 2
    cuts = np.linspace(0, leaves, 8 * usable_threads() + 1).astype(int).tolist()
    pairs: list[tuple[int, int]] = []

    def search(share: tuple[int, int]) -> tuple[Floats, Integers, Integers]:
        own = best.copy(), near.copy(), far.copy()
        _search(places, member, rank, team, *own, boxes, teams, floor, waiting, *share)
        return own

    while len(pairs) < len(rank) - 1:
        waiting = _begin_round(places, member, rank, team, best, near, far, teams, home)
        for found in map_threads(search, list(pairwise(cuts))):
            _take_better(places, member, rank, best, near, far, *found)
        pairs += [
            (near[group], far[group])
            for group in range(len(rank))
            if group != waiting and _joins(team, member, near, far, group)
        ]
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    return near_by[ends[:, 0]], near_by[ends[:, 1]]


@njit(cache=True, nogil=True)
def _along_curve(points: Floats, chosen: Integers) -> Integers:
    """The chosen points along a curve that fills space (Morton order); equal ones in their order.

    A radix sort: three passes over ten bits each.
    """
    count = len(chosen)
    if count <= _UNSORTED:
        return chosen.copy()
    low, size = np.full(3, np.inf), 0.0
    for axis in range(3):
        high = -np.inf
        for i in chosen:
            low[axis] = min(low[axis], points[i, axis])
            high = max(high, points[i, axis])
        size = max(size, high - low[axis])
    scale = (2**_CURVE_BITS - 1) / size if 0 < size < np.inf else 0.0
    code = np.empty(count, np.uint32)
    for n in range(count):
        place = np.uint32(0)
        for axis in range(3):
            cell = np.uint32((points[chosen[n], axis] - low[axis]) * scale)
            # Two empty bits after each of the ten.
            cell = (cell | (cell << np.uint32(16))) & np.uint32(0x30000FF)
            cell = (cell | (cell << np.uint32(8))) & np.uint32(0x300F00F)
            cell = (cell | (cell << np.uint32(4))) & np.uint32(0x30C30C3)
            cell = (cell | (cell << np.uint32(2))) & np.uint32(0x9249249)
            place |= cell << np.uint32(2 - axis)
        code[n] = place
    source, moved = chosen.copy(), np.empty(count, np.int64)
    moved_code = np.empty(count, np.uint32)
    for shift in range(0, 3 * _CURVE_BITS, _CURVE_BITS):
        at = np.zeros(2**_CURVE_BITS + 1, np.int64)
        for n in range(count):
            at[_digit(code[n], shift) + 1] += 1
        for digit in range(2**_CURVE_BITS):
            at[digit + 1] += at[digit]
        for n in range(count):
            digit = _digit(code[n], shift)
            moved[at[digit]], moved_code[at[digit]] = source[n], code[n]
            at[digit] += 1
        source, moved = moved, source
        code, moved_code = moved_code, code
    return source


@njit(cache=True, nogil=True)
def _digit(code: int, shift: int) -> int:
    return (np.int64(code) >> shift) & (2**_CURVE_BITS - 1)


@njit(cache=True, nogil=True)
def _gather(
    points: Floats, neuron: Numbers, priority: Integers, chosen: Integers, slot: Integers
) -> tuple[Floats, Numbers, Integers]:
    """The chosen points, the neuron of each numbered among those that occur, their priorities.

    `slot` holds -1 for each neuron, before and after.
    """
    count = 0
    places = np.empty((len(chosen), 3))
    member = np.empty(len(chosen), np.int32)
    rank = np.empty(min(len(chosen), len(priority)), np.int64)
    for n in range(len(chosen)):
        i = chosen[n]
        for axis in range(3):
            places[n, axis] = points[i, axis]
        if slot[neuron[i]] < 0:
            slot[neuron[i]] = count
            rank[count] = priority[neuron[i]]
            count += 1
        member[n] = slot[neuron[i]]
    for i in chosen:
        slot[neuron[i]] = -1
    return places, member, rank[:count].copy()


@njit(cache=True, nogil=True)
def _boxes(points: Floats) -> Floats:
    """(2 leaves, 6) bounds of a complete binary tree: box 1 is all, 2n and 2n + 1 are halves of n.

    The lowest z, y, x, then the highest.
    """
    leaves = 1
    while leaves * _LEAF_POINTS < len(points):
        leaves *= 2
    boxes = np.empty((2 * leaves, 6))
    boxes[:, :3] = np.inf
    boxes[:, 3:] = -np.inf
    for i in range(len(points)):
        leaf = leaves + i // _LEAF_POINTS
        for axis in range(3):
            boxes[leaf, axis] = min(boxes[leaf, axis], points[i, axis])
            boxes[leaf, axis + 3] = max(boxes[leaf, axis + 3], points[i, axis])
    for box in range(leaves - 1, 0, -1):
        for axis in range(3):
            boxes[box, axis] = min(boxes[2 * box, axis], boxes[2 * box + 1, axis])
            boxes[box, axis + 3] = max(boxes[2 * box, axis + 3], boxes[2 * box + 1, axis + 3])
    return boxes


@njit(cache=True, nogil=True)
def _no_teams(boxes: int) -> tuple[Numbers, Floats]:
    """The team of each box, not known yet; per leaf, how near (squared) anything may be."""
    return np.full(boxes, _MIXED, np.int32), np.zeros(boxes // 2)


@njit(cache=True, nogil=True)
def _alone(neurons: int) -> tuple[Integers, Floats, Integers, Integers]:
    """Every neuron is a team; per team, the squared distance and the ends of its best pair."""
    team = np.arange(neurons)
    return team, np.empty(neurons), np.empty(neurons, np.int64), np.empty(neurons, np.int64)


@njit(cache=True, nogil=True)
def _root(team: Integers, member: int) -> int:
    while team[member] != member:
        team[member] = team[team[member]]
        member = team[member]
    return member


@njit(cache=True, nogil=True)
def _begin_round(
    points: Floats,
    member: Numbers,
    rank: Integers,
    team: Integers,
    best: Floats,
    near: Integers,
    far: Integers,
    teams: Numbers,
    home: int,
) -> int:
    """Bring the teams up to date, offer neighbours along the curve; returns the team of `home`."""
    for own in range(len(team)):
        team[own] = _root(team, own)
        best[own], near[own], far[own] = np.inf, -1, -1
    leaves = len(teams) // 2
    for leaf in range(leaves):
        start = leaf * _LEAF_POINTS
        stop = min(start + _LEAF_POINTS, len(points))
        known = teams[leaves + leaf]
        if known >= 0:
            known = team[known]
        elif known == _MIXED:
            known = _NONE
            for i in range(start, stop):
                own = team[member[i]]
                known = own if known in (_NONE, own) else _MIXED
        teams[leaves + leaf] = known
    for box in range(leaves - 1, 0, -1):
        a, b = teams[2 * box], teams[2 * box + 1]
        teams[box] = a if b == _NONE or a == b else _MIXED
    for i in range(len(points) - 1):
        if member[i] != member[i + 1]:
            _offer_both(points, member, rank, team, best, near, far, i, i + 1)
    return team[home]


@njit(cache=True, nogil=True)
def _search(
    points: Floats,
    member: Numbers,
    rank: Integers,
    team: Integers,
    best: Floats,
    near: Integers,
    far: Integers,
    boxes: Floats,
    teams: Numbers,
    floor: Floats,
    waiting: int,
    first_leaf: int,
    end_leaf: int,
) -> None:
    """Offer to the points of a range of leaves all that may be closer than what their teams have.

    Afterwards `floor` holds, for each leaf searched, a squared distance that no point of another
    team comes below, in this round and in all that follow. The team that waits does not seek: the
    others find it. In every round it must be the team of the same neuron, as `floor` knows nothing
    of the surroundings of its points.
    """
    leaves = len(boxes) // 2
    stack = np.empty(128, np.int64)
    for number in range(first_leaf, end_leaf):
        leaf = leaves + number
        if teams[leaf] == _NONE or teams[leaf] == waiting:
            continue
        start = number * _LEAF_POINTS
        stop = min(start + _LEAF_POINTS, len(points))
        bound = _worst(member, team, best, waiting, start, stop)
        if floor[number] > bound:
            continue
        nearest = np.inf
        inner = leaf
        # The leaf itself, then what lies beside it, and beside what holds it, up to the whole.
        top = 1
        stack[0] = leaf
        while True:
            while top > 0:
                top -= 1
                box = stack[top]
                if teams[box] == _NONE or (teams[box] >= 0 and teams[box] == teams[leaf]):
                    continue
                gap = _box_gap(boxes, leaf, box)
                if gap > bound:
                    nearest = min(nearest, gap)
                    continue
                if box < leaves:
                    left, right = 2 * box, 2 * box + 1
                    if _box_gap(boxes, leaf, left) < _box_gap(boxes, leaf, right):
                        left, right = right, left
                    stack[top], stack[top + 1] = left, right
                    top += 2
                    continue
                other = (box - leaves) * _LEAF_POINTS
                last = min(other + _LEAF_POINTS, len(points))
                for i in range(start, stop):
                    own = team[member[i]]
                    if own == waiting:
                        continue
                    gap = _point_gap(points, i, boxes, box)
                    if gap > best[own]:
                        nearest = min(nearest, gap)
                        continue
                    for j in range(other, last):
                        if team[member[j]] == own:
                            continue
                        apart = _apart(points, i, j)
                        nearest = min(nearest, apart)
                        if apart <= best[own]:
                            _offer_both(points, member, rank, team, best, near, far, i, j)
                bound = _worst(member, team, best, waiting, start, stop)
            if inner == 1:
                break
            stack[0] = inner ^ 1
            top = 1
            inner //= 2
        floor[number] = nearest


@njit(cache=True, nogil=True)
def _worst(
    member: Numbers, team: Integers, best: Floats, waiting: int, start: int, stop: int
) -> float:
    """The largest of the best distances of the teams that seek, of a range of points."""
    worst = -1.0
    for i in range(start, stop):
        own = team[member[i]]
        if own != waiting:
            worst = max(worst, best[own])
    return worst


@njit(cache=True, nogil=True)
def _box_gap(boxes: Floats, a: int, b: int) -> float:
    """Squared distance of two boxes: never more than that of two points in them, rounded too."""
    total = 0.0
    for axis in range(3):
        gap = max(boxes[a, axis] - boxes[b, axis + 3], boxes[b, axis] - boxes[a, axis + 3], 0.0)
        total += gap * gap
    return total


@njit(cache=True, nogil=True)
def _point_gap(points: Floats, i: int, boxes: Floats, box: int) -> float:
    """Squared distance of a point and a box, as `_box_gap`."""
    total = 0.0
    for axis in range(3):
        value = points[i, axis]
        gap = max(boxes[box, axis] - value, value - boxes[box, axis + 3], 0.0)
        total += gap * gap
    return total


@njit(cache=True, nogil=True)
def _apart(points: Floats, i: int, j: int) -> float:
    """Squared distance of two points."""
    total = 0.0
    for axis in range(3):
        gap = points[i, axis] - points[j, axis]
        total += gap * gap
    return total


@njit(cache=True, nogil=True)
def _offer_both(
    points: Floats,
    member: Numbers,
    rank: Integers,
    team: Integers,
    best: Floats,
    near: Integers,
    far: Integers,
    i: int,
    j: int,
) -> None:
    """Enter the pair as the best of either point's team, if it is and they are of two teams."""
    one, other = team[member[i]], team[member[j]]
    if one == other:
        return
    apart = _apart(points, i, j)
    _offer(points, member, rank, best, near, far, one, apart, i, j)
    _offer(points, member, rank, best, near, far, other, apart, j, i)


@njit(cache=True, nogil=True)
def _offer(
    points: Floats,
    member: Numbers,
    rank: Integers,
    best: Floats,
    near: Integers,
    far: Integers,
    own: int,
    apart: float,
    i: int,
    j: int,
) -> None:
    """Enter the pair as the best of the team `own`, that of i, if it is."""
    if apart < best[own] or (
        apart == best[own] and _pair_before(points, member, rank, i, j, near[own], far[own])
    ):
        best[own], near[own], far[own] = apart, i, j


@njit(cache=True, nogil=True)
def _take_better(
    points: Floats,
    member: Numbers,
    rank: Integers,
    best: Floats,
    near: Integers,
    far: Integers,
    other_best: Floats,
    other_near: Integers,
    other_far: Integers,
) -> None:
    """Enter what another search has found."""
    for own in range(len(best)):
        if other_near[own] >= 0:
            i, j = other_near[own], other_far[own]
            _offer(points, member, rank, best, near, far, own, other_best[own], i, j)


@njit(cache=True, nogil=True)
def _joins(team: Integers, member: Numbers, near: Integers, far: Integers, group: int) -> bool:
    """Join the team `group` with that of its best pair; whether they were two."""
    if near[group] < 0:
        return False
    a, b = _root(team, group), _root(team, member[far[group]])
    if a != b:
        team[a] = b
    return a != b


@njit(cache=True, nogil=True)
def _pair_before(
    points: Floats, member: Numbers, rank: Integers, i: int, j: int, k: int, m: int
) -> bool:
    """Order of pairs (i, j) and (k, m) at equal distance."""
    if k < 0:
        return True
    if rank[member[i]] > rank[member[j]]:
        i, j = j, i
    if rank[member[k]] > rank[member[m]]:
        k, m = m, k
    for a, b in ((i, k), (j, m)):
        if member[a] != member[b]:
            return rank[member[a]] < rank[member[b]]
    for a, b in ((i, k), (j, m)):
        for axis in range(3):
            if points[a, axis] != points[b, axis]:
                return points[a, axis] < points[b, axis]
    return i < k or (i == k and j < m)
