"""Maximin edges: at which edge each pair of voxels is joined, counted for all pairs at once.

Edges are joined in the order of their logits, largest first, equal ones in the order of their flat
index in (C, *space) (Kruskal's maximal spanning tree). The edge at which two voxels come together
is the weakest on the best path between them, their maximin edge; when an edge joins two sets, it
is that of all pairs between them. The constrained form of Funke et al. 2018 counts in two graphs:

    positive  edges of objects alone (target 1): pairs within one object
    negative  edges of objects are joined beforehand, then all others (target 0) in their order:
              pairs of voxels that carry different labels, background left out

Edges that do not count (mask False) are in neither. Sorting by digits and union-find make it nearly
linear in the number of edges.

Source: Turaga et al. 2009, "Maximin affinity learning of image segmentation"; Funke et al. 2018,
"Large scale image segmentation with structured loss based deep learning for connectome
reconstruction".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.errors import ShapeError
from pipeline.learning.disjoint import find

_DIGIT = 11  # bits; three passes sort 32
_BUCKETS = 1 << _DIGIT
_SIGN = np.uint32(1 << 31)


class PairShares(NamedTuple):
    """Edges with a weight: flat indices in (C, *space) int64, and float32 weights that add to 1."""

    edges: NDArray[np.int64]
    shares: NDArray[np.float32]


def share_maximin_pairs(
    labels: NDArray[np.uint64],
    logits: NDArray[np.float32],
    targets: NDArray[np.bool_],
    mask: NDArray[np.bool_],
) -> tuple[PairShares, PairShares]:
    """The share of all positive, and of all negative, pairs whose maximin edge each edge is.

    Args:
        labels: (*space) uint64, two or three axes; 0 is background, `IGNORE` unknown.
        logits: (C, *space) float32, C the number of axes; channel d joins a voxel to its
            predecessor along axis d.
        targets: same shape: edges within an object.
        mask: same shape: edges that exist; none of the first plane along its axis.

    Returns:
        The edges of each sign that are the maximin edge of a pair.

    Raises:
        ShapeError: the shapes disagree.
    """
    shape = (labels.ndim, *labels.shape)
    if labels.ndim not in (2, 3) or {logits.shape, targets.shape, mask.shape} != {shape}:
        raise ShapeError(
            f"labels {labels.shape} want edges {shape}, got logits {logits.shape}, targets "
            f"{targets.shape} and mask {mask.shape}"
        )
    steps = np.array([int(np.prod(labels.shape[d + 1 :])) for d in range(labels.ndim)])
    flat = np.ascontiguousarray(logits, dtype=np.float32).reshape(-1)
    keys = flat.view(np.uint32)
    valid = np.ascontiguousarray(mask).reshape(-1)
    inside = np.ascontiguousarray(targets).reshape(-1) & valid
    parent = np.arange(labels.size, dtype=np.int32)
    within = _sorted_edges(keys, np.flatnonzero(inside).astype(np.int32))
    positive = _positive_pairs(within, steps, parent)
    objects, sizes = _objects(parent, np.ascontiguousarray(labels).reshape(-1))
    between = _absorb_background(flat, valid & ~inside, steps, parent, objects > 0)
    negative = _negative_pairs(_sorted_edges(keys, between), steps, parent, objects, sizes)
    return _shares(*positive), _shares(*negative)


def _shares(edges: NDArray[np.int64], pairs: NDArray[np.float64]) -> PairShares:
    return PairShares(edges, (pairs / max(pairs.sum(), 1.0)).astype(np.float32))


@njit(cache=True, nogil=True)
def _sorted_edges(bits: NDArray[np.uint32], edges: NDArray[np.int32]) -> NDArray[np.int32]:
    """The edges by logit, largest first; equal ones keep their order (radix sort).

    `bits` are those of the float32 logits.
    """
    keys = np.empty(edges.size, dtype=np.uint32)
    histogram = np.zeros((3, _BUCKETS), dtype=np.int64)
    for k in range(edges.size):
        keys[k] = _descending_key(bits[edges[k]])
        for digit in range(3):
            histogram[digit, (keys[k] >> (digit * _DIGIT)) & (_BUCKETS - 1)] += 1
    other_keys, other = np.empty_like(keys), np.empty_like(edges)
    for digit in range(3):
        places = np.zeros(_BUCKETS, dtype=np.int64)
        for bucket in range(1, _BUCKETS):
            places[bucket] = places[bucket - 1] + histogram[digit, bucket - 1]
        for k in range(edges.size):
            bucket = (keys[k] >> (digit * _DIGIT)) & (_BUCKETS - 1)
            other[places[bucket]] = edges[k]
            other_keys[places[bucket]] = keys[k]
            places[bucket] += 1
        edges, other = other, np.empty_like(edges) if digit == 0 else edges
        keys, other_keys = other_keys, keys
    return edges


@njit(cache=True, nogil=True)
def _descending_key(bits: np.uint32) -> np.uint32:
    """An integer in the opposite order of the float; both zeros have one."""
    if bits == _SIGN:
        bits = np.uint32(0)
    return bits if bits & _SIGN else ~bits & np.uint32(0x7FFFFFFF)


@njit(cache=True, nogil=True)
def _positive_pairs(
    edges: NDArray[np.int32], steps: NDArray[np.int64], parent: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges that join, and pairs that they join; leaves in `parent` the components over all."""
    size = np.ones(parent.size, dtype=np.int32)
    found = np.empty(min(edges.size, parent.size), dtype=np.int64)
    pairs = np.empty(found.size, dtype=np.float64)
    count = 0
    for edge in edges:
        i, j = _ends(edge, steps, parent.size)
        a, b = find(parent, i), find(parent, j)
        if a == b:
            continue
        found[count], pairs[count] = edge, np.float64(size[a]) * np.float64(size[b])
        count += 1
        if size[a] < size[b]:
            a, b = b, a
        parent[b] = a
        size[a] += size[b]
    return found[:count].copy(), pairs[:count].copy()


