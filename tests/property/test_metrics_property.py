"""Skeleton metrics against their definitions in plain Python, on random forests."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import ReferenceScores, reference_scores

from pipeline.arrays.metrics import Scores, ScoringOptions, score
from pipeline.arrays.skeleton import Skeleton
from pipeline.storage.swc import SwcOptions, read_skeletons

VOXEL = (40.0, 9.0, 7.0)
Case = Sequence[tuple[Skeleton, np.ndarray]]

OPTIONS = [
    ScoringOptions(),
    ScoringOptions(repair=False),
    ScoringOptions(max_gap_nm=0.0),
    ScoringOptions(max_gap_nm=51.37),
    ScoringOptions(max_gap_nm=103.71),
    ScoringOptions(merge_min_nodes=2),
    ScoringOptions(merge_min_nodes=4, max_gap_nm=211.13),
    ScoringOptions(merge_min_nodes=9),
    ScoringOptions(merge_min_nodes=15),
    ScoringOptions(merge_min_nm=33.17),
    ScoringOptions(merge_min_nm=211.13),
    ScoringOptions(merge_min_nodes=3, merge_min_nm=97.7, repair=False),
]


@st.composite
def forests(draw: st.DrawFn, name: str) -> tuple[Skeleton, np.ndarray]:
    count = draw(st.integers(1, 14))
    roots = draw(st.sampled_from([0.0, 0.1, 0.4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    parents = [-1] + [-1 if rng.random() < roots else int(rng.integers(i)) for i in range(1, count)]
    if draw(st.booleans()):  # long paths
        parents = [-1] + [p if p < 0 else i for i, p in enumerate(parents[1:])]
    nodes = rng.integers(0, 8, (count, 3)) + rng.choice([0.0, 0.25, 0.5], (count, 3))
    labels = rng.integers(0, draw(st.integers(1, 5)), count)
    labels[rng.random(count) < draw(st.sampled_from([0.0, 0.3, 0.6]))] = 0
    return shuffled(as_skeleton(name, nodes, parents), labels.astype(np.uint64), rng)


def as_skeleton(name: str, nodes: np.ndarray, parents: list[int]) -> Skeleton:
    edges = [(i, p) for i, p in enumerate(parents) if p >= 0]
    return Skeleton(name, nodes, np.array(edges, np.int64).reshape(-1, 2))


def shuffled(
    skeleton: Skeleton, labels: np.ndarray, rng: np.random.Generator
) -> tuple[Skeleton, np.ndarray]:
    """The same tracing with its nodes renumbered, its edges reordered and some of them turned."""
    new = rng.permutation(len(labels))
    old = np.argsort(new)
    edges = rng.permutation(rng.permuted(new[skeleton.edges], axis=1), axis=0)
    return Skeleton(skeleton.name, skeleton.nodes[old], edges), labels[old]


def draw_neurons(seed: int) -> Case:
    """One to five neurons of up to 150 nodes, labelled as segmentations err.

    Each neuron has a label of its own and runs of others along its branches: gaps at which the
    label comes back, gaps at which it does not, fragments, and labels of other neurons.
    """
    rng = np.random.default_rng(seed)
    errors = rng.choice([0.0, 0.03, 0.1, 0.3])
    count = int(rng.integers(1, 6))
    return [
        shuffled(*draw_neuron(rng, number, count, errors), rng)
        for number in rng.permutation(count).tolist()
    ]


def draw_neuron(
    rng: np.random.Generator, number: int, count: int, errors: float
) -> tuple[Skeleton, np.ndarray]:
    size = int(rng.choice([1, 2, rng.integers(3, 40), rng.integers(40, 151)]))
    branching, roots = rng.choice([0.0, 0.03, 0.3]), rng.choice([0.0, 0.0, 0.03])
    own = 2**63 + 10 * number
    nodes, parents = np.zeros((size, 3)), []
    labels, before = [], []  # `before` is the label that a gap interrupts
    for i in range(size):
        fresh = i == 0 or rng.random() < roots
        parent = -1 if fresh else int(rng.integers(i)) if rng.random() < branching else i - 1
        parents.append(parent)
        if parent < 0:
            nodes[i] = rng.uniform(0, 60, 3)
            labels.append(own if rng.random() > errors else 0)
            before.append(own)
            continue
        nodes[i] = nodes[parent] + rng.normal(size=3)
        label, last = labels[parent], before[parent]
        if label == 0 and rng.random() < 0.3:
            label = last if rng.random() < 0.5 else own + int(rng.integers(2))
        elif rng.random() < errors:
            other = 2**63 + 10 * int(rng.integers(count))
            label = [0, 0, own, own + int(rng.integers(10)), other][int(rng.integers(5))]
        labels.append(label)
        before.append(label or last)
    if errors:
        contest(labels, parents, own)
    if rng.random() < 0.05:
        labels = [0] * size
    return as_skeleton(f"n{number}", nodes, parents), np.array(labels, np.uint64)


def contest(labels: list[int], parents: list[int], own: int) -> None:
    """Make background nodes that two labels claim, where a node has four neighbours or more."""
    for node, above in enumerate(parents):
        around = [i for i, p in enumerate(parents) if p == node or i == above]
        if len(around) >= 4 and all(labels[i] for i in around):
            labels[node] = 0
            for number, other in enumerate(around):
                labels[other] = own + number % 2


def scores_of(case: Case, options: ScoringOptions, outside: list[int] | None = None) -> Scores:
    return score([s for s, _ in case], [values for _, values in case], VOXEL, options, outside)


def reference_of(
    case: Case, options: ScoringOptions, outside: list[int] | None = None
) -> ReferenceScores:
    rows = [values.tolist() for _, values in case]
    return reference_scores(
        [s for s, _ in case], rows, VOXEL, out_of_bounds=outside, **asdict(options)
    )


def assert_equal(got: Scores, wanted: ReferenceScores) -> None:
    assert [row.tolist() for row in got.node_labels] == wanted.node_labels
    assert_close(got.overall, wanted.overall)
    assert got.per_skeleton.keys() == wanted.per_skeleton.keys()
    for name, row in got.per_skeleton.items():
        assert_close(row, wanted.per_skeleton[name])
    for row in (got.overall, *got.per_skeleton.values()):
        parts = ("omit_edges", "split_edges", "merged_edges", "correct_edges")
        assert sum(row[part] for part in parts) == row["edges"]


def assert_close(row: dict, wanted: dict) -> None:
    assert row.keys() == wanted.keys()
    for key, value in wanted.items():
        if value is None or isinstance(row[key], int):
            assert row[key] == value, key
        else:
            assert row[key] == pytest.approx(value, rel=1e-12, abs=1e-11), key


CASES = st.integers(1, 4).flatmap(lambda n: st.tuples(*(forests(f"s{i}") for i in range(n))))


@settings(deadline=None, max_examples=400, derandomize=True)
@given(CASES, st.sampled_from(OPTIONS), st.data())
def test_scores_equal_their_definitions(
    case: Case, options: ScoringOptions, data: st.DataObject
) -> None:
    outside = data.draw(st.lists(st.integers(0, 9), min_size=len(case), max_size=len(case)))
    assert_equal(scores_of(case, options, outside), reference_of(case, options, outside))


@pytest.mark.parametrize("block", range(9))
def test_scores_of_neurons_equal_their_definitions(block: int) -> None:
    for seed in range(40 * block, 40 * block + 40):
        case, options = draw_neurons(seed), OPTIONS[seed % len(OPTIONS)]
        assert_equal(scores_of(case, options), reference_of(case, options))


def test_the_drawn_neurons_hold_every_kind_of_error() -> None:
    """Else the comparison above could pass without having looked."""
    seen: dict[str, int] = defaultdict(int)
    for seed in range(120):
        row = scores_of(draw_neurons(seed), ScoringOptions()).overall
        for key, value in row.items():
            seen[key] += value is not None and value != 0
    seldom = {key for key in seen if seen[key] < 15} - {"out_of_bounds_nodes"}
    assert not seldom


@settings(deadline=None, max_examples=100, derandomize=True)
@given(CASES, st.sampled_from(OPTIONS), st.integers(0, 2**32))
def test_order_of_nodes_edges_and_skeletons_leaves_no_trace(
    case: Case, options: ScoringOptions, seed: int
) -> None:
    assert_no_trace(case, options, np.random.default_rng(seed))


def test_order_leaves_no_trace_in_neurons() -> None:
    for seed in range(120):
        rng = np.random.default_rng(seed)
        assert_no_trace(draw_neurons(1000 + seed), OPTIONS[seed % len(OPTIONS)], rng)


def assert_no_trace(case: Case, options: ScoringOptions, rng: np.random.Generator) -> None:
    plain = json.dumps(scores_of(case, options).as_json())
    for _ in range(2):
        again = [shuffled(*case[i], rng) for i in rng.permutation(len(case))]
        assert json.dumps(scores_of(again, options).as_json()) == plain


def test_layout_of_the_arrays_leaves_no_trace() -> None:
    for seed in range(20):
        case = draw_neurons(2000 + seed)
        strided = []
        for s, values in case:
            nodes = np.repeat(s.nodes, 2, axis=0)[::2, ::-1].copy(order="F")[:, ::-1]
            edges = np.asfortranarray(np.repeat(s.edges, 3, axis=0))[::3]
            strided.append((Skeleton(s.name, nodes, edges), np.repeat(values, 2)[::2]))
        plain, again = (scores_of(c, ScoringOptions()).as_json() for c in (case, strided))
        assert json.dumps(again) == json.dumps(plain)


@pytest.mark.parametrize("seed", range(30))
def test_order_of_swc_rows_and_the_choice_of_roots_leave_no_trace(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    parents = [-1] + [int(rng.integers(i)) if rng.random() > 0.1 else -1 for i in range(1, count)]
    points = rng.uniform(0, 12, (count, 3))
    volume = rng.integers(0, 4, (12, 12, 12)).astype(np.uint64)
    results, rooted = set(), set()
    for attempt in range(4):
        rows = parents if attempt == 0 else rerooted(parents, rng)
        rooted.add(tuple(rows))
        path = tmp_path / f"{attempt}" / "neuron.swc"
        path.parent.mkdir()
        path.write_text(swc_text(points, rows, rng))
        (skeleton,) = read_skeletons(path, SwcOptions(voxel_size_nm=VOXEL))
        at = np.floor(skeleton.nodes).astype(int)
        labels = volume[at[:, 0], at[:, 1], at[:, 2]]
        results.add(json.dumps(score([skeleton], [labels], VOXEL).as_json()))
    assert len(results) == 1
    assert count < 4 or len(rooted) > 1


def swc_text(points: np.ndarray, parents: list[int], rng: np.random.Generator) -> str:
    """The rows in any order, with any numbers."""
    ids = rng.choice(1000, len(points), replace=False) + 2**62
    rows = [
        f"{ids[i]} 0 {x!r} {y!r} {z!r} 1 {-1 if parents[i] < 0 else ids[parents[i]]}"
        for i, (x, y, z) in enumerate(points.tolist())
    ]
    return "\n".join(rng.permutation(rows))


def rerooted(parents: list[int], rng: np.random.Generator) -> list[int]:
    """The parents when other nodes are the roots of the same trees."""
    near = defaultdict(set)
    for i, p in enumerate(parents):
        if p >= 0:
            near[i].add(p)
            near[p].add(i)
    result: dict[int, int] = {}
    for root in rng.permutation(len(parents)).tolist():
        todo = [] if root in result else [(root, -1)]
        while todo:
            node, above = todo.pop()
            result[node] = above
            todo += [(other, node) for other in near[node] if other != above]
    return [result[i] for i in range(len(parents))]
