"""Skeleton metrics against their definitions in plain Python, on random forests."""

from __future__ import annotations

import json
import math
import tempfile
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.metrics import ScoringOptions, score
from pipeline.arrays.skeleton import Skeleton
from pipeline.storage.swc import SwcOptions, read_skeletons

VOXEL = (40.0, 9.0, 7.0)


@st.composite
def forests(draw: st.DrawFn, name: str) -> tuple[Skeleton, np.ndarray]:
    count = draw(st.integers(1, 14))
    roots = draw(st.sampled_from([0.0, 0.1, 0.4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    parents = [-1] + [-1 if rng.random() < roots else int(rng.integers(i)) for i in range(1, count)]
    if draw(st.booleans()):  # long paths
        parents = [-1] + [p if p < 0 else i for i, p in enumerate(parents[1:])]
    new = rng.permutation(count)
    edges = [(new[i], new[p]) for i, p in enumerate(parents) if p >= 0]
    edges = [e if rng.random() < 0.5 else e[::-1] for e in edges]
    nodes = rng.integers(0, 8, (count, 3)) + rng.choice([0.0, 0.25, 0.5], (count, 3))
    labels = rng.integers(0, draw(st.integers(1, 5)), count)
    labels[rng.random(count) < draw(st.sampled_from([0.0, 0.3, 0.6]))] = 0
    return Skeleton(name, nodes, np.array(edges).reshape(-1, 2)), labels.astype(np.uint64)


CASES = st.integers(1, 4).flatmap(lambda n: st.tuples(*(forests(f"s{i}") for i in range(n))))
OPTIONS = st.builds(
    ScoringOptions,
    repair=st.sampled_from([True, True, True, False]),
    max_gap_nm=st.sampled_from([None, None, 0.0, 51.37, 103.71, 211.13]),
    merge_min_nodes=st.sampled_from([1, 1, 2, 3]),
    merge_min_nm=st.sampled_from([0.0, 0.0, 33.17]),
)


class Reference:
    """One skeleton as dictionaries; everything by its definition."""

    def __init__(self, skeleton: Skeleton, labels: np.ndarray, options: ScoringOptions) -> None:
        self.nodes = [tuple(c * s for c, s in zip(n, VOXEL, strict=True)) for n in skeleton.nodes]
        self.edges = [tuple(int(i) for i in e) for e in skeleton.edges]
        self.raw = [int(v) for v in labels]
        self.near = {i: set() for i in range(len(self.nodes))}
        for a, b in self.edges:
            self.near[a].add(b)
            self.near[b].add(a)
        self.labels, self.repaired, self.ambiguous = list(self.raw), 0, 0
        if options.repair:
            self.repair(math.inf if options.max_gap_nm is None else options.max_gap_nm)

    def length(self, edge: tuple) -> float:
        return math.dist(self.nodes[edge[0]], self.nodes[edge[1]])

    def path(self, a: int, b: int) -> list | None:
        stack = [[a]]
        while stack:
            path = stack.pop()
            if path[-1] == b:
                return path
            stack += [[*path, n] for n in self.near[path[-1]] if n not in path]
        return None

    def repair(self, limit: float) -> None:
        claims = {i: set() for i in self.near}
        for a, b in combinations(self.near, 2):
            if not self.raw[a] or self.raw[a] != self.raw[b]:
                continue
            path = self.path(a, b)
            if path is None or any(self.raw[n] for n in path[1:-1]):
                continue
            if sum(self.length(e) for e in pairwise(path)) <= limit:
                for n in path[1:-1]:
                    claims[n].add(self.raw[a])
        for n, labels in claims.items():
            if len(labels) == 1:
                self.labels[n] = next(iter(labels))
                self.repaired += 1
            self.ambiguous += len(labels) > 1

    def pieces(self, joins) -> list[set]:
        """Connected sets of nodes under the edges for which joins(a, b)."""
        left, found = set(self.near), []
        while left:
            piece, stack = set(), [left.pop()]
            while stack:
                a = stack.pop()
                piece.add(a)
                stack += [b for b in self.near[a] if b not in piece and joins(a, b)]
            left -= piece
            found.append(piece)
        return found

    def components(self) -> list[set]:
        same = self.pieces(lambda a, b: self.labels[a] == self.labels[b] != 0)
        return [piece for piece in same if all(self.labels[n] for n in piece)]

    def splits(self) -> int:
        trees = self.pieces(lambda a, b: True)
        return len(self.components()) - sum(any(self.labels[n] for n in t) for t in trees)

    def run_nm(self, label: int, labels: list) -> float:
        return math.fsum(
            self.length((a, b)) for a, b in self.edges if labels[a] == labels[b] == label
        )

    def holds(self, label: int, labels: list, options: ScoringOptions) -> bool:
        enough = labels.count(label) >= max(1, options.merge_min_nodes)
        return enough and self.run_nm(label, labels) >= options.merge_min_nm

    def classes(self, merging: set) -> list[str]:
        found = []
        for a, b in self.edges:
            u, v = self.labels[a], self.labels[b]
            kind = "omit" if not u or not v else "split" if u != v else "correct"
            found.append("merged" if kind == "correct" and u in merging else kind)
        return found

    def squares(self, merging: set, size) -> float:
        total = 0.0
        for piece in self.components():
            if self.labels[next(iter(piece))] not in merging:
                total += sum(size(e) for e in self.edges if set(e) <= piece) ** 2
        return total

    def total_nm(self) -> float:
        return math.fsum(map(self.length, self.edges))


def holders(refs: list, options: ScoringOptions, raw: bool) -> dict:
    """Merging label -> indices of the skeletons it is on."""
    rows = [r.raw if raw else r.labels for r in refs]
    found = {}
    for label in {v for row in rows for v in row} - {0}:
        on = {i for i, r in enumerate(refs) if r.holds(label, rows[i], options)}
        if len(on) > 1:
            found[label] = on
    return found


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def expected(refs: list, chosen: list[int], options: ScoringOptions) -> dict:
    """The measures over the chosen skeletons; merges are found among all."""
    on, ffn = holders(refs, options, raw=False), holders(refs, options, raw=True)
    refs_in = [refs[i] for i in chosen]
    kinds = [kind for r in refs_in for kind in r.classes(set(on))]
    edges, length = len(kinds), math.fsum(r.total_nm() for r in refs_in)
    splits = [r.splits() for r in refs_in]
    squares = [r.squares(set(on), lambda e: 1) for r in refs_in]
    squares_nm = [r.squares(set(on), r.length) for r in refs_in]
    ffn_squares = [
        sum(r.run_nm(v, r.raw) ** 2 for v in set(r.raw) - {0} - set(ffn)) for r in refs_in
    ]
    if len(chosen) == len(refs):
        merges = sum(len(s) - 1 for s in on.values())
        pairs = {pair for s in on.values() for pair in combinations(sorted(s), 2)}
        labels = len(on)
    else:
        mine = [s for s in on.values() if chosen[0] in s]
        merges, labels = sum(len(s) - 1 for s in mine), len(mine)
        pairs = {other for s in mine for other in s if other != chosen[0]}
    return {
        "edges": edges,
        **{f"{k}_edges": kinds.count(k) for k in ("correct", "omit", "split", "merged")},
        **{f"pct_{k}": share(100 * kinds.count(k), edges) for k in ("omit", "split", "merged")},
        "edge_accuracy": 100 - share(100 * (kinds.count("omit") + kinds.count("merged")), edges)
        if edges else 0,
        "edge_accuracy_strict": share(100 * kinds.count("correct"), edges),
        "splits": sum(splits),
        "splits_per_neuron": sum(
            share(len(r.edges), edges) * s for r, s in zip(refs_in, splits, strict=True)
        ),
        "merges_total": merges,
        "merging_labels": labels,
        "merged_pairs": len(pairs),
        "merged_components": sum(
            r.labels[next(iter(p))] in on for r in refs_in for p in r.components()
        ),
        "erl": sum(
            share(len(r.edges), edges) * share(s, len(r.edges))
            for r, s in zip(refs_in, squares, strict=True)
        ),
        "nerl": sum(
            share(len(r.edges), edges) * share(s, len(r.edges) ** 2)
            for r, s in zip(refs_in, squares, strict=True)
        ),
        "erl_nm": sum(
            share(r.total_nm(), length) * share(s, r.total_nm())
            for r, s in zip(refs_in, squares_nm, strict=True)
        ),
        "nerl_nm": sum(
            share(r.total_nm(), length) * share(s, r.total_nm() ** 2)
            for r, s in zip(refs_in, squares_nm, strict=True)
        ),
        "ffn_erl_nm": share(sum(ffn_squares), length),
        "ffn_nerl_nm": share(sum(ffn_squares), sum(r.total_nm() ** 2 for r in refs_in)),
        "split_rate_nm": length / sum(splits) if sum(splits) else None,
        "merge_rate_nm": length / merges if merges else None,
        "run_length_nm": length,
        "ambiguous_nodes": sum(r.ambiguous for r in refs_in),
        "repaired_nodes": sum(r.repaired for r in refs_in),
        "out_of_bounds_nodes": 0,
    }  # fmt: skip


def assert_close(row: dict, wanted: dict) -> None:
    assert row.keys() == wanted.keys()
    for key, value in wanted.items():
        if value is None or isinstance(row[key], int):
            assert row[key] == value, key
        else:
            assert row[key] == pytest.approx(value, rel=1e-12, abs=1e-12), key


@settings(deadline=None, max_examples=400)
@given(CASES, OPTIONS)
def test_scores_equal_their_definitions(case: tuple, options: ScoringOptions) -> None:
    refs = [Reference(s, labels, options) for s, labels in case]
    got = score([s for s, _ in case], [labels for _, labels in case], VOXEL, options)
    for ref, labels in zip(refs, got.node_labels, strict=True):
        assert labels.tolist() == ref.labels
    wanted = expected(refs, list(range(len(refs))), options)
    assert_close(got.overall, wanted)
    for i, name in enumerate(got.per_skeleton):
        row = dict(got.per_skeleton[name])
        if len(refs) > 1:
            wanted = expected(refs, [i], options)
            del wanted["splits_per_neuron"]
            assert_close(row, wanted)
    for row in (got.overall, *got.per_skeleton.values()):
        parts = ("omit_edges", "split_edges", "merged_edges", "correct_edges")
        assert sum(row[part] for part in parts) == row["edges"]


@settings(deadline=None, max_examples=100)
@given(CASES, OPTIONS, st.randoms(use_true_random=False))
def test_order_of_nodes_edges_and_skeletons_leaves_no_trace(case, options, random) -> None:
    plain = score([s for s, _ in case], [labels for _, labels in case], VOXEL, options)
    shuffled = []
    for skeleton, labels in random.sample(case, len(case)):
        new = np.array(random.sample(range(len(labels)), len(labels)))
        old = np.argsort(new)
        edges = [random.sample(e.tolist(), 2) for e in new[skeleton.edges]]
        random.shuffle(edges)
        moved = Skeleton(skeleton.name, skeleton.nodes[old], np.array(edges).reshape(-1, 2))
        shuffled.append((moved, labels[old]))
    again = score([s for s, _ in shuffled], [labels for _, labels in shuffled], VOXEL, options)
    assert json.dumps(again.as_json()) == json.dumps(plain.as_json())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(0, 2**32))
def test_order_of_swc_rows_leaves_no_trace(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.choice(1000, count, replace=False) + 2**62
    parents = [-1] + [
        int(ids[rng.integers(i)]) if rng.random() > 0.1 else -1 for i in range(1, count)
    ]
    points = rng.uniform(0, 12, (count, 3))
    rows = [
        f"{i} 0 {x!r} {y!r} {z!r} 1 {p}"
        for i, (x, y, z), p in zip(ids, points.tolist(), parents, strict=True)
    ]
    volume = rng.integers(0, 4, (12, 12, 12)).astype(np.uint64)
    results = set()
    for order in (np.arange(count), rng.permutation(count), rng.permutation(count)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "neuron.swc"
            path.write_text("\n".join(rows[i] for i in order))
            (skeleton,) = read_skeletons(path, SwcOptions(voxel_size_nm=VOXEL))
        at = np.floor(skeleton.nodes).astype(int)
        labels = volume[at[:, 0], at[:, 1], at[:, 2]]
        results.add(json.dumps(score([skeleton], [labels], VOXEL).as_json()))
    assert len(results) == 1