@njit(cache=True, nogil=True)
def _absorb_background(
    logits: NDArray[np.float32],
    valid: NDArray[np.bool_],
    steps: NDArray[np.int64],
    parent: NDArray[np.int32],
    objects: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """Join all background to the objects it meets first; the edges between what results.

    Only edges that join two objects have pairs. Each component without an object is joined along
    its first edge in the order, again and again (Boruvka): these are edges of the spanning tree,
    and no two objects are joined by them, since every component follows one edge only. Components
    are numbered anew in each round, so that what is looked up at random stays in the cache.
    """
    _absorb_voxels(logits, valid, steps, parent, objects)
    roots, edges, keys, ends = _open_edges(logits, valid, steps, parent)
    held = objects[roots]
    number = np.arange(roots.size).astype(np.int32)  # of each root's component
    renumbered = number
    kept = np.empty(edges.size, dtype=np.int32)
    settled, count, moved = 0, edges.size, True
    while moved:
        first = np.full(held.size, -1, dtype=np.int32)  # edge, its logit, the component beyond
        best = np.empty(held.size, dtype=np.float32)
        beyond = np.empty(held.size, dtype=np.int32)
        moved, open_edges = False, 0
        for k in range(count):
            a, b = renumbered[ends[0, k]], renumbered[ends[1, k]]
            if a == b:
                continue
            if held[a] and held[b]:
                kept[settled] = edges[k]
                settled += 1
                continue
            edge, key = edges[k], keys[k]
            edges[open_edges], keys[open_edges] = edge, key
            ends[0, open_edges], ends[1, open_edges] = a, b
            open_edges += 1
            for one, other in ((a, b), (b, a)):
                if held[one]:
                    continue
                before = key > best[one] or (key == best[one] and edge < first[one])
                if first[one] < 0 or before:
                    first[one], best[one], beyond[one] = edge, key, other
                    moved = True
        count = open_edges
        renumbered, held = _join_components(first, beyond, held)
        for k in range(number.size):
            number[k] = renumbered[number[k]]
    _point_at_objects(parent, roots, number, held.size, objects)
    return np.sort(kept[:settled])


@njit(cache=True, nogil=True)
def _join_components(
    first: NDArray[np.int32], beyond: NDArray[np.int32], held: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Join components that have a first edge; new numbers, and which of these hold an object."""
    parent = np.arange(first.size).astype(np.int32)
    for i in range(first.size):
        if first[i] >= 0:
            a, b = find(parent, i), find(parent, beyond[i])
            parent[max(a, b)] = min(a, b)
    numbers = np.empty(first.size, dtype=np.int32)
    holding = np.zeros(first.size, dtype=np.bool_)
    count = 0
    for i in range(first.size):  # a root comes before its members
        root = parent[i] = parent[parent[i]]
        if root == i:
            numbers[i] = count
            count += 1
        numbers[i] = numbers[root]
        holding[numbers[i]] |= held[i]
    return numbers, holding[:count].copy()


@njit(cache=True, nogil=True)
def _point_at_objects(
    parent: NDArray[np.int32],
    roots: NDArray[np.int32],
    number: NDArray[np.int32],
    components: int,
    objects: NDArray[np.bool_],
) -> None:
    """Join in `parent` the roots of each component that holds an object, below the object's."""
    above = np.full(components, -1, dtype=np.int32)
    for k in range(roots.size):
        if objects[roots[k]]:
            above[number[k]] = roots[k]
    for k in range(roots.size):
        if above[number[k]] >= 0:
            parent[roots[k]] = above[number[k]]


@njit(cache=True, nogil=True, inline="always")
def _ends(edge: int, steps: NDArray[np.int64], size: int) -> tuple[int, int]:
    """The two voxels of an edge; comparisons instead of a division."""
    d = 0
    while edge >= size:
        edge -= size
        d += 1
    return edge, edge - steps[d]


@njit(cache=True, nogil=True)
def _absorb_voxels(
    logits: NDArray[np.float32],
    valid: NDArray[np.bool_],
    steps: NDArray[np.int64],
    parent: NDArray[np.int32],
    objects: NDArray[np.bool_],
) -> None:
    """The first round of `_absorb_background`, where components are single voxels."""
    size = parent.size
    for i in range(size):
        parent[i] = find(parent, i)
    first = np.full(size, -1, dtype=np.int32)
    for i in range(size):
        if parent[i] != i or objects[i]:
            continue
        for d in range(steps.size):
            here, there = d * size + i, d * size + i + steps[d]
            if valid[here] and (first[i] < 0 or _comes_before(logits, here, first[i])):
                first[i] = here
            # The successor's edge to this voxel; beyond the last plane there is none.
            after = i + steps[d] < size and valid[there]
            if after and (first[i] < 0 or _comes_before(logits, there, first[i])):
                first[i] = there
    for i in range(size):
        if first[i] >= 0:
            _join_ends(*_ends(first[i], steps, size), parent, objects)


@njit(cache=True, nogil=True, inline="always")
def _comes_before(logits: NDArray[np.float32], edge: int, other: int) -> bool:
    return logits[edge] > logits[other] or (logits[edge] == logits[other] and edge < other)


@njit(cache=True, nogil=True)
def _join_ends(i: int, j: int, parent: NDArray[np.int32], objects: NDArray[np.bool_]) -> None:
    """Join two voxels' components; an object's root stays a root."""
    a, b = find(parent, i), find(parent, j)
    if a != b:
        if objects[b] or (not objects[a] and b < a):
            a, b = b, a
        parent[b] = a


@njit(cache=True, nogil=True)
def _open_edges(
    logits: NDArray[np.float32],
    valid: NDArray[np.bool_],
    steps: NDArray[np.int64],
    parent: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Roots, and valid edges between different components; flattens `parent`.

    Edges come with their logits, and with the numbers among the roots of what they join, (2, n).
    """
    size = parent.size
    numbers = np.empty(size, dtype=np.int32)
    roots = np.empty(size, dtype=np.int32)
    found = 0
    for i in range(size):
        parent[i] = find(parent, i)
        if parent[i] == i:
            numbers[i], roots[found] = found, i
            found += 1
    for i in range(size):
        numbers[i] = numbers[parent[i]]
    count = 0
    for d in range(steps.size):
        for i in range(steps[d], size):
            count += valid[d * size + i] and numbers[i] != numbers[i - steps[d]]
    edges = np.empty(count, dtype=np.int32)
    keys = np.empty(count, dtype=np.float32)
    ends = np.empty((2, count), dtype=np.int32)
    count = 0
    for d in range(steps.size):
        for i in range(steps[d], size):
            if valid[d * size + i] and numbers[i] != numbers[i - steps[d]]:
                edges[count], keys[count] = d * size + i, logits[d * size + i]
                ends[0, count], ends[1, count] = numbers[i], numbers[i - steps[d]]
                count += 1
    return roots[:found].copy(), edges, keys, ends


@njit(cache=True, nogil=True)
def _objects(
    parent: NDArray[np.int32], labels: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """At each root of labelled voxels: their label, and how many they are."""
    objects = np.zeros(parent.size, dtype=np.uint64)
    sizes = np.zeros(parent.size, dtype=np.int64)
    for i in range(parent.size):
        if labels[i] != 0 and labels[i] != IGNORE:
            root = find(parent, i)
            objects[root] = labels[i]
            sizes[root] += 1
    return objects, sizes


@njit(cache=True, nogil=True)
def _negative_pairs(
    edges: NDArray[np.int32],
    steps: NDArray[np.int64],
    parent: NDArray[np.int32],
    objects: NDArray[np.uint64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges that join pairs of different labels, and how many.

    `counts` holds, by component and label, how many voxels of the label a component has; a
    component's labels are a chain of entries (`first`, `following`), and the shorter chain moves.
    """
    found = np.empty(edges.size, dtype=np.int64)
    pairs = np.zeros(edges.size, dtype=np.float64)
    joins = 0
    numbers, entries = _number_labels(objects)
    counts = {np.int64(0): np.int64(0)}
    first = np.full(parent.size, -1, dtype=np.int32)
    length = np.zeros(parent.size, dtype=np.int32)
    following = np.full(parent.size, -1, dtype=np.int32)
    rank = np.zeros(parent.size, dtype=np.int8)
    owner = np.arange(parent.size).astype(np.int32)  # under which component a chain is counted
    for root in range(parent.size):
        if objects[root]:
            first[root], length[root] = root, 1
            counts[np.int64(root) * entries + numbers[root]] = sizes[root]
    for edge in edges:
        i, j = _ends(edge, steps, parent.size)
        a, b = find(parent, i), find(parent, j)
        if a == b:
            continue
        if rank[a] < rank[b]:
            a, b = b, a
        parent[b] = a
        rank[a] += rank[a] == rank[b]
        found[joins] = edge
        pairs[joins] = np.float64(sizes[a]) * np.float64(sizes[b])
        keep, move = (a, b) if length[a] >= length[b] else (b, a)
        entry, last, kept = first[move], first[keep], owner[keep]
        while entry >= 0:
            after = following[entry]
            source = np.int64(owner[move]) * entries + numbers[entry]
            target = np.int64(kept) * entries + numbers[entry]
            moved = counts[source]
            if target in counts:
                pairs[joins] -= np.float64(moved) * np.float64(counts[target])
                counts[target] += moved
            else:
                counts[target] = moved
                following[entry] = last
                last = entry
                length[keep] += 1
            entry = after
        first[a], length[a], owner[a] = last, length[keep], kept
        sizes[a] += sizes[b]
        joins += pairs[joins] > 0
    return found[:joins].copy(), pairs[:joins].copy()


@njit(cache=True, nogil=True)
def _number_labels(objects: NDArray[np.uint64]) -> tuple[NDArray[np.int32], np.int64]:
    """Consecutive numbers of the labels at the roots, and how many there are (at least 1)."""
    numbers = np.zeros(objects.size, dtype=np.int32)
    known = {np.uint64(0): np.int32(0)}
    for root in range(objects.size):
        if objects[root]:
            if objects[root] not in known:
                known[objects[root]] = np.int32(len(known) - 1)
            numbers[root] = known[objects[root]]
    return numbers, np.int64(max(1, len(known) - 1))
