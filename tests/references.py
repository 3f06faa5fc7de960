"""Slow, obvious references of the segmentation: dictionaries, whole volume, from the definition."""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Rows = dict[tuple[int, int], tuple[int, int]]


def reference_fragments(affinities: NDArray, low: int, high: int) -> NDArray[np.uint64]:
    shape = affinities.shape[1:]
    edges = []
    for voxel in np.ndindex(*shape):
        for d in range(3):
            if voxel[d] > 0:
                before = tuple(p - (axis == d) for axis, p in enumerate(voxel))
                edge_id = 3 * int(np.ravel_multi_index(voxel, shape)) + d
                edges.append((-int(affinities[(d, *voxel)]), edge_id, voxel, before))
    edges.sort()
    neighbours = defaultdict(set)
    pointed = set()
    for negative, _, a, b in edges:
        joined = -negative >= high
        for end in (a, b):
            if end not in pointed:
                pointed.add(end)
                joined |= -negative >= low
        if joined:
            neighbours[a].add(b)
            neighbours[b].add(a)
    labels = np.zeros(shape, np.uint64)
    for voxel in np.ndindex(*shape):
        if labels[voxel] or not neighbours[voxel]:
            continue
        todo = [voxel]
        while todo:
            v = todo.pop()
            if not labels[v]:
                labels[v] = 1 + np.ravel_multi_index(voxel, shape)
                todo.extend(neighbours[v])
    return labels


def reference_edges(affinities: NDArray, labels: NDArray[np.uint64]) -> Rows:
    rows: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for voxel in np.ndindex(*labels.shape):
        for d in range(3):
            if voxel[d] > 0:
                before = tuple(p - (axis == d) for axis, p in enumerate(voxel))
                a, b = sorted((int(labels[voxel]), int(labels[before])))
                if a and a != b:
                    rows[a, b][0] += int(affinities[(d, *voxel)])
                    rows[a, b][1] += 1
    return {pair: (total, count) for pair, (total, count) in rows.items()}


def reference_merges(rows: Rows, threshold: float, scale: int) -> list[tuple[int, ...]]:
    """(sum, count, key_u, key_v, kept, absorbed) in the order of the merges."""
    graph = {pair: (total, count, pair) for pair, (total, count) in rows.items()}
    merges = []
    while graph:
        best = min(graph, key=lambda p: (-Fraction(graph[p][0], graph[p][1]), graph[p][2]))
        total, count, key = graph.pop(best)
        if total / count / scale < threshold:
            break
        kept, absorbed = best
        merges.append((total, count, *key, kept, absorbed))
        merged: dict[tuple[int, int], tuple[int, int, tuple[int, int]]] = {}
        for (a, b), (s, c, k) in graph.items():
            a, b = sorted(kept if end == absorbed else end for end in (a, b))
            s0, c0, k0 = merged.get((a, b), (0, 0, k))
            merged[a, b] = (s + s0, c + c0, min(k, k0))
        graph = merged
    return merges


def reference_quantised(p: NDArray[np.floating]) -> NDArray[np.uint8]:
    """rint(255 * float64(p)), ties to even: what Python's `round` does."""
    levels = [round(255 * float(value)) for value in p.flat]
    return np.array(levels, np.uint8).reshape(p.shape)


def reference_passing(x: float, scale: int) -> int:
    """The smallest integer affinity that passes the threshold `x`."""
    return next(q for q in range(scale + 1) if q / scale >= x)


def reference_segments(
    labels: NDArray[np.uint64],
    merges: list[tuple[int, ...]],
    threshold: float,
    scale: int,
    min_voxels: int,
) -> tuple[dict[int, int], dict[int, int]]:
    """(segment of each fragment, voxels of each segment); a segment that is too small is 0."""
    segment = {int(f): int(f) for f in np.unique(labels) if f}
    for total, count, _, _, kept, absorbed in merges:
        if total / count / scale >= threshold:
            segment = {f: kept if s == absorbed else s for f, s in segment.items()}
    voxels = Counter(segment[int(label)] for label in labels.flat if label)
    large = {s: n for s, n in voxels.items() if n >= min_voxels}
    return {f: s if s in large else 0 for f, s in segment.items()}, large
