"""Slow, obvious references of the segmentation and of the skeleton metrics, from the definition."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any

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


class ReferenceSkeleton:
    """One skeleton and the labels at its nodes; every count by its definition, edge by edge."""

    def __init__(self, skeleton: Any, labels: Sequence[int], voxel_size_nm: Sequence[float]):
        self.nodes = [
            tuple(float(c) * s for c, s in zip(node, voxel_size_nm, strict=True))
            for node in skeleton.nodes
        ]
        self.edges = [tuple(int(i) for i in edge) for edge in skeleton.edges]
        self.raw = [int(v) for v in labels]
        self.labels = list(self.raw)
        self.repaired = self.ambiguous = 0
        self.near: dict[int, set[int]] = {i: set() for i in range(len(self.nodes))}
        for a, b in self.edges:
            self.near[a].add(b)
            self.near[b].add(a)

    def nm(self, edge: Sequence[int]) -> float:
        return math.dist(self.nodes[edge[0]], self.nodes[edge[1]])

    def total_nm(self) -> float:
        return math.fsum(map(self.nm, self.edges))

    def gaps(self, start: int) -> Iterator[list[int]]:
        """Paths from a labelled node over background nodes to another labelled node."""
        paths = [[start]]
        while paths:
            path = paths.pop()
            for node in self.near[path[-1]] - set(path):
                if self.raw[node] == 0:
                    paths.append([*path, node])
                else:
                    yield [*path, node]

    def repair(self, max_gap_nm: float | None) -> None:
        claims: dict[int, set[int]] = defaultdict(set)
        for start in self.near:
            if self.raw[start] == 0:
                continue
            for path in self.gaps(start):
                length = math.fsum(self.nm(step) for step in pairwise(path))
                short = max_gap_nm is None or length <= max_gap_nm + 1e-6
                if short and self.raw[path[-1]] == self.raw[start]:
                    for node in path[1:-1]:
                        claims[node].add(self.raw[start])
        for node, labels in claims.items():
            if len(labels) == 1:
                self.labels[node] = labels.pop()
                self.repaired += 1
            else:
                self.ambiguous += 1

    def pieces(self, edges: Iterable[Sequence[int]]) -> list[set[int]]:
        """Connected sets of nodes under some of the edges; a node without one is a piece too."""
        near = defaultdict(set)
        for a, b in edges:
            near[a].add(b)
            near[b].add(a)
        left, found = set(self.near), []
        while left:
            piece, todo = set(), [left.pop()]
            while todo:
                node = todo.pop()
                piece.add(node)
                todo += near[node] - piece
            left -= piece
            found.append(piece)
        return found

    def components(self) -> list[set[int]]:
        """Of equal label, after repair; background is in none."""
        same = [(a, b) for a, b in self.edges if self.labels[a] == self.labels[b]]
        return [p for p in self.pieces(same) if any(self.labels[n] for n in p)]

    def splits(self) -> int:
        trees = self.pieces(self.edges)
        return len(self.components()) - sum(any(self.labels[n] for n in t) for t in trees)

    def run_nm(self, label: int, labels: Sequence[int]) -> float:
        return math.fsum(self.nm((a, b)) for a, b in self.edges if labels[a] == labels[b] == label)

    def kind(self, edge: Sequence[int], merging: Container[int]) -> str:
        a, b = (self.labels[node] for node in edge)
        if a == 0 or b == 0:
            return "omit"
        if a != b:
            return "split"
        return "merged" if a in merging else "correct"

    def runs(self, merging: Container[int], size: Callable[[Sequence[int]], float]) -> list[float]:
        """Sizes of the components of correct edges."""
        correct = [e for e in self.edges if self.kind(e, merging) == "correct"]
        pieces = self.pieces(correct)
        return [math.fsum(size(e) for e in correct if e[0] in piece) for piece in pieces]


def reference_holders(
    rows: Sequence[tuple[ReferenceSkeleton, Sequence[int]]], min_nodes: int, min_nm: float
) -> dict[int, set[int]]:
    """Merging label -> numbers of the skeletons that it is on."""
    on: dict[int, set[int]] = defaultdict(set)
    for number, (skeleton, labels) in enumerate(rows):
        for label in set(labels) - {0}:
            nodes = sum(v == label for v in labels)
            if nodes >= min_nodes and skeleton.run_nm(label, labels) >= min_nm - 1e-6:
                on[label].add(number)
    return {label: numbers for label, numbers in on.items() if len(numbers) > 1}


@dataclass
class ReferenceScores:
    """`overall` and `per_skeleton` as in metrics.json, and the labels after repair."""

    overall: dict[str, float | None]
    per_skeleton: dict[str, dict[str, float | None]]
    node_labels: list[list[int]]


def reference_scores(
    skeletons: Sequence[Any],
    node_labels: Sequence[Sequence[int]],
    voxel_size_nm: Sequence[float],
    *,
    repair: bool = True,
    max_gap_nm: float | None = None,
    merge_min_nodes: int = 1,
    merge_min_nm: float = 0.0,
    out_of_bounds: Sequence[int] | None = None,
) -> ReferenceScores:
    """Every skeleton metric from its definition, in plain Python."""
    all_ = [
        ReferenceSkeleton(s, row, voxel_size_nm)
        for s, row in zip(skeletons, node_labels, strict=True)
    ]
    if repair:
        for each in all_:
            each.repair(max_gap_nm)
    outside = list(out_of_bounds or [0] * len(all_))
    on = reference_holders([(r, r.labels) for r in all_], merge_min_nodes, merge_min_nm)
    ffn = reference_holders([(r, r.raw) for r in all_], merge_min_nodes, merge_min_nm)
    overall = {
        **_reference_measures(all_, set(on), set(ffn), sum(outside)),
        **_reference_overall_merges(on),
    }
    edges = sum(len(r.edges) for r in all_)
    overall["splits_per_neuron"] = sum(_part(len(r.edges), edges) * r.splits() for r in all_)
    per_skeleton = {}
    for number, each in enumerate(all_):
        mine = {label: numbers for label, numbers in on.items() if number in numbers}
        row = _reference_measures([each], set(on), set(ffn), outside[number])
        row["merges_total"] = sum(len(numbers) - 1 for numbers in mine.values())
        row["merging_labels"] = len(mine)
        row["merged_pairs"] = len(set().union(*mine.values()) - {number})
        per_skeleton[skeletons[number].name] = row
    for row in (overall, *per_skeleton.values()):
        merges = row["merges_total"]
        row["merge_rate_nm"] = row["run_length_nm"] / merges if merges else None
    return ReferenceScores(overall, per_skeleton, [r.labels for r in all_])


def _part(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _reference_overall_merges(on: dict[int, set[int]]) -> dict[str, int]:
    pairs = {pair for numbers in on.values() for pair in combinations(sorted(numbers), 2)}
    return {
        "merges_total": sum(len(numbers) - 1 for numbers in on.values()),
        "merging_labels": len(on),
        "merged_pairs": len(pairs),
    }


def _reference_measures(
    chosen: Sequence[ReferenceSkeleton], on: set[int], ffn: set[int], outside: int
) -> dict[str, Any]:
    """What is a sum or a weighted mean over the chosen skeletons."""
    kinds = Counter(r.kind(e, on) for r in chosen for e in r.edges)
    edges = sum(len(r.edges) for r in chosen)
    length = math.fsum(r.total_nm() for r in chosen)
    splits = sum(r.splits() for r in chosen)
    row: dict[str, Any] = {
        "edges": edges,
        **{f"{k}_edges": kinds[k] for k in ("correct", "omit", "split", "merged")},
        **{f"pct_{k}": _part(100 * kinds[k], edges) for k in ("omit", "split", "merged")},
        "splits": splits,
        "merged_components": sum(
            r.labels[next(iter(piece))] in on for r in chosen for piece in r.components()
        ),
        "run_length_nm": length,
        "split_rate_nm": length / splits if splits else None,
        "ambiguous_nodes": sum(r.ambiguous for r in chosen),
        "repaired_nodes": sum(r.repaired for r in chosen),
        "out_of_bounds_nodes": outside,
    }
    wrong = row["pct_omit"] + row["pct_merged"]
    row["edge_accuracy"] = 100 - wrong if edges else 0
    row["edge_accuracy_strict"] = 100 - wrong - row["pct_split"] if edges else 0
    for suffix, of_edge, whole in (
        ("", lambda r: lambda e: 1, lambda r: len(r.edges)),
        ("_nm", lambda r: r.nm, ReferenceSkeleton.total_nm),
    ):
        total = math.fsum(whole(r) for r in chosen)
        erls = [_part(sum(c * c for c in r.runs(on, of_edge(r))), whole(r)) for r in chosen]
        weights = [_part(whole(r), total) for r in chosen]
        row["erl" + suffix] = sum(w * erl for w, erl in zip(weights, erls, strict=True))
        row["nerl" + suffix] = sum(
            w * _part(erl, whole(r)) for w, erl, r in zip(weights, erls, chosen, strict=True)
        )
    squares = sum(r.run_nm(v, r.raw) ** 2 for r in chosen for v in set(r.raw) - {0} - ffn)
    row["ffn_erl_nm"] = _part(squares, length)
    row["ffn_nerl_nm"] = _part(squares, sum(r.total_nm() ** 2 for r in chosen))
    return row
