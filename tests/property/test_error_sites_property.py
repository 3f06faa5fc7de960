"""Sites of errors on random forests: against plain definitions, the scores, and renumbering."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.error_site_tracings import SWC_TYPES, trace_sites
from pipeline.arrays.error_sites import KINDS, Sites, find_sites
from pipeline.arrays.metrics import OMIT, Scores, ScoringOptions, build_forest, score
from pipeline.arrays.skeleton import Skeleton

VOXEL = (40.0, 9.0, 7.0)
Case = list[tuple[Skeleton, np.ndarray]]

OPTIONS = [
    ScoringOptions(),
    ScoringOptions(repair=False),
    ScoringOptions(max_gap_nm=40.0),
    ScoringOptions(merge_min_nodes=2, repair=False),
    ScoringOptions(merge_min_nm=33.17),
]


def draw_case(seed: int, most_nodes: int) -> Case:
    """One to five forests; no two nodes of one share a place, lengths often tie."""
    rng = np.random.default_rng(seed)
    labels = int(rng.integers(1, 7))
    grid = np.array(list(product(range(3), range(9), range(9))), np.float64)
    names = rng.permutation(list("abcdefgh"))[: rng.integers(1, 6)].tolist()
    case = []
    for name in names:
        count = int(rng.integers(1, most_nodes + 1))
        nodes = grid[rng.permutation(len(grid))[:count]] + rng.choice([0.0, 0.25])
        reach = int(rng.choice([1, 3, count]))
        roots = rng.choice([0.0, 0.15])
        edges = [
            (i, int(rng.integers(max(0, i - reach), i)))
            for i in range(1, count)
            if rng.random() >= roots
        ]
        values = rng.integers(1, labels + 1, count)
        for i, parent in edges:  # runs of equal labels
            if rng.random() < 0.6:
                values[i] = values[parent]
        values[rng.random(count) < rng.choice([0.0, 0.3, 0.6, 1.0])] = 0
        skeleton = Skeleton(name, nodes, np.array(edges, np.int64).reshape(-1, 2))
        case.append((skeleton, values.astype(np.uint64)))
    return case


def evaluate(case: Case, options: ScoringOptions) -> tuple[Sites, Scores]:
    skeletons = [skeleton for skeleton, _ in case]
    scores = score(skeletons, [labels for _, labels in case], VOXEL, options)
    forests = [build_forest(skeleton, VOXEL) for skeleton in skeletons]
    return find_sites(skeletons, forests, scores, VOXEL), scores


def cases(most_nodes: int) -> st.SearchStrategy[Case]:
    return st.builds(draw_case, st.integers(0, 2**32), st.just(most_nodes))


def rows_of(sites: Sites, kind: str, number: int | None = None) -> list[int]:
    chosen = sites.kind == KINDS.index(kind)
    if number is not None:
        chosen &= sites.neuron_a == number
    return np.flatnonzero(chosen).tolist()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=cases(40), options=st.sampled_from(OPTIONS))
def test_counts_and_lengths_agree_with_the_scores(case, options):
    sites, scores = evaluate(case, options)
    assert len(rows_of(sites, "merge")) == scores.overall["merges_total"]
    for number, (skeleton, _) in enumerate(case):
        splits = rows_of(sites, "split", number)
        assert len(splits) == scores.per_skeleton[skeleton.name]["splits"]
        direct = sites.edge[splits][sites.edge[splits] >= 0]
        assert len(set(direct.tolist())) == len(direct)
        assert len(direct) == scores.per_skeleton[skeleton.name]["split_edges"]
        omissions = rows_of(sites, "omission", number)
        omitted = scores.edge_classes[number] == OMIT
        length = math.fsum(skeleton.edge_lengths_nm(VOXEL)[omitted])
        assert math.fsum(sites.cable_nm[omissions]) == pytest.approx(length, rel=1e-12)
        background = int((scores.node_labels[number] == 0).sum())
        assert sites.background_nodes[omissions].sum() == background
        mine = (sites.neuron_a == number) | (sites.neuron_b == number)
        merged = {int(label) for label in sites.label_a[mine & (sites.kind == 1)]}
        assert len(merged) == scores.per_skeleton[skeleton.name]["merging_labels"]


def renumbered(case: Case, rng: np.random.Generator) -> tuple[Case, list[np.ndarray], list[int]]:
    """The same case in another order; by new skeleton the old index of each node and edge."""
    turned, olds = [], []
    order = rng.permutation(len(case)).tolist()
    for number in order:
        skeleton, labels = case[number]
        new = rng.permutation(len(labels))
        old = np.argsort(new)
        edge_order = rng.permutation(len(skeleton.edges))
        edges = rng.permuted(new[skeleton.edges[edge_order]], axis=1)
        turned.append((Skeleton(skeleton.name, skeleton.nodes[old], edges), labels[old]))
        olds.append((old, edge_order))
    return turned, olds, order


@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=cases(30), options=st.sampled_from(OPTIONS), seed=st.integers(0, 1000))
def test_renumbering_changes_nothing_but_indices(case, options, seed):
    sites, _ = evaluate(case, options)
    turned, olds, order = renumbered(case, np.random.default_rng(seed))
    again, _ = evaluate(turned, options)
    assert len(again) == len(sites)
    indices = ("neuron_a", "neuron_b", "node_a", "node_b", "node", "edge")
    for field in fields(Sites)[1:]:
        if field.name not in indices:
            np.testing.assert_array_equal(getattr(again, field.name), getattr(sites, field.name))
    for row in range(len(sites)):
        a, b = again.neuron_a[row], again.neuron_b[row]
        assert (order[a], order[b]) == (sites.neuron_a[row], sites.neuron_b[row])
        for name, neuron, what in (
            ("node_a", a, 0), ("node_b", b, 0), ("node", a, 0), ("edge", a, 1),
        ):  # fmt: skip
            value = int(getattr(again, name)[row])
            mapped = olds[neuron][what][value] if value >= 0 else -1
            assert mapped == getattr(sites, name)[row], name


class Plain:
    """A skeleton by its definition: neighbours, and the one path between two nodes."""

    def __init__(self, skeleton: Skeleton, labels: np.ndarray, components: np.ndarray):
        self.labels, self.components = labels.tolist(), components.tolist()
        self.nodes = skeleton.nodes
        self.length: dict[tuple[int, int], float] = {}
        self.beside: dict[int, list[int]] = defaultdict(list)
        for (a, b), length in zip(
            skeleton.edges.tolist(), skeleton.edge_lengths_nm(VOXEL).tolist(), strict=True
        ):
            self.length[a, b] = self.length[b, a] = length
            self.beside[a].append(b)
            self.beside[b].append(a)

    def path(self, start: int, end: int) -> list[int] | None:
        trail: dict[int, int | None] = {start: None}
        todo = [start]
        while todo:
            node = todo.pop()
            for other in self.beside[node]:
                if other not in trail:
                    trail[other] = node
                    todo.append(other)
        if end not in trail:
            return None
        path, step = [end], trail[end]
        while step is not None:
            path.append(step)
            step = trail[step]
        return path[::-1]

    def measure(self, path: Sequence[int]) -> float:
        return math.fsum(self.length[pair] for pair in pairwise(path))

    def middle(self, path: Sequence[int]) -> np.ndarray:
        left = self.measure(path) / 2
        for a, b in pairwise(path):
            if left <= self.length[a, b]:
                share = left / self.length[a, b]
                return self.nodes[a] + share * (self.nodes[b] - self.nodes[a])
            left -= self.length[a, b]
        return self.nodes[path[-1]]

    def component_nm(self, component: int) -> float:
        return math.fsum(
            length
            for (a, b), length in self.length.items()
            if a < b and self.components[a] == self.components[b] == component
        )

    def stretches(self) -> list[set[int]]:
        left = {n for n, label in enumerate(self.labels) if label == 0}
        found = []
        while left:
            todo, stretch = [left.pop()], set()
            while todo:
                node = todo.pop()
                stretch.add(node)
                new = left.intersection(self.beside[node])
                left -= new
                todo += new
            found.append(stretch)
        return found


def spanning_weights(pairs: list[tuple[float, int, int]]) -> list[float]:
    """The weights of a minimum spanning forest, by Kruskal."""
    team: dict[int, int] = {}
    kept = []
    for weight, a, b in sorted(pairs):
        a, b = team.setdefault(a, a), team.setdefault(b, b)
        if a != b:
            kept.append(weight)
            team = {k: a if t == b else t for k, t in team.items()}
    return sorted(kept)


def plain_skeletons(case: Case, scores: Scores) -> list[Plain]:
    return [
        Plain(skeleton, scores.node_labels[i], scores.components[i])
        for i, (skeleton, _) in enumerate(case)
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(14), options=st.sampled_from(OPTIONS))
def test_splits_are_the_shortest_paths_that_join_components(case, options):
    sites, scores = evaluate(case, options)
    for number, plain in enumerate(plain_skeletons(case, scores)):
        pairs = []
        for a, b in combinations(range(len(plain.labels)), 2):
            path = plain.path(a, b) if plain.labels[a] and plain.labels[b] else None
            if (
                path
                and not any(plain.labels[n] for n in path[1:-1])
                and plain.components[a] != plain.components[b]
            ):
                pairs.append((plain.measure(path), plain.components[a], plain.components[b]))
        rows = rows_of(sites, "split", number)
        assert sorted(sites.gap_nm[rows]) == pytest.approx(spanning_weights(pairs), abs=1e-3)
        for row in rows:
            a, b = int(sites.node_a[row]), int(sites.node_b[row])
            path = plain.path(a, b)
            assert path is not None
            assert not any(plain.labels[n] for n in path[1:-1])
            assert (plain.labels[a], plain.labels[b]) == (sites.label_a[row], sites.label_b[row])
            assert (plain.labels[a], *plain.nodes[a]) < (plain.labels[b], *plain.nodes[b])
            assert sites.gap_nm[row] == pytest.approx(plain.measure(path), abs=1e-3)
            assert sites.background_nodes[row] == len(path) - 2
            np.testing.assert_allclose(sites.position_vox[row], plain.middle(path), atol=1e-4)
            np.testing.assert_array_equal(sites.end_a_vox[row], plain.nodes[a])
            np.testing.assert_array_equal(sites.end_b_vox[row], plain.nodes[b])
            edge = int(sites.edge[row])
            assert (edge >= 0) == (len(path) == 2)
            if edge >= 0:
                assert set(case[number][0].edges[edge].tolist()) == {a, b}
            cable = [plain.component_nm(plain.components[n]) for n in (a, b)]
            assert [sites.cable_a_nm[row], sites.cable_b_nm[row]] == cable
            assert sites.cable_nm[row] == min(cable)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(16), options=st.sampled_from(OPTIONS))
def test_omissions_are_the_stretches_of_background(case, options):
    sites, scores = evaluate(case, options)
    for number, plain in enumerate(plain_skeletons(case, scores)):
        rows = {int(sites.node[row]): row for row in rows_of(sites, "omission", number)}
        stretches = plain.stretches()
        assert len(rows) == len(stretches)
        for stretch in stretches:
            (node,) = stretch & set(rows)
            row = rows[node]
            ends = {n for s in stretch for n in plain.beside[s] if plain.labels[n]}
            reach = {
                s: max(plain.measure(plain.path(s, other)) for other in stretch | ends)
                for s in stretch
            }
            least = min(reach.values())
            middles = [s for s in stretch if reach[s] < least + 1e-3]
            assert node == min(middles, key=lambda n: tuple(plain.nodes[n]))
            np.testing.assert_array_equal(sites.position_vox[row], plain.nodes[node])
            assert sites.background_nodes[row] == len(stretch)
            assert sites.labelled_ends[row] == len(ends)
            assert sites.extent[row] == ["tree", "dangling", "inside"][min(len(ends), 2)]
            omitted = [
                length for (a, b), length in plain.length.items() if a < b and {a, b} & stretch
            ]
            assert sites.cable_nm[row] == math.fsum(omitted)
            best = sorted(
                (-plain.component_nm(plain.components[n]), plain.labels[n], *plain.nodes[n], n)
                for n in ends
            )[:2]
            chosen = sorted((label, z, y, x, n) for _, label, z, y, x, n in best)
            named = [int(n) for n in (sites.node_a[row], sites.node_b[row])]
            assert named == [*(n for *_, n in chosen), -1, -1][:2]
            labels = [int(v) for v in (sites.label_a[row], sites.label_b[row])]
            assert labels == [*(label for label, *_ in chosen), 0, 0][:2]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(case=cases(60), options=st.sampled_from(OPTIONS))
def test_merges_join_the_closest_neurons_of_each_label(case, options):
    sites, scores = evaluate(case, options)
    scale, merges = np.array(VOXEL), scores.merges
    rows = rows_of(sites, "merge")
    for index, label in enumerate(merges.labels):
        numbers = merges.skeleton_index[merges.label_index == index].tolist()
        nodes = {i: np.flatnonzero(scores.node_labels[i] == label) for i in numbers}
        closest = {}
        for i, j in combinations(sorted(numbers), 2):
            a, b = (case[k][0].nodes[nodes[k]] * scale for k in (i, j))
            closest[i, j] = float(np.sqrt(((a[:, None] - b) ** 2).sum(axis=2)).min())
        mine = [row for row in rows if sites.label_a[row] == label]
        expected = spanning_weights([(d, i, j) for (i, j), d in closest.items()])
        assert sorted(sites.gap_nm[mine]) == pytest.approx(expected, abs=1e-9)
        for row in mine:
            assert sites.label_b[row] == label
            i, j = int(sites.neuron_a[row]), int(sites.neuron_b[row])
            assert sites.names[i] < sites.names[j]
            assert sites.gap_nm[row] == pytest.approx(closest[min(i, j), max(i, j)], abs=1e-9)
            ends = [case[i][0].nodes[sites.node_a[row]], case[j][0].nodes[sites.node_b[row]]]
            assert sites.node_a[row] in nodes[i]
            assert sites.node_b[row] in nodes[j]
            np.testing.assert_array_equal(sites.end_a_vox[row], ends[0])
            np.testing.assert_array_equal(sites.end_b_vox[row], ends[1])
            np.testing.assert_array_equal(sites.position_vox[row], (ends[0] + ends[1]) / 2)
            cable = [carried_nm(case[k][0], scores.node_labels[k], label) for k in (i, j)]
            assert [sites.cable_a_nm[row], sites.cable_b_nm[row]] == cable
            assert sites.cable_nm[row] == sum(cable)
    assert len(rows) == sum(1 for row in rows if sites.label_a[row] in merges.labels)


def carried_nm(skeleton: Skeleton, labels: np.ndarray, label: int) -> float:
    both = (labels[skeleton.edges] == label).all(axis=1)
    return math.fsum(skeleton.edge_lengths_nm(VOXEL)[both])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases(16))
def test_tracings_show_each_site_once_on_each_of_its_neurons(case):
    sites, scores = evaluate(case, ScoringOptions())
    skeletons = [skeleton for skeleton, _ in case]
    forests = [build_forest(skeleton, VOXEL) for skeleton in skeletons]
    tracings = trace_sites(skeletons, forests, scores, sites)
    assert [t.skeleton.name for t in tracings] == sorted(t.skeleton.name for t in tracings)
    plain = dict(zip(sites.names, plain_skeletons(case, scores), strict=True))
    for tracing in tracings:
        name = tracing.skeleton.name
        number = sites.names.index(name)
        mine = np.flatnonzero((sites.neuron_a == number) | (sites.neuron_b == number))
        np.testing.assert_array_equal(tracing.sites, mine)
        forest = build_forest(tracing.skeleton, VOXEL)
        tree = forest.by_node(forest.tree)
        lengths = tracing.skeleton.edge_lengths_nm(VOXEL)
        for place, row in enumerate(mine.tolist()):
            members = np.flatnonzero(tree == place)
            kind = KINDS[sites.kind[row]]
            assert set(tracing.skeleton.types[members].tolist()) == {SWC_TYPES[kind]}
            length = math.fsum(lengths[np.isin(tracing.skeleton.edges[:, 0], members)])
            if kind == "omission":
                assert length == sites.cable_nm[row]
                own = int(sites.background_nodes[row] + sites.labelled_ends[row])
                assert len(members) == own
            else:
                assert length == pytest.approx(sites.gap_nm[row], abs=1e-3)
            if kind == "split":
                path = plain[name].path(int(sites.node_a[row]), int(sites.node_b[row]))
                shown = sorted(map(tuple, tracing.skeleton.nodes[members].tolist()))
                assert shown == sorted(map(tuple, plain[name].nodes[path].tolist()))
    shown = {t.skeleton.name for t in tracings}
    assert shown == {sites.names[i] for i in {*sites.neuron_a.tolist(), *sites.neuron_b.tolist()}}
